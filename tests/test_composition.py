"""Consistent self-attention, IPCA and SVR beside ComfyUI's own nodes: each graph finishes and everything in it works.

Every case is sampled with nothing of ours but SVR, with IPCA, with self-attention and with both, and compared with the
same graphs without the other node. What a node adds beside the other has to be of the size of what it adds alone.
"""

from functools import partial
from typing import NamedTuple

import comfy.gligen
import comfy.hooks
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hooks import ConditioningSetProperties
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from graphs import (
    control,
    empty,
    encode,
    ipca,
    ksampler,
    positive,
    random,
    sample,
    scaled_error,
    self_attention,
    story,
)
from noise import PROMISED, bound
from onestory.attention.architectures import unet
from onestory.tools.random_checkpoint import random_weights
from warned import warnings_of

import nodes

WIDTH, HEIGHT = 40, 64  # 40 tokens at the first level, 12 at the second


class Graph(NamedTuple):
    """What is wired into a KSampler."""

    model: object
    positive: list
    negative: list


class Bench:
    """A three-frame story and what sampling gave so far."""

    def __init__(self, sd):
        self.sd = sd
        self.story = story("a watercolor of a red fox", "runs", "sleeps", "eats fish")
        self.latent = empty(self.story, WIDTH, HEIGHT)
        self.graph = Graph(sd.model, positive(sd.clip, self.story), encode(sd.clip, "blurry"))
        self.other_story = positive(sd.clip, story("a photo of an old man", "swims", "reads", "plants a tree"))
        self.done = {}

    def sample(self, graph: Graph, ours=(), **sampling) -> torch.Tensor:
        return sample(patched(graph.model, ours), graph.positive, graph.negative, self.latent, **sampling)

    def without_other(self, ours=(), **sampling) -> torch.Tensor:
        key = ours, *sampling.items()
        if key not in self.done:
            self.done[key] = self.sample(self.graph, ours, **sampling)
        return self.done[key]


IPCA, SELF = "IPCA", "self-attention"


def patched(model, ours):
    for kind in ours:
        model = {IPCA: ipca, SELF: self_attention}[kind](model)
    return model


@pytest.fixture(scope="module")
def bench(sd):
    return Bench(sd)


# --- the other nodes: each takes a bench and a graph and gives the graph with it -------------------------------------


def lora_weights(bench):
    """A LoRA of rank 2 on every attention projection of the U-Net's output blocks, as trainers write it."""
    weights = {}
    for name, weight in bench.sd.model.model.state_dict().items():
        if "output_blocks" in name and name.endswith(("to_q.weight", "to_v.weight")):
            key = "lora_unet_" + name.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
            weights[f"{key}.lora_down.weight"] = random([2, weight.shape[1]], len(weights)) - 0.5
            weights[f"{key}.lora_up.weight"] = 0.1 * (random([weight.shape[0], 2], len(weights)) - 0.5)
    assert weights
    return weights


def lora(bench, graph):
    return graph._replace(
        model=comfy.sd.load_lora_for_models(graph.model, bench.sd.clip, lora_weights(bench), 1.0, 1.0)[0]
    )


def controlnet(bench, graph):
    pos, neg = control(graph.positive, graph.negative, random([3, HEIGHT, WIDTH, 3]))
    return graph._replace(positive=pos, negative=neg)


def freeu(bench, graph):
    config = graph.model.model.model_config.unet_config
    channels = config["model_channels"]
    config["model_channels"] = channels // 2  # the random checkpoint's blocks are not 2 and 4 times as wide
    try:
        return graph._replace(model=FreeU_V2.execute(graph.model, 1.3, 1.4, 0.9, 0.2)[0])
    finally:
        config["model_channels"] = channels


def pag(bench, graph):
    return graph._replace(model=PerturbedAttentionGuidance.execute(graph.model, 3.0)[0])


def sag(bench, graph):
    return graph._replace(model=SelfAttentionGuidance.execute(graph.model, 0.5, 2.0)[0])


def hypertile(bench, graph):
    return graph._replace(model=HyperTile.execute(graph.model, 32, 2, 0, False)[0])


def tome(bench, graph):
    return graph._replace(model=TomePatchModel.execute(graph.model, 0.5)[0])


def rescale_cfg(bench, graph):
    return graph._replace(model=RescaleCFG().patch(graph.model, 0.7)[0])


def area(bench, graph):
    top = nodes.ConditioningSetAreaPercentage().append(graph.positive, 1.0, 0.5, 0.0, 0.0, 1.0)[0]
    bottom = nodes.ConditioningSetArea().append(bench.other_story, WIDTH, HEIGHT // 2, 0, HEIGHT // 2, 1.0)[0]
    return graph._replace(positive=top + bottom)


def mask(bench, graph):
    shown = random([3, HEIGHT, WIDTH])
    first = nodes.ConditioningSetMask().append(graph.positive, shown, "default", 1.0)[0]
    second = nodes.ConditioningSetMask().append(bench.other_story, 1 - shown, "default", 1.0)[0]
    return graph._replace(positive=first + second)


def mask_bounds(bench, graph):
    shown = torch.zeros(1, HEIGHT, WIDTH)
    shown[:, 8:, :32] = 1
    second = nodes.ConditioningSetMask().append(bench.other_story, shown, "mask bounds", 1.0)[0]
    return graph._replace(positive=graph.positive + second)


def timestep_ranges(bench, graph):
    first = nodes.ConditioningSetTimestepRange().set_range(graph.positive, 0.0, 0.5)[0]
    second = nodes.ConditioningSetTimestepRange().set_range(bench.other_story, 0.5, 1.0)[0]
    return graph._replace(positive=first + second)


def hooks(bench, graph):
    hook = comfy.hooks.create_hook_lora(lora_weights(bench), 1.0, 0.0)
    return graph._replace(
        positive=ConditioningSetProperties().set_properties(graph.positive, 1.0, "default", hooks=hook)[0]
    )


def gligen(bench, graph):
    transformers = len(unet.blocks(graph.model.model))
    dense = comfy.gligen.GatedSelfAttentionDense(320, 768, 8, 40)
    weights = random_weights(dense)
    weights["alpha_attn"] = weights["alpha_dense"] = torch.tensor(1.0)
    state = {f"input_blocks.{n}.1.fuser.{name}": w for n in range(transformers) for name, w in weights.items()}
    position = random_weights(comfy.gligen.PositionNet(768, 768))
    state |= {f"position_net.{name}": w for name, w in position.items()}
    loaded = comfy.gligen.load_gligen(state)
    assert len(loaded.module_list) == transformers
    patcher = comfy.model_patcher.ModelPatcher(loaded, torch.device("cpu"), torch.device("cpu"))
    with torch.inference_mode():
        box = nodes.GLIGENTextBoxApply().append(graph.positive, bench.sd.clip, patcher, "a fish", 24, 32, 8, 8)[0]
    return graph._replace(positive=box)


def ip_adapter(bench, graph):
    """A stand-in: one `attn2_replace` patch for each block, which adds attention to a picture's tokens and calls
    attention without `transformer_options`."""
    tokens = 2 * random([1, 4, 320]) - 1

    def patch(q, k, v, extra_options):
        heads, picture = extra_options["n_heads"], tokens.expand(q.shape[0], -1, -1).to(q)
        return optimized_attention(q, k, v, heads) + optimized_attention(q, picture, picture, heads)

    model = graph.model.clone()
    for name, number in unet.blocks(model.model):
        model.set_model_attn2_replace(patch, name, number)
    return graph._replace(model=model)


OTHERS = {
    f.__name__: f
    for f in (
        lora,
        controlnet,
        freeu,
        pag,
        sag,
        tome,
        rescale_cfg,
        area,
        mask,
        mask_bounds,
        timestep_ranges,
        hooks,
        gligen,
        ip_adapter,
    )
}
MODEL_PATCHES = ("lora", "freeu", "pag", "sag", "hypertile", "tome", "rescale_cfg", "ip_adapter")


def size(a, b):
    return (a - b).square().mean().sqrt().item()


def assert_still_there(with_it, without_it, alone_with, alone_without):
    """The effect of a node beside others, against its effect alone: there, and of its size."""
    share = size(with_it, without_it) / size(alone_with, alone_without)
    assert 0.2 < share < 5, share


@pytest.mark.parametrize("name", OTHERS)
def test_self_attention_and_ipca_and_the_other_node_all_work_in_one_graph(bench, name):
    graph = OTHERS[name](bench, bench.graph)
    steps = 2 if name == "timestep_ranges" else 1  # a part of the schedule has to have a step
    ours = (), (IPCA,), (SELF,), (IPCA, SELF)
    other, with_ipca, with_self, everything = (bench.sample(graph, o, steps=steps) for o in ours)
    assert torch.isfinite(everything).all()
    alone = partial(bench.without_other, steps=steps)
    assert_still_there(everything, alone((IPCA, SELF)), other, alone())  # the other node
    assert_still_there(everything, other, alone((IPCA, SELF)), alone())  # both of ours
    assert_still_there(everything, with_self, alone((IPCA, SELF)), alone((SELF,)))  # IPCA
    assert_still_there(everything, with_ipca, alone((IPCA, SELF)), alone((IPCA,)))  # self-attention


@pytest.mark.parametrize("name", [*OTHERS, "hypertile"])
def test_switched_off_the_other_node_works_bit_equal(bench, name):
    """Off, but listening: a later application overrules an earlier one."""
    graph = (OTHERS | {"hypertile": hypertile})[name](bench, bench.graph)
    off = self_attention(ipca(patched(graph.model, (IPCA, SELF)), strength=0.0), sampling_rate=0.0)
    off = graph._replace(model=off)
    assert torch.equal(bench.sample(off), bench.sample(graph))


@pytest.mark.parametrize("name", MODEL_PATCHES)
def test_the_order_of_the_model_nodes_does_not_matter(bench, name):
    other = (OTHERS | {"hypertile": hypertile})[name]
    first = bench.sample(other(bench, bench.graph), (IPCA, SELF))
    last = bench.sample(other(bench, bench.graph._replace(model=patched(bench.sd.model, (SELF, IPCA)))))
    assert torch.equal(first, last)


# --- what can't work together says so --------------------------------------------------------------------------------


def test_hypertile_keeps_its_blocks_and_a_warning_says_so(bench, caplog):
    """It cuts the queries of the first level's blocks into rows of their own; the second level's stay ours."""
    graph = hypertile(bench, bench.graph)
    tiled, with_ipca = bench.sample(graph), bench.sample(graph, (IPCA,))
    caplog.clear()
    everything = bench.sample(graph, (IPCA, SELF))
    assert torch.isfinite(everything).all()
    assert scaled_error(everything, with_ipca) > 1e-3, "self-attention works at the second level"
    assert scaled_error(everything, bench.without_other((IPCA, SELF))) > 1e-3
    assert scaled_error(tiled, bench.without_other()) > 1e-3
    assert warnings_of(caplog) == [
        "OneStory: another model patch splits the batch, so Consistent Self-Attention is skipped there (blocks "
        "input.1, output.2, output.3)."
    ], "once, though it is met in every step and block"


def test_the_warning_also_comes_with_the_released_probabilities(bench, caplog):
    """Though they are 0 in the first step."""
    model = self_attention(hypertile(bench, bench.graph).model, probability="released")
    bench.sample(bench.graph._replace(model=model))
    [message] = warnings_of(caplog)
    assert "another model patch splits the batch, so Consistent Self-Attention is skipped there" in message


def plain_attention(q, k, v, extra_options):
    return optimized_attention(q, k, v, extra_options["n_heads"])


def test_a_patch_that_replaces_self_attention_keeps_its_block_and_a_warning_says_so(bench, caplog):
    """One that calls attention without `transformer_options`, as SelfAttentionGuidance does."""
    model = bench.sd.model.clone()
    model.set_model_attn1_replace(plain_attention, "output", 1)
    graph = bench.graph._replace(model=model)
    got = bench.sample(graph._replace(model=self_attention(model, blocks="output.1")))
    assert scaled_error(got, bench.without_other()) < bound(*bench.graph, bench.latent)
    assert warnings_of(caplog) == [
        "OneStory: another model patch replaces the attention, so Consistent Self-Attention is skipped there "
        "(block output.1)."
    ]
    caplog.clear()
    bench.sample(graph._replace(model=self_attention(model, blocks="output.0")))
    assert not warnings_of(caplog), "no word about blocks that nobody asked for"


def test_a_patch_that_hands_on_its_options_gets_consistent_self_attention(bench):
    def patch(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"], transformer_options=extra_options)

    model = bench.sd.model.clone()
    model.set_model_attn1_replace(patch, "output", 1)
    got, want = (bench.sample(bench.graph._replace(model=self_attention(m))) for m in (model, bench.sd.model))
    assert scaled_error(got, want) < bound(*bench.graph, bench.latent)


def test_context_windows_pass_through_with_a_warning(bench, caplog):
    def windows(model):
        return ContextWindowsManualNode.execute(model, 2, 1, "standard_static", 1, False, "pyramid", 0, False)[0]

    want = bench.sample(bench.graph._replace(model=windows(bench.sd.model)))
    assert not warnings_of(caplog)
    for order in (lambda m: self_attention(windows(m)), lambda m: windows(self_attention(m))):
        caplog.clear()
        got = bench.sample(bench.graph._replace(model=order(bench.sd.model)))
        assert torch.equal(got, want)
        [message] = warnings_of(caplog)
        assert "a context window draws 2 of the 3 frames at a time" in message and "Split Story" in message


# --- several stories in one graph ------------------------------------------------------------------------------------


def test_in_a_timestep_range_frames_look_at_those_of_the_story_that_is_on(sd):
    """Two stories with other characters, one after the other, equal two samplers that have one each."""
    frames = "[Tom] runs", "[Mia] sits", "[Tom] reads", "[Mia] sings"
    first = story("[Tom] a boy\n[Mia] a girl", *frames)
    second = story("[Tom] a man\n[Mia] a woman", *(frames[i] for i in (0, 2, 1, 3)))
    assert first.frames[1].characters != second.frames[1].characters
    stories, negative = [positive(sd.clip, s) for s in (first, second)], encode(sd.clip, "blurry")
    latent = empty(first, WIDTH, HEIGHT)
    model = self_attention(sd.model, sampling_rate=1.0)
    set_range = nodes.ConditioningSetTimestepRange().set_range
    both = set_range(stories[0], 0.0, 0.5)[0] + set_range(stories[1], 0.5, 1.0)[0]
    got = sample(model, both, negative, latent)
    half = ksampler(model, stories[0], negative, latent, last_step=1)
    want = sample(model, stories[1], negative, half, start_step=1, disable_noise=True)
    assert scaled_error(got, want) < PROMISED


@pytest.mark.parametrize("name", ["area", "mask_bounds"])
def test_in_an_area_the_negative_stays_plain(bench, name):
    """ComfyUI copies a positive entry with an area to the negative ones, the story's record and name included."""
    graph = OTHERS[name](bench, bench.graph)
    negatives = []
    for model in (graph.model.clone(), ipca(graph.model)):
        seen = []
        model.set_model_sampler_pre_cfg_function(lambda args, seen=seen: seen.append(args["conds_out"]) or seen[-1])
        bench.sample(graph._replace(model=model), steps=1)
        negatives.append(seen[0])
    assert scaled_error(negatives[0][0], negatives[1][0]) > 1e-3
    assert scaled_error(negatives[0][1], negatives[1][1]) < PROMISED


# --- every sampler and scheduler -------------------------------------------------------------------------------------


class Two:
    """A two-frame story in two steps."""

    def __init__(self, sd):
        tale = story("a red fox", "runs", "sleeps")
        self.conds = positive(sd.clip, tale), encode(sd.clip, "blurry"), empty(tale, 64, 64)
        self.plain, self.model = sd.model, ipca(self_attention(sd.model, probability="released"))


@pytest.fixture(scope="module")
def two(sd):
    return Two(sd)


def assert_finite(two, **sampling):
    """Or not finite without us either."""
    got = sample(two.model, *two.conds, **sampling)
    assert torch.isfinite(got).all() or not torch.isfinite(sample(two.plain, *two.conds, **sampling)).all()


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_gives_finite_latents(two, sampler):
    assert_finite(two, sampler=sampler)


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_scheduler_gives_finite_latents(two, scheduler):
    assert_finite(two, scheduler=scheduler)
