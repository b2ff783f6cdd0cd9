"""Stable Diffusion's models at full size, with seeded random weights, made of ComfyUI's own modules."""

from typing import Any

import torch

UNETS: dict[str, dict[str, Any]] = {
    "SD1.5": {
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "num_heads": 8,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    },
    "SDXL": {
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "channel_mult": [1, 2, 4],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
    },
}
EVERY_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_checkpoint": False,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}


def unet(family: str, device: torch.device) -> Any:
    """The `ModelPatcher` of a "SD1.5" or "SDXL" U-Net in half precision."""
    import comfy.model_patcher
    import comfy.supported_models

    config = {"SD1.5": comfy.supported_models.SD15, "SDXL": comfy.supported_models.SDXL}[family]
    config = config({**EVERY_UNET, **UNETS[family]})
    config.set_inference_dtype(torch.float16 if device.type == "cuda" else torch.bfloat16, None)
    model = config.get_model({}, device=device)
    fill(model.diffusion_model, device)
    return comfy.model_patcher.ModelPatcher(model, device, device)


def text_encoders() -> Any:
    """SDXL's CLIP-L and CLIP-G as a `CLIP`, where and in the precision that ComfyUI chooses."""
    import comfy.model_management
    import comfy.sd
    import comfy.sdxl_clip
    from comfy.supported_models_base import ClipTarget

    clip = comfy.sd.CLIP(ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel))
    fill(clip.cond_stage_model, comfy.model_management.get_torch_device())
    return clip


def fill(module: torch.nn.Module, device: torch.device) -> None:
    """Random matrices that keep the scale of what passes through, drawn on `device`, and ones."""
    generator = torch.Generator(device).manual_seed(0)
    for weight in module.parameters():
        if weight.dim() > 1:
            # Drawn in single precision, which is much faster on a CPU.
            drawn = torch.randn(weight.shape, generator=generator, device=device)
            weight.copy_(drawn.mul_(0.5 * weight[0].numel() ** -0.5))
        else:
            weight.fill_(1.0)
