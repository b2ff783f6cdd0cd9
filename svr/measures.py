"""What a story's embedding holds, in numbers and texts to draw: each token's part, its gain, how far frames differ."""

import codecs
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..story.parts import EOT, IDENTITY, SOT, Line, Part
from ..story.script import numbered
from .encoders import name_of
from .record import Record, Row, shift, token_norms, words

EMBEDDING = "⟨embedding⟩ "

# CLIP's vocabulary writes each byte as one visible character: the printable ones as themselves.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in PRINTABLE}
ENDS_WORD = "</w>"
SPACES = ("\u0120", "\u2581")
"""A space before a word: of byte-level vocabularies, and of SentencePiece."""
BYTES |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in PRINTABLE)}


def token_texts(tokens: Sequence[int | None], entry: Callable[[int], str]) -> tuple[str, ...]:
    """What the tokens read as, a space after the end of each word; None is a vector of a textual inversion.

    `entry` gives a token's entry in its vocabulary. CLIP's entries mark the end of a word, those of other byte-level
    vocabularies and of SentencePiece the space before it. A character that is cut between tokens stands with the last.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    words = [EMBEDDING if token is None else entry(token) for token in tokens]
    texts = []
    for token, word, following in zip(tokens, words, [*words[1:], ""]):
        if token is None:
            texts.append(word)
            continue
        end = word.endswith(ENDS_WORD) or following.startswith(SPACES)
        bare = word.removesuffix(ENDS_WORD).lstrip("".join(SPACES))
        # SentencePiece writes characters as themselves.
        own = bytes(BYTES[c] for c in bare) if all(c in BYTES for c in bare) else bare.encode()
        texts.append(decoder.decode(own, final=end) + " " * end)
    return tuple(texts)


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
