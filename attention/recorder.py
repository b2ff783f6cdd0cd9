"""Where the identity's words look in each frame's picture: watched while sampling, without changing it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..story.parts import IDENTITY
from ..svr.record import Record, Span
from .batch import Batch, Cast, Characters, Report
from .blocks import Blocks
from .method import Call, Kind, Next, one_hot
from .schedule import Place

MOST = 30
"""How many characters are told apart."""

Frames = tuple[int, ...]
"""The frames that the rows of a run, or of a pass, draw."""


class Recording:
    """What was seen of a story, by frame. It is the one thing of this pack that outlives a forward pass.

    It belongs to the graph: Attention Recorder makes one, and ComfyUI keeps it as it keeps any output. A sampling
    replaces the frames that it draws, so the runs of a split story add up, and a sampling of a story with another
    number of frames, or of none, starts afresh.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.characters: Characters = ()
        self.runs: dict[Frames, dict[Any, tuple[Tensor, int]]] = {}

    def begin(self, records: Sequence[Record]) -> None:
        """A sampling of these stories starts."""
        frames = records[0].frames if records else 0
        if frames != self.frames:
            self.runs.clear()
        self.frames = frames
        self.characters = records[0].characters if records else ()
        if not records:
            self.runs.clear()
        drawn = {frame for record in records for frame in frames_of(record)}
        self.runs = {run: sums for run, sums in self.runs.items() if not drawn.issuperset(run)}

    def add(self, record: Record, mass: Tensor) -> None:
        """One layer's look at one step, [looks * rows, height, width]: at the identity, then at each of `names_in`.

        It stays on its device: nothing waits for it.
        """
        sums = self.runs.setdefault(frames_of(record), {})
        key = mass.device, mass.shape
        total, count = sums.get(key, (torch.zeros_like(mass), 0))
        sums[key] = total + mass, count + 1

    def maps(self) -> Tensor:
        """The mean over layers and steps for each frame, [frames, height, width], of the finest layer's size.

        Raises `ValueError` where a frame has not been seen.
        """
        return self.looks()[:, 0]

    def character_maps(self) -> dict[str, Tensor]:
        """The same for the words that describe each character, wherever a frame's prompt has them: 0 in frames that
        don't show it."""
        looks = self.looks()
        return {name: looks[:, n] for n, name in enumerate(names_in(self.characters), 1)}

    def looks(self) -> Tensor:
        """The means at the identity and at each character, [frames, looks, height, width]."""
        means = {run: mean_of(sums).unflatten(0, (-1, len(run))) for run, sums in self.runs.items() if sums}
        rows = {frame: row for run, mean in means.items() for frame, row in zip(run, mean.transpose(0, 1))}
        missing = [frame for frame in range(self.frames) if frame not in rows]
        if not rows or missing:
            raise ValueError(
                f"Attention Recorder has seen {f'no frame {missing[0] + 1}' if rows else 'no story'}: wire its model "
                "to the sampler, the sampler's positive input from Story Prompt, and run the sampler again; if it "
                "stays so, set the recorder's `blocks` to “up”."
            )
        height, width = max((row.shape[1:] for row in rows.values()), key=lambda shape: shape.numel())
        return torch.stack([resize(rows[frame], height, width) for frame in range(self.frames)])


@dataclass(frozen=True)
class Recorder:
    """One Attention Recorder: it watches `blocks` in the steps between the two percents."""

    recording: "Recording"
    blocks: Blocks
    start_percent: float
    end_percent: float

    name: ClassVar[str] = "Attention Recorder"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"cross", "joint"})
    stacks: ClassVar[bool] = True
    adds: ClassVar[bool] = False
    widens: ClassVar[bool] = False
    reads_alone: ClassVar[bool] = False
    stories_first: ClassVar[bool] = False

    def off(self) -> bool:
        return False

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        self.recording.begin(records)

    def sources(self, cast: Cast) -> list[list[int]]:
        return [[] for _ in cast.characters]

    def prepare(self, batch: Batch) -> "Watch | None":
        # Parts of a picture (areas) are not seen.
        if batch.size != batch.canvas or not any(chunk.placement for chunk in batch.chunks):
            return None
        return Watch(self.recording, batch)


class Watch:
    """A recorder in one forward pass: what share of each query's attention falls on the identity and its characters."""

    def __init__(self, recording: "Recording", batch: Batch):
        self.recording = recording
        self.layer_size = batch.layer_size
        self.chunks = []
        for start, stop, placement in batch.chunks:
            if placement is not None:
                columns = placement.place(watched_columns(placement.record, placement.own_tokens), batch.tokens)
                self.chunks.append((Span(start, stop), placement.record, columns.to(batch.device, batch.dtype)))

    def attend(self, call: Call, next: Next) -> Tensor:
        size = self.layer_size(call.q.shape[-2])
        another_watches = call.attention is call.unpatched
        if size is not None and not another_watches:
            for rows, record, columns in self.chunks:
                self.recording.add(record, self.mass(call, next, rows, columns).flatten(0, 1).unflatten(1, size))
        return next(call)

    def mass(self, call: Call, next: Next, rows: Span, columns: Tensor) -> Tensor:
        """The share of attention that falls on `columns` [rows, looks, text], mean over heads: [looks, rows, queries].

        Any back end computes it, with whatever `next` does to the call. Where rows look at each other, all of them are
        asked.
        """
        assert call.text is not None
        columns = F.pad(columns, (call.text.start, call.k.shape[-2] - call.text.stop)).to(call.k)
        own = slice(*rows)
        if call.layer.kind == "joint":
            columns = F.pad(columns, (0, 0, 0, 0, rows.start, len(call.k) - rows.stop))
        else:
            options = {**call.options, "mask": None}
            call = call._replace(q=call.q[own], k=call.k[own], v=call.v[own], rows=rows, options=options)
            own = slice(None)
        return attention_on(columns, call, next)[:, own]


def attention_on(columns: Tensor, call: Call, next: Next) -> Tensor:
    """The share of a call's attention that falls on `columns` [rows, looks, keys], mean over heads: [looks, rows,
    queries]. That is what attention itself gives for values with a channel for each look, 1 on its columns."""
    looks, by_head = columns.shape[1], call.v.ndim == 4
    channels = call.v.shape[-1] // (1 if by_head else call.heads)
    ones = F.pad(columns.mT, (0, channels - looks))
    ones = ones[:, None].expand_as(call.v) if by_head else ones.repeat(1, 1, call.heads)
    watched = call._replace(v=ones.contiguous(), attention=call.unpatched)
    if call.alone:
        identity = torch.zeros_like(call.alone[1])
        identity[..., ::channels] = 1
        watched = watched._replace(alone=(call.alone[0], identity))
    out = next(watched)
    heads = out if call.options.get("skip_output_reshape") else out.unflatten(-1, (call.heads, -1)).transpose(1, 2)
    return heads[..., :looks].mean(1, dtype=torch.float32).permute(2, 0, 1)


def names_in(characters: Characters) -> list[str]:
    """Those of a story's characters that a frame shows: as many as the narrowest heads have channels for."""
    return list(dict.fromkeys(name for shown in characters for name in shown))[:MOST]


def frames_of(record: Record) -> Frames:
    return tuple(row.frame for row in record.rows)


def mean_of(sums: dict[Any, tuple[Tensor, int]]) -> Tensor:
    """The mean of sums [rows, height, width] of different sizes."""
    totals = [total.cpu() for total, _ in sums.values()]
    height, width = max((total.shape[1:] for total in totals), key=lambda shape: shape.numel())
    resized = torch.stack([resize(total, height, width) for total in totals])
    return resized.sum(0) / sum(count for _, count in sums.values())


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """[frames, ...] at another height and width."""
    if maps.shape[1:] == (height, width):
        return maps
    return F.interpolate(maps[:, None], (height, width), mode="bilinear")[:, 0]


def watched_columns(record: Record, own_tokens: int) -> Tensor:
    """1 where a row has its identity, SOT excluded, and each of its characters, else 0: [rows, looks, own_tokens]."""
    names = names_in(record.characters)
    spans = (
        [record.columns(row, IDENTITY), *(record.subject_columns(row, name) for name in names)] for row in record.rows
    )
    return torch.stack([one_hot(own, own_tokens) for own in spans])


def stretch(maps: Tensor, together: bool) -> Tensor:
    """Maps [frames, height, width] on a scale from 0 to 1, which is one for all frames or each one's own.

    The scale leaves out the hundredth of the values at either end.
    """
    own = maps.flatten(1)
    values = own.flatten()[None] if together else own
    low, high = (values.quantile(q, dim=1)[:, None, None] for q in (0.01, 0.99))
    return ((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
