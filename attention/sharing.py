"""Consistent self-attention in one forward pass: what the rows of each layer look at."""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .batch import Batch, Characters
from .gathered import consistent_attention
from .gathers import (
    Gather,
    Keys,
    Source,
    Turned,
    anchor_gathers,
    anchor_sources,
    sample,
    tile_gathers,
    tiles_of,
    turn_others,
)
from .keeping import Keeping, Left
from .method import Call, Next
from .schedule import seeded

if TYPE_CHECKING:
    from .self_attention import SelfAttention


class Sharing(Keeping):
    """Consistent self-attention in one forward pass. Layers of one size share their samples."""

    def __init__(self, method: "SelfAttention", batch: Batch):
        super().__init__(method, batch)
        self.method: SelfAttention = method
        self.seen: dict[tuple[Any, ...], Seen] = {}

    @torch.compiler.disable
    def attend(self, call: Call, next: Next) -> Tensor:
        seen = self.sources(call)
        if seen is None:
            return next(call)
        self.leave(call, seen.left, call.turn)
        if not seen.gathers:
            return next(call)
        attention = call.attention_by(next)
        kept = {at: self.found(call, at) for gather in seen.gathers for at in gather.kept}
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

    def sources(self, call: Call) -> "Seen | None":
        """What the rows look at in a layer, or None where they look only at themselves."""
        method, key = self.method, self.batch.place.key
        tokens = call.picture.stop - call.picture.start
        if not round(method.sampling_rate * tokens):
            return None
        if torch.rand((), generator=seeded(method.seed, key, call.layer)) >= method.chance(self.batch.place):
            return None
        place = Keys(call.picture.start, call.k.shape[-2])
        at = tokens, place, call.turn is not None, self.apart(call)
        if at not in self.seen:
            self.seen[at] = self.look(call, tokens, place)
        seen = self.seen[at]
        return seen if seen.gathers or seen.left else None

    def apart(self, call: Call) -> Any:
        """What tells layers apart that don't share their samples."""
        return None

    def look(self, call: Call, tokens: int, place: Keys) -> "Seen":
        method, batch, device = self.method, self.batch, call.q.device
        samples = partial(self.samples, tokens)
        casts: dict[tuple[tuple[int, ...], Characters], list[int]] = {}
        for start, _, placement in batch.chunks:
            record = placement and placement.record
            cast = (tuple(row.frame for row in record.rows), record.characters) if record else None
            casts.setdefault(cast or (batch.frames, batch.characters), []).append(start)

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
                        left += [Left(Source(start, frame), start + rows.index(frame), keys) for start in starts]
            else:
                tiles = tiles_of(characters, method.tile)
                gathers += tile_gathers(tiles, rows, starts, tokens, samples, device, place)
        return seen_by(call, gathers, place, left)

    def samples(self, tokens: int, what: int | list[int]) -> Tensor:
        """The tokens sampled from a frame of so many, or from all those of a tile."""
        among = tokens if isinstance(what, int) else tokens * len(what)
        return sample(among, self.method.sampling_rate, seeded(self.method.seed, self.batch.place.key, tokens, what))


class Seen(NamedTuple):
    """What the rows of a layer look at, and what they leave for later passes."""

    gathers: list[Gather]
    turned: Turned | None
    left: list[Left]


def seen_by(call: Call, gathers: list[Gather], place: Keys, left: list[Left]) -> Seen:
    """What all rows of a call see; no gathers where nobody looks at another."""
    if not any(gather.shared for gather in gathers):
        return Seen([], None, left)
    turns = call.turn and any(gather.keys is not None for gather in gathers)
    return Seen(gathers, turn_others(gathers, len(call.k), place.keys) if turns else None, left)
