"""What stands where in a story's text embeddings."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..story.parts import EOT, IDENTITY, SOT
from .pictures import Pictures, fuse_pictures, put_words
from .spans import Span

KEY = "onestory"
"""The key of an `Attached` in a conditioning's dict, and of the run-time's own in `transformer_options`."""


class Spans(NamedTuple):
    """One row's positions in one text encoder, counted in the whole embedding.

    `frames` has one span per frame prompt, in the order of `Row.window`. `eot` is c_EOT: the EOT token and
    every padding position after it.
    """

    identity: Span
    frames: tuple[Span, ...]
    eot: Span
    sot: Span = Span(0, 1)

    def shifted(self, by: int) -> "Spans":
        identity, frames, eot, sot = self
        return Spans(shift(identity, by), tuple(shift(span, by) for span in frames), shift(eot, by), shift(sot, by))


def shift(span: Span, by: int) -> Span:
    return Span(span.start + by, span.stop + by)


class Row(NamedTuple):
    """One row of the embedding: it draws `frame`, from a prompt that holds the frame prompts of `window`.

    `texts` has what each token reads as, for each text encoder, with a space after the end of a word. `subjects` says
    for each text encoder where it has the description of which character: in the identity, and where a frame prompt
    names it again; these are the same ones in all of them, in the order of the prompt. `alone` is the number of its
    identity's tokens in `Attached.alone`. `slots` says for each text encoder where it has the class word of which
    character, as often as that has tokens of its pictures.
    """

    frame: int
    window: tuple[int, ...]
    spans: tuple[Spans, ...]
    texts: tuple[tuple[str, ...], ...] = ()
    subjects: tuple[tuple[tuple[str, Span], ...], ...] = ()
    alone: int = 0
    slots: tuple[tuple[tuple[str, Span], ...], ...] = ()

    @property
    def expressed(self) -> int:
        """Where in `window` the frame prompt stands that this row expresses."""
        return self.window.index(self.frame)

    def shifted(self, by: int) -> "Row":
        """The row with so many tokens before it that are nobody's."""
        spans = tuple(own.shifted(by) for own in self.spans)
        texts = tuple(("",) * by + own for own in self.texts)
        subjects, slots = (
            tuple(tuple((name, shift(span, by)) for name, span in own) for own in named)
            for named in (self.subjects, self.slots)
        )
        return self._replace(spans=spans, texts=texts, subjects=subjects, slots=slots)

    def span(self, part: int, encoder: int) -> Span:
        """Where one text encoder has a part: SOT, IDENTITY, EOT, or a frame of the window by its number."""
        spans = self.spans[encoder]
        named = {SOT: spans.sot, IDENTITY: spans.identity, EOT: spans.eot}
        return named[part] if part in named else spans.frames[self.window.index(part)]


class Between(NamedTuple):
    """A picture between the frames `start` and `end`, at the `share` of the way from one to the other."""

    start: int
    end: int
    share: float


class Encoder(NamedTuple):
    """One text encoder, and which tokens and channels of the embedding are its own.

    In a causal one a token has read those before it only. `scale` is how many times shorter its token vectors are than
    CLIP's, `most` the number of tokens of text that a prompt should not exceed.
    """

    name: str
    tokens: Span
    channels: Span
    causal: bool = True
    scale: float = 1.0
    most: int = 0


class Record(NamedTuple):
    """The map of a story's embedding [rows, tokens, channels]. Frames are numbered from 0.

    `width` is the number of channels where that is more than the encoders use. `interleaved` 2: the embedding has each
    of the `tokens` twice, side by side, as a key and as a value (NegPiP). Pictures `between` frames are numbered after
    all of these, and `characters` has nobody for them.
    """

    frames: int
    encoders: tuple[Encoder, ...]
    rows: tuple[Row, ...]
    characters: tuple[tuple[str, ...], ...]
    interleaved: int = 1
    width: int = 0
    between: tuple[Between, ...] = ()

    @property
    def tokens(self) -> int:
        return max(encoder.tokens.stop for encoder in self.encoders)

    @property
    def channels(self) -> int:
        return max(self.width, *(encoder.channels.stop for encoder in self.encoders))

    def select(self, rows: list[int]) -> "Record":
        """The record of an embedding that holds only these rows, in this order."""
        return self._replace(rows=tuple(self.rows[i] for i in rows))

    def at_the_end(self) -> "Record":
        """The record of an embedding whose shorter rows stand at its end, not at its start."""
        ends = [max(spans.eot.stop for spans in row.spans) for row in self.rows]
        return self._replace(rows=tuple(row.shifted(self.tokens - end) for row, end in zip(self.rows, ends)))

    def columns(self, row: Row, part: int) -> tuple[Span, ...]:
        """Where a row of the embedding has a part, SOT, IDENTITY, EOT or a frame's number: for encoders that share
        their tokens where all of them have it, and for each such group a span of its own."""
        return self.agreed([row.span(part, e) for e in range(len(self.encoders))])

    def subject_columns(self, row: Row, name: str) -> tuple[Span, ...]:
        """Where a row of the embedding has descriptions of the character `name`, by the rule of `columns`."""
        return tuple(
            span
            for found in zip(*row.subjects)
            if found[0][0] == name
            for span in self.agreed([span for _, span in found])
        )

    def with_slots(self, names: Collection[str]) -> "Record":
        """The record with the class words of these characters only."""
        rows = (
            row._replace(slots=tuple(tuple(slot for slot in own if slot[0] in names) for own in row.slots))
            for row in self.rows
        )
        return self._replace(rows=tuple(rows))

    def slots(self, row: Row) -> list[tuple[str, Span]]:
        """Where a row of the embedding has the class words of which character, by the rule of `columns`."""
        return [(found[0][0], span) for found in zip(*row.slots) for span in self.agreed([span for _, span in found])]

    def agreed(self, spans: Sequence[Span]) -> tuple[Span, ...]:
        """Of one span for each encoder, what those have in common that share their tokens; nothing where that is
        empty."""
        groups: dict[Span, list[Span]] = {}
        for encoder, span in zip(self.encoders, spans):
            groups.setdefault(encoder.tokens, []).append(span)
        common = (Span(max(s.start for s in group), min(s.stop for s in group)) for group in groups.values())
        return tuple(span for span in common if span.start < span.stop)

    def frame_tokens(self, row: Row) -> int:
        """How many tokens stand between a row's identity and its EOT set: for encoders that share their tokens, where
        any of them has one."""
        groups: dict[Span, list[Spans]] = {}
        for encoder, spans in zip(self.encoders, row.spans):
            groups.setdefault(encoder.tokens, []).append(spans)
        ends = ((max(s.eot.start for s in group), min(s.identity.stop for s in group)) for group in groups.values())
        return sum(stop - start for stop, start in ends)

    def token_sets(self, embeds: Tensor) -> list[Tensor]:
        """The record's own tokens in `embeds`, views of [rows, tokens, channels]: one, or the keys and the values."""
        own = embeds[:, : self.tokens * self.interleaved]
        return [own[:, n :: self.interleaved] for n in range(self.interleaved)]

    def check(self, embeds: Tensor, where: str) -> None:
        """Raise `ValueError` where this can't be the record of `embeds` [rows, tokens, channels].

        Tokens that ConditioningConcat has added after the record's own are allowed. `where`: the node that asks.
        """
        rows, tokens, channels = embeds.shape
        own = self.tokens * self.interleaved
        if rows != len(self.rows):
            raise ValueError(
                f"{where} found {rows} rows where the story's record has {len(self.rows)}: a node after Story Prompt "
                "picks or repeats rows. Take it out; to draw a story in parts, use Split Story."
            )
        if channels != self.channels:
            raise ValueError(
                f"{where} found {channels} channels where the story's record has {self.channels}: a node after Story "
                "Prompt changes the embedding's width. Take it out."
            )
        if tokens < own or (self.interleaved == 1 and pairs_up(embeds, own)):
            raise ValueError(
                f"{where} found {tokens} tokens where the story's record has {own}: a node after Story Prompt removes "
                "or doubles tokens. Take it out, or wire it before Story Prompt if it works on `clip`."
            )

    def find_not_finite(self, embeds: Tensor) -> tuple[Row, Encoder] | None:
        """The first row of `embeds` [rows, tokens, channels] and the first encoder that gave it NaN or infinity."""
        finite = embeds.isfinite()
        if finite.all():
            return None
        parts = ((i, encoder) for i in range(len(self.rows)) for encoder in self.encoders)
        own = ((i, e) for i, e in parts if not finite[i, slice(*e.tokens), slice(*e.channels)].all())
        i, encoder = next(own, (0, self.encoders[0]))
        return self.rows[i], encoder


def token_norms(embeds: Tensor, record: Record) -> Tensor:
    """The length of every token's vector in every encoder: [rows, encoders, tokens], of [rows, tokens, channels].

    Of interleaved tokens, the keys'.
    """
    own = record.token_sets(embeds)[0].double()
    return torch.stack([own[:, :, slice(*encoder.channels)].norm(dim=-1) for encoder in record.encoders], dim=1)


CLIP_NORM = 28.0
"""About the mean length of CLIP-L's token vectors, on which the papers' alpha of 0.01 was tuned."""


def with_scales(embeds: Tensor, record: Record, keys: Sequence[str]) -> Record:
    """The record of `embeds` with the scale of the encoders `keys`, by the mean length of their text's vectors."""
    norms = token_norms(embeds, record)

    def scaled(e: int, encoder: Encoder) -> Encoder:
        if encoder.name not in keys:
            return encoder
        text = [norms[i, e, slice(*s)] for i, row in enumerate(record.rows) for s in words(row.spans[e])]
        mean = torch.cat(text).mean().item()
        return encoder._replace(scale=CLIP_NORM / mean if mean > 0 else 1.0)

    return record._replace(encoders=tuple(scaled(e, encoder) for e, encoder in enumerate(record.encoders)))


def words(spans: Spans) -> tuple[Span, ...]:
    """Where the text itself stands."""
    return (spans.identity, *spans.frames)


class Attached(NamedTuple):
    """What a story's conditioning carries under `KEY`: its map, and what is known of the embedding it was made with.

    `norms` are the tokens' before any reweighting, as of `token_norms`. `alone` [rows, tokens, channels] is each row's
    identity encoded without any frame, its SOT with it: `Row.alone` tokens, then zeros. Encoders that are causal all
    need none, as it stands in the embedding. With `pictures` in the embedding, `words` is what it was without them.
    """

    record: Record
    norms: Tensor
    alone: Tensor | None = None
    pictures: Pictures | None = None
    words: Tensor | None = None

    @classmethod
    def to(cls, embeds: Tensor, record: Record, alone: Tensor | None = None) -> "Attached":
        return cls(record, token_norms(embeds, record), alone)

    def select(self, rows: list[int]) -> "Attached":
        """What belongs to these rows of the embedding, in this order."""
        alone, words = (None if x is None else x[rows] for x in (self.alone, self.words))
        return self._replace(record=self.record.select(rows), norms=self.norms[rows], alone=alone, words=words)

    def fused(self, words: Tensor) -> "tuple[Tensor, Attached]":
        """The embedding `words` with the pictures in it, and what belongs to that."""
        if self.pictures is None:
            return words, self
        return fuse_pictures(words, self.record, self.pictures), self._replace(words=words)

    def unfused(self, embeds: Tensor) -> Tensor:
        """The embedding without the pictures."""
        return embeds if self.words is None else put_words(embeds, self.record, self.words)


def pairs_up(embeds: Tensor, tokens: int) -> bool:
    """Whether `embeds` [rows, 2 * tokens, channels] has each token beside its equal or its negative, as NegPiP does."""
    return embeds.shape[1] == 2 * tokens and embeds[:, 0::2].abs().equal(embeds[:, 1::2].abs())
