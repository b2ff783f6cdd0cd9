"""Random vision models: tiny ones of ComfyUI's own classes, and files that its CLIPVisionLoader recognises.

It recognises a model by its depth and fits it to a real one's sizes (24 layers of 1024 channels at least), so a file
here holds one layer's weights, once, under the names of all layers: 9 MB instead of 600.
"""

from pathlib import Path

import torch
from comfy.clip_vision import ClipVisionModel
from safetensors.torch import save_file

CHANNELS, LAYERS = 1024, 24
TINY = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "hidden_act": "quick_gelu",
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 56,
    "layer_norm_eps": 1e-6,
}
TINY_CLIP = {**TINY, "model_type": "clip_vision_model", "projection_dim": 24}
TINY_SIGLIP = {**TINY, "model_type": "siglip_vision_model"}
TINY_DINO = {**TINY, "model_type": "dinov2", "use_swiglu_ffn": False, "image_mean": [0.5] * 3, "image_std": [0.2] * 3}


class Pool:
    """One block of seeded random numbers; a tensor of n numbers is its first n, which a file stores but once."""

    def __init__(self, size: int, scale: float):
        self.numbers = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * scale).half()
        self.ones = torch.ones(4 * CHANNELS).half()
        self.zeros = torch.zeros(4 * CHANNELS).half()

    def weight(self, *shape: int) -> torch.Tensor:
        return self.numbers[: torch.Size(shape).numel()].view(shape)

    def linear(self, name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": self.weight(outputs, inputs), f"{name}.bias": self.zeros[:outputs]}

    def norm(self, name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": self.ones[:CHANNELS], f"{name}.bias": self.zeros[:CHANNELS]}


def tiny(config: dict) -> ClipVisionModel:
    """A small model of ComfyUI's own class for `config`, with seeded random weights in float32."""
    vision = ClipVisionModel(config)
    generator = torch.Generator().manual_seed(0)
    vision.model.float()
    for weight in vision.model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return vision


def write_small_clip(path: Path) -> None:
    """A model as `TINY_CLIP` says, which the tests' servers take by their pack `eyes`."""
    save_file(tiny(TINY_CLIP).get_sd(), path)


def write_clip(path: Path) -> None:
    """A CLIP ViT-L/14 for images of 224 pixels, in the layout of transformers."""
    pool = Pool(4 * CHANNELS**2, 0.04)
    inside = "vision_model"
    weights = {
        f"{inside}.embeddings.class_embedding": pool.weight(CHANNELS),
        f"{inside}.embeddings.patch_embedding.weight": pool.weight(CHANNELS, 3, 14, 14),
        f"{inside}.embeddings.position_embedding.weight": pool.weight(257, CHANNELS),
        "visual_projection.weight": pool.weight(768, CHANNELS),
        **pool.norm(f"{inside}.pre_layrnorm"),
        **pool.norm(f"{inside}.post_layernorm"),
    }
    for layer in (f"{inside}.encoder.layers.{i}" for i in range(LAYERS)):
        for part in "qkv":
            weights |= pool.linear(f"{layer}.self_attn.{part}_proj", CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.self_attn.out_proj", CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.mlp.fc1", 4 * CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.mlp.fc2", CHANNELS, 4 * CHANNELS)
        weights |= pool.norm(f"{layer}.layer_norm1") | pool.norm(f"{layer}.layer_norm2")
    torch.save(weights, path)


def write_dino(path: Path) -> None:
    """A DINOv2 ViT-L/14, in the layout of transformers."""
    pool = Pool(4 * CHANNELS**2, 0.04)
    weights = {
        "embeddings.position_embeddings": pool.weight(1, 1370, CHANNELS),
        "embeddings.cls_token": pool.weight(1, 1, CHANNELS),
        "embeddings.mask_token": pool.weight(1, CHANNELS),
        "embeddings.patch_embeddings.projection.weight": pool.weight(CHANNELS, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": pool.zeros[:CHANNELS],
        **pool.norm("layernorm"),
    }
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            weights |= pool.linear(f"{layer}.attention.{part}", CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.mlp.fc1", 4 * CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.mlp.fc2", CHANNELS, 4 * CHANNELS)
        weights |= pool.norm(f"{layer}.norm1") | pool.norm(f"{layer}.norm2")
        weights |= {f"{layer}.layer_scale{i}.lambda1": pool.ones[:CHANNELS] for i in (1, 2)}
    torch.save(weights, path)
