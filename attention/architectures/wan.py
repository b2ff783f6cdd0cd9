"""Wan 2.1 and 2.2, text to picture or first frame: each block attends to the picture first, then from it to the text.

An image-to-video block also looks at an image encoder's tokens, in a call of its own. A reference stands before the
picture's tokens in models that have a layer for it, and after them in others.
"""

import math
from typing import TYPE_CHECKING, Any

from comfy.ldm.wan.model import WanModel

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block, thirds
from ..method import Layer
from .beside import beside_of
from .joint import Joint, Listener, copies, grid, patches
from .numbered import listening, scale_of, to_the_right

if TYPE_CHECKING:
    from . import Dispatch

__all__ = ["blocks", "copies", "install", "layer_size", "name", "parts"]

name = "Wan"
parts = thirds

AXES = 3


def blocks(model: Any) -> list[Block]:
    """Subclasses (VACE, Animate and others) put further tokens in and have other blocks."""
    transformer = model.diffusion_model
    return [("double", i) for i in range(len(transformer.blocks))] if type(transformer) is WanModel else []


def layer_size(model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    return grid(tokens, (height, width), model.diffusion_model.patch_size[-1])


def install(transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: "Dispatch") -> dict[str, Any]:
    return listening(transformer_options, ByTurns(transformer_options, model.diffusion_model, batch, dispatch))


class ByTurns(Listener):
    """`inside` is the block whose self-attention has been heard, and whose attention to the text has not."""

    def __init__(self, transformer_options: dict[str, Any], transformer: Any, batch: Batch, dispatch: "Dispatch"):
        patch = transformer.patch_size[-1]
        super().__init__(transformer_options, math.prod(patches(batch.size, patch)), dispatch, beside_of(batch))
        self.text = batch.tokens
        self.leading = transformer.ref_conv is not None
        self.turn = to_the_right(transformer.rope_embedder, AXES, batch, patch, scale_of(transformer_options))
        self.inside: int | None = None

    def layer_of(self, queries: int, keys: int, options: dict[str, Any]) -> Joint | None:
        if "block_index" not in options:
            return None
        number = options["block_index"]
        # All of a video's frames are its picture.
        picture = math.prod(options.get("grid_sizes", (self.picture,)))
        if picture > queries:
            return None
        start = queries - picture if self.leading else 0
        place = Span(start, start + picture)
        if self.inside != number and queries == keys:
            self.inside = number
            return Joint(Layer("self", ("double", number), 0), None, place, self.turn)
        if self.inside == number and keys == self.text + (self.beside.tokens if self.beside else 0):
            self.inside = None
            return Joint(Layer("cross", ("double", number), 1), Span(0, self.text), place)
        return None
