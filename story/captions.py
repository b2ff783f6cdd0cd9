"""Captions: those that a board is given instead of a story's."""

from collections.abc import Sequence

from .script import CAPTION, clean, unescape
from .syntax import clean_lines


def replace_captions(captions: Sequence[str], text: str) -> list[str]:
    """`captions` with the lines of `text` in the place of the first ones; an empty line keeps the story's.

    A line is written as in a Story Script: a `#` in front may stand or not, alone it means no caption, and `\\#` is a
    plain `#`. Raises `ValueError` for more lines than captions.
    """
    lines = clean_lines(text)
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) > len(captions):
        raise ValueError(
            f"own_captions has {len(lines)} lines and the story {len(captions)} "
            f"{'frame' if len(captions) == 1 else 'frames'}: write one line for each frame, an empty one to keep the "
            "story's caption."
        )
    own = [unescape(clean(CAPTION.sub("", line, count=1))) if CAPTION.match(line) else unescape(line) for line in lines]
    return [mine if line else theirs for line, mine, theirs in zip(lines, own, captions)] + [*captions[len(lines) :]]
