"""Small transformers and text encoders with random weights, by ComfyUI's own classes and, where it can, its loaders."""

from functools import cache
from pathlib import Path

import comfy.ops
import comfy.sd
import torch
from safetensors.torch import save_file

OPERATIONS = {"device": "cpu", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}

MOST_DRAWN = 999_983


def fill(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Seeded weights with which every part counts: no gate is closed, and attention chooses among tokens."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in [*module.named_parameters(), *module.named_buffers()]:
            if not weight.is_floating_point():
                continue
            # A vocabulary repeats what is drawn, out of step with its rows: drawing all of it takes seconds.
            drawn = torch.randn(min(weight.numel(), MOST_DRAWN), generator=generator)
            drawn = drawn.repeat(-(-weight.numel() // MOST_DRAWN))[: weight.numel()].view(weight.shape)
            if "norm" in name and weight.ndim == 1:
                weight.copy_(1 + 0.1 * drawn)
            elif weight.ndim >= 2:
                weight.copy_(drawn / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.1 * drawn)
    return module


def loaded(module: torch.nn.Module):
    """The model's weights through ComfyUI's own detection, as Load Diffusion Model does it: a `ModelPatcher`."""
    weights = {name: weight.clone().contiguous() for name, weight in fill(module).state_dict().items()}
    return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})


@cache
def sd3(depth: int = 3, medium: bool = False):
    """SD3's MMDiT; `medium` with SD3.5 medium's second attention in the first block, and normed queries and keys."""
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    return loaded(
        OpenAISignatureMMDITWrapper(
            input_size=None,
            patch_size=2,
            in_channels=16,
            depth=depth,
            adm_in_channels=2048,
            context_embedder_config=embedder,
            num_patches=16**2,
            pos_embed_max_size=16,
            qk_norm="rms" if medium else None,
            x_block_self_attn_layers=[0] if medium else [],
            **OPERATIONS,
        )
    )


TEXT_CONFIGS = {
    "clip_l_model_config": {"num_hidden_layers": 3},
    "clip_g_model_config": {"num_hidden_layers": 3},
    "t5xxl_model_config": {"d_ff": 64, "d_kv": 16, "num_heads": 1, "num_layers": 1},
}


def text_encoder(model: type, tokenizer: type, data: dict[str, bytes] | None = None, **config) -> comfy.sd.CLIP:
    """ComfyUI's own class of a text encoder with few layers and no eyes, and its tokenizer, made of a file's `data`."""

    class Target:
        params: dict = {}

    Target.clip, Target.tokenizer = model, tokenizer
    options = {**TEXT_CONFIGS, **config, "dtype": torch.float32}
    clip = comfy.sd.CLIP(Target, tokenizer_data=data or {}, parameters=1, state_dict=[], model_options=options)
    for module in list(clip.cond_stage_model.modules()):
        if hasattr(module, "visual"):
            del module.visual
    fill(clip.cond_stage_model)
    return clip


@cache
def sd3_clip(encoders: str = "lgt") -> comfy.sd.CLIP:
    """SD3's text encoder with some of CLIP-L, CLIP-G and T5, which all of these share."""
    from comfy.text_encoders.sd3_clip import SD3Tokenizer
    from comfy.text_encoders.sd3_clip import sd3_clip as model

    if encoders == "lgt":
        return text_encoder(model(), SD3Tokenizer)
    clip = text_encoder(model(clip_l=False, clip_g=False, t5=False), SD3Tokenizer)
    for key, name in (("l", "clip_l"), ("g", "clip_g"), ("t", "t5xxl")):
        if key in encoders:
            setattr(clip.cond_stage_model, name, getattr(sd3_clip().cond_stage_model, name))
    clip.cond_stage_model.t5_attention_mask = False
    return clip


def vae_weights() -> dict[str, torch.Tensor]:
    """A VAE for 16 channels as TAESD3's, which ComfyUI takes wherever it takes a VAE."""
    from comfy.taesd.taesd import TAESD
    from onestory.tools.random_checkpoint import random_weights

    with torch.device("meta"):
        vae = TAESD(latent_channels=16)
    weights = random_weights(vae)
    weights["vae_shift"].zero_()
    return {name: weight.half() for name, weight in weights.items()}


def write_sd3_checkpoint(path: Path, checkpoint: Path) -> None:
    """A whole SD3 checkpoint as Load Checkpoint takes it: one block, `checkpoint`'s CLIP-L and a VAE as TAESD3's."""
    from safetensors import safe_open

    weights = {f"model.diffusion_model.{n}": w.half() for n, w in sd3(1).model.diffusion_model.state_dict().items()}
    prefix = "cond_stage_model.transformer."
    with safe_open(checkpoint, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name.startswith(prefix):
                weights[name.replace(prefix, "text_encoders.clip_l.transformer.")] = file.get_tensor(name)
    weights |= {f"first_stage_model.{name}": weight for name, weight in vae_weights().items()}
    save_file(weights, path)
