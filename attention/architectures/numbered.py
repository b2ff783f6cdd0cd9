"""What transformers have in common that say each block's name and number, and whose keys carry rotary positions."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block
from ..method import Layer
from .beside import Beside
from .joint import Joint, Listener, patches
from .rotary import shift, turned

if TYPE_CHECKING:
    from . import Dispatch


def double_and_single(transformer: Any) -> list[Block]:
    """The blocks of a model that keeps text and picture apart in its first ones, and has them as one in the others."""
    double = [("double", i) for i in range(len(transformer.double_blocks))]
    return double + [("single", i) for i in range(len(transformer.single_blocks))]


class Numbered(Listener):
    """One forward pass of a model whose blocks attend to text and picture in one sequence, the text first.

    `placed(queries, options)` says where text and picture stand among so many tokens, None where a call is none of
    the blocks'. `turn` is as in `Call`.
    """

    def __init__(
        self,
        transformer_options: dict[str, Any],
        picture: int,
        dispatch: "Dispatch",
        placed: Callable[[int, dict[str, Any]], tuple[Span | None, Span] | None],
        turn: Callable[[Tensor], Tensor],
        beside: Beside | None = None,
    ):
        super().__init__(transformer_options, picture, dispatch, beside)
        self.placed = placed
        self.turn = turn

    def layer_of(self, queries: int, keys: int, options: dict[str, Any]) -> Joint | None:
        # Blocks that refine text or picture beforehand have no number.
        if queries != keys or "block_index" not in options:
            return None
        place = self.placed(queries - (self.beside.tokens if self.beside else 0), options)
        if place is None:
            return None
        block = options["block_type"], options["block_index"]
        return Joint(Layer("joint", block, 0), *place, self.turn)


def listening(transformer_options: dict[str, Any], listener: Listener) -> dict[str, Any]:
    """Options for one forward pass whose calls go to `listener`; the number of an earlier pass's block is forgotten."""
    options = {name: value for name, value in transformer_options.items() if name != "block_index"}
    return {**options, "optimized_attention_override": listener.override}


def to_the_right(
    embedder: Any, axes: int, batch: Batch, patch: int, scale: float = 1.0, width: int = -1
) -> Callable[[Tensor], Tensor]:
    """What turns a picture's keys to the places of a picture to its right (AlignedGen), along the axis `width`.

    Neighbouring tokens are `scale` apart.
    """
    columns = patches(batch.size, patch)[1]
    pe = shift(embedder, axes, width, columns * scale).to(batch.device)
    return lambda keys: turned(keys, pe)


def scale_of(transformer_options: dict[str, Any]) -> float:
    """How far apart ComfyUI's node ScaleROPE puts neighbouring tokens of a row, in models that heed it."""
    return transformer_options.get("rope_options", {}).get("scale_x", 1.0)
