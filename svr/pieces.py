"""A story's texts as tokens, one by one."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ..story.script import quote
from .encoders import Slot, TextEncoder, Token, Tokenize, text_tokens

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
    white space, which some count to the word after it."""

    def __init__(self, tokenize: Tokenize, seats: Sequence[Seat]):
        self.tokenize = tokenize
        self.seats = seats
        self.known: dict[tuple[str, bool], Piece] = {}

    def of(self, text: str, first: bool = True) -> Piece:
        if (text, first) not in self.known:
            self.known[text, first] = {
                seat.encoder.key: piece_of(self.tokenize, text, first, *seat) if text else [] for seat in self.seats
            }
        return self.known[text, first]

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
