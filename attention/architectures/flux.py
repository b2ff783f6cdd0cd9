"""Flux.1 dev, schnell and Kontext: text, picture and then reference latents, in double and single blocks."""

import math
from typing import TYPE_CHECKING, Any

from comfy.ldm.flux.model import Flux

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block, thirds
from .beside import beside_of
from .joint import copies, grid, patches
from .numbered import Numbered, double_and_single, listening, scale_of, to_the_right

if TYPE_CHECKING:
    from . import Dispatch

__all__ = ["blocks", "copies", "install", "layer_size", "name", "parts"]

name = "Flux.1"
parts = thirds

WIDTH = 2
"""The axis of a token's positions that is the picture's width. Flux.2 has one more behind it, which counts its text."""


def blocks(model: Any) -> list[Block]:
    """Of Flux.2, Ovis and LongCat, which are the same class without CLIP's pooled output, none."""
    transformer = model.diffusion_model
    if not isinstance(transformer, Flux) or transformer.vector_in is None:
        return []
    return double_and_single(transformer)


def layer_size(model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    return grid(tokens, (height, width), model.diffusion_model.patch_size)


def install(transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: "Dispatch") -> dict[str, Any]:
    transformer = model.diffusion_model
    patch = transformer.patch_size
    picture = math.prod(patches(batch.size, patch))

    def placed(queries: int, options: dict[str, Any]) -> tuple[Span | None, Span] | None:
        start = queries - picture - sum(options.get("reference_image_num_tokens", ()))
        # Where there are more tokens than text and picture, older hosts don't say whose they are.
        if start != batch.tokens and "reference_image_num_tokens" not in options:
            return None
        text = Span(0, start) if start == batch.tokens else None
        return (text, Span(start, start + picture)) if start >= 0 else None

    scale = scale_of(transformer_options)
    axes = len(transformer.params.axes_dim)
    turn = to_the_right(transformer.pe_embedder, axes, batch, patch, scale, WIDTH)
    return listening(
        transformer_options, Numbered(transformer_options, picture, dispatch, placed, turn, beside_of(batch))
    )
