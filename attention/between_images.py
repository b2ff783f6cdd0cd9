"""Pictures between a story's frames that look at image tokens of both frames, as drawn before.

StoryDiffusion (arXiv 2405.01434, section 3.2) gives a video model what CLIP sees in the pictures between two, predicted
from a line between what it sees in the two, by decoupled cross-attention. Its predictor was never released: here is the
line itself, of an IP-Adapter's tokens (arXiv 2308.06721).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..svr.record import Record, Span
from .batch import Batch, Cast, Report
from .blocks import Block, Blocks
from .method import Call, Kind, Next
from .schedule import Place


@dataclass(frozen=True, eq=False)
class BetweenImages:
    """A picture at the share t between two frames with image tokens T_start and T_end:

    out = Attn(Q, K, V) + scale * Attn(Q, T_t W_k, T_t W_v),  T_t = (1 - t) T_start + t T_end

    The keys and values of T_t lie on the line between those of the two, as W_k and W_v are linear. `frames` has these
    for every frame of the story in all layers side by side, [2, frames, tokens, channels], `blank` [2, tokens,
    channels] those of a blank picture, for negative rows, and `layers` where among the channels a transformer of a
    block has its own. Frames of the story get nothing.
    """

    frames: Tensor
    blank: Tensor
    layers: Mapping[tuple[Block, int], Span]
    scale: float
    blocks: Blocks
    start_percent: float
    end_percent: float

    name: ClassVar[str] = "Story In-Betweens' `images`"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"cross"})
    stacks: ClassVar[bool] = False
    adds: ClassVar[bool] = True
    stories_first: ClassVar[bool] = False
    widens: ClassVar[bool] = False
    reads_alone: ClassVar[bool] = False

    def off(self) -> bool:
        return self.scale == 0

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        pass

    def sources(self, cast: Cast) -> list[list[int]]:
        return [[] for _ in cast.characters]

    def prepare(self, batch: Batch) -> "Line | None":
        return Line(self, batch) if batch.whole and any(map(batch.cast.ends, batch.frames)) else None

    def tokens(self, batch: Batch) -> Tensor:
        """Keys and values [2, rows, tokens, channels] of the in-betweens of every chunk, in the batch's order."""
        found = [between for between in map(batch.cast.ends, batch.frames) if between]
        start, end = (self.frames[:, [between[side] for between in found]] for side in (0, 1))
        share = torch.tensor([between.share for between in found], dtype=start.dtype)
        line = torch.lerp(start, end, share.view(-1, 1, 1))
        blank = self.blank[:, None].expand_as(line)
        every = torch.cat([line if positive else blank for positive in batch.positive], dim=1)
        return every.to(batch.device, batch.dtype)


class Line:
    """The method in one forward pass."""

    def __init__(self, method: BetweenImages, batch: Batch):
        self.method = method
        self.tokens = method.tokens(batch)
        rows = [i for i, frame in enumerate(batch.frames) if batch.cast.ends(frame)]
        self.rows = torch.tensor([chunk.start + i for chunk in batch.chunks for i in rows], device=batch.device)

    def attend(self, call: Call, next: Next) -> Tensor:
        out = next(call)
        at = self.method.layers[call.layer.block, call.layer.transformer]
        options = {name: value for name, value in call.options.items() if name != "mask"}
        q = call.q.index_select(0, self.rows)
        k, v = self.tokens[..., at.start : at.stop].to(q)
        added = call.unpatched(q, k, v, call.heads, **options)
        return torch.index_add(out, 0, self.rows, added, alpha=self.method.scale)
