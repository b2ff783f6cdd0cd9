"""What Story Regions and a recorder for Regions from Attention add to a step, and the workflow with two samplers."""

import pytest
import torch
from sampling import latents, sample

FRAMES = 4
IDENTITY = "[Mia] a young red fox with a blue scarf\n[Otto] an old brown bear with round glasses"
PLACES = "at the market", "on a wooden boat", "by the window", "in deep snow"


@pytest.fixture(scope="module")
def pixels(device):
    """The pictures'."""
    return 512 if device.type == "cuda" else 128


@pytest.fixture(scope="module")
def pair():
    """A story of two characters, both in every frame."""
    from onestory.story.script import parse_script

    return parse_script(IDENTITY, "\n".join(f"[Mia] and [Otto] {place}" for place in PLACES))


@pytest.fixture(scope="module")
def wired(checkpoint, pair):
    """What a sampler gets: the model, the positive and the negative conditioning."""
    from onestory.nodes.prompt import OneStoryPrompt

    from nodes import CLIPTextEncode

    model, clip, _ = checkpoint
    (positive,) = OneStoryPrompt.execute(clip, pair, "one prompt", 0, "story", "each alone").result
    return model, positive, CLIPTextEncode().encode(clip, "")[0]


def from_text(model, story, pixels):
    from onestory.nodes.regions import OneStoryRegions

    return OneStoryRegions.execute(model, story, "Mia: left half\nOtto: right half", 1.0, 1.0, "all", 0.0, 1.0, "")[0]


def from_masks(model, story, pixels):
    """One mask a frame, of the pictures' size, in two nodes."""
    from onestory.nodes.regions import OneStoryRegions

    left = torch.zeros(FRAMES, pixels, pixels)
    left[..., : pixels // 2] = 1
    for name, mask in (("Mia", left), ("Otto", 1 - left)):
        model = OneStoryRegions.execute(model, story, "", 1.0, 1.0, "all", 0.0, 1.0, name, mask)[0]
    return model


def recorded(model, story, pixels):
    from onestory.nodes.attention_view import OneStoryAttentionRecorder

    return OneStoryAttentionRecorder.execute(model, "output.3-5", 0.0, 1.0)[0]


WAYS = {"Story Regions": from_text, "Story Regions from masks": from_masks, "Attention Recorder": recorded}


@pytest.mark.parametrize("way", WAYS)
def bench_step(compare, wired, pair, pixels, way):
    """The same frames with the patch and without."""
    model, positive, negative = wired
    ours, latent = WAYS[way](model, pair, pixels), latents(FRAMES, pixels)
    compare(
        f"one step, {FRAMES} frames of {pixels}, two characters, {way}",
        lambda: sample(ours, positive, negative, latent, 1),
        "unpatched",
        lambda: sample(model, positive, negative, latent, 1),
        memory=True,
    )


def bench_masks(compare, pair):
    """What Regions from Attention makes of a recording, for two characters."""
    from onestory.attention.region_masks import region_masks

    maps = {name: torch.rand(FRAMES, 64, 64, generator=torch.Generator().manual_seed(0)) for name in ("Mia", "Otto")}
    shown = tuple(frame.characters for frame in pair.frames)
    compare(f"masks of two characters, {FRAMES} frames of 64 x 64 tokens", lambda: region_masks(maps, shown, 1))
