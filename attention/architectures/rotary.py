"""Rotary positions (RoFormer, arXiv 2104.09864): keys that carry one are moved by turning them further.

A rotation by position p turns each pair of channels (2i, 2i + 1) by p * omega_i, so R(d) R(p) = R(p + d).
"""

from typing import Any

import torch
from torch import Tensor


def turned(keys: Tensor, pe: Tensor) -> Tensor:
    """`keys` [..., tokens, heads * channels], already turned to their positions, turned further by `pe`.

    `pe`: [1, 1, 1, channels / 2, 2, 2], a rotation for each pair of channels, as ComfyUI's embedders give it.
    """
    pairs = keys.to(pe.dtype).unflatten(-1, (-1, pe.shape[-3], 2))
    rotation = pe[0, 0, 0]
    out = rotation[..., 0] * pairs[..., :1] + rotation[..., 1] * pairs[..., 1:]
    return out.flatten(-3).to(keys.dtype)


def shift(embedder: Any, axes: int, axis: int, by: float) -> Tensor:
    """The rotation of ComfyUI's `embedder` of positions with so many `axes` that moves a key `by` along one of them."""
    ids = torch.zeros(1, 1, axes)
    ids[..., axis] = by
    return embedder(ids)
