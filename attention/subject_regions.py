"""Where each character is in the pictures of one forward pass.

ConsiStory (arXiv 2402.03286, section 4.1) takes the tokens that frames share from inside the subject's mask, which it
cuts by Otsu's threshold from what earlier steps recorded of the cross-attention on its words. Here Story Regions says
where a character is, or else the attention in the layers that the pass has gone through already, so that nothing is
kept from one evaluation of the model to the next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..svr.record import Record
from .batch import Batch, Placement
from .gathered import rows_of_mask
from .method import Call, additive, call_attention, one_hot
from .recorder import attention_on, names_in
from .region_masks import otsu
from .regions import Region, Regions, at_size

Size = tuple[int, int]

Inside = dict[str, Tensor]
"""Which tokens of a picture are inside of each character that it shows, bool [tokens], as far as anything is known."""

HALF = 0.5 - 1e-6
"""How much of a token lies in a region that it is inside of: at least half, whatever the rounding."""


class Subjects:
    """The characters of a forward pass: what has been seen of them so far, and where they are in a layer."""

    def __init__(self, batch: Batch):
        self.batch = batch
        whole = batch.size == batch.canvas
        self.layouts = [method for method in batch.asked if isinstance(method, Regions) and whole]
        stories = ((chunk.start, chunk.placement) for chunk in batch.chunks if chunk.placement)
        self.seen = {start: Seen(placement, batch) for start, placement in stories}
        self.watched = [start for start, seen in self.seen.items() if not self.all_given(seen.record)]

    def all_given(self, record: Record) -> bool:
        """Whether Story Regions says of every character of every frame where it is."""
        shown = ((row.frame, name) for row in record.rows for name in record.characters[row.frame])
        return all(self.given(record, frame, name) for frame, name in shown)

    def given(self, record: Record, frame: int, name: str) -> list[Region]:
        """What the graph's Story Regions say of a character's place, whatever their steps and blocks."""
        layouts = [method.layout.get(name, {}) for method in self.layouts if method.frames == record.frames]
        return [layout[frame] for layout in layouts if frame in layout]

    def watch(self, call: Call) -> None:
        """See how the characters' words are looked at in a layer."""
        size = self.batch.layer_size(call.q.shape[-2])
        if size is not None:
            for start in self.watched:
                self.seen[start].add(call, start, size)

    def inside(self, start: int, size: Size) -> list[Inside]:
        """For each row of a story's chunk from `start` on, where its characters are in a layer of this size."""
        seen = self.seen[start]
        found = seen.inside(size)
        for row, own in zip(seen.record.rows, found):
            for name in seen.record.characters[row.frame]:
                if given := self.given(seen.record, row.frame, name):
                    places = [at_size(region, *size).flatten() for region in given]
                    own[name] = torch.stack(places).amin(0) >= HALF
        return found


class Seen:
    """The attention on the characters of one conditioning, summed over the layers of each size."""

    def __init__(self, placement: Placement, batch: Batch):
        self.record = placement.record
        self.report = batch.report
        rows = self.record.rows
        self.names = names_in(self.record.characters)
        spans = [[self.record.subject_columns(row, name) for name in self.names] for row in rows]
        columns = torch.stack([one_hot(own, placement.own_tokens) for own in spans])
        self.columns = placement.place(columns, batch.tokens).to(batch.device, batch.dtype)
        shown = [[name in self.record.characters[row.frame] for name in self.names] for row in rows]
        self.shown = torch.tensor(shown, dtype=torch.bool) & columns.any(-1)
        self.sums: dict[Size, Tensor] = {}
        self.layers = 0

    def add(self, call: Call, start: int, size: Size) -> None:
        """Add the share of the attention to the text that falls on each character, at the picture's queries."""
        if not self.shown.any():
            self.report.warn(
                "Consistent Self-Attention finds no words that describe the characters it is to share: write an "
                "identity in Story Script, or say where they are with Story Regions."
            )
            return
        assert call.text is not None
        rows, text = slice(start, start + len(self.record.rows)), slice(*call.text)
        mask = call.options.get("mask")
        if mask is not None:
            mask = additive(rows_of_mask(mask, rows.start, rows.stop, len(call.q)), call.q.dtype)[..., text]
        call = call._replace(
            q=call.q[rows],
            k=call.k[rows][..., text, :],
            v=call.v[rows][..., text, :],
            options={**call.options, "mask": mask},
            alone=None,
        )
        looks = attention_on(self.columns.to(call.q), call, call_attention).unflatten(-1, size)
        self.sums[size] = self.sums[size] + looks if size in self.sums else looks
        self.layers += 1

    def inside(self, size: Size) -> list[Inside]:
        """For each row, where the mean attention on each of its characters is above its Otsu threshold and, divided by
        its mean, larger than that on any other."""
        if not self.layers:
            return [{} for _ in self.record.rows]
        mean = torch.stack([resized(each, size) for each in self.sums.values()]).sum(0) / self.layers
        looks = mean.flatten(2).transpose(0, 1)
        shares = looks / looks.mean(-1, keepdim=True).clamp(min=1e-12)
        shares = shares.masked_fill(~self.shown.to(looks.device)[..., None], -1)
        places = (looks > otsu(looks)[..., None]) & (shares == shares.amax(1, keepdim=True))
        found = places.cpu()
        return [
            {name: found[i, n] for n, name in enumerate(self.names) if self.shown[i, n]}
            for i in range(len(self.record.rows))
        ]


def resized(maps: Tensor, size: Size) -> Tensor:
    """Maps [looks, rows, height, width] at another size: smaller by the mean over areas, larger by interpolation."""
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear")
