"""Decoupled cross-attention to image tokens (IP-Adapter, arXiv 2308.06721), for each frame those of whom it shows.

    out = Attn(Q, K, V) + scale * Attn(Q, [K_c], [V_c] for all characters c of the frame)      in one softmax
    out = Attn(Q, K, V) + scale * sum_c w_c(q) Attn(Q, K_c, V_c)                               with Story Regions

where w_c = f_c / max(1, sum f) and f_c is what Story Regions multiplies the words of c by, 1 for a character without a
region. Adapters are trained with guidance between a picture and a blank one, so the negative rows of a frame that shows
anyone get the blank picture's tokens. StoryMaker (arXiv 2409.12576) has tokens of a background before these, and others
for the first, second and third character of a frame. Rows with equally many tokens share a call, and none gets a mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..svr.record import Record, Span
from .batch import Batch, Cast, Report
from .blocks import Block, Blocks
from .method import Call, Kind, Next
from .regions import Regions, at_size
from .schedule import Place

Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ImageAdapter:
    """One application of the method: `blocks` and the steps between the two percents get it.

    `cast` has for each character the keys and values of its image tokens in all layers side by side, [2, tokens,
    channels]: one, or one for each place among those that a frame shows. `blank` has those of a blank picture, `ground`
    those that stand before anyone's, if any. A transformer of a block has its own among the channels at `layers`.
    """

    cast: Mapping[str, Sequence[Tensor]]
    blank: Sequence[Tensor]
    layers: Mapping[tuple[Block, int], Span]
    scale: float
    blocks: Blocks
    start_percent: float
    end_percent: float
    ground: Tensor | None = None

    name: ClassVar[str] = "Image Characters"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"cross"})
    stacks: ClassVar[bool] = True
    adds: ClassVar[bool] = True
    stories_first: ClassVar[bool] = False
    widens: ClassVar[bool] = False
    reads_alone: ClassVar[bool] = False

    def off(self) -> bool:
        return self.scale == 0 or not self.cast

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        shown = {name for record in records for names in record.characters for name in names} or {""}
        for name in self.cast:
            if name not in shown:
                who = f"of [{name}]" if name else "without a name"
                report.warn(
                    f"Image Characters has pictures {who}, whom no frame of the sampler's story shows: wire the same "
                    "story into Story Cast and Story Prompt."
                )

        most = len(self.blank)
        for record in records if most > 1 else ():
            for frame, names in enumerate(record.characters, 1):
                mine = [name for name in names if name in self.cast]
                if len(mine) > most:
                    raise ValueError(
                        f"Frame {frame} shows {len(mine)} characters of the cast, and StoryMaker knows {most} in one "
                        "picture: take pictures of fewer, or name fewer in the frame."
                    )

    def sources(self, cast: Cast) -> list[list[int]]:
        return [[] for _ in cast.characters]

    def prepare(self, batch: Batch) -> "Images | None":
        if self.off() or not batch.whole:
            return None
        regions = regions_of(batch)
        items = [item for row in range(batch.rows) for item in self.items(row, batch, regions)]
        return Images(self, batch, items, regions) if items else None

    def items(self, row: int, batch: Batch, regions: tuple[Regions, ...]) -> "list[Item]":
        """What a row of the batch looks at beside its text."""
        chunk, place = divmod(row, len(batch.frames))
        frame = batch.frames[place]
        shown = tuple(name for name in batch.characters[frame] if name in self.cast)
        if not shown:
            return []
        local = any(frame in each.layout.get(name, {}) for each in regions for name in shown)
        positive, most = batch.positive[chunk], len(self.blank)
        looks = [(name if positive else None, min(n, most - 1)) for n, name in enumerate(shown)]
        if local and (positive or most > 1):
            return [Item(row, frame, shown, (name,), (look,), local) for name, look in zip(shown, looks)]
        return [Item(row, frame, shown, shown, tuple(dict.fromkeys(looks)), local)]

    def tokens(self, look: "Look") -> Tensor:
        name, place = look
        return (self.blank if name is None else self.cast[name])[place]


Look = tuple[str | None, int]
"""Whose tokens, None for the blank picture's, and for which place among those that a frame shows."""


class Item(NamedTuple):
    """One attention of a row, whose frame shows characters `shown` of the cast: for those of `names`, to the tokens of
    `looks` together. `local`: some of them have a region."""

    row: int
    frame: int
    shown: Names
    names: Names
    looks: tuple[Look, ...]
    local: bool


def regions_of(batch: Batch) -> tuple[Regions, ...]:
    """Story Regions that are on; their places are those of the whole picture, so there are none in an area of it."""
    if batch.size != batch.canvas:
        return ()
    return tuple(method for method in batch.methods if isinstance(method, Regions) and not method.off())


class Group(NamedTuple):
    """Attentions of different rows to equally many tokens: `tokens` [2, casts, tokens, channels] has them, and
    `numbers` says for each of `items` which of the casts is its own. `rows` are theirs, None for all rows in order."""

    items: list[Item]
    rows: Tensor | None
    tokens: Tensor
    numbers: Tensor


def grouped(items: list[Item], method: ImageAdapter, batch: Batch) -> list[Group]:
    """The attentions in as few calls as can be, with their keys and values on the device."""
    looks = {look for item in items for look in item.looks}
    own = {look: method.tokens(look).to(batch.device, batch.dtype) for look in looks}
    first = [] if method.ground is None else [method.ground.to(batch.device, batch.dtype)]

    together: dict[tuple[int, int], list[Item]] = {}
    casts = {item.looks: torch.cat([*first, *(own[look] for look in item.looks)], dim=1) for item in items}
    before: dict[int, int] = {}
    for item in items:
        # A row is in a call once: adding to it twice in one would make the sum's order a matter of chance.
        nth = before[item.row] = before.get(item.row, -1) + 1
        together.setdefault((casts[item.looks].shape[1], nth), []).append(item)
    groups = []
    for mine in together.values():
        distinct = list(dict.fromkeys(item.looks for item in mine))
        rows = [item.row for item in mine]
        index = [torch.tensor(n) for n in (rows, [distinct.index(item.looks) for item in mine])]
        rows_index, numbers = (n.to(batch.device, non_blocking=batch.device.type == "cuda") for n in index)
        every = rows == list(range(batch.rows))
        tokens = torch.stack([casts[looks] for looks in distinct], dim=1)
        groups.append(Group(mine, None if every else rows_index, tokens, numbers))
    return groups


class Images:
    """Image tokens in one forward pass. Weights of places are one for all layers of a size."""

    def __init__(self, method: ImageAdapter, batch: Batch, items: list[Item], regions: tuple[Regions, ...]):
        self.method = method
        self.batch = batch
        self.regions = regions
        self.groups = grouped(items, method, batch)
        self.local = any(item.local for item in items)
        self.weights: dict[int, list[Tensor] | None] = {}

    def attend(self, call: Call, next: Next) -> Tensor:
        out = next(call)
        weights = self.weights_of(call) if self.local else [None] * len(self.groups)
        if weights is None:
            return out
        at = self.method.layers[call.layer.block, call.layer.transformer]
        options = {name: value for name, value in call.options.items() if name != "mask"}
        for (_, rows, tokens, numbers), weight in zip(self.groups, weights):
            q = call.q if rows is None else call.q[rows]
            k, v = tokens[..., at.start : at.stop].index_select(1, numbers).to(q)
            added = call.unpatched(q, k, v, call.heads, **options)
            if weight is not None:
                added = added * weight
            if rows is None:
                out = torch.add(out, added, alpha=self.method.scale)
            else:
                out = torch.index_add(out, 0, rows, added, alpha=self.method.scale)
        return out

    @torch.compiler.disable
    def weights_of(self, call: Call) -> list[Tensor] | None:
        """For each group what its items count at each query, [items, queries, 1]."""
        queries = call.q.shape[-2]
        if queries not in self.weights:
            self.weights[queries] = None
            size = self.batch.layer_size(queries)
            if size is not None:
                found = [torch.stack([weigh(item, self.regions, size) for item in g.items]) for g in self.groups]
                self.weights[queries] = [weight[..., None].to(call.q) for weight in found]
        if self.weights[queries] is None:
            self.batch.report.skip(
                "another model patch changes the number of a picture's tokens, so Image Characters is skipped there",
                call.layer.block,
            )
        return self.weights[queries]


def weigh(item: Item, regions: tuple[Regions, ...], size: tuple[int, int]) -> Tensor:
    """The sum of w over the item's names: [height * width]."""
    factors = {name: torch.ones(size) for name in item.shown}
    for each in regions:
        for name in item.shown:
            region = each.layout.get(name, {}).get(item.frame)
            if region is not None:
                factors[name] = factors[name] * (1 - each.strength * (1 - at_size(region, *size)))
    total = torch.stack(list(factors.values())).sum(0)
    mine = torch.stack([factors[name] for name in item.names]).sum(0)
    return (mine / total.clamp(min=1)).flatten()
