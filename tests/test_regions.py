"""Regions in whole sampling runs: the weight of a character's words, multiplied in float64 in an unpatched model."""

import math
from functools import partial

import pytest
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from graphs import (
    control,
    empty,
    encode,
    in_runs,
    ipca,
    positive,
    random,
    sample,
    scaled_error,
    self_attention,
    story,
)
from joint import by_head, overridden
from noise import PROMISED
from onestory.nodes.regions import OneStoryRegions
from onestory.story.layout import Box, parse_layout
from onestory.svr.record import KEY
from tiny import sd3, sd3_clip
from warned import warnings_of

import nodes

pytestmark = pytest.mark.usefixtures("temporary")

TALE = story(
    "[Mia] a red fox\n[Otto] a blue owl", "[Mia] and [Otto] at sea", "[Mia] reads", "[NC] rain", "[Otto] waves at [Mia]"
)
LAYOUT = "Mia: left\nOtto: 0.5 0 1 1\nmia@4: 0.1 0.2 0.55 1"
BOXES = [
    {"Mia": (0, 0, 0.5, 1), "Otto": (0.5, 0, 1, 1)},
    {"Mia": (0, 0, 0.5, 1)},
    {},
    {"Mia": (0.1, 0.2, 0.55, 1), "Otto": (0.5, 0, 1, 1)},
]
run = partial(sample, steps=1, cfg=1.0)
WIDTH, HEIGHT = 40, 72
SIZES = {45: (9, 5), 15: (5, 3), 6: (3, 2), 2: (2, 1)}


def regions(model, layout=LAYOUT, strength=1.0, end_of_text=1.0, mask=None, character="", tale=TALE, **reach):
    reach = {"blocks": "all", "start_percent": 0.0, "end_percent": 1.0, **reach}
    return OneStoryRegions.execute(model, tale, layout, strength, end_of_text, character=character, mask=mask, **reach)


def regional(model, *args, **kwargs):
    return regions(model, *args, **kwargs).result[0]


@pytest.fixture(scope="module")
def tale():
    return TALE


@pytest.fixture(scope="module")
def latent():
    return empty(TALE, WIDTH, HEIGHT)


def boxes_at(frame, height, width):
    """Of each token the share that is inside, counted in a fine grid."""
    fine = 40
    found = {}
    for name, (x0, y0, x1, y1) in BOXES[frame].items():
        y = (torch.arange(height * fine, dtype=torch.float64) + 0.5) / (height * fine)
        x = (torch.arange(width * fine, dtype=torch.float64) + 0.5) / (width * fine)
        inside = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None]
        found[name] = inside.double().unflatten(1, (width, fine)).unflatten(0, (height, fine)).mean((1, 3)).flatten()
    return found


class Multiplied:
    """An attention override: softmax weights times f, row by row. `text` tokens stand first among joint keys."""

    def __init__(self, conditioning, strength, end_of_text, masks=boxes_at, copies=0, joint=None, sizes=SIZES):
        self.record = conditioning[0][1][KEY].record
        self.strength, self.end_of_text, self.masks, self.copies = strength, end_of_text, masks, copies
        self.joint, self.sizes = joint, sizes
        self.calls = 0

    def factors(self, frame, height, width):
        row = self.record.rows[frame]
        f = torch.ones(height * width, self.record.tokens, dtype=torch.float64)
        masks = self.masks(frame, height, width)
        for e, encoder in enumerate(self.record.encoders):
            for name, span in row.subjects[e]:
                if name in masks and (self.record.encoders[0].tokens != encoder.tokens or e == 0):
                    f[:, slice(*span)] *= (1 - self.strength * (1 - masks[name]))[:, None]
            if masks and (self.record.encoders[0].tokens != encoder.tokens or e == 0):
                most = torch.stack(list(masks.values())).amax(0)
                f[:, slice(*row.spans[e].eot)] *= (1 - self.end_of_text * most)[:, None]
        f = f.clamp(min=1e-4)
        if self.copies:
            kept = [0, *range(*row.spans[0].identity)]
            f[:, kept] *= 1 + self.copies
        return f

    def __call__(self, func, q, k, v, heads, mask=None, **options):
        at, tokens, ready = options.get("transformer_options", {}), self.record.tokens, options.get("skip_reshape")
        keys = k.shape[-2]
        if keys != (tokens + self.joint if self.joint else tokens) or "cond_or_uncond" not in at:
            return func(q, k, v, heads, mask=mask, **options)
        self.calls += 1
        Q, K, V = (x.double() if ready else by_head(x.double(), heads) for x in (q, k, v))
        logits = Q @ K.mT / math.sqrt(Q.shape[-1])
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        first = tokens if self.joint else 0
        frames = len(self.record.rows)
        for i in range(len(q)):
            if at["cond_or_uncond"][i // frames] == 0:
                weights[i, :, first:, :tokens] *= self.factors(i % frames, *self.sizes[Q.shape[2] - first])
        out = weights / weights.sum(-1, keepdim=True) @ V
        return (out if options.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)).to(q)


@pytest.mark.parametrize(
    ("strength", "end_of_text", "sampler", "cfg"), [(1.0, 1.0, "euler", 5.0), (0.5, 0.3, "dpmpp_2m", 1.0)]
)
def test_a_run_equals_the_multiplied_softmax(sd, frames, negative, latent, strength, end_of_text, sampler, cfg):
    plain = sample(sd.model, frames, negative, latent, sampler, cfg=cfg)
    override = Multiplied(frames, strength, end_of_text)
    want = sample(overridden(sd.model, override), frames, negative, latent, sampler, cfg=cfg)
    got = sample(
        regional(sd.model, strength=strength, end_of_text=end_of_text), frames, negative, latent, sampler, cfg=cfg
    )
    assert override.calls
    assert scaled_error(got, want) < PROMISED
    assert scaled_error(got[[0, 1, 3]], plain[[0, 1, 3]]) > 1e-3
    assert scaled_error(got[2], plain[2]) < PROMISED, "a frame that shows nobody"


def test_masks_of_any_size_soft_and_one_for_each_frame(sd, frames, negative, latent):
    masks = random([4, 18, 10])

    def pooled(frame, height, width):
        own = torch.nn.functional.adaptive_avg_pool2d(masks[frame][None].double(), (height, width))[0].flatten()
        return {"Mia": own} if frame != 2 else {}

    want = run(overridden(sd.model, Multiplied(frames, 1.0, 1.0, pooled)), frames, negative, latent)
    got = run(regional(sd.model, "", mask=masks, character="mia"), frames, negative, latent)
    assert scaled_error(got, want) < PROMISED
    one = run(regional(sd.model, "", mask=masks[:1], character="Mia"), frames, negative, latent)
    assert scaled_error(one[0], got[0]) < PROMISED and scaled_error(one[1], got[1]) > 1e-4
    with_channel = run(regional(sd.model, "", mask=masks[:, None], character="Mia"), frames, negative, latent)
    assert torch.equal(with_channel, got)


def test_the_whole_picture_is_no_region(sd, frames, negative, latent):
    """So where Regions from Attention finds no place, a frame is drawn as without; end-of-text tokens count there."""
    plain = run(sd.model, frames, negative, latent)
    assert torch.equal(run(regional(sd.model, "Mia: all\nOtto: all"), frames, negative, latent), plain)
    masks = torch.ones(4, 24, 24)
    masks[3, :, 12:] = 0
    got = run(regional(sd.model, "", mask=masks, character="Mia"), frames, negative, latent)
    assert scaled_error(got[:3], plain[:3]) < PROMISED and scaled_error(got[3], plain[3]) > 1e-3


def test_the_bias_adds_to_ipcas_in_any_order_of_the_nodes(sd, frames, negative, latent):
    want = run(overridden(sd.model, Multiplied(frames, 1.0, 1.0, copies=1)), frames, negative, latent)
    got = run(regional(ipca(sd.model)), frames, negative, latent)
    assert scaled_error(got, want) < PROMISED
    assert torch.equal(run(ipca(regional(sd.model)), frames, negative, latent), got)


def test_nodes_for_one_character_each_are_one_for_both(sd, frames, negative, latent):
    both = run(regional(sd.model, end_of_text=0.0), frames, negative, latent)
    mia, otto = LAYOUT.replace("Otto: 0.5 0 1 1\n", ""), "Otto: right"
    for first, second in ((mia, otto), (otto, mia)):
        model = regional(regional(sd.model, first, end_of_text=0.0), second, end_of_text=0.0)
        assert scaled_error(run(model, frames, negative, latent), both) < PROMISED


@pytest.mark.parametrize(
    "changed", [{"strength": 0.0}, {"layout": ""}, {"layout": "Otto@1: left", "start_percent": 0.9}]
)
def test_without_strength_or_regions_or_outside_of_its_steps_all_is_bit_equal(sd, frames, negative, latent, changed):
    model = regional(ipca(sd.model), **{"layout": LAYOUT, **changed})
    assert torch.equal(run(model, frames, negative, latent), run(ipca(sd.model), frames, negative, latent))


def test_runs_of_one_frame_are_the_whole_story(sd, frames, negative, latent):
    model = regional(sd.model)
    whole = run(model, frames, negative, latent)
    assert scaled_error(in_runs(model, frames, negative, latent, 1, 1, steps=1, cfg=1.0), whole) < PROMISED


def beside_pag(model, frames, negative):
    return PerturbedAttentionGuidance.execute(model, 3.0)[0], frames, negative


def beside_controlnet(model, frames, negative):
    return model, *control(frames, negative, random([4, HEIGHT, WIDTH, 3]))


def beside_self_attention(model, frames, negative):
    return self_attention(model), frames, negative


@pytest.mark.parametrize("other", [beside_pag, beside_controlnet, beside_self_attention])
def test_beside_other_nodes_it_does_as_much_as_alone(sd, frames, negative, latent, other):
    alone = run(regional(sd.model), frames, negative, latent) - run(sd.model, frames, negative, latent)
    model, *conditionings = other(sd.model, frames, negative)
    first = run(regional(model), *conditionings, latent)
    effect = first - run(model, *conditionings, latent)
    assert 0.3 < (effect.std() / alone.std()) < 3
    model, *conditionings = other(regional(sd.model), frames, negative)
    assert torch.equal(run(model, *conditionings, latent), first)


def test_areas_stay_as_they_are_and_a_warning_says_so(sd, frames, negative, latent, caplog):
    area = nodes.ConditioningSetAreaPercentage().append(frames, 1.0, 0.5, 0.0, 0.0, 1.0)[0]
    want = run(sd.model, area, negative, latent)
    caplog.clear()
    assert torch.equal(run(regional(sd.model), area, negative, latent), want)
    assert sum("leaves areas of a picture as they are" in text for text in warnings_of(caplog)) == 1


def test_joint_attention_has_the_bias_on_the_pictures_queries():
    clip, model = sd3_clip("l"), sd3()
    conditioning, negative, latent = positive(clip, TALE), encode(clip, "blurry"), empty(TALE, 64, 96)
    override = Multiplied(conditioning, 1.0, 0.6, joint=24, sizes={24: (6, 4)})
    want = run(overridden(model, override), conditioning, negative, latent)
    got = run(regional(model, end_of_text=0.6), conditioning, negative, latent)
    assert override.calls
    assert scaled_error(got, want) < PROMISED
    assert scaled_error(got, run(model, conditioning, negative, latent)) > 1e-3


# --- what is written -------------------------------------------------------------------------------------------------


def test_lines_for_some_frames_count_before_those_for_all():
    layout = parse_layout("Mia@2-4: bottom right\n[mia]： right third\nOTTO@1,4: top", TALE)
    third, quarter, half = Box(2 / 3, 0, 1, 1), Box(0.5, 0.5, 1, 1), Box(0, 0, 1, 0.5)
    assert layout == {"Mia": {0: third, 1: quarter, 3: quarter}, "Otto": {0: half, 3: half}}
    alone = story("a red fox", "runs", "sits")
    assert parse_layout("left\n@2: all", alone) == {"": {0: Box(0, 0, 0.5, 1), 1: Box(0, 0, 1, 1)}}


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("Tom: left", "no character “Tom” .* write Mia or Otto"),
        ("left", "no character “” in the story .“left”.: write Mia or Otto"),
        ("Mia: lft", "place “lft” in “Mia: lft”: write all, middle"),
        ("Mia: 0.5 0 0.2 1", "shares from 0 to 1"),
        ("Mia: 0 0 1", "shares from 0 to 1"),
        ("Otto@2: left", "Otto is in 1 and 4 of the story's 4 frames"),
        ("Otto@9: left", "place for frame 9"),
    ],
)
def test_what_is_not_understood_gets_a_sentence(sd, layout, says):
    with pytest.raises(ValueError, match=says):
        regional(sd.model, layout)


def test_masks_that_do_not_fit_get_a_sentence(sd, frames, negative, latent):
    with pytest.raises(ValueError, match="has 3 masks and a story of 4 frames"):
        regional(sd.model, "", mask=random([3, 8, 8]), character="Mia")
    with pytest.raises(ValueError, match="a mask for Mia and a place in `layout`"):
        regional(sd.model, "Mia: left", mask=random([1, 8, 8]), character="Mia")
    other = story("a fox", "runs", "sits")
    with pytest.raises(ValueError, match="story of 2 frames, and the sampler draws one of 4"):
        run(regional(sd.model, "left", tale=other), frames, negative, latent)


def test_a_graph_without_a_story_gets_a_warning(sd, negative, latent, caplog):
    run(regional(sd.model), negative, negative, latent)
    assert any("Story Regions has nothing to do" in text for text in warnings_of(caplog))


def test_the_picture_shows_every_frames_regions(sd):
    output = regions(sd.model)
    shown = output.result[1]
    assert shown.shape == (4, 256, 256, 3)
    assert len(output.ui.as_dict()["images"]) == 4
    left, right = shown[:, 200, 20], shown[:, 200, 236]
    assert not torch.equal(left[0], right[0]) and torch.equal(right[1], right[2]) and torch.equal(left[2], right[2])
