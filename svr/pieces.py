"""A story's texts as tokens, one by one."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ..story.script import quote
from .encoders import Slot, TextEncoder, Token, Tokenize, text_tokens
from .pictures import stacked
from .spans import Span

Piece = dict[str, list[Token]]
"""For each encoder, the tokens of one piece of a prompt, without SOT, EOT and padding."""


class Seat(NamedTuple):
    """An encoder and its slot."""

    encoder: TextEncoder
    slot: Slot

    @property
    def most(self) -> int:
        """The most tokens of text in one prompt."""
        if self.encoder.most is not None:
            return self.encoder.most
        return self.slot.least - len(self.slot.before) - len(self.slot.after)


class Pieces:
    """The tokens of a story's texts. A text's tokens are the same alone and in a joined prompt: encoders split words at
    white space, which some count to the word after it.

    With a `mark`, a word that is one token, the word before marks is there once for each of them, and they are not.
    """

    def __init__(self, tokenize: Tokenize, seats: Sequence[Seat], mark: str = ""):
        self.tokenize = tokenize
        self.seats = seats
        self.marks = {seat.encoder.key: piece_of(tokenize, mark, True, *seat)[0][0] if mark else None for seat in seats}
        self.known: dict[tuple[str, bool], Piece] = {}
        self.slots: dict[tuple[str, bool], dict[str, list[Span]]] = {}

    def of(self, text: str, first: bool = True) -> Piece:
        if (text, first) not in self.known:
            piece: Piece = {}
            slots: dict[str, list[Span]] = {}
            for seat in self.seats:
                key = seat.encoder.key
                tokens = piece_of(self.tokenize, text, first, *seat) if text else []
                mark = self.marks[key]
                piece[key], slots[key] = (tokens, []) if mark is None else stacked(tokens, mark)
            self.known[text, first], self.slots[text, first] = piece, slots
        return self.known[text, first]

    def slots_of(self, text: str, first: bool = True) -> dict[str, list[Span]]:
        """For each encoder, where a text's tokens have a marked word."""
        self.of(text, first)
        return self.slots[text, first]

    def after(self, identity: str, text: str) -> Piece:
        """A frame prompt's tokens behind those of its identity, if it has one."""
        return self.of(text, first=not identity)

    def following(self, identity: str, texts: Sequence[str]) -> list[Piece]:
        """The tokens of frame prompts that follow each other behind their identity, if they have one."""
        return [self.of(text, first=not (identity or n)) for n, text in enumerate(texts)]


def piece_of(tokenize: Tokenize, text: str, first: bool, encoder: TextEncoder, slot: Slot) -> list[Token]:
    tokens = text_tokens(tokenize, text if first or not encoder.spaced else f" {text}", encoder, slot)
    fitting = [t for t in tokens if not hasattr(t[0], "shape") or t[0].shape[-1] == encoder.width]
    if len(fitting) < len(tokens):
        logging.warning("OneStory: an embedding in %s is not made for %s, which ignores it.", quote(text), encoder.name)
    return fitting
