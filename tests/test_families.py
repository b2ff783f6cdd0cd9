"""Qwen-Image, Z-Image, Lumina 2, HunyuanImage and Wan: story prompts, and their attention against float64."""

import pytest
import torch
from families import COLUMNS, HUNYUAN_IMAGE, JOINT, PICTURE, QWEN_IMAGE, ROWS, WAN, Z_IMAGE
from graphs import SVR, empty, encode, in_runs, ipca, positive, sample, scaled_error, self_attention, story
from joint import Reference, attended, by_head, overridden
from onestory.attention.gathers import anchor_sources
from onestory.attention.gathers import sample as draw
from onestory.attention.schedule import seeded
from onestory.nodes.prompt import OneStoryPrompt
from onestory.nodes.reweight import OneStorySVR
from onestory.story.parts import IDENTITY
from onestory.svr.record import KEY
from reference import relative_error, singular_value_reweight

import nodes

TALE = story("a watercolor fox with a blue scarf", "reads under an oak", "runs through deep snow", "sleeps")
FAMILIES = (*JOINT, WAN)


def by_name(families):
    return {"params": families, "ids": [family.name for family in families]}


@pytest.fixture(scope="module", **by_name(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="module", **by_name(JOINT))
def joint(request):
    return request.param


def graph(family, conditioning=None):
    clip = family.clip()
    latent = empty(TALE, COLUMNS * family.pixels, ROWS * family.pixels)
    return conditioning or positive(clip, TALE), encode(clip, "red fox"), latent


def columns(conditioning):
    record = conditioning[0][1][KEY].record
    return [[t for span in record.columns(row, IDENTITY) for t in range(*span)] for row in record.rows]


def sampled(sigma, frame, rate=0.5, seed=0):
    return draw(PICTURE, rate, seeded(seed, f"{sigma:.5g}", PICTURE, frame))


def separate(clip, tale):
    return OneStoryPrompt.execute(clip, tale, "separate prompts", 0, "story").result[0]


class References:
    """One reference for each text: calls are known by how many tokens they have."""

    def __init__(self, family, conditionings, further=0, **methods):
        self.of = {}
        for conditioning in conditionings:
            text = family.padded(conditioning[0][0].shape[1])
            whole = text + family.padded(PICTURE) + further
            numbered = lambda options: "block_index" in options  # noqa: E731
            self.of[whole] = Reference(text, PICTURE, turn=family.turn, blocks=numbered, **methods)

    def __call__(self, func, q, k, v, heads, *args, **options):
        found = self.of.get(q.shape[-2])
        return (found or func)(*((func,) if found else ()), q, k, v, heads, *args, **options)

    @property
    def calls(self):
        return sum(reference.calls for reference in self.of.values())


def with_methods(model, conditioning, case):
    """The model with our methods, and what the reference has to know of them."""
    known = {}
    if case != "self-attention":
        strength = 3 if case == "IPCA 3" else 1
        model = ipca(model, strength=float(strength))
        known |= {"columns": columns(conditioning), "strength": strength}
    if case in ("self-attention", "both"):
        model = self_attention(model)
        characters = conditioning[0][1][KEY].record.characters
        known |= {"sources": anchor_sources(characters, 2), "sampled": sampled}
    return model, known


def agree(family, case, given, cfg=1.0, further=0):
    model = family.model()
    ours, known = with_methods(model, given[0], case)
    references = References(family, given[:2], further, **known)
    want = sample(overridden(model, references), *given, cfg=cfg)
    assert references.calls > 0
    got = sample(ours, *given, cfg=cfg)
    # Both are float32 outside of attention, over two steps.
    assert scaled_error(got, want) < 1e-5
    assert scaled_error(got, sample(model, *given, cfg=cfg)) > 1e-3


# --- text -------------------------------------------------------------------------------------------------------------


def test_one_prompt_encodes_as_clip_text_encode_does_and_spans_hold_their_text(family):
    clip = family.clip()
    [[embeds, options]] = positive(clip, TALE, svr=False)
    texts = [TALE.frames[0].identity, *(frame.prompt for frame in TALE.frames)]
    [[want, wanted]] = nodes.CLIPTextEncode().encode(clip, " ".join(texts))[0]
    assert torch.equal(embeds, want.expand(3, -1, -1))
    assert options.keys() == {*wanted, KEY}
    record = options[KEY].record
    record.check(embeds, "A node")
    for row in record.rows:
        read = ["".join(row.texts[0][slice(*row.span(part, 0))]).strip() for part in (IDENTITY, 0, 1, 2)]
        assert read == texts
    if family is WAN:
        eot = record.rows[0].spans[0].eot
        assert embeds[:, eot.start].any() and not embeds[:, eot.start + 1 :].any(), "zeros after </s>"


def test_svr_equals_the_formula_with_alpha_for_clips_norms(family):
    before = positive(family.clip(), TALE, svr=False)
    [[got, _]] = OneStorySVR.execute(before, **SVR).result[0]
    [[embeds, options]] = before
    assert relative_error(got, singular_value_reweight(embeds, options[KEY].record)) < 1e-6
    row = options[KEY].record.rows[0].spans[0]
    text = torch.cat([embeds[0, slice(*at)] for at in (row.identity, *row.frames)]).double().norm(dim=-1).mean()
    assert options[KEY].record.encoders[0].scale == pytest.approx(28 / text.item())
    assert not torch.equal(got, embeds) and torch.equal(got[:, : row.identity.stop], embeds[:, : row.identity.stop])


# --- attention --------------------------------------------------------------------------------------------------------


def test_off_other_steps_no_story_and_afterwards_are_bit_equal(family):
    model, given = family.model(), graph(family)
    want = sample(model, *given)
    assert torch.equal(sample(ipca(self_attention(model, sampling_rate=0.0), strength=0.0), *given), want)
    assert torch.equal(sample(ipca(model, start_percent=1.0), *given), want)
    plain = [[embeds, {name: value for name, value in o.items() if name != KEY}] for embeds, o in given[0]]
    assert torch.equal(sample(ipca(model), plain, *given[1:]), want)
    assert torch.equal(sample(model, *given), want)


@pytest.mark.parametrize("case, cfg", [("IPCA 3", 1.0), ("self-attention", 1.0), ("both", 5.0)])
def test_joint_attention_equals_the_reference(joint, case, cfg):
    agree(joint, case, graph(joint), cfg)


def test_blocks_are_chosen_by_their_numbers(family):
    model, given = family.model(), graph(family)
    one = sample(ipca(model, blocks="double.0"), *given, cfg=1.0)
    rest = "single.0-1" if family is HUNYUAN_IMAGE else "double.1-2"
    other = sample(ipca(model, blocks=rest), *given, cfg=1.0)
    every = sample(ipca(model), *given, cfg=1.0)
    assert torch.equal(sample(ipca(model, blocks=f"double.0+{rest}"), *given, cfg=1.0), every)
    assert torch.equal(sample(ipca(model, blocks="late"), *given, cfg=1.0), other)
    assert min(scaled_error(a, b) for a, b in ((one, other), (one, every), (other, every))) > 1e-4


@pytest.mark.parametrize("frames_per_run", [1, 2])
def test_runs_equal_one_batch(family, frames_per_run):
    given, patched = graph(family), self_attention(ipca(family.model()), anchors=1)
    got = in_runs(patched, *given, frames_per_run, anchors=1)
    assert scaled_error(got, sample(patched, *given)) < 1e-4
