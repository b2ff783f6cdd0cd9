"""Consistent Self-Attention (StoryDiffusion, arXiv 2405.01434, section 3.1).

Frames are rows of one batch. In the chosen self-attention layers a frame attends to its own tokens and to tokens
sampled from other frames of its group, conditional and unconditional rows each among themselves.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..svr.record import Record
from .blocks import Blocks
from .gathered import consistent_attention
from .gathers import (
    Gather,
    Keys,
    Turned,
    anchor_gathers,
    anchor_sources,
    sample,
    tile_gathers,
    tiles_of,
    turn_others,
)
from .method import Batch, Call, Characters, Kind, Next, Report
from .schedule import Place, seeded

FIRST, EARLY = 0.0005, 0.4
"""The shares of the schedule up to which the released code's step is the first one, and one of the early ones."""


@dataclass(frozen=True)
class SelfAttention:
    """One application of the method: `blocks` and the steps between the two percents get it."""

    variant: Literal["anchors", "tiles"]
    anchors: int
    tile: int
    sampling_rate: float
    blocks: Blocks
    start_percent: float
    end_percent: float
    probability: Literal["released", "always"]
    seed: int

    name: ClassVar[str] = "Consistent Self-Attention"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"self", "joint"})
    stacks: ClassVar[bool] = False
    widens: ClassVar[bool] = True
    reads_alone: ClassVar[bool] = False

    def off(self) -> bool:
        return self.sampling_rate == 0

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        for record in records:
            check_complete(self, record)
        if not any(self.chance(place) for place in places):
            report.warn(
                "Consistent Self-Attention does nothing in this sampler, because it leaves out the first step of the "
                "schedule and there is no other: set its `probability` to “always”, or use more steps."
            )

    def chance(self, place: Place) -> float:
        """How likely a call is to be consistent: 0 in the first step of the released code, 0.7 before 40%, then 0.9."""
        if self.probability == "always":
            return 1.0
        if not place.reached(FIRST):
            return 0.0
        return 0.9 if place.reached(EARLY) else 0.7

    def prepare(self, batch: Batch) -> "Sharing | None":
        if self.off() or not batch.whole or len(batch.frames) == 1 or not self.chance(batch.place):
            return None
        return Sharing(self, batch)


def check_complete(method: SelfAttention, record: Record) -> None:
    """Every frame that the rows of a run look at has to be among them. Raises `ValueError`."""
    rows = {row.frame for row in record.rows}
    if method.variant == "anchors":
        sources = anchor_sources(record.characters, method.anchors)
        missing = sorted({s for frame in rows for s in sources[frame]} - rows)
        if missing:
            raise ValueError(
                f"This run of the story lacks frame {missing[0] + 1}, which others look at: set the input `anchors` of "
                f"Split Story to {method.anchors}, as in Consistent Self-Attention."
            )
    elif len(rows) < record.frames:
        raise ValueError(
            f"This run has {len(rows)} of the story's {record.frames} frames, and the variant “tiles” of Consistent "
            "Self-Attention needs them all: use the variant “anchors”, or no Split Story."
        )


class Sharing:
    """Consistent self-attention in one forward pass. Layers of one size share their samples."""

    def __init__(self, method: SelfAttention, batch: Batch):
        self.method = method
        self.batch = batch
        self.gathers: dict[tuple[int, Keys, bool], Seen] = {}

    @torch.compiler.disable
    def attend(self, call: Call, next: Next) -> Tensor:
        seen = self.sources(call)
        if seen is None:
            return next(call)
        attention = call.attention_by(next)
        return consistent_attention(
            attention, call.q, call.k, call.v, call.heads, *seen, turn=call.turn, **call.options
        )

    def sources(self, call: Call) -> "Seen | None":
        """What the rows look at in a layer, or None where they look only at themselves."""
        method, key = self.method, self.batch.place.key
        tokens = call.picture.stop - call.picture.start
        if not round(method.sampling_rate * tokens):
            return None
        if torch.rand((), generator=seeded(method.seed, key, call.layer)) >= method.chance(self.batch.place):
            return None
        place = Keys(call.picture.start, call.k.shape[-2])
        at = tokens, place, call.turn is not None
        if at not in self.gathers:
            gathers = self.gather(tokens, place, call.q.device)
            shared = any(gather.keys is not None for gather in gathers)
            turned = turn_others(gathers, len(call.k), place.keys) if shared and call.turn else None
            self.gathers[at] = Seen(gathers if shared else [], turned)
        seen = self.gathers[at]
        return seen if seen.gathers else None

    def gather(self, tokens: int, place: Keys, device: torch.device) -> list[Gather]:
        method, batch = self.method, self.batch
        casts: dict[tuple[tuple[int, ...], Characters], list[int]] = {}
        for start, _, placement in batch.chunks:
            record = placement and placement.record
            cast = (tuple(row.frame for row in record.rows), record.characters) if record else None
            casts.setdefault(cast or (batch.frames, batch.characters), []).append(start)

        def samples(what: int | list[int]) -> Tensor:
            among = tokens if isinstance(what, int) else tokens * len(what)
            return sample(among, method.sampling_rate, seeded(method.seed, batch.place.key, tokens, what))

        gathers: list[Gather] = []
        for (frames, characters), starts in casts.items():
            rows = list(frames)
            if method.variant == "anchors":
                sources = anchor_sources(characters, method.anchors)
                gathers += anchor_gathers(sources, rows, starts, tokens, samples, device, place)
            else:
                tiles = tiles_of(characters, method.tile)
                gathers += tile_gathers(tiles, rows, starts, tokens, samples, device, place)
        return gathers


class Seen(NamedTuple):
    """What the rows of a layer look at."""

    gathers: list[Gather]
    turned: Turned | None
