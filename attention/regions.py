"""Regions for characters: localised cross-attention as a bias on the logits, without training.

FastComposer (arXiv 2305.10431) and StoryMaker (arXiv 2409.12576) train attention maps to lie within segmentation masks.
Here the weight of a character's words is multiplied, p ∝ exp(q·k / sqrt(d)) * f, by

    f = 1 - strength * (1 - M(q))    for the words that describe the character whose region is M, 1 for all others,
    f = 1 - end_of_text * max M(q)   for the end-of-text tokens, which in CLIP have read everyone's words.

That is the bias log max(f, 1e-4), which is finite, so that no query is ever left without keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..story.layout import Box
from ..story.parts import EOT
from ..svr.record import Record, Row
from .batch import Batch, Cast, Report
from .blocks import Blocks
from .ipca import among, biased_attention
from .method import Call, Kind, Next, one_hot
from .schedule import Place

LEAST = 1e-4
"""What is left of the weight of words that are shut out."""
WHOLE = 1 - 1e-3
"""A region that nowhere counts less than this is the whole picture, which tells nobody apart."""

Region = Box | Tensor
"""A part of a picture: a box, or a soft mask [height, width], 0..1."""

Layout = Mapping[str, Mapping[int, Region]]
"""For each character its region in each frame that has one for it."""


@dataclass(frozen=True, eq=False)
class Regions:
    """One application of the method to a story of `frames`: `blocks` and the steps between the two percents get it."""

    layout: Layout
    frames: int
    strength: float
    end_of_text: float
    blocks: Blocks
    start_percent: float
    end_percent: float

    name: ClassVar[str] = "Story Regions"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"cross", "joint"})
    stacks: ClassVar[bool] = True
    adds: ClassVar[bool] = False
    widens: ClassVar[bool] = True
    reads_alone: ClassVar[bool] = False
    stories_first: ClassVar[bool] = False

    def off(self) -> bool:
        return self.strength == 0 or not any(self.layout.values())

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        if not records:
            report.warn(
                "Story Regions has nothing to do, because the sampler's conditioning carries no story: "
                "wire its positive input from Story Prompt."
            )
        for record in records:
            if record.frames != self.frames:
                raise ValueError(
                    f"Story Regions was made for a story of {self.frames} frames, and the sampler draws one of "
                    f"{record.frames}: wire the same story into Story Regions and Story Prompt."
                )

    def sources(self, cast: Cast) -> list[list[int]]:
        return [[] for _ in cast.characters]

    def prepare(self, batch: Batch) -> "Regional | None":
        if self.off() or not any(chunk.placement for chunk in batch.chunks):
            return None
        if batch.size != batch.canvas:
            batch.report.warn(
                "Story Regions leaves areas of a picture as they are, since its regions are those of the whole one: "
                "use masks instead of areas, or draw without tiles."
            )
            return None
        return Regional(self, batch)


class Regional:
    """Regions in one forward pass: one bias for all layers of a size."""

    def __init__(self, method: Regions, batch: Batch):
        self.method = method
        self.batch = batch
        self.biases: dict[int, Tensor | None] = {}

    @torch.compiler.disable
    def attend(self, call: Call, next: Next) -> Tensor:
        queries = call.q.shape[-2]
        if queries not in self.biases:
            self.biases[queries] = self.bias(queries, call)
        bias = self.biases[queries]
        if bias is None:
            return next(call)
        assert call.text is not None
        bias = among(bias[call.rows.start : call.rows.stop].to(call.q), call.text, call.k.shape[-2])
        return biased_attention(call.attention_by(next), call.q, call.k, call.v, call.heads, bias, **call.options)

    def bias(self, queries: int, call: Call) -> Tensor | None:
        """The bias of every row in layers with so many queries, [rows, queries, text], 0 where a row has no story."""
        batch = self.batch
        size = batch.layer_size(queries)
        if size is None:
            batch.report.skip(
                "another model patch changes the number of a picture's tokens, so Story Regions is skipped there",
                call.layer.block,
            )
            return None
        bias = torch.zeros(batch.rows, queries, batch.tokens, dtype=batch.dtype, device=batch.device)
        for start, _, placement in batch.chunks:
            if placement is None:
                continue
            for i, row in enumerate(placement.record.rows, start):
                parts = row_factors(self.method, row, placement.record, placement.own_tokens, size)
                if parts is not None:
                    where, columns = (part.to(batch.device) for part in parts)
                    bias[i] = (where.mT.log() @ placement.place(columns, batch.tokens)).to(batch.dtype)
        return bias if bias.any() else None


def row_factors(
    method: Regions, row: Row, record: Record, own_tokens: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor] | None:
    """What the weights of some of a row's tokens are multiplied by, [factors, height * width], and which tokens each
    factor is for, 1 or 0 [factors, own_tokens]; None where the frame has no region, or only the whole picture."""
    factors, spans, inside = [], [], []
    for name in record.characters[row.frame]:
        region = method.layout.get(name, {}).get(row.frame)
        mask = None if region is None else at_size(region, *size)
        if mask is not None and mask.min() < WHOLE:
            inside.append(mask)
            factors.append(1 - method.strength * (1 - mask))
            spans.append(record.subject_columns(row, name))
    if not inside:
        return None
    factors.append(1 - method.end_of_text * torch.stack(inside).amax(0))
    spans.append(record.columns(row, EOT))
    return torch.stack(factors).flatten(1).clamp(min=LEAST), one_hot(spans, own_tokens)


def at_size(region: Region, height: int, width: int) -> Tensor:
    """The region in a layer's tokens, each with the share of it that is inside: [height, width]."""
    if isinstance(region, Box):
        return torch.outer(covered(region.top, region.bottom, height), covered(region.left, region.right, width))
    return F.adaptive_avg_pool2d(region[None].float(), (height, width))[0].clamp(0, 1)


def covered(start: float, stop: float, cells: int) -> Tensor:
    """The share of each of so many cells, 0 to 1 together, that lies between `start` and `stop`."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    return ((edges[1:].clamp(max=stop) - edges[:-1].clamp(min=start)).clamp(min=0) * cells).clamp(max=1).float()
