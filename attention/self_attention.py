"""Consistent Self-Attention (StoryDiffusion, arXiv 2405.01434, section 3.1).

Frames are rows of one batch. In the chosen self-attention layers a frame attends to its own tokens and to tokens
sampled from other frames of its group, conditional and unconditional rows each among themselves.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

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
    adds: ClassVar[bool] = False
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

    def sources(self, characters: Characters) -> list[list[int]]:
        if self.variant == "anchors":
            return anchor_sources(characters, self.anchors)
        tiles = tiles_of(characters, self.tile)
        return [sorted({f for tile in tiles if j in tile for f in tile} - {j}) for j in range(len(characters))]

    def prepare(self, batch: Batch) -> "Sharing | None":
        alone = len(batch.frames) == 1 and batch.kept is None
        if self.off() or not batch.whole or alone or not self.chance(batch.place):
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
        self.seen: dict[tuple[int, Keys, bool], Seen] = {}

    @torch.compiler.disable
    def attend(self, call: Call, next: Next) -> Tensor:
        seen = self.sources(call)
        if seen is None:
            return next(call)
        self.leave(call, seen)
        if not seen.gathers:
            return next(call)
        attention = call.attention_by(next)
        kept = {at: self.found(call, *at) for gather in seen.gathers for at in gather.kept}
        return consistent_attention(
            attention,
            call.q,
            call.k,
            call.v,
            call.heads,
            seen.gathers,
            turned=seen.turned,
            turn=call.turn,
            kept=kept,
            **call.options,
        )

    def leave(self, call: Call, seen: "Seen") -> None:
        """Keep what frames of later passes look at."""
        if not seen.left:
            return
        assert self.batch.kept is not None
        for start, frame, row, keys in seen.left:
            k = call.turn(call.k[row : row + 1])[0] if call.turn else call.k[row]
            own = k.index_select(-2, keys), call.v[row].index_select(-2, keys)
            self.batch.kept[self.key(call, start, frame)] = own

    def found(self, call: Call, start: int, frame: int) -> tuple[Tensor, Tensor]:
        """The keys and values of a frame that an earlier pass has drawn. Raises `ValueError` where none has."""
        kept = (self.batch.kept or {}).get(self.key(call, start, frame))
        if kept is None:
            raise ValueError(
                f"Consistent Self-Attention lacks frame {frame + 1}, which was drawn without this conditioning: take "
                "Story Runs out, or the node that gives some frames other conditionings (such as Cond Set Default "
                "Combine)."
            )
        return kept

    def key(self, call: Call, start: int, frame: int) -> tuple[Any, ...]:
        """What `Batch.kept` has a frame's keys and values under: an attention map is drawn from other values."""
        watched = call.attention is call.unpatched
        return self.method, call.layer, watched, self.batch.uuids[start // len(self.batch.frames)], frame

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
        if at not in self.seen:
            self.seen[at] = self.look(call, tokens, place)
        seen = self.seen[at]
        return seen if seen.gathers or seen.left else None

    def look(self, call: Call, tokens: int, place: Keys) -> "Seen":
        method, batch, device = self.method, self.batch, call.q.device
        casts: dict[tuple[tuple[int, ...], Characters], list[int]] = {}
        for start, _, placement in batch.chunks:
            record = placement and placement.record
            cast = (tuple(row.frame for row in record.rows), record.characters) if record else None
            casts.setdefault(cast or (batch.frames, batch.characters), []).append(start)

        def samples(what: int | list[int]) -> Tensor:
            among = tokens if isinstance(what, int) else tokens * len(what)
            return sample(among, method.sampling_rate, seeded(method.seed, batch.place.key, tokens, what))

        gathers: list[Gather] = []
        left: list[Left] = []
        for (frames, characters), starts in casts.items():
            rows = list(frames)
            if method.variant == "anchors":
                sources = anchor_sources(characters, method.anchors)
                gathers += anchor_gathers(sources, rows, starts, tokens, samples, device, place)
                if batch.kept is not None:
                    elsewhere = {s for j, seen in enumerate(sources) if j not in frames for s in seen}
                    for frame in sorted(elsewhere.intersection(frames)):
                        keys = (samples(frame) + place.first).to(device)
                        left += [Left(start, frame, start + rows.index(frame), keys) for start in starts]
            else:
                tiles = tiles_of(characters, method.tile)
                gathers += tile_gathers(tiles, rows, starts, tokens, samples, device, place)
        if not any(gather.shared for gather in gathers):
            return Seen([], None, left)
        turns = call.turn and any(gather.keys is not None for gather in gathers)
        return Seen(gathers, turn_others(gathers, len(call.k), place.keys) if turns else None, left)


class Left(NamedTuple):
    """A frame that later passes look at: its chunk's first row, its own row, and which of its keys, [count]."""

    start: int
    frame: int
    row: int
    keys: Tensor


class Seen(NamedTuple):
    """What the rows of a layer look at, and what they leave for later passes."""

    gathers: list[Gather]
    turned: Turned | None
    left: list[Left]
