"""Attention over keys and values that are gathered from several frames: consistent self-attention's arithmetic.

Every token is projected once; what a row looks at is then copied together.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gathers import Gather, Source, Turned, is_foreign
from .method import additive

GATHERED = 2**27
GATHERED_ON_CPU = 2**23
"""Most bytes of keys and values gathered per call, at least one row: only a GPU needs many to be busy."""


def consistent_attention(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    gathers: list[Gather],
    turned: Turned | None = None,
    turn: Callable[[Tensor], Tensor] | None = None,
    kept: Mapping[Source, tuple[Tensor, Tensor]] = {},
    mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Attention of every row over its gathered keys and values; queries in several gathers get the average.

    q: [rows, queries, channels], k and v: [rows, keys, channels], or with heads, [rows, heads, keys, channels].
    `attention` is any of ComfyUI's functions. With `turn`, others' keys are read where `turned` says. `kept` has the
    keys and values, [keys, channels] or with heads, that gathers take from earlier passes. A `mask` holds for a row's
    own keys. A few rows are gathered at a time.
    """
    keys_of_row = k.shape[-2]
    all_k = k if turn is None or turned is None else torch.cat([k, turn(k[turned.rows])])
    queries = q.shape[-2]
    times: Counter[int] = Counter()
    for gather in gathers:
        asked = queries if gather.queries is None else len(gather.queries)
        times.update(dict.fromkeys(range(gather.start, gather.stop), asked))
    once = max(times.values()) == queries
    out: Tensor | None = None
    for n, gather in enumerate(gathers):
        first, last, keys, _, own_queries = gather
        size = last - first
        others = [torch.cat([kept[at][i].to(k.device) for at in gather.kept], -2) for i in (0, 1) if gather.kept]
        count = keys_of_row if keys is None else keys.shape[1]
        added = others[0].shape[-2] if others else 0
        if gather.shared:
            limit = GATHERED_ON_CPU if k.device.type == "cpu" else GATHERED
            most = max(1, limit // (2 * (count + added) * (k[0].numel() // keys_of_row) * k.element_size()))
            size = math.ceil(size / math.ceil(size / most))
            spaces = [space_for(size * (count + added), x) for x in (k, v)]
        for start in range(first, last, size):
            stop = min(start + size, last)
            seen_mask = None if mask is None else rows_of_mask(mask, start, stop, len(q))
            asking = q[start:stop]
            if own_queries is not None:
                asking = asking.index_select(-2, own_queries)
                if seen_mask is not None and seen_mask.shape[-2] == queries > 1:
                    seen_mask = seen_mask.index_select(-2, own_queries)
            seen = k[start:stop], v[start:stop]
            if keys is not None:
                part = slice(start - first, stop - first)
                key_index = turned.keys[n] if turned else keys
                assert key_index is not None
                into = (None, None) if others else spaces
                seen = gathered(all_k, key_index[part], into[0]), gathered(v, keys[part], into[1])
                if seen_mask is not None:
                    seen_mask = gathered_mask(
                        additive(seen_mask, q.dtype), Gather(start, stop, None), keys[part], keys_of_row
                    )
            if others:
                seen = together(seen[0], others[0], spaces[0]), together(seen[1], others[1], spaces[1])
                if seen_mask is not None:
                    seen_mask = F.pad(additive(seen_mask, q.dtype), (0, added))
            result = attention(asking, *seen, heads, mask=seen_mask, **options)
            if stop - start == len(q) and len(gathers) == 1:
                return result
            if out is None:
                shape = (len(q), *result.shape[1:-2], queries, result.shape[-1])
                out = result.new_empty(shape) if once else result.new_zeros(shape)
            if own_queries is not None:
                part_of_out = out[start:stop]
                if once:
                    part_of_out.index_copy_(-2, own_queries, result)
                else:
                    part_of_out.index_add_(-2, own_queries, result)
            elif once:
                out[start:stop] = result
            else:
                out[start:stop] += result
            del result
    assert out is not None
    for row, count in times.items():
        if count > queries:
            out[row] /= count // queries
    return out


def space_for(keys: int, like: Tensor) -> Tensor | None:
    """Memory that one gather after another may use, since fresh memory costs a CPU more than copying does."""
    heads = like.shape[1] if like.ndim == 4 else 1
    return None if like.requires_grad else like.new_empty(keys * heads, like.shape[-1])


def gathered(x: Tensor, index: Tensor, space: Tensor | None) -> Tensor:
    """The keys at `index` [rows, count] of `x`, [rows, count, channels] or [rows, heads, count, channels], in `space`
    if there is any."""
    if x.ndim == 4:
        heads, keys = x.shape[1:3]
        head = torch.arange(heads, device=index.device)[:, None] * keys
        index = (index // keys * (heads * keys) + index % keys)[:, None] + head
    flat = x.reshape(-1, x.shape[-1])
    into = None if space is None else space[: index.numel()]
    return torch.index_select(flat, 0, index.flatten(), out=into).unflatten(0, index.shape)


def together(own: Tensor, others: Tensor, space: Tensor | None) -> Tensor:
    """The keys of each row, [rows, keys, channels] or with heads, and after them the same `others`, in `space`."""
    shape = (*own.shape[:-2], own.shape[-2] + others.shape[-2], own.shape[-1])
    into = None if space is None else space[: math.prod(shape[:-1])].view(shape)
    return torch.cat([own, others.expand(len(own), *others.shape)], -2, out=into)


def rows_of_mask(mask: Tensor, start: int, stop: int, rows: int) -> Tensor:
    return mask[start:stop] if mask.ndim > 2 and len(mask) == rows else mask


def gathered_mask(mask: Tensor, gather: Gather, index: Tensor, keys_of_row: int) -> Tensor:
    """A mask [rows or 1, heads, queries, keys] to add, for the keys at `index` [rows, count]; 0 for other rows'."""
    at = (index % keys_of_row)[:, None, None, :].expand(-1, *mask.shape[1:3], -1)
    seen = mask.expand(len(index), -1, -1, -1).gather(-1, at)
    return seen.masked_fill(is_foreign(gather, index, keys_of_row)[:, None, None, :], 0)
