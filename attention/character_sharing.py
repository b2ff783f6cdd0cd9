"""Subject-driven self-attention (ConsiStory, arXiv 2402.03286, section 4.1) as a way to share for consistent
self-attention: a frame looks at what others show of its characters, not at their backgrounds.

Of the tokens that are sampled from another frame, those inside of the characters that both frames show are kept. Where
the receiving frame shows several characters, the queries inside of one see the tokens of that one only, and those
outside of all see every shared one's. The negative conditioning's rows, which have no words of a character, share
inside the same places as the story's rows, which are evaluated first.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .batch import Batch, Characters, Placement
from .gathers import Gather, Keys, Source, anchor_sources, neighbours, tiles_of
from .method import Call
from .sharing import Left, Seen, Sharing, seen_by
from .subject_regions import Inside, Size, Subjects

if TYPE_CHECKING:
    from .self_attention import SelfAttention

Names = tuple[str, ...]


class CharacterSharing(Sharing):
    """The method in one forward pass. What is shared differs from layer to layer, as more of the pass has been seen."""

    def __init__(self, method: "SelfAttention", batch: Batch):
        super().__init__(method, batch)
        self.subjects = Subjects(batch)

    @torch.compiler.disable
    def watch(self, call: Call) -> None:
        self.subjects.watch(call)

    def apart(self, call: Call) -> Any:
        return call.layer

    def look(self, call: Call, tokens: int, place: Keys) -> Seen:
        batch, device = self.batch, call.q.device
        size = batch.layer_size(tokens)
        if size is None:
            batch.report.skip(
                "another model patch changes the number of a picture's tokens, so Consistent Self-Attention shares no "
                "character there",
                call.layer.block,
            )
            return Seen([], None, [])
        gathers: list[Gather] = []
        left: list[Left] = []
        for start, stop, placement in batch.chunks:
            frames = self.frames(call, start, placement, tokens, size, place)
            found = frames.gathers(device) if frames else []
            left += frames.left(device) if frames and batch.kept is not None else []
            alone = set(range(start, stop)) - {gather.start for gather in found}
            gathers += [*found, *(Gather(rows[0], rows[-1] + 1, None) for rows in neighbours(sorted(alone)))]
        return seen_by(call, gathers, place, left)

    def frames(
        self, call: Call, start: int, placement: Placement | None, tokens: int, size: Size, place: Keys
    ) -> "Frames | None":
        """A chunk's rows with where their characters are: None for one without a story in the stories' own turn."""
        batch = self.batch
        if placement is not None:
            record, inside = placement.record, self.subjects.inside(start, size)
            numbers = [row.frame for row in record.rows]
            if batch.turn:
                for frame, own in zip(numbers, inside):
                    batch.turn.left.setdefault((self.method, call.layer, frame), own)
            return Frames(self, numbers, record.characters, start, inside, tokens, place)
        if not batch.turn or batch.turn.first:
            return None
        inside = [batch.turn.left.get((self.method, call.layer, frame), {}) for frame in batch.frames]
        return Frames(self, list(batch.frames), batch.characters, start, inside, tokens, place)


class Shared(NamedTuple):
    """What some of a row's queries look at in other frames: keys by flat position, [count], and of earlier passes.

    `queries` [count] are positions in the picture; None for all of them.
    """

    queries: Tensor | None
    keys: Tensor
    kept: tuple[Source, ...]


class Frames:
    """A chunk's rows, the first at `start`, in layers of so many picture `tokens`; they draw `frames` of a story.

    `inside` says for each row which of these are inside of which character.
    """

    def __init__(
        self,
        sharing: Sharing,
        frames: list[int],
        characters: Characters,
        start: int,
        inside: list[Inside],
        tokens: int,
        place: Keys,
    ):
        self.samples = partial(sharing.samples, tokens)
        self.frames = frames
        self.characters = characters
        self.row_of = {frame: i for i, frame in enumerate(self.frames)}
        self.start = start
        self.inside = inside
        self.tokens = tokens
        self.place = place
        method = sharing.method
        self.anchors = method.variant == "anchors"
        self.sources = anchor_sources(self.characters, method.anchors)
        self.tiles = [] if self.anchors else tiles_of(self.characters, method.tile)

    def gathers(self, device: torch.device) -> list[Gather]:
        """What the rows look at that look at any other, the queries of several characters each by themselves."""
        gathers = []
        for i, frame in enumerate(self.frames):
            found = [each for queries, names in self.groups(i) for each in self.looks(frame, names, queries)]
            if not any(len(keys) or kept for _, keys, kept in found):
                continue
            row = self.start + i
            own = torch.arange(self.place.keys) + row * self.place.keys
            for queries, keys, kept in found:
                index = torch.cat([own, keys])[None].to(device) if len(keys) else None
                gathers.append(Gather(row, row + 1, index, kept, None if queries is None else queries.to(device)))
        return gathers

    def groups(self, i: int) -> list[tuple[Tensor | None, Names]]:
        """The queries of a row, [count] or None for all, and the characters whose tokens these may see."""
        shown = self.characters[self.frames[i]]
        known = [name for name in shown if name in self.inside[i]]
        if len(shown) < 2 or not known:
            return [(None, shown)]
        inside = torch.stack([self.inside[i][name] for name in known])
        one = inside.sum(0) == 1
        groups = [(one & own, (name,)) for name, own in zip(known, inside)] + [(~one, shown)]
        return [(where.nonzero()[:, 0], names) for where, names in groups if where.any()]

    def looks(self, frame: int, names: Names, queries: Tensor | None) -> list[Shared]:
        """What a frame sees of these characters: one look, or one for each tile that it is in."""
        if self.anchors:
            of = [(s, both) for s in self.sources[frame] if (both := self.both(s, names))]
            keys = [self.keys_of(s, both, self.samples(s)) for s, both in of if s in self.row_of]
            kept = tuple(Source(self.start, s, both) for s, both in of if s not in self.row_of)
            return [Shared(queries, torch.cat(keys) if keys else torch.empty(0, dtype=torch.long), kept)]
        looks = []
        for tile in self.tiles:
            if frame in tile and len(tile) > 1:
                drawn = self.samples(tile)
                at = [drawn[drawn // self.tokens == n] % self.tokens for n in range(len(tile))]
                keys = [self.keys_of(s, self.both(s, names), positions) for s, positions in zip(tile, at)]
                looks.append(Shared(queries, torch.cat(keys), ()))
        return looks

    def both(self, source: int, names: Names) -> Names:
        """Those of these characters that another frame shows too."""
        return tuple(name for name in names if name in self.characters[source])

    def keys_of(self, frame: int, names: Names, positions: Tensor) -> Tensor:
        """Of these positions in the picture of a frame of this pass, those inside of the characters, among all keys."""
        row = self.row_of[frame]
        known = [self.inside[row][name] for name in names if name in self.inside[row]]
        inside = torch.stack(known).any(0) if known else torch.zeros(self.tokens, dtype=torch.bool)
        return positions[inside[positions]] + (self.start + row) * self.place.keys + self.place.first

    def left(self, device: torch.device) -> list[Left]:
        """What frames of later passes look at, for each set of characters that one of them may ask for."""
        asked: dict[tuple[int, Names], None] = {}
        for j, sources in enumerate(self.sources):
            if j in self.row_of or not self.anchors:
                continue
            shown = self.characters[j]
            for names in (shown, *((name,) for name in shown)):
                asked |= {(s, both): None for s in sources if s in self.row_of and (both := self.both(s, names))}
        found = []
        for s, names in asked:
            row = self.start + self.row_of[s]
            keys = self.keys_of(s, names, self.samples(s)) - row * self.place.keys
            found.append(Left(Source(self.start, s, names), row, keys.to(device)))
        return found
