"""Lumina-Image 2.0 and Z-Image: text, then the picture, in every block; blocks before them refine each alone.

Z-Image pads both to whole multiples of 32 tokens, and puts reference pictures and their texts before the picture.
"""

import math
from typing import TYPE_CHECKING, Any

from comfy.ldm.lumina.model import NextDiT

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block, thirds
from .joint import copies, grid, patches
from .numbered import Numbered, listening, scale_of, to_the_right

if TYPE_CHECKING:
    from . import Dispatch

__all__ = ["blocks", "copies", "install", "layer_size", "name", "parts"]

name = "Lumina 2 or Z-Image"
parts = thirds


def blocks(model: Any) -> list[Block]:
    transformer = model.diffusion_model
    return [("double", i) for i in range(len(transformer.layers))] if isinstance(transformer, NextDiT) else []


def layer_size(model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    return grid(tokens, (height, width), model.diffusion_model.patch_size)


def install(transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: "Dispatch") -> dict[str, Any]:
    transformer = model.diffusion_model
    picture = math.prod(patches(batch.size, transformer.patch_size))
    multiple = transformer.pad_tokens_multiple or 1

    def placed(queries: int, options: dict[str, Any]) -> tuple[Span | None, Span] | None:
        start = queries - padded(picture, multiple)
        text = Span(0, batch.tokens) if start == padded(batch.tokens, multiple) else None
        return (text, Span(start, start + picture)) if start >= 0 else None

    axes, scale = len(transformer.axes_dims), scale_of(transformer_options)
    turn = to_the_right(transformer.rope_embedder, axes, batch, transformer.patch_size, scale)
    return listening(transformer_options, Numbered(transformer_options, picture, dispatch, placed, turn))


def padded(tokens: int, multiple: int) -> int:
    return tokens + -tokens % multiple
