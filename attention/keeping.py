"""What frames of one pass leave for frames of later ones, where a story is drawn in several."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from .batch import Batch
from .gathers import Source
from .method import Call, Method


class Left(NamedTuple):
    """A frame that later passes look at: its own row, and which of its keys, [count]."""

    source: Source
    row: int
    keys: Tensor


class Keeping:
    """A method in one forward pass, whose frames may look at those of earlier passes."""

    def __init__(self, method: Method, batch: Batch):
        self.method = method
        self.batch = batch

    def leave(self, call: Call, frames: Iterable[Left], turn: Callable[[Tensor], Tensor] | None) -> None:
        """Keep what frames of later passes look at, with the positions that `turn` gives its keys."""
        for source, row, keys in frames:
            assert self.batch.kept is not None
            k = turn(call.k[row : row + 1])[0] if turn else call.k[row]
            own = k.index_select(-2, keys), call.v[row].index_select(-2, keys)
            self.batch.kept[self.key(call, source)] = own

    def found(self, call: Call, source: Source) -> tuple[Tensor, Tensor]:
        """The keys and values of a frame that an earlier pass has drawn. Raises `ValueError` where none has."""
        kept = (self.batch.kept or {}).get(self.key(call, source))
        if kept is None:
            raise ValueError(
                f"{self.method.name} lacks frame {source.frame + 1}, which was drawn without this conditioning: take "
                "Story Runs out, or the node that gives some frames other conditionings (such as Cond Set Default "
                "Combine)."
            )
        return kept

    def key(self, call: Call, source: Source) -> tuple[Any, ...]:
        """What `Batch.kept` has a frame's keys and values under: an attention map is drawn from other values."""
        watched = call.attention is call.unpatched
        uuid = self.batch.uuids[source.start // len(self.batch.frames)]
        return self.method, call.layer, watched, uuid, source.frame, source.names
