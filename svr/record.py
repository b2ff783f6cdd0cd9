"""What stands where in a story's text embeddings."""

from typing import NamedTuple

KEY = "onestory"
"""The key under which a record travels in a conditioning's dict and in `transformer_options`."""

NORMS = "onestory_norms"
"""The key of the norms that the tokens had before any reweighting, [rows, encoders, tokens], for Inspect Story."""


class Span(NamedTuple):
    """Token positions `start` to `stop`, `stop` excluded."""

    start: int
    stop: int


class Spans(NamedTuple):
    """One row's positions in one text encoder. Position 0 is SOT.

    `frames` has one span per frame prompt, in the order of `Row.window`. `eot` is c_EOT: the EOT token and
    every padding position after it.
    """

    identity: Span
    frames: tuple[Span, ...]
    eot: Span


class Row(NamedTuple):
    """One row of the embedding: it draws `frame`, from a prompt that holds the frame prompts of `window`.

    `texts` has what each token reads as, for each text encoder, with a space behind the end of a word.
    """

    frame: int
    window: tuple[int, ...]
    spans: tuple[Spans, ...]
    texts: tuple[tuple[str, ...], ...] = ()

    @property
    def expressed(self) -> int:
        """Where in `window` the frame prompt stands that this row expresses."""
        return self.window.index(self.frame)


class Encoder(NamedTuple):
    """One text encoder and the channels of the embedding that are its own."""

    name: str
    channels: Span


class Record(NamedTuple):
    """The map of a story's embedding [rows, tokens, channels]. Frames are numbered from 0."""

    frames: int
    encoders: tuple[Encoder, ...]
    tokens: int
    rows: tuple[Row, ...]
    characters: tuple[tuple[str, ...], ...]

    def select(self, rows: list[int]) -> "Record":
        """The record of an embedding that holds only these rows, in this order."""
        return self._replace(rows=tuple(self.rows[i] for i in rows))
