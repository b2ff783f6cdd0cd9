"""Consistent Self-Attention (StoryDiffusion, arXiv 2405.01434, section 3.1).

Frames are rows of one batch. In the chosen self-attention layers a frame attends to its own tokens and to tokens
sampled from other frames of its group, conditional and unconditional rows each among themselves.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..svr.record import Record
from .batch import Batch, Cast, Report
from .blocks import Blocks
from .character_sharing import CharacterSharing
from .gathers import anchor_sources, tiles_of
from .method import Kind
from .schedule import Place
from .sharing import Sharing

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
    share: Literal["everything", "the character"] = "everything"

    name: ClassVar[str] = "Consistent Self-Attention"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"self", "joint"})
    stacks: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    widens: ClassVar[bool] = True
    reads_alone: ClassVar[bool] = False

    @property
    def stories_first(self) -> bool:
        return self.share == "the character" and not self.off()

    def off(self) -> bool:
        return self.sampling_rate == 0

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        for record in records:
            check_complete(self, record)
        if self.share == "the character" and not records:
            report.warn(
                "Consistent Self-Attention has no character to share, because the sampler's conditioning carries no "
                "story: wire its positive input from Story Prompt, or set `share` to “everything”."
            )
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

    def sources(self, cast: Cast) -> list[list[int]]:
        if self.variant == "anchors":
            return anchor_sources(cast.characters, self.anchors)
        tiles = tiles_of(cast.characters, self.tile)
        return [sorted({f for tile in tiles if j in tile for f in tile} - {j}) for j in range(len(cast.characters))]

    def prepare(self, batch: Batch) -> Sharing | None:
        alone = len(batch.frames) == 1 and batch.kept is None
        if self.off() or not batch.whole or alone or not self.chance(batch.place):
            return None
        return Sharing(self, batch) if self.share == "everything" else CharacterSharing(self, batch)


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
