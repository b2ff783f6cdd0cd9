"""Files of small models as ComfyUI's loader nodes take them, with the pack in `custom_nodes` beside them."""

from pathlib import Path

import torch
from families import flux, flux_clip, sentencepiece, umt5_clip, wan
from safetensors.torch import save_file
from tiny import fill, vae_weights

T5_XXL = {"encoder.block.23.layer.1.DenseReluDense.wi_1.weight": torch.zeros(10240, 1)}
"""What ComfyUI knows T5-XXL and UMT5-XXL by."""

WAN_VAE = {
    "dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
"""Wan's in a twelfth of its width."""


def write_flux(folder: Path) -> None:
    """Flux.1 dev and Kontext in their files, in a folder for each kind."""
    encoders = flux_clip().cond_stage_model
    for name in ("flux1-dev", "flux1-dev-kontext_fp8_scaled"):
        write(folder / "diffusion_models" / f"{name}.safetensors", flux().model.diffusion_model)
    write(folder / "text_encoders" / "clip_l.safetensors", encoders.clip_l.transformer)
    write(folder / "text_encoders" / "t5xxl_fp16.safetensors", encoders.t5xxl.transformer, T5_XXL)
    save_file(vae_weights(), folder / "vae" / "ae.safetensors")


def write_wan(folder: Path) -> None:
    """Wan 2.2's two models that go on from pictures, its text encoder and Wan 2.1's VAE, in a folder for each kind."""
    from comfy.ldm.wan.vae import WanVAE

    for noise in ("high", "low"):
        name = f"wan2.2_i2v_{noise}_noise_14B_fp8_scaled.safetensors"
        write(folder / "diffusion_models" / name, wan(in_dim=36).model.diffusion_model)
    vocabulary = torch.frombuffer(bytearray(sentencepiece(spaces=True)), dtype=torch.uint8)
    more = {**T5_XXL, "spiece_model": vocabulary}
    encoder = umt5_clip().cond_stage_model.umt5xxl.transformer
    write(folder / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", encoder, more)
    write(folder / "vae" / "wan_2.1_vae.safetensors", fill(WanVAE(**WAN_VAE)))


def write(path: Path, module: torch.nn.Module, more: dict[str, torch.Tensor] | None = None) -> None:
    weights = {name: weight.half().contiguous() for name, weight in module.state_dict().items()}
    save_file(weights | (more or {}), path)
