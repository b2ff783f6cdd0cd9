"""The whole SD1.5 and SDXL U-Nets with seeded random weights, in this process, without the server (--full)."""

import pytest
import stories
import torch
from sampling import latents, patched, sample

UNETS = {
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
EVERY_UNET = {
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
POOLED = {"SD1.5": 768, "SDXL": 1280}


@pytest.fixture(scope="session", params=["SD1.5", "SDXL"])
def unet(request, pytestconfig, device):
    """(family, ModelPatcher) of a full-size model in half precision."""
    if not pytestconfig.getoption("full"):
        pytest.skip("with --full")
    import comfy.model_patcher
    import comfy.supported_models

    family = request.param
    config = {"SD1.5": comfy.supported_models.SD15, "SDXL": comfy.supported_models.SDXL}[family]
    config = config({**EVERY_UNET, **UNETS[family]})
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for weight in model.diffusion_model.parameters():
        if weight.dim() > 1:
            weight.normal_(0, 0.5 * weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.fill_(1.0)
    return family, comfy.model_patcher.ModelPatcher(model, device, device)


@pytest.mark.parametrize("method", ["IPCA", "self-attention", "IPCA and self-attention"])
@pytest.mark.parametrize("frames, pixels", [(2, 128), (4, 256)])
def bench_unet(compare, unet, device, frames, pixels, method):
    family, model = unet
    if device.type == "cuda":
        pixels *= 4
    record = stories.record(frames, family)
    positive = stories.conditioning(record, POOLED[family])
    channels = positive[0][0].shape[-1]
    negative = stories.plain_conditioning(1, channels, POOLED[family])
    ours, latent = patched(model, method), latents(frames, pixels)
    compare(
        f"one step of the {family} U-Net, {frames} frames of {pixels}, {method}",
        lambda: sample(ours, positive, negative, latent, 1),
        "unpatched",
        lambda: sample(model, positive, negative, latent, 1),
        goal=1.01 if method == "IPCA" else None,
        memory=True,
        most_rounds=30 if family == "SD1.5" else 7,
    )


def bench_svr_share(compare, unet, device):
    """SVR beside one step of the U-Net, for 10 frames; text encoding would only add to the other side."""
    from onestory.svr.reweight import singular_value_reweight

    family, model = unet
    pixels = 1024 if device.type == "cuda" else 128
    record = stories.record(10, family)
    positive = stories.conditioning(record, POOLED[family])
    negative = stories.plain_conditioning(1, positive[0][0].shape[-1], POOLED[family])
    compare(
        f"SVR, 10 frames, {family}, beside one step of the {family} U-Net at {pixels}",
        lambda: singular_value_reweight(positive[0][0], record),
        "one step",
        lambda: sample(model, positive, negative, latents(10, pixels), 1),
        goal=0.03 if family == "SDXL" else None,
        most_rounds=7,
    )
