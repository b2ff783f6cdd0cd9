"""A stretch of tokens or channels."""

from typing import NamedTuple


class Span(NamedTuple):
    """Token positions `start` to `stop`, `stop` excluded."""

    start: int
    stop: int
