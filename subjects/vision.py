"""CLIP's vision transformer (arXiv 2103.00020, section 2.4), from a file's weights in transformers' names."""

from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from .projectors import Weights, layer_norm, linear

HEAD = 64
"""Channels of an attention head in all of CLIP's ViTs but bigG."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(picture: Tensor, side: int) -> Tensor:
    """A picture [1, height, width, 3], 0 to 1, as CLIP takes it: its middle, [1, 3, side, side], in 256 steps."""
    x = picture.movedim(-1, 1).float()
    if x.shape[2:] != (side, side):
        scale = side / min(x.shape[2:])
        x = F.interpolate(x, [round(scale * n) for n in x.shape[2:]], mode="bicubic", antialias=True)
        top, left = ((n - side) // 2 for n in x.shape[2:])
        x = x[:, :, top : top + side, left : left + side]
    x = (255 * x).clamp(0, 255).round() / 255
    mean, std = (torch.tensor(each).to(x)[:, None, None] for each in (MEAN, STD))
    return (x - mean) / std


def picture_side(weights: Weights) -> int:
    """How many pixels the side of a picture has for this transformer."""
    patches = len(weights["vision_model.embeddings.position_embedding.weight"]) - 1
    return round(patches**0.5) * weights["vision_model.embeddings.patch_embedding.weight"].shape[-1]


def look(pixels: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Of `pixels` [pictures, 3, side, side], the last layer's tokens [pictures, 1 + patches, channels], and the first
    of these normed, [pictures, channels]."""
    name = "vision_model.embeddings"
    patch = weights[f"{name}.patch_embedding.weight"].to(pixels)
    x = F.conv2d(pixels, patch, stride=patch.shape[-1]).flatten(2).mT
    first = weights[f"{name}.class_embedding"].to(x).expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + weights[f"{name}.position_embedding.weight"].to(x)
    x = layer_norm(x, weights, "vision_model.pre_layrnorm")
    for n in count():
        layer = f"vision_model.encoder.layers.{n}"
        if f"{layer}.mlp.fc1.weight" not in weights:
            break
        x = x + attend(layer_norm(x, weights, f"{layer}.layer_norm1"), weights, f"{layer}.self_attn")
        hidden = linear(layer_norm(x, weights, f"{layer}.layer_norm2"), weights, f"{layer}.mlp.fc1")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), weights, f"{layer}.mlp.fc2")
    return x, layer_norm(x[:, 0], weights, "vision_model.post_layernorm")


def attend(x: Tensor, weights: Weights, name: str) -> Tensor:
    q, k, v = (linear(x, weights, f"{name}.{part}_proj").unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in "qkv")
    return linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), weights, f"{name}.out_proj")
