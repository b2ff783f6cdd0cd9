"""Which layers a kind of model has, which attention call is which layer, and how to hear of them."""

from typing import Any, Protocol

from torch import Tensor

from ..method import Call, Layer
from . import unet


class Dispatch(Protocol):
    """Where an architecture takes the attention calls that it hears of."""

    def attend(self, call: Call) -> Tensor: ...

    def missed(self, layer: Layer) -> None:
        """A layer's attention was computed by somebody else, without a call."""


class Architecture(Protocol):
    """A module of this package."""

    name: str

    def blocks(self, model: Any) -> list[tuple[str, int]]:
        """The model's blocks with attention, by (name, number); none where it is of another kind."""

    def layer_size(self, tokens: int, height: int, width: int) -> tuple[int, int] | None:
        """Height and width of a layer with so many picture tokens, in a latent picture of this size."""

    def install(self, transformer_options: dict[str, Any], text: int, dispatch: Dispatch) -> dict[str, Any]:
        """Options for one forward pass, over a text of so many tokens, that take its calls to `dispatch`."""


ARCHITECTURES: tuple[Architecture, ...] = (unet,)


def architecture_of(model: Any) -> tuple[Architecture, list[tuple[str, int]]] | None:
    """The architecture of a `BaseModel` and its blocks with attention, or None where it is unknown."""
    for architecture in ARCHITECTURES:
        if blocks := architecture.blocks(model):
            return architecture, blocks
    return None
