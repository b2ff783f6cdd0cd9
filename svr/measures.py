"""What a story's embedding holds, in numbers and texts to draw: each token's part, its gain, how far frames differ."""

import codecs
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..story.parts import EOT, IDENTITY, SOT, Line, Part
from ..story.script import numbered
from .encoders import name_of
from .record import Record, Row, shift, token_norms, words

EMBEDDING = "‹embedding› "

# CLIP's vocabulary writes each byte as one visible character: the printable ones as themselves.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in PRINTABLE}
ENDS_WORD = "</w>"
ENDS_TEXT = ("<|endoftext|>", "</s>")
SPACES = ("\u0120", "\u2581")
"""A space before a word: of byte-level vocabularies, and of SentencePiece."""
BYTE = re.compile("<0x([0-9A-F]{2})>")
"""SentencePiece's entry for one byte of a character that it does not have."""
SHORT = {"<|startoftext|>": "SOT", "<|endoftext|>": "EOT"}
"""CLIP's tokens by the papers' names."""
BYTES |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in PRINTABLE)}


def token_texts(tokens: Sequence[int | None], vocabulary: Mapping[int, str]) -> tuple[str, ...]:
    """What the tokens read as, a space after the end of each word; None is a vector of a textual inversion.

    CLIP's vocabulary marks the end of a word, other byte-level ones and SentencePiece's the space before it. A
    character that is cut between tokens stands with the last.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    as_bytes = bytes_of if SPACES[1] in vocabulary.values() else byte_level
    words = [EMBEDDING if token is None else vocabulary[token] for token in tokens]
    texts = []
    for token, word, following in zip(tokens, words, [*words[1:], ""]):
        if token is None:
            texts.append(word)
            continue
        end = word.endswith(ENDS_WORD) or following.startswith(SPACES)
        bare = word.removesuffix(ENDS_WORD).lstrip("".join(SPACES))
        texts.append(decoder.decode(as_bytes(bare), final=end) + " " * end)
    return tuple(texts)


def byte_level(word: str) -> bytes:
    """A byte-level vocabulary's word; its control tokens may be in other characters."""
    return bytes(BYTES[c] for c in word) if all(c in BYTES for c in word) else word.encode()


def bytes_of(word: str) -> bytes:
    """SentencePiece's word."""
    byte = BYTE.fullmatch(word)
    return bytes([int(byte[1], 16)]) if byte else word.encode()


def gains(embeds: Tensor, record: Record, norms: Tensor) -> Tensor:
    """By how much every token's vector has grown since it had these `norms`: [rows, encoders, tokens], as they are.

    1 for the zeros that some encoders pad with.
    """
    now, before = token_norms(embeds, record).cpu(), norms.cpu()
    return torch.where((now == 0) & (before == 0), 1.0, now / before)


def distances(embeds: Tensor) -> Tensor:
    """Cosine distance between the rows of [rows, tokens, channels]: [rows, rows], 0 for equal ones."""
    x = torch.nn.functional.normalize(embeds.flatten(1).double(), dim=1)
    return (1 - x @ x.T).clamp(min=0).fill_diagonal_(0).cpu()


def lines_of(embeds: Tensor, record: Record, norms: Tensor) -> list[Line]:
    """For each row its frame and, for each encoder and token, role and gain."""
    encoders = range(len(record.encoders))
    return [
        Line(
            row.frame,
            tuple(roles(row, e, record.tokens)[slice(*record.encoders[e].tokens)] for e in encoders),
            [gain[e, slice(*record.encoders[e].tokens)].numpy() for e in encoders],
        )
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
            texts = [
                text[slice(*shift(row.span(role, e), -record.encoders[e].tokens.start))]
                for e, text in enumerate(row.texts)
            ]
            group.setdefault(role, Part(role, max(texts, key=len), characters))
    groups = [parts[characters] for characters in sorted(parts, key=bool)]
    return [part for group in groups for _, part in sorted(group.items()) if part.tokens]


def ends_of(record: Record) -> list[Part]:
    """What stands before and after the prompts' texts in the first encoder: start and end tokens, or its template's.

    Padding is one text with its count, which is a range where rows have unequal ones.
    """
    first = record.encoders[0].tokens.start
    starts: list[tuple[str, ...]] = []
    ends: list[tuple[str, ...]] = []
    counts: list[int] = []
    for row in record.rows:
        spans, texts = row.spans[0], row.texts[0]
        start = texts[: min(span.start for span in (spans.identity, *spans.frames)) - first]
        starts.append(tuple(SHORT.get(text.strip(), text) for text in start if text))
        end, count = without_padding(texts[slice(*shift(spans.eot, -first))])
        ends.append(tuple(SHORT.get(text.strip(), text) for text in end))
        counts.append(count)
    least, most = min(counts), max(counts)
    padding = (f"padding ×{most if least == most else f'{least}–{most}'}",) if most else ()
    parts = Part(SOT, max(starts, key=len), ()), Part(EOT, max(ends, key=len) + padding, ())
    return [part for part in parts if part.tokens]


def without_padding(end: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """The tokens after a text without those that fill it up, and how many these are.

    These are all that follow CLIP's and T5's end token; after a template all at its end that are alike.
    """
    alike = next((n for n, text in enumerate(reversed(end)) if text != end[-1]), len(end))
    kept = len(end) - alike if alike > 1 else len(end)
    if end and end[0].strip() in ENDS_TEXT:
        kept = 1
    return end[:kept], len(end) - kept


def prompt_list(record: Record) -> str:
    """How full the prompts are: “Frames 1–4 in one prompt: 62 of 75 tokens”; frames with prompts alike share a line."""
    lines: dict[tuple[tuple[str, ...], str], list[Row]] = {}
    sharing = Counter(row.window for row in record.rows)
    for row in record.rows:
        others = len(row.window) - 1
        own = f", each with the {others} after it" if others else ", each alone"
        how = " in one prompt" if sharing[row.window] > 1 else own
        lines.setdefault((record.characters[row.frame], how), []).append(row)
    return "\n".join(
        f"{numbered([row.frame for row in rows])}{how if len(rows) > 1 else ''}: {fill_of(record, rows)}"
        for (_, how), rows in lines.items()
    )


def fill_of(record: Record, rows: Sequence[Row]) -> str:
    """The tokens of text of these rows' prompts, in the encoder that is fullest."""
    filled = []
    for e, encoder in enumerate(record.encoders):
        counts = [sum(stop - start for start, stop in words(row.spans[e])) for row in rows]
        filled.append((max(counts) / encoder.most, counts, encoder))
    _, counts, encoder = max(filled, key=lambda found: found[0])
    least = f"{min(counts)} to " if min(counts) < max(counts) else ""
    which = f" of {name_of(encoder.name)}" if len({e.tokens for e in record.encoders}) > 1 else ""
    return f"{least}{max(counts)} of {encoder.most} tokens{which}"
