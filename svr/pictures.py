"""Pictures in a prompt (PhotoMaker, arXiv 2312.04461; FastComposer, arXiv 2305.10431): fused into class words.

The class word of a character stands in the prompt once for every token of its pictures, and each of these is fused with
one of them after the text encoder, and after whatever reweights words.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .encoders import Token
from .spans import Span

if TYPE_CHECKING:
    from .record import Record


class Pictures(NamedTuple):
    """Image tokens [tokens, channels] by a character's name, and `fuse`, which gives words [n, channels] fused with as
    many of them. `file` is where that comes from, for messages. Up to `start_percent` of the sampling, words alone
    count."""

    file: str
    channels: int
    tokens: Mapping[str, Tensor]
    fuse: Callable[[Tensor, Tensor], Tensor]
    start_percent: float

    @property
    def counts(self) -> dict[str, int]:
        """How many tokens each character has."""
        return {name: len(tokens) for name, tokens in self.tokens.items()}


def stacked(tokens: list[Token], mark: int) -> tuple[list[Token], list[Span]]:
    """A piece's tokens without its marks: of n marks in a row, the token before them stands n times. And where."""
    out: list[Token] = []
    spans: list[Span] = []
    before: object = None
    for token in tokens:
        if not is_mark(token[0], mark):
            out.append(token)
        elif out and is_mark(before, mark):
            out.append(out[-1])
            spans[-1] = Span(spans[-1].start, len(out))
        elif out:
            spans.append(Span(len(out) - 1, len(out)))
        before = token[0]
    return out, spans


def is_mark(token: object, mark: int) -> bool:
    return isinstance(token, int) and token == mark


def fuse_pictures(embeds: Tensor, record: "Record", pictures: Pictures) -> Tensor:
    """`embeds` [rows, tokens, channels] with the pictures of all characters in their class words."""
    out = embeds.clone()
    for tokens in record.token_sets(out):
        for values, row in zip(tokens, record.rows):
            for name, span in record.slots(row):
                words = values[slice(*span)]
                values[slice(*span)] = pictures.fuse(words, pictures.tokens[name])
    return out


def put_words(embeds: Tensor, record: "Record", words: Tensor) -> Tensor:
    """`embeds` [rows, tokens, channels] with the class words of `words`, from before anything was fused with them."""
    out = embeds.clone()
    for tokens, before in zip(record.token_sets(out), record.token_sets(words)):
        for values, own, row in zip(tokens, before, record.rows):
            for _, span in record.slots(row):
                values[slice(*span)] = own[slice(*span)]
    return out
