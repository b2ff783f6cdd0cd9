"""What a token of a story's prompt belongs to, and a story's tokens for a person to look at."""

from collections.abc import Sequence
from typing import Any, NamedTuple

SOT, IDENTITY, EOT = -1, -2, -3
"""What is no frame prompt's. A token of a frame prompt belongs to the frame's number, from 0."""


class Part(NamedTuple):
    """The tokens of the identity of `characters`, or of one frame prompt, as text."""

    role: int
    tokens: tuple[str, ...]
    characters: tuple[str, ...]


class Line(NamedTuple):
    """One row of the embedding: the frame it draws; for each encoder, every token's role and gain [tokens]."""

    frame: int
    roles: tuple[tuple[int, ...], ...]
    gains: Sequence[Any]
