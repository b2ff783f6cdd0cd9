"""HunyuanImage 2.1: text, then the words that are quoted in it, then the picture, in double and single blocks."""

import math
from typing import TYPE_CHECKING, Any

from comfy.ldm.hunyuan_video.model import HunyuanVideo

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block, thirds
from .joint import copies, grid, patches
from .numbered import Numbered, double_and_single, listening, to_the_right

if TYPE_CHECKING:
    from . import Dispatch

__all__ = ["blocks", "copies", "install", "layer_size", "name", "parts"]

name = "HunyuanImage"
parts = thirds

AXES = 2


def blocks(model: Any) -> list[Block]:
    """Of HunyuanVideo, which is the same class with a patch of three sides, none."""
    transformer = model.diffusion_model
    if not isinstance(transformer, HunyuanVideo) or len(transformer.patch_size) != AXES:
        return []
    return double_and_single(transformer)


def layer_size(model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    return grid(tokens, (height, width), model.diffusion_model.patch_size[-1])


def install(transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: "Dispatch") -> dict[str, Any]:
    transformer = model.diffusion_model
    patch = transformer.patch_size[-1]
    picture = math.prod(patches(batch.size, patch))

    def placed(queries: int, options: dict[str, Any]) -> tuple[Span | None, Span] | None:
        start = queries - picture
        quoted = start - batch.tokens
        known = quoted == 0 or (quoted > 0 and transformer.byt5_in is not None)
        return (Span(0, batch.tokens) if known else None, Span(start, queries)) if start >= 0 else None

    turn = to_the_right(transformer.pe_embedder, AXES, batch, patch)
    return listening(transformer_options, Numbered(transformer_options, picture, dispatch, placed, turn))
