"""Stable Diffusion's U-Net: SD1.x, SD2.x, SDXL and its refiner.

ComfyUI calls the patches `attn1_patch` and `attn2_patch` just before a transformer's self-attention and
cross-attention, and an override for every attention call that is given `transformer_options`. So the override knows
which layer it serves.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.ldm.modules.attention
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ...svr.record import Span
from ..batch import Batch
from ..blocks import Block, Parts
from ..method import Call, Kind, Layer
from .back_ends import attention_of, held

if TYPE_CHECKING:
    from . import Dispatch

name = "U-Net with cross-attention (SD1.x, SD2.x and SDXL)"

PATCHES: dict[Kind, str] = {"self": "attn1_patch", "cross": "attn2_patch"}


def blocks(model: Any) -> list[Block]:
    unet = model.diffusion_model
    if not isinstance(unet, UNetModel):
        return []
    parts = [("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks)]
    return [
        (name, number)
        for name, blocks in parts
        for number, block in enumerate(blocks)
        if block is not None and any(isinstance(layer, SpatialTransformer) for layer in block)
    ]


class Transformer(NamedTuple):
    """A transformer of a block: its number there, its module's name, and the widths of its tokens and of the text's."""

    block: Block
    number: int
    module: str
    channels: int
    text_channels: int


def channel_spans(transformers: Sequence[Transformer]) -> dict[tuple[Block, int], Span]:
    """Where each transformer, by its block and number, has its channels where those of all stand side by side."""
    start, found = 0, {}
    for each in transformers:
        found[each.block, each.number] = Span(start, start := start + each.channels)
    return found


def transformers(model: Any) -> list[Transformer]:
    """A `BaseModel`'s transformers in the order in which diffusers names them: down, up, then the middle block."""
    unet = model.diffusion_model
    modules = {"input": "input_blocks.{}", "output": "output_blocks.{}", "middle": "middle_block"}
    found = []
    for block in sorted(blocks(model), key=lambda block: list(modules).index(block[0])):
        prefix = f"{modules[block[0]].format(block[1])}."
        for name, layer in unet.get_submodule(prefix[:-1]).named_children():
            if isinstance(layer, SpatialTransformer):
                for number, transformer in enumerate(layer.transformer_blocks):
                    attention = transformer.attn2
                    module = f"{prefix}{name}.transformer_blocks.{number}"
                    widths = attention.heads * attention.dim_head, attention.to_k.in_features
                    found.append(Transformer(block, number, module, *widths))
    return found


def parts(blocks: list[Block]) -> Parts:
    down, mid, up = ([block for block in blocks if block[0] == name] for name in ("input", "middle", "output"))
    return {"down": down, "mid": mid, "up": up, "late": up}


def copies(own: int, tokens: int) -> tuple[int, ...]:
    """ComfyUI repeats a shorter text as a whole, to the length of those that it is batched with."""
    return tuple(range(0, tokens, own)) if tokens % own == 0 else ()


def layer_size(model: Any, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """A U-Net halves its picture, rounding up."""
    while height * width > tokens:
        height, width = (height + 1) // 2, (width + 1) // 2
    return (height, width) if height * width == tokens else None


def install(transformer_options: dict[str, Any], model: Any, batch: Batch, dispatch: "Dispatch") -> dict[str, Any]:
    listener = Listener(transformer_options, batch.tokens, dispatch)
    patches = dict(transformer_options.get("patches", {}))
    for kind, patch in PATCHES.items():
        patches[patch] = [*patches.get(patch, []), partial(listener.record_layer, kind)]
    replace = dict(transformer_options.get("patches_replace", {}))
    if "attn2" in replace:
        replace["attn2"] = {block: partial(listener.replaced, p) for block, p in replace["attn2"].items()}
    return {
        **transformer_options,
        "patches": patches,
        "patches_replace": replace,
        "optimized_attention_override": listener.override,
    }


class Listener:
    """One forward pass, over a text of `text` tokens. `next` is the layer whose attention comes next."""

    def __init__(self, transformer_options: dict[str, Any], text: int, dispatch: "Dispatch"):
        self.previous = transformer_options.get("optimized_attention_override")
        self.text = text
        self.dispatch = dispatch
        self.next: Layer | None = None

    def record_layer(self, kind: Kind, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> Any:
        left, self.next = self.next, Layer(kind, tuple(extra_options["block"]), extra_options["block_index"])
        if left is not None and left.kind == "self":
            self.dispatch.missed(left)
        return n, context, value

    def override(self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs):
        q, k, v = held(q, k, v)
        layer, self.next = self.next, None
        attention = attention_of(func, self.previous)
        if layer is None:
            return attention(q, k, v, heads, *args, **kwargs)
        if args:
            kwargs["mask"] = args[0]
        return self.dispatch.attend(self.call(layer, q, k, v, heads, attention, attention_of(func), kwargs))

    def replaced(self, patch: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, extra_options: Any) -> Tensor:
        """Another pack's `attn2_replace` patch, plus what our methods add to the layer's own attention.

        It may call attention without transformer_options, so that our override never runs.
        """
        layer, self.next = self.next, None
        if layer is None:
            return patch(q, k, v, extra_options)
        plain = attention_of(comfy.ldm.modules.attention.optimized_attention)
        precision = {"attn_precision": extra_options["attn_precision"]}
        options = {**precision, "transformer_options": extra_options}

        def attention(q_: Tensor, k_: Tensor, v_: Tensor, heads: int, mask: Tensor | None = None, **_: Any) -> Tensor:
            out = patch(q, k, v, extra_options)
            if mask is None and k_ is k and v_ is v:
                return out
            return out + plain(q_, k_, v_, heads, mask=mask, **options) - plain(q, k, v, heads, **options)

        return self.dispatch.attend(self.call(layer, q, k, v, extra_options["n_heads"], attention, plain, precision))

    def call(
        self,
        layer: Layer,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        attention: Callable[..., Tensor],
        unpatched: Callable[..., Tensor],
        options: dict[str, Any],
    ) -> Call:
        text = Span(0, self.text) if layer.kind == "cross" and k.shape[-2] == self.text else None
        picture = Span(0, q.shape[-2])
        return Call(layer, q, k, v, heads, Span(0, len(q)), text, picture, None, attention, unpatched, options)
