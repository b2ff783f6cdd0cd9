"""The attention layers of Stable Diffusion U-Nets, and tensors for them."""

from typing import NamedTuple

import torch


class Layer(NamedTuple):
    """`per_token` pixels of a side make one token."""

    family: str
    channels: int
    heads: int
    per_token: int

    def tokens(self, side: int) -> int:
        return (side // self.per_token) ** 2


LAYERS = [
    Layer("SD1.5", 320, 8, 8),
    Layer("SD1.5", 640, 8, 16),
    Layer("SD1.5", 1280, 8, 32),
    Layer("SDXL", 640, 10, 16),
    Layer("SDXL", 1280, 20, 32),
]
SDXL = [layer for layer in LAYERS if layer.family == "SDXL"]
NAMES = [f"{layer.family}-{layer.channels}" for layer in LAYERS]


def random(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)
