"""The whole SD1.5 and SDXL U-Nets with seeded random weights, in this process, without the server (--full)."""

import full_size
import pytest
import stories
from sampling import latents, patched, sample, with_pictures

POOLED = {"SD1.5": 768, "SDXL": 1280}


@pytest.fixture(scope="session", params=["SD1.5", "SDXL"])
def unet(request, pytestconfig, device):
    """(family, ModelPatcher) of a full-size model in half precision."""
    if not pytestconfig.getoption("full"):
        pytest.skip("whole U-Nets: with --full")
    return request.param, full_size.unet(request.param, device)


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


@pytest.mark.parametrize("characters", [1, 4])
def bench_pictures(compare, unet, device, characters):
    """Characters from pictures, one in each of 4 frames."""
    family, model = unet
    pixels = 1024 if device.type == "cuda" else 256
    record = stories.record(4, family, characters)
    positive = stories.conditioning(record, POOLED[family])
    negative = stories.plain_conditioning(1, positive[0][0].shape[-1], POOLED[family])
    ours, latent = with_pictures(model, stories.CAST[:characters]), latents(4, pixels)
    shown = f"{characters} {'character' if characters == 1 else 'characters'}"
    compare(
        f"one step of the {family} U-Net, 4 frames of {pixels}, pictures of {shown}",
        lambda: sample(ours, positive, negative, latent, 1),
        "unpatched",
        lambda: sample(model, positive, negative, latent, 1),
        goal=1.02,
        memory=True,
        most_rounds=30 if family == "SD1.5" else 7,
    )


def bench_svr_share(compare, unet, text_encoders, device):
    """SVR beside what it stands between, for 10 frames: encoding their prompt and one step."""
    from onestory.svr.reweight import singular_value_reweight

    from nodes import CLIPTextEncode

    family, model = unet
    if family != "SDXL":
        pytest.skip("the goal is for SDXL")
    pixels = 1024 if device.type == "cuda" else 128
    record = stories.record(10, family)
    positive = stories.conditioning(record, POOLED[family])
    negative = stories.plain_conditioning(1, positive[0][0].shape[-1], POOLED[family])

    def encode_and_step():
        CLIPTextEncode().encode(text_encoders, stories.prompt(10))
        sample(model, positive, negative, latents(10, pixels), 1)

    compare(
        f"SVR, 10 frames, SDXL, beside one text encoding and one step of {pixels} of SDXL",
        lambda: singular_value_reweight(positive[0][0], record),
        "encoding and step",
        encode_and_step,
        goal=0.03,
        most_rounds=5,
    )
