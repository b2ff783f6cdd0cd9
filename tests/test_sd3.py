"""Stable Diffusion 3: story prompts of three encoders, SVR on T5, and joint attention against float64."""

import pytest
import torch
from comfy_extras.nodes_sd3 import SkipLayerGuidanceSD3
from graphs import empty, encode, identity_columns, in_runs, ipca, positive, sample, scaled_error, self_attention, story
from joint import Reference, overridden
from noise import PROMISED, Bounds
from onestory.attention.gathers import anchor_sources
from onestory.attention.gathers import sample as draw
from onestory.attention.schedule import seeded
from onestory.nodes.prompt import OneStoryPrompt
from onestory.story.parts import IDENTITY
from onestory.svr.record import KEY
from reference import ONE_ROUNDING, relative_error, singular_value_reweight
from tiny import sd3, sd3_clip

import nodes

TALE = story("a watercolor fox with a blue scarf", "reads under an oak", "runs through deep snow", "sails", "sleeps")
TEXT, PICTURE = 77 + 77, 4 * 4
COMBINATIONS = ["lgt", "lg", "l", "g", "t", "lt", "gt"]


@pytest.fixture(scope="module")
def tale():
    return TALE


@pytest.fixture(scope="module", params=[False, True], ids=["SD3", "SD3.5 medium"])
def model(request):
    return sd3(medium=request.param)


@pytest.fixture(scope="module")
def graph():
    clip = sd3_clip()
    return positive(clip, TALE), encode(clip, "blurry"), empty(TALE, 64, 64)


def sampled(sigma, frame, rate=0.5, seed=0):
    return draw(PICTURE, rate, seeded(seed, f"{sigma:.5g}", PICTURE, frame))


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoders", COMBINATIONS)
def test_one_prompt_encodes_as_clip_text_encode_does(encoders):
    clip = sd3_clip(encoders)
    [[embeds, options]] = positive(clip, TALE, svr=False)
    text = " ".join([TALE.frames[0].identity, *(frame.prompt for frame in TALE.frames)])
    [[want, wanted]] = nodes.CLIPTextEncode().encode(clip, text)[0]
    assert torch.equal(embeds, want.expand(4, -1, -1))
    assert torch.equal(options["pooled_output"], wanted["pooled_output"].expand(4, -1))
    record = options[KEY].record
    record.check(embeds, "A node")
    assert [encoder.name for encoder in record.encoders] == [{"t": "t5xxl"}.get(name, name) for name in encoders]


def test_spans_of_every_encoder_hold_the_text_they_say():
    clip = sd3_clip()
    record = positive(clip, TALE, svr=False)[0][1][KEY].record
    row = record.rows[2]
    for e, encoder in enumerate(record.encoders):
        read = ["".join(row.texts[e][slice(*(at - encoder.tokens.start for at in row.span(part, e)))]).strip()
                for part in (IDENTITY, 0, 1, 2, 3)]  # fmt: skip
        assert read == [TALE.frames[0].identity, *(frame.prompt for frame in TALE.frames)]


def test_prompts_of_unequal_length_are_padded_as_t5_pads():
    clip = sd3_clip("t")
    long = story("a fox", "runs", " ".join(["red"] * 100))
    [[embeds, options]] = OneStoryPrompt.execute(clip, long, "separate prompts", 0, "story").result[0]
    rows = options[KEY].record.rows
    [[want, _]] = nodes.CLIPTextEncode().encode(clip, "a fox " + " ".join(["red"] * 100))[0]
    assert torch.equal(embeds[1:], want)
    tokens = want.shape[1]
    assert tokens > 100 and rows[1].spans[0].eot == (tokens - 1, tokens)
    assert rows[0].spans[0].eot.stop == tokens, "the shorter one ends in T5's own padding"


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("eot", ["reweight", "scale"])
def test_svr_equals_the_formula_on_every_encoder_with_alpha_for_clips_norms(variant, eot):
    from graphs import SVR
    from onestory.nodes.reweight import OneStorySVR

    clip = sd3_clip()
    before = positive(clip, TALE, svr=False)
    [[got, _]] = OneStorySVR.execute(before, **{**SVR, "variant": variant, "eot": eot}).result[0]
    [[embeds, options]] = before
    record = options[KEY].record
    want = singular_value_reweight(embeds, record, variant, eot=eot)
    assert relative_error(got, want) < ONE_ROUNDING
    spans = [row.spans[2] for row in record.rows]
    text = [embeds[i, slice(*at)] for i, row in enumerate(spans) for at in (row.identity, *row.frames)]
    assert record.encoders[2].scale == pytest.approx(28 / torch.cat(text).double().norm(dim=-1).mean().item())
    identity = slice(record.encoders[2].tokens.start, spans[0].identity.stop)
    assert torch.equal(got[:, identity], embeds[:, identity])


# --- attention --------------------------------------------------------------------------------------------------------


def test_off_other_blocks_no_story_and_afterwards_are_bit_equal(model, graph):
    want = sample(model, *graph)
    assert torch.equal(sample(ipca(self_attention(model, sampling_rate=0.0), strength=0.0), *graph), want)
    assert torch.equal(sample(ipca(model, start_percent=1.0), *graph), want)
    plain = [[embeds, {name: value for name, value in o.items() if name != KEY}] for embeds, o in graph[0]]
    assert torch.equal(sample(ipca(model), plain, *graph[1:]), want)
    assert torch.equal(sample(model, *graph), want)


@pytest.fixture(scope="module")
def bounds(model, graph):
    return Bounds(model, *graph)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("case", ["IPCA", "IPCA 3", "self-attention", "both"])
def test_joint_attention_equals_the_reference(model, graph, bounds, case, cfg):
    ours, reference = model, {}
    if case != "self-attention":
        strength = 3 if case == "IPCA 3" else 1
        ours = ipca(ours, strength=float(strength))
        reference |= {"columns": identity_columns(graph[0]), "strength": strength}
    if case in ("self-attention", "both"):
        ours = self_attention(ours)
        characters = graph[0][0][1][KEY].record.characters
        reference |= {"sources": anchor_sources(characters, 2), "sampled": sampled}
    override = Reference(TEXT, PICTURE, **reference)
    want = sample(overridden(model, override), *graph, cfg=cfg)
    assert override.calls > 0
    got = sample(ours, *graph, cfg=cfg)
    assert scaled_error(got, want) < bounds(cfg=cfg)
    assert scaled_error(got, sample(model, *graph, cfg=cfg)) > 1e-3


def test_methods_compose_in_either_order(model, graph):
    one, other = ipca(self_attention(model)), self_attention(ipca(model))
    assert torch.equal(sample(one, *graph), sample(other, *graph))


@pytest.mark.parametrize("frames_per_run", [1, 3])
def test_runs_equal_one_batch(model, graph, frames_per_run):
    patched = self_attention(ipca(model))
    got = in_runs(patched, graph[0], graph[1], graph[2], frames_per_run, anchors=2)
    assert scaled_error(got, sample(patched, *graph)) < PROMISED


def test_blocks_keep_their_numbers_beside_a_skipped_one(model, graph):
    """Skip Layer Guidance leaves a block out in a pass of its own; a replaced block that calls the original is it."""

    def the_same(args, extra):
        return extra["original_block"](args)

    def left_out(args, extra):
        return args

    for number in (0, 1, 2):
        replaced = model.clone()
        replaced.set_model_patch_replace(the_same, "dit", "double_block", number)
        assert torch.equal(sample(ipca(replaced), *graph), sample(ipca(model), *graph))
    skipped = model.clone()
    skipped.set_model_patch_replace(left_out, "dit", "double_block", 1)
    assert torch.equal(sample(ipca(skipped, blocks="double.1"), *graph), sample(skipped, *graph))
    assert scaled_error(sample(ipca(skipped, blocks="double.2"), *graph), sample(skipped, *graph)) > 1e-4
    guided = SkipLayerGuidanceSD3.execute(model, "1", 3.0, 0.0, 1.0).result[0]
    assert sample(ipca(guided), *graph).isfinite().all()
    assert scaled_error(sample(ipca(guided), *graph), sample(guided, *graph)) > 1e-3
