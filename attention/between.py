"""Pictures between a story's frames: their self-attention, and the noise that they start from.

AID (arXiv 2403.17924): its outer interpolated attention, fused with the picture's own self-attention.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..svr.record import Record
from .batch import Batch, Cast, Report
from .blocks import Blocks
from .gathered import consistent_attention
from .gathers import Gather, Keys, Source, anchor_gathers
from .keeping import Keeping, Left
from .method import Call, Kind, Next
from .schedule import Place


@dataclass(frozen=True)
class InBetweens:
    """A picture at the share t between two frames looks at itself and both:

    (1 - t) Attention(Q, [K, K_start], [V, V_start]) + t Attention(Q, [K, K_end], [V, V_end])

    At t = 0 and 1 it is that frame itself, as a key that stands twice weighs as much as one in a softmax over nothing
    else. Frames of the story look at none of them.
    """

    blocks: Blocks
    start_percent: float
    end_percent: float

    name: ClassVar[str] = "Story In-Betweens"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"self", "joint"})
    stacks: ClassVar[bool] = False
    widens: ClassVar[bool] = False
    reads_alone: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    stories_first: ClassVar[bool] = False

    def off(self) -> bool:
        return False

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        if not any(record.between for record in records):
            report.warn(
                "Story In-Betweens is in the model and its pictures aren't in the sampler's conditioning: wire its "
                "conditioning and latent as well."
            )

    def sources(self, cast: Cast) -> list[list[int]]:
        found = [cast.ends(frame) for frame in range(len(cast.characters))]
        return [[between.start, between.end] if between else [] for between in found]

    def prepare(self, batch: Batch) -> "Ends | None":
        return Ends(self, batch) if batch.whole and batch.between else None


class Ends(Keeping):
    """The method in one forward pass. Layers of one size share what their rows look at."""

    def __init__(self, method: InBetweens, batch: Batch):
        super().__init__(method, batch)
        self.seen: dict[tuple[int, Keys], tuple[list[list[Gather]], list[Left]]] = {}
        found = [batch.cast.ends(frame) for frame in batch.frames]
        self.rows = [i for i, between in enumerate(found) if between]
        self.shares = [between.share for between in found if between]

    @torch.compiler.disable
    def attend(self, call: Call, next: Next) -> Tensor:
        tokens = call.picture.stop - call.picture.start
        place = Keys(call.picture.start, call.k.shape[-2])
        if (tokens, place) not in self.seen:
            self.seen[tokens, place] = self.look(tokens, place, call.q.device)
        gathers, left = self.seen[tokens, place]
        # A picture between two has its objects where they are in these: their keys keep their positions.
        self.leave(call, left, None)
        out = next(call)
        if not self.rows:
            return out
        sides = []
        for own in gathers:
            kept = {at: self.found(call, at) for gather in own for at in gather.kept}
            attend = partial(consistent_attention, call.attention, call.q, call.k, call.v, call.heads, own, kept=kept)
            sides.append(attend(**call.options))
        index = torch.tensor([s + i for s, _, _ in self.batch.chunks for i in self.rows], device=out.device)
        share = torch.tensor(self.shares * len(self.batch.chunks), device=out.device, dtype=out.dtype)
        start, end = (side.index_select(0, index) for side in sides)
        return out.index_copy(0, index, torch.lerp(start, end, share.view(-1, *[1] * (out.ndim - 1))))

    def look(self, tokens: int, place: Keys, device: torch.device) -> tuple[list[list[Gather]], list[Left]]:
        """Gathers of the in-betweens' rows for their starts and for their ends, and what later passes look at."""
        batch, sources = self.batch, self.method.sources(self.batch.cast)
        frames, starts = list(batch.frames), [start for start, _, _ in batch.chunks]
        gathers = []
        for side in (0, 1):
            one = [[found[side]] if found else [] for found in sources]
            every = anchor_gathers(one, frames, starts, tokens, lambda frame: torch.arange(tokens), device, place)
            gathers.append([gather for gather in every if gather.shared])
        left = []
        if batch.kept is not None:
            elsewhere = {s for j, seen in enumerate(sources) if j not in frames for s in seen}
            keys = torch.arange(place.first, place.first + tokens, device=device)
            left = [
                Left(Source(start, frame), start + frames.index(frame), keys)
                for frame in sorted(elsewhere.intersection(frames))
                for start in starts
            ]
        return gathers, left


def between_noise(noise: Tensor, record: Record) -> Tensor:
    """`noise` [rows, ...] with that of each picture between two frames on the great circle between theirs."""
    if not record.between:
        return noise
    cast = Cast(tuple(row.frame for row in record.rows), record.characters, record.between)
    out = noise.clone()
    for row, frame in enumerate(cast.frames):
        between = cast.ends(frame)
        if between:
            start, end = (noise[cast.frames.index(f)] for f in (between.start, between.end))
            out[row] = slerp(start, end, between.share)
    return out


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """sin((1 - t) w) / sin(w) start + sin(t w) / sin(w) end, with w the angle between the two; linear where it is 0."""
    a, b = start.double().flatten(), end.double().flatten()
    cosine = (a @ b / (a.norm() * b.norm()).clamp_min(1e-12)).clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    if sine < 1e-6:
        return torch.lerp(start, end, share)
    mixed = ((1 - share) * angle).sin() / sine * a + (share * angle).sin() / sine * b
    return mixed.view_as(start).to(start.dtype)
