"""Chroma and Chroma1-Radiance: Flux's double and single blocks, text and then the picture, without references.

Radiance draws pixels, in patches of 16 by 16; its last layers attend to nothing.
"""

import math
from typing import TYPE_CHECKING, Any

from comfy.ldm.chroma.model import Chroma

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block, thirds
from .beside import beside_of
from .joint import copies, grid, patches
from .numbered import Numbered, double_and_single, listening, to_the_right

if TYPE_CHECKING:
    from . import Dispatch

__all__ = ["blocks", "copies", "install", "layer_size", "name", "parts"]

name = "Chroma"
parts = thirds

AXES = 3


def blocks(model: Any) -> list[Block]:
    transformer = model.diffusion_model
    return double_and_single(transformer) if isinstance(transformer, Chroma) else []


def layer_size(model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    return grid(tokens, (height, width), model.diffusion_model.patch_size)


def install(transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: "Dispatch") -> dict[str, Any]:
    transformer = model.diffusion_model
    picture = math.prod(patches(batch.size, transformer.patch_size))

    def placed(queries: int, options: dict[str, Any]) -> tuple[Span | None, Span] | None:
        start = queries - picture
        text = Span(0, start) if start == batch.tokens else None
        return (text, Span(start, queries)) if start >= 0 else None

    turn = to_the_right(transformer.pe_embedder, AXES, batch, transformer.patch_size)
    return listening(
        transformer_options, Numbered(transformer_options, picture, dispatch, placed, turn, beside_of(batch))
    )
