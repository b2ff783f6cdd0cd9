"""Small graphs of ComfyUI's own nodes around ours: a story's conditioning, the patched model, one sampling run."""

from functools import cache

import torch
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from onestory.nodes.ipca import OneStoryIPCA
from onestory.nodes.latent import OneStoryLatent
from onestory.nodes.prompt import OneStoryPrompt
from onestory.nodes.reweight import OneStorySVR
from onestory.nodes.runs import OneStoryJoin, OneStorySplit
from onestory.nodes.self_attention import OneStorySelfAttention
from onestory.story.parts import IDENTITY, SOT
from onestory.story.script import Story, parse_script
from onestory.svr.record import KEY

import nodes

SVR = {
    "variant": "released",
    "express_alpha": 0.01,
    "express_beta": 1.0,
    "suppress_alpha": 0.01,
    "suppress_beta": 0.05,
    "eot": "reweight",
}
IPCA = {
    "strength": 1.0,
    "variant": "released",
    "dropout": 0.0,
    "blocks": "all",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "seed": 0,
}
SELF_ATTENTION = {
    "variant": "anchors",
    "anchors": 2,
    "tile": 2,
    "sampling_rate": 0.5,
    "blocks": "all",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "probability": "always",
    "seed": 0,
}


def story(identity: str, *frames: str) -> Story:
    return parse_script(identity, "\n".join(frames))


@torch.inference_mode()
def positive(clip, story: Story, svr: bool = True) -> list:
    """Story Script > Story Prompt > SVR."""
    conditioning = OneStoryPrompt.execute(clip, story, "one prompt", 0, "story").result[0]
    return OneStorySVR.execute(conditioning, **SVR).result[0] if svr else conditioning


@torch.inference_mode()
def encode(clip, text: str) -> list:
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def empty(story: Story, width: int = 64, height: int = 64, noise: str = "different", noise_ids: str = "") -> dict:
    (latent,) = OneStoryLatent.execute(story, width, height, noise, noise_ids).result[0]
    return latent


def ipca(model, **changed):
    return OneStoryIPCA.execute(model, **{**IPCA, **changed}).result[0]


def self_attention(model, **changed):
    return OneStorySelfAttention.execute(model, **{**SELF_ATTENTION, **changed}).result[0]


@torch.inference_mode()
def ksampler(
    model, positive, negative, latent, sampler="euler", scheduler="simple", steps=2, seed=1, cfg=5.0, **more
) -> dict:
    """KSampler's latent; `more` is KSampler (Advanced)'s."""
    return nodes.common_ksampler(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, **more)[0]


def sample(*args, **kwargs) -> torch.Tensor:
    return ksampler(*args, **kwargs)["samples"]


@torch.inference_mode()
def sample_advanced(model, positive, negative, latent, sampler="euler", scheduler="simple", steps=2, seed=1):
    """The same with the nodes around SamplerCustomAdvanced."""
    noise = RandomNoise.execute(seed)[0]
    guider = CFGGuider.execute(model, positive, negative, 5.0)[0]
    sigmas = BasicScheduler.execute(model, scheduler, steps, 1.0)[0]
    sampler = KSamplerSelect.execute(sampler)[0]
    return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)[0]["samples"]


def split(conditioning, latent, frames_per_run, anchors, negative=None, **more) -> list[tuple]:
    """Split Story's runs, each (positive, latent, negative)."""
    lists = OneStorySplit.execute(conditioning, latent, frames_per_run, anchors, negative, **more).result
    return list(zip(*lists, strict=True))


def in_runs(model, conditioning, negative, latent, frames_per_run, anchors, **sampling) -> torch.Tensor:
    """Split Story > KSampler, run after run > Join Story. The negative has nothing of its own for each frame."""
    runs = split(conditioning, latent, frames_per_run, anchors)
    return join([ksampler(model, run, negative, part, **sampling) for run, part, _ in runs])["samples"]


def join(latents: list[dict], earlier: dict | None = None) -> dict:
    """Join Story's one batch."""
    (joined,) = OneStoryJoin.execute(latents, [earlier] if earlier else None).result[0]
    return joined


@cache
def controlnet_model():
    """A ControlNet for the random checkpoint, by ComfyUI's loader from a state dict; random as the checkpoint is."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops
    from onestory.tools.random_checkpoint import UNET, random_weights

    config = {key: value for key, value in UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    operations = comfy.ops.disable_weight_init
    net = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, device="meta", operations=operations)
    return comfy.controlnet.load_controlnet_state_dict(random_weights(net))


def control(positive, negative, hints: torch.Tensor, strength: float = 0.05) -> tuple[list, list]:
    """Apply ControlNet, with hints [1 or frames, height, width, 3]. Its random weights are loud at a strength of 1."""
    return nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, controlnet_model(), hints, strength, 0.0, 1.0
    )


def identity_columns(conditioning: list) -> list[list[int]]:
    """Each row's positions of the identity, start tokens included, in the text of all encoders."""
    record = conditioning[0][1][KEY].record
    spans = [[*record.columns(row, SOT), *record.columns(row, IDENTITY)] for row in record.rows]
    return [[t for span in row for t in range(*span)] for row in spans]


def random(shape: list[int], seed: int = 0) -> torch.Tensor:
    """Numbers between 0 and 1, the same ones every time."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def scaled_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, in units of the latents' scale."""
    return ((got - want).abs().max() / want.std()).item()
