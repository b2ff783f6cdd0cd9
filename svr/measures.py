"""What a story's embedding holds, in numbers and texts to draw: each token's part, its gain, how far frames differ."""

import codecs
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..story.parts import EOT, IDENTITY, SOT, Line, Part
from .record import Record, Row, token_norms

EMBEDDING = "⟨embedding⟩ "

# CLIP's vocabulary writes each byte as one visible character: the printable ones as themselves.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in PRINTABLE}
BYTES |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in PRINTABLE)}


def token_texts(tokens: Sequence[int | None], entry: Callable[[int], str]) -> tuple[str, ...]:
    """What the tokens read as, a space after the end of each word; None is a vector of a textual inversion.

    `entry` gives a token's entry in CLIP's vocabulary. A character that is cut between tokens stands with the last.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = []
    for token in tokens:
        word = EMBEDDING if token is None else entry(token)
        if token is not None:
            end = word.endswith("</w>")
            word = decoder.decode(bytes(BYTES[c] for c in word.removesuffix("</w>")), final=end) + " " * end
        texts.append(word)
    return tuple(texts)


def gains(embeds: Tensor, record: Record, norms: Tensor) -> Tensor:
    """By how much every token's vector has grown since it had these `norms`: [rows, encoders, tokens], as they are."""
    return token_norms(embeds, record).cpu() / norms.cpu()


def distances(embeds: Tensor) -> Tensor:
    """Cosine distance between the rows of [rows, tokens, channels]: [rows, rows], 0 for equal ones."""
    x = torch.nn.functional.normalize(embeds.flatten(1).double(), dim=1)
    return (1 - x @ x.T).clamp(min=0).fill_diagonal_(0).cpu()


def lines_of(embeds: Tensor, record: Record, norms: Tensor) -> list[Line]:
    """For each row its frame and, for each encoder and token, role and gain."""
    encoders = range(len(record.encoders))
    return [
        Line(row.frame, tuple(roles(row, e, record.tokens) for e in encoders), gain.numpy())
        for row, gain in zip(record.rows, gains(embeds, record, norms))
    ]


def roles(row: Row, encoder: int, tokens: int) -> tuple[int, ...]:
    """For each token the number of the frame it belongs to, or SOT, IDENTITY or EOT."""
    found = [SOT] * tokens
    for role in (IDENTITY, *row.window, EOT):
        start, stop = row.span(role, encoder)
        found[start:stop] = [role] * (stop - start)
    return tuple(found)


def parts_of(record: Record) -> list[Part]:
    """The texts of the story: each identity, followed by the frame prompts that stand with it; first those alone.

    Where the encoders split a part differently, it is given as the one that sees most of it does.
    """
    parts: dict[tuple[str, ...], dict[int, Part]] = {}
    for row in record.rows:
        characters = record.characters[row.frame]
        group = parts.setdefault(characters, {})
        for role in (IDENTITY, *row.window):
            texts = [text[slice(*row.span(role, e))] for e, text in enumerate(row.texts)]
            group.setdefault(role, Part(role, max(texts, key=len), characters))
    groups = [parts[characters] for characters in sorted(parts, key=bool)]
    return [part for group in groups for _, part in sorted(group.items()) if part.tokens]
