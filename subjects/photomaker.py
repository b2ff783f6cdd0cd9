"""Files of PhotoMaker (arXiv 2312.04461), v1 and v2, and of FastComposer (arXiv 2305.10431): pictures fused into words.

The image tokens of a character are fused with its class word by two small networks, the same in all three.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import part_of
from .projectors import Weights, face_tokens, layer_norm, linear, resample
from .vision import look

Layout = Literal["PhotoMaker v1", "PhotoMaker v2", "FastComposer"]
HEAD = 128
"""Channels of an attention head in PhotoMaker v2's resampler."""


class PhotoMaker(NamedTuple):
    """A file's weights: the image encoder's, those that fuse, and the U-Net's LoRA. `file` is its name."""

    file: str
    layout: Layout
    encoder: Weights
    fusing: Weights
    lora: Weights

    @property
    def channels(self) -> int:
        """The width of the words that it fuses."""
        return len(self.fusing["layer_norm.weight"])

    @property
    def reads_face(self) -> bool:
        return self.layout == "PhotoMaker v2"

    def tokens(self, pixels: Tensor, face: Tensor | None = None) -> Tensor:
        """The image tokens [tokens, channels] of a character's pictures [pictures, 3, side, side] as CLIP takes them,
        and of as many face embeddings [pictures, 512] of ArcFace's own length.

        PhotoMaker v1 has one for each picture, v2 two; FastComposer one for all of them, their mean.
        """
        weights = self.encoder
        seen, pooled = look(pixels, weights)
        if self.layout == "PhotoMaker v2":
            assert face is not None
            name = "qformer_perceiver"
            own = face_tokens(face, weights, f"{name}.token_proj", f"{name}.token_norm")
            looked = resample(own, seen, weights, f"{name}.perceiver_resampler.", HEAD)
            return (own + looked).flatten(0, 1)
        embedding = linear(pooled, weights, "visual_projection")
        if self.layout == "FastComposer":
            return embedding.mean(0, keepdim=True)
        return torch.cat([embedding, linear(pooled, weights, "visual_projection_2")], dim=-1)

    def fuse(self, words: Tensor, tokens: Tensor) -> Tensor:
        """c' = LN(MLP2(MLP1([c; e]) + c)) of words c and image tokens e, [n, channels] both, in float32."""
        c = words.float()
        x = c + self.mlp(torch.cat([c, tokens.to(c)], dim=-1), "mlp1")
        return layer_norm(x + self.mlp(x, "mlp2"), self.fusing, "layer_norm").to(words)

    def mlp(self, x: Tensor, name: str) -> Tensor:
        x = layer_norm(x, self.fusing, f"{name}.layernorm")
        return linear(F.gelu(linear(x, self.fusing, f"{name}.fc1")), self.fusing, f"{name}.fc2")


def read_photomaker(file: str, state: Mapping[str, Any]) -> PhotoMaker:
    """The weights in a file's state dict, nested or flat. Raises `ValueError` for anything else."""
    composer = part_of(state, "postfuse_module")
    if composer:
        found = PhotoMaker(file, "FastComposer", part_of(state, "image_encoder"), composer, {})
    else:
        encoder = part_of(state, "id_encoder") or dict(state)
        layout: Layout = "PhotoMaker v2" if "qformer_perceiver.token_norm.weight" in encoder else "PhotoMaker v1"
        fusing = part_of(encoder, "fuse_module")
        found = PhotoMaker(file, layout, encoder, fusing, part_of(state, "lora_weights"))
    if not fits_together(found):
        raise ValueError(
            f"“{file}” is no file that Story PhotoMaker knows: it reads PhotoMaker v1 and v2, and FastComposer's "
            "pytorch_model.bin."
        )
    return found


def fits_together(found: PhotoMaker) -> bool:
    """Whether a file has all parts, and the image tokens are as wide as the words."""
    weights = found.encoder
    if "layer_norm.weight" not in found.fusing or "vision_model.post_layernorm.weight" not in weights:
        return False
    if found.layout == "PhotoMaker v2":
        return len(weights["qformer_perceiver.token_norm.weight"]) == found.channels
    names = ["visual_projection.weight", *["visual_projection_2.weight"] * (found.layout == "PhotoMaker v1")]
    return sum(len(weights.get(name, ())) for name in names) == found.channels
