"""Stories through ComfyUI's samplers, in this process."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from onestory.attention.architectures import unet
from onestory.attention.blocks import parse_blocks
from onestory.attention.image_adapter import ImageAdapter
from onestory.attention.ipca import IPCA
from onestory.attention.method import Method
from onestory.attention.runtime import patch
from onestory.attention.self_attention import SelfAttention

IDENTITY = IPCA(1.0, "released", 0.0, parse_blocks("all"), 0.0, 1.0, 0)
SHARING = SelfAttention("anchors", 4, 4, 0.5, parse_blocks("late"), 0.0, 1.0, "always", 0)
CHARACTER = replace(SHARING, share="the character")
METHODS: dict[str, tuple[Method, ...]] = {
    "IPCA": (IDENTITY,),
    "self-attention": (SHARING,),
    "self-attention of the character": (CHARACTER,),
    "IPCA and self-attention": (IDENTITY, SHARING),
}


def patched(model: Any, method: str) -> Any:
    for each in METHODS[method]:
        model = patch(model, each)
    return model


def overridden(model: Any, override: Callable[..., torch.Tensor]) -> Any:
    """A clone of a `ModelPatcher` whose attention calls go to `override`, those of our methods too."""
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def with_pictures(model: Any, names: Sequence[str], tokens: int = 16) -> Any:
    """The model with Image Characters: so many image tokens of each character, as of one picture with a plus file."""
    transformers = unet.transformers(model.model)
    channels = sum(each.channels for each in transformers)
    generator = torch.Generator().manual_seed(0)
    keys = {name: [torch.randn(2, tokens, channels, generator=generator)] for name in ("blank", *names)}
    blank = keys.pop("blank")
    return patch(model, ImageAdapter(keys, blank, unet.channel_spans(transformers), 0.7, parse_blocks("all"), 0.0, 1.0))


def sample(model: Any, positive: list, negative: list, latent: torch.Tensor, steps: int = 2) -> torch.Tensor:
    """What KSampler does: `steps` evaluations of the model, guided."""
    import comfy.sample

    noise = comfy.sample.prepare_noise(latent, 0, [0] * len(latent))
    return comfy.sample.sample(
        model, noise, steps, 7.0, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=0
    )


def latents(rows: int, side: int) -> torch.Tensor:
    return torch.zeros(rows, 4, side // 8, side // 8)
