"""IPCA and consistent self-attention beside ComfyUI's own nodes on transformers, in whole sampling runs."""

from functools import cache
from typing import NamedTuple

import comfy.cldm.mmdit
import comfy.controlnet
import comfy.latent_formats
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from families import CHROMA_HD, COLUMNS, FLUX, FLUX2, PICTURE, ROWS, Family
from graphs import empty, encode, identity_columns, ipca, positive, random, sample, scaled_error, self_attention, story
from joint import Reference, overridden
from noise import bound
from onestory.attention.gathers import anchor_sources
from onestory.attention.gathers import sample as draw
from onestory.attention.schedule import seeded
from onestory.svr.record import KEY
from test_composition import assert_still_there
from tiny import OPERATIONS, fill, sd3, sd3_clip, vae_weights

import nodes

TALE = story("a watercolor fox with a blue scarf", "reads under an oak", "runs through deep snow", "sleeps")


class Graph(NamedTuple):
    """What is wired into a KSampler; SD3's has no `family`."""

    family: Family | None
    model: comfy.model_patcher.ModelPatcher
    positive: list
    negative: list
    latent: dict

    def sample(self, model) -> torch.Tensor:
        return sample(model, self.positive, self.negative, self.latent)


@cache
def graph_of(family: Family | None) -> Graph:
    model, clip = (family.model(), family.clip()) if family else (sd3(), sd3_clip())
    # As many tokens as the story has: Chroma pads none.
    negative = " ".join([TALE.frames[0].identity, *(frame.prompt for frame in reversed(TALE.frames))])
    latent = empty(TALE, COLUMNS * 16, ROWS * 16)
    return Graph(family, model, positive(clip, TALE), encode(clip, negative), latent)


# --- the other nodes --------------------------------------------------------------------------------------------------


def lora(graph: Graph) -> Graph:
    """Rank 2 on what makes queries, keys and values."""
    weights = {}
    for name, weight in graph.model.model.state_dict().items():
        if name.endswith(("qkv.weight", "linear1.weight")):
            key = name.removesuffix(".weight")
            weights[f"{key}.lora_down.weight"] = random([2, weight.shape[1]], len(weights)) - 0.5
            weights[f"{key}.lora_up.weight"] = 0.1 * (random([weight.shape[0], 2], len(weights)) - 0.5)
    return graph._replace(model=comfy.sd.load_lora_for_models(graph.model, None, weights, 1.0, 0.0)[0])


def controlnet(graph: Graph) -> Graph:
    """Chroma takes Flux.1's."""
    model, device = FLUX.model() if graph.family else graph.model, torch.device("cpu")
    config = {**model.model.model_config.unet_config, **OPERATIONS}
    if graph.family:
        net = fill(ControlNetFlux(**config))
        control = comfy.controlnet.ControlNet(net, load_device=device, extra_conds=["y", "guidance"])
        vae = None
    else:
        net = fill(comfy.cldm.mmdit.ControlNet(num_blocks=1, **config))
        latents = comfy.latent_formats.SD3()
        control = comfy.controlnet.ControlNet(net, load_device=device, compression_ratio=1, latent_format=latents)
        vae = comfy.sd.VAE(sd=vae_weights())
    hints = random([3, ROWS * 16, COLUMNS * 16, 3])
    both = nodes.ControlNetApplyAdvanced().apply_controlnet(
        graph.positive, graph.negative, control, hints, 0.1, 0.0, 1.0, vae=vae
    )
    return graph._replace(positive=both[0], negative=both[1])


def nag(graph: Graph) -> Graph:
    """SD3 calls no patch after its attention."""
    return graph._replace(model=NAGuidance.execute(graph.model, 5.0, 0.5, 1.5)[0])


def skip_layer_guidance(graph: Graph) -> Graph:
    return graph._replace(model=SkipLayerGuidanceDiT.execute(graph.model, 1.0, 0.0, 1.0, "0", "1")[0])


def perturbed(graph: Graph) -> Graph:
    """Guidance away from a pass of its own in which a block does half of its work, as PAG does on U-Nets."""

    def half(args, extra):
        whole = extra["original_block"](args)
        return {name: (value + args[name]) / 2 if name == "img" else value for name, value in whole.items()}

    def guide(args):
        options = comfy.model_patcher.set_model_options_patch_replace(
            args["model_options"].copy(), half, "dit", "double_block", 0
        )
        (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + args["cond_denoised"] - weak

    model = graph.model.clone()
    model.set_model_sampler_post_cfg_function(guide)
    return graph._replace(model=model)


CASES = [
    *((None, other) for other in (lora, controlnet, skip_layer_guidance, perturbed)),
    *((FLUX, other) for other in (lora, controlnet, nag, skip_layer_guidance, perturbed)),
    *((CHROMA_HD, other) for other in (lora, controlnet)),
    (FLUX2, lora),
]
"""ComfyUI has no ControlNet for Flux.2."""


def name_of(case) -> str:
    family, other = case
    return f"{family.name if family else 'SD3'}-{other.__name__}"


# --- all in one graph -------------------------------------------------------------------------------------------------


def reference(graph: Graph) -> Reference:
    [[embeds, options]] = graph.positive
    own, family = embeds.shape[1], graph.family
    text = family.text(own) if family else own
    return Reference(
        text,
        PICTURE,
        [[text - own + t for t in columns] for columns in identity_columns(graph.positive)],
        1,
        anchor_sources(options[KEY].record.characters, 2),
        lambda sigma, frame: draw(PICTURE, 0.5, seeded(0, f"{sigma:.5g}", PICTURE, frame)),
        *((family.turn, lambda options: "block_index" in options) if family else ()),
    )


def ours(model):
    return self_attention(ipca(model))


@cache
def sampled(family: Family | None) -> tuple[torch.Tensor, torch.Tensor]:
    """With our nodes alone, and with none."""
    graph = graph_of(family)
    return graph.sample(ours(graph.model)), graph.sample(graph.model)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_all_nodes_of_a_graph_work_together_in_any_order(case):
    family, other = case
    graph = graph_of(family)
    with_it = other(graph)
    everything, alone = with_it.sample(ours(with_it.model)), with_it.sample(with_it.model)
    without, plain = sampled(family)
    assert_still_there(everything, without, alone, plain)  # the other node
    assert_still_there(everything, alone, without, plain)  # ours
    first = other(graph._replace(model=ours(graph.model)))
    assert torch.equal(first.sample(first.model), everything)
    want = with_it.sample(overridden(with_it.model, reference(with_it)))
    assert scaled_error(everything, want) < bound(with_it.model, run=with_it.sample)
    off = self_attention(ipca(with_it.model, strength=0.0), sampling_rate=0.0)
    assert torch.equal(with_it.sample(off), alone)
