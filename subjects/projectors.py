"""From what an encoder sees in a picture to image tokens: the projectors of IP-Adapter (arXiv 2308.06721) and its kin.

Each takes a file's weights by name and computes in the precision of what it is given.
"""

from collections.abc import Mapping
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    bias = weights.get(f"{name}.bias")
    return F.linear(x, weights[f"{name}.weight"].to(x), bias if bias is None else bias.to(x))


def layer_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x))


def image_embedding_tokens(x: Tensor, weights: Weights) -> Tensor:
    """The base adapter: an image embedding [pictures, embedding] as tokens [pictures, tokens, channels]."""
    channels = len(weights["norm.weight"])
    return layer_norm(linear(x, weights, "proj").unflatten(-1, (-1, channels)), weights, "norm")


def patch_tokens(x: Tensor, weights: Weights) -> Tensor:
    """“Full face”: each token that CLIP sees, [pictures, patches, seen], as one [pictures, patches, channels]."""
    x = F.gelu(linear(x, weights, "proj.0"))
    return layer_norm(linear(x, weights, "proj.2"), weights, "proj.3")


def face_tokens(face: Tensor, weights: Weights, proj: str = "proj", norm: str = "norm") -> Tensor:
    """FaceID: face embeddings [faces, 512] as tokens [faces, tokens, channels]."""
    x = linear(F.gelu(linear(face, weights, f"{proj}.0")), weights, f"{proj}.2")
    return layer_norm(x.unflatten(-1, (-1, len(weights[f"{norm}.weight"]))), weights, norm)


def person_tokens(face: Tensor, seen: Tensor, body: Tensor, weights: Weights) -> Tensor:
    """StoryMaker: a person's face embedding [persons, 512] of length 1, and what CLIP sees in the face and in the whole
    person, [persons, patches, seen] both, as tokens [persons, tokens, channels]: first the face's, then the body's."""
    own = face_tokens(face, weights)
    face = own + resample(own, seen, weights, "perceiver_resampler.")
    latents = weights["resample.latents"].to(body).expand(len(body), -1, -1)
    return torch.cat([face, resample(latents, body, weights, "resample.")], dim=1)


def tokens_in_place(tokens: Tensor, place: int, weights: Weights) -> Tensor:
    """StoryMaker: what the tokens [persons, tokens, channels] are for the person at a place among those of a frame."""
    x = tokens + weights["pos_embed"][place].to(tokens)
    return x + layer_norm(linear(x, weights, "proj_out"), weights, "norm_out")


def resample(latents: Tensor, x: Tensor, weights: Weights, prefix: str = "", dim_head: int = 64) -> Tensor:
    """The perceiver resampler: `latents` [pictures, tokens, width] look at `x` [pictures, patches, seen] and at each
    other, layer after layer. Gives [pictures, tokens, channels]."""
    x = linear(x, weights, f"{prefix}proj_in")
    for layer in count():
        name = f"{prefix}layers.{layer}"
        if f"{name}.0.to_q.weight" not in weights:
            break
        latents = latents + perceive(latents, x, weights, f"{name}.0", dim_head)
        hidden = linear(layer_norm(latents, weights, f"{name}.1.0"), weights, f"{name}.1.1")
        latents = latents + linear(F.gelu(hidden), weights, f"{name}.1.3")
    return layer_norm(linear(latents, weights, f"{prefix}proj_out"), weights, f"{prefix}norm_out")


def perceive(latents: Tensor, x: Tensor, weights: Weights, name: str, dim_head: int) -> Tensor:
    """One attention of the resampler: keys and values are those of `x` and of the latents themselves."""
    latents = layer_norm(latents, weights, f"{name}.norm2")
    seen = torch.cat([layer_norm(x, weights, f"{name}.norm1"), latents], dim=1)
    parts = linear(latents, weights, f"{name}.to_q"), *linear(seen, weights, f"{name}.to_kv").chunk(2, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, dim_head)).transpose(1, 2) for part in parts)
    return linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), weights, f"{name}.to_out")
