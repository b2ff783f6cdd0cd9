"""Qwen-Image and Qwen-Image-Edit: text, then the picture, then reference pictures, in every block."""

import math
from typing import TYPE_CHECKING, Any

from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block, thirds
from .joint import copies, grid, patches
from .numbered import Numbered, listening, to_the_right

if TYPE_CHECKING:
    from . import Dispatch

__all__ = ["blocks", "copies", "install", "layer_size", "name", "parts"]

name = "Qwen-Image"
parts = thirds

AXES = 3


def blocks(model: Any) -> list[Block]:
    transformer = model.diffusion_model
    if not isinstance(transformer, QwenImageTransformer2DModel):
        return []
    return [("double", i) for i in range(len(transformer.transformer_blocks))]


def layer_size(model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    return grid(tokens, (height, width), model.diffusion_model.patch_size)


def install(transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: "Dispatch") -> dict[str, Any]:
    transformer = model.diffusion_model
    picture = math.prod(patches(batch.size, transformer.patch_size))

    def placed(queries: int, options: dict[str, Any]) -> tuple[Span | None, Span] | None:
        references = sum(options.get("reference_image_num_tokens", ()))
        start = queries - references - picture
        text = Span(0, start) if start == batch.tokens else None
        return (text, Span(start, start + picture)) if start >= 0 else None

    turn = to_the_right(transformer.pe_embedder, AXES, batch, transformer.patch_size)
    return listening(transformer_options, Numbered(transformer_options, picture, dispatch, placed, turn))
