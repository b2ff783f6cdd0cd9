"""Which layers a kind of model has, which attention call is which layer, and how to hear of them."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..batch import Batch
from ..blocks import Block, Blocks, Parts, by_name, selected
from ..method import Call, Layer
from . import chroma, flux, flux2, hunyuan_image, lumina, mmdit, qwen_image, unet, wan


class Dispatch(Protocol):
    """Where an architecture takes the attention calls that it hears of."""

    def wants(self, layer: Layer) -> bool:
        """Whether any method works on the layer. Calls of other layers need not be taken here."""

    def attend(self, call: Call) -> Tensor: ...

    def missed(self, layer: Layer) -> None:
        """A layer's attention was computed by somebody else, without a call."""


class Architecture(Protocol):
    """A module of this package."""

    name: str

    def blocks(self, model: Any) -> list[Block]:
        """The blocks with attention of a `BaseModel`, by (name, number); none where it is of another kind."""

    def parts(self, blocks: list[Block]) -> Parts:
        """What "down", "mid", "up" and "late" mean."""

    def copies(self, own: int, tokens: int) -> tuple[int, ...]:
        """Where in a text of so many `tokens`, as the model gets it, a conditioning's `own` begin; nowhere: ()."""

    def layer_size(self, model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
        """Height and width of a layer with so many picture tokens, in a latent picture of this size."""

    def install(
        self, transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: Dispatch
    ) -> dict[str, Any]:
        """Options for one forward pass of a `BaseModel` that take its calls to `dispatch`."""


ARCHITECTURES: tuple[Architecture, ...] = (unet, mmdit, flux, chroma, flux2, qwen_image, lumina, hunyuan_image, wan)


class Layers(NamedTuple):
    """What a model is, and its blocks with attention."""

    architecture: Architecture
    blocks: list[Block]

    def selected(self, blocks: Blocks) -> frozenset[Block]:
        parts = {"all": self.blocks, **by_name(self.blocks), **self.architecture.parts(self.blocks)}
        return selected(blocks, parts)


def layers_of(model: Any) -> Layers | None:
    """The layers of a `BaseModel`, or None where it is of no known architecture."""
    for architecture in ARCHITECTURES:
        if blocks := architecture.blocks(model):
            return Layers(architecture, blocks)
    return None
