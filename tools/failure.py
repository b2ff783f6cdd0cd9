"""The one exception that this folder's tools raise for the person at the terminal."""


class Failure(Exception):
    """One sentence: what is wrong, with the value, and what to do."""
