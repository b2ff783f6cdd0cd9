"""Files of small models as ComfyUI's loader nodes take them, with the pack in `custom_nodes` beside them."""

from pathlib import Path

import torch
from families import flux, flux_clip
from safetensors.torch import save_file
from tiny import vae_weights

T5_XXL = {"encoder.block.23.layer.1.DenseReluDense.wi_1.weight": torch.zeros(10240, 1)}
"""What ComfyUI knows T5-XXL by."""


def write_flux(folder: Path) -> None:
    """Flux.1 dev in its four files, in a folder for each kind."""
    encoders = flux_clip().cond_stage_model
    write(folder / "diffusion_models" / "flux1-dev.safetensors", flux().model.diffusion_model)
    write(folder / "text_encoders" / "clip_l.safetensors", encoders.clip_l.transformer)
    write(folder / "text_encoders" / "t5xxl_fp16.safetensors", encoders.t5xxl.transformer, T5_XXL)
    save_file(vae_weights(), folder / "vae" / "ae.safetensors")


def write(path: Path, module: torch.nn.Module, more: dict[str, torch.Tensor] | None = None) -> None:
    weights = {name: weight.half().contiguous() for name, weight in module.state_dict().items()}
    save_file(weights | (more or {}), path)
