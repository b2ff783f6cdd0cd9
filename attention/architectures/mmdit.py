"""Stable Diffusion 3's MMDiT: SD3, SD3.5 medium, large and turbo.

Each block's first attention call is joint, text before picture; some blocks of SD3.5 medium have a second one, of the
picture alone. The model says no block's number, so calls are counted; blocks that another patch replaces or leaves
out (Skip Layer Guidance) are called by their number, which sets the count right.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block, thirds
from ..method import Layer
from .beside import beside_of
from .joint import Joint, Listener, copies, grid, patches

if TYPE_CHECKING:
    from . import Dispatch

__all__ = ["blocks", "copies", "install", "layer_size", "name", "parts"]

name = "Stable Diffusion 3"
parts = thirds


def blocks(model: Any) -> list[Block]:
    transformer = model.diffusion_model
    return [("double", i) for i in range(len(transformer.joint_blocks))] if isinstance(transformer, MMDiT) else []


def layer_size(model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    return grid(tokens, (height, width), model.diffusion_model.patch_size)


def install(transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: "Dispatch") -> dict[str, Any]:
    picture = math.prod(patches(batch.size, model.diffusion_model.patch_size))
    listener = Counter(transformer_options, batch, picture, dispatch)
    replace = dict(transformer_options.get("patches_replace", {}))
    if "dit" in replace:
        replace["dit"] = {block: partial(listener.replaced, block, p) for block, p in replace["dit"].items()}
    return {**transformer_options, "patches_replace": replace, "optimized_attention_override": listener.override}


class Counter(Listener):
    """`next` is the number of the block whose joint attention comes next."""

    def __init__(self, transformer_options: dict[str, Any], batch: Batch, picture: int, dispatch: "Dispatch"):
        super().__init__(transformer_options, picture, dispatch, beside_of(batch))
        self.text = batch.tokens
        self.next = 0

    def layer_of(self, queries: int, keys: int, options: dict[str, Any]) -> Joint | None:
        if queries != keys:
            return None
        if queries == self.picture:
            return Joint(Layer("self", ("double", self.next - 1), 1), None, Span(0, queries))
        number, self.next = self.next, self.next + 1
        start = queries - self.picture - (self.beside.tokens if self.beside else 0)
        text = Span(0, start) if start == self.text else None
        return Joint(Layer("joint", ("double", number), 0), text, Span(start, start + self.picture))

    def replaced(self, block: Block, patch: Callable[..., Any], args: Any, extra_options: Any) -> Any:
        self.next = block[1]
        out = patch(args, extra_options)
        self.next = block[1] + 1
        return out
