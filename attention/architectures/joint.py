"""What transformers have in common whose layers attend to text and picture in one sequence of tokens."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...svr.record import Span
from ..method import Call, Layer, call_attention
from .back_ends import attention_of, held
from .beside import Beside, attend_beside

if TYPE_CHECKING:
    from . import Dispatch


def patches(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of a picture's tokens, of a latent picture that is padded to whole patches."""
    return math.ceil(size[0] / patch), math.ceil(size[1] / patch)


def copies(own: int, tokens: int) -> tuple[int, ...]:
    return (0,) if own == tokens else ()


def grid(tokens: int, size: tuple[int, int], patch: int) -> tuple[int, int] | None:
    """Rows and columns of a latent picture's tokens, if it has so many."""
    rows, columns = patches(size, patch)
    return (rows, columns) if rows * columns == tokens else None


class Joint(NamedTuple):
    """A layer's call: where text and picture stand among its keys, and `turn` as in `Call`."""

    layer: Layer
    text: Span | None
    picture: Span
    turn: Callable[[Tensor], Tensor] | None = None


class Listener:
    """Hears every attention call of one forward pass that is given `transformer_options`.

    The picture has `picture` tokens. Subclasses say by `layer_of` which layer a call is, and where its tokens stand,
    not counting those of `beside`.
    """

    def __init__(
        self, transformer_options: dict[str, Any], picture: int, dispatch: "Dispatch", beside: Beside | None = None
    ):
        self.beside = beside
        self.previous = transformer_options.get("optimized_attention_override")
        self.picture = picture
        self.dispatch = dispatch

    def layer_of(self, queries: int, keys: int, options: dict[str, Any]) -> Joint | None:
        """What a call of so many queries and keys is, or None where it is none that methods work on."""
        raise NotImplementedError

    def override(self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs):
        q, k, v = held(q, k, v)
        attention = attention_of(func, self.previous)
        if args:
            kwargs["mask"] = args[0]
        found = self.layer_of(q.shape[-2], k.shape[-2], kwargs.get("transformer_options") or {})
        beside = self.beside if found and found.layer.kind != "self" else None
        wanted = found is not None and self.dispatch.wants(found.layer)
        if found is None or not (wanted or beside):
            return attention(q, k, v, heads, **kwargs)
        if v.ndim > k.ndim:
            v = v.flatten(2)
        layer, text, picture, turn = found
        plain = attention_of(func)
        call = Call(layer, q, k, v, heads, Span(0, len(q)), text, picture, turn, attention, plain, kwargs)
        attend = partial(attend_picture, self.dispatch) if wanted else call_attention
        return attend_beside(call, beside, attend) if beside else attend(call)


def attend_picture(dispatch: "Dispatch", call: Call) -> Tensor:
    """A joint call whose picture's queries go through the methods: those of text and references stay as they are.

    Attention is a sum over keys for each query alone, so the parts are the same arithmetic as the whole.
    """
    queries = call.q.shape[-2]
    start, stop = call.picture
    parts = []
    for span in (Span(0, start), Span(start, stop), Span(stop, queries)):
        if span.start == span.stop:
            continue
        part = call._replace(q=call.q[..., slice(*span), :], options=of_queries(call.options, span, queries))
        parts.append(dispatch.attend(part) if span == call.picture else call_attention(part))
    return torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]


def of_queries(options: dict[str, Any], span: Span, queries: int) -> dict[str, Any]:
    """A call's options for some of its queries: a mask [..., queries, keys] is cut to them."""
    mask = options.get("mask")
    if mask is None or mask.ndim < 2 or mask.shape[-2] != queries or queries == 1:
        return options
    return {**options, "mask": mask[..., slice(*span), :]}
