"""Where the identity's words look in each frame's picture: watched while sampling, without changing it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..story.parts import IDENTITY
from ..svr.record import Record, Span
from .blocks import Blocks
from .method import Batch, Call, Characters, Kind, Next, Report
from .schedule import Place

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
        self.runs: dict[Frames, dict[Any, tuple[Tensor, int]]] = {}

    def begin(self, records: Sequence[Record]) -> None:
        """A sampling of these stories starts."""
        frames = records[0].frames if records else 0
        if frames != self.frames:
            self.runs.clear()
        self.frames = frames
        if not records:
            self.runs.clear()
        drawn = {frame for record in records for frame in frames_of(record)}
        self.runs = {run: sums for run, sums in self.runs.items() if not drawn.issuperset(run)}

    def add(self, record: Record, mass: Tensor) -> None:
        """One layer's look at one step, [rows, height, width]. It stays on its device: nothing waits for it."""
        sums = self.runs.setdefault(frames_of(record), {})
        key = mass.device, mass.shape
        total, count = sums.get(key, (torch.zeros_like(mass), 0))
        sums[key] = total + mass, count + 1

    def maps(self) -> Tensor:
        """The mean over layers and steps for each frame, [frames, height, width], of the finest layer's size.

        Raises `ValueError` where a frame has not been seen.
        """
        means = {run: mean_of(sums) for run, sums in self.runs.items() if sums}
        rows = {frame: row for run, mean in means.items() for frame, row in zip(run, mean)}
        missing = [frame for frame in range(self.frames) if frame not in rows]
        if not rows or missing:
            raise ValueError(
                f"Attention Recorder has seen {f'no frame {missing[0] + 1}' if rows else 'no story'}: wire its model "
                "to the sampler, the sampler's positive input from Story Prompt, and run the sampler again; if it "
                "stays so, set the recorder's `blocks` to “up”."
            )
        height, width = max((row.shape for row in rows.values()), key=lambda shape: shape.numel())
        return torch.cat([resize(rows[frame][None], height, width) for frame in range(self.frames)])


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
    widens: ClassVar[bool] = False
    reads_alone: ClassVar[bool] = False

    def off(self) -> bool:
        return False

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        self.recording.begin(records)

    def sources(self, characters: Characters) -> list[list[int]]:
        return [[] for _ in characters]

    def prepare(self, batch: Batch) -> "Watch | None":
        # Parts of a picture (areas) are not seen.
        if batch.size != batch.canvas or not any(chunk.placement for chunk in batch.chunks):
            return None
        return Watch(self.recording, batch)


class Watch:
    """A recorder in one forward pass: what share of each query's attention falls on the identity."""

    def __init__(self, recording: "Recording", batch: Batch):
        self.recording = recording
        self.layer_size = batch.layer_size
        self.chunks = []
        for start, stop, placement in batch.chunks:
            if placement is not None:
                columns = placement.place(identity_columns(placement.record, placement.own_tokens), batch.tokens)
                self.chunks.append((Span(start, stop), placement.record, columns.to(batch.device, batch.dtype)))

    def attend(self, call: Call, next: Next) -> Tensor:
        size = self.layer_size(call.q.shape[-2])
        another_watches = call.attention is call.unpatched
        if size is not None and not another_watches:
            for rows, record, columns in self.chunks:
                self.recording.add(record, self.mass(call, next, rows, columns).unflatten(1, size))
        return next(call)

    def mass(self, call: Call, next: Next, rows: Span, columns: Tensor) -> Tensor:
        """The share of attention that falls on `columns` [rows, text], mean over heads: [rows, queries].

        That is what attention itself gives for values that are 1 on these columns, so any back end computes it, with
        whatever `next` does to the call. Where rows look at each other, all of them are asked.
        """
        assert call.text is not None
        columns = F.pad(columns, (call.text.start, call.k.shape[-2] - call.text.stop)).to(call.k)
        own = slice(*rows)
        if call.layer.kind == "joint":
            columns = F.pad(columns, (0, 0, rows.start, len(call.k) - rows.stop))
        else:
            options = {**call.options, "mask": None}
            call = call._replace(q=call.q[own], k=call.k[own], v=call.v[own], rows=rows, options=options)
            own = slice(None)
        ones = columns[:, None, :, None] if call.v.ndim == 4 else columns[:, :, None]
        alone = call.alone and (call.alone[0], torch.ones_like(call.alone[1]))
        watched = call._replace(v=ones.expand_as(call.v).contiguous(), attention=call.unpatched, alone=alone)
        return mean_over_heads(next(watched)[own], call.options)


def mean_over_heads(out: Tensor, options: dict[str, Any]) -> Tensor:
    """The mean of an attention's output over heads and channels: [rows, queries]."""
    return out.mean((1, 3) if options.get("skip_output_reshape") else -1, dtype=torch.float32)


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


def identity_columns(record: Record, own_tokens: int) -> Tensor:
    """1 where a row's identity stands, SOT excluded, else 0: [rows, own_tokens]."""
    columns = torch.zeros(len(record.rows), own_tokens)
    for i, row in enumerate(record.rows):
        for span in record.columns(row, IDENTITY):
            columns[i, slice(*span)] = 1
    return columns


def stretch(maps: Tensor, together: bool) -> Tensor:
    """Maps [frames, height, width] on a scale from 0 to 1, which is one for all frames or each one's own.

    The scale leaves out the hundredth of the values at either end.
    """
    own = maps.flatten(1)
    values = own.flatten()[None] if together else own
    low, high = (values.quantile(q, dim=1)[:, None, None] for q in (0.01, 0.99))
    return ((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
