"""What frames of one pass leave for frames of later ones, where a story is drawn in several."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from .method import Batch, Call, Method


class Left(NamedTuple):
    """A frame that later passes look at: its chunk's first row, its own row, and which of its keys, [count]."""

    start: int
    frame: int
    row: int
    keys: Tensor


class Keeping:
    """A method in one forward pass, whose frames may look at those of earlier passes."""

    def __init__(self, method: Method, batch: Batch):
        self.method = method
        self.batch = batch

    def leave(self, call: Call, frames: Iterable[Left], turn: Callable[[Tensor], Tensor] | None) -> None:
        """Keep what frames of later passes look at, with the positions that `turn` gives its keys."""
        for start, frame, row, keys in frames:
            assert self.batch.kept is not None
            k = turn(call.k[row : row + 1])[0] if turn else call.k[row]
            own = k.index_select(-2, keys), call.v[row].index_select(-2, keys)
            self.batch.kept[self.key(call, start, frame)] = own

    def found(self, call: Call, start: int, frame: int) -> tuple[Tensor, Tensor]:
        """The keys and values of a frame that an earlier pass has drawn. Raises `ValueError` where none has."""
        kept = (self.batch.kept or {}).get(self.key(call, start, frame))
        if kept is None:
            raise ValueError(
                f"{self.method.name} lacks frame {frame + 1}, which was drawn without this conditioning: take "
                "Story Runs out, or the node that gives some frames other conditionings (such as Cond Set Default "
                "Combine)."
            )
        return kept

    def key(self, call: Call, start: int, frame: int) -> tuple[Any, ...]:
        """What `Batch.kept` has a frame's keys and values under: an attention map is drawn from other values."""
        watched = call.attention is call.unpatched
        return self.method, call.layer, watched, self.batch.uuids[start // len(self.batch.frames)], frame
