"""Sharing only the character in whole sampling runs: against an unpatched model whose attention is the formula's, in
float64 and query by query, with regions from Story Regions and from what the same pass has looked at before."""

import math
from functools import partial

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from families import FLUX
from graphs import control, empty, encode, in_runs, ipca, positive, random, sample, scaled_error, self_attention, story
from joint import by_head, overridden
from onestory.attention.schedule import seeded
from onestory.nodes.attention_view import OneStoryAttentionRecorder
from onestory.nodes.passes import OneStoryRuns
from onestory.nodes.regions import OneStoryRegions
from onestory.svr.record import KEY
from reference import anchor_frames, tile_starts
from tiny import sd3, sd3_clip
from warned import warnings_of

pytestmark = pytest.mark.usefixtures("temporary")

TALE = story(
    "[Mia] a red fox\n[Otto] a blue owl",
    "[Mia] reads",
    "[Otto] sails",
    "[Mia] and [Otto] at sea",
    "[NC] rain",
    "[Mia] sleeps",
)
SHOWN = [frame.characters for frame in TALE.frames]
LAYOUT = "Mia: 0 0 0.4 1\nOtto: 0.55 0.2 1 1"
BOXES = {"Mia": (0, 0, 0.4, 1), "Otto": (0.55, 0.2, 1, 1)}
WIDTH, HEIGHT = 40, 72
SIZES = {45: (9, 5), 15: (5, 3), 6: (3, 2), 2: (2, 1)}
run = partial(sample, steps=1, cfg=1.0)
the_character = partial(self_attention, share="the character", anchors=1)


def regional(model, layout=LAYOUT, **more):
    """Story Regions that says where they are and, beginning after the last step, changes no attention of its own."""
    given = {"strength": 1.0, "end_of_text": 1.0, "blocks": "all", "start_percent": 1.0, "end_percent": 1.0}
    return OneStoryRegions.execute(model, TALE, layout, character="", **{**given, **more}).result[0]


@pytest.fixture(scope="module")
def tale():
    return TALE


@pytest.fixture(scope="module")
def latent():
    return empty(TALE, WIDTH, HEIGHT)


def otsu(values):
    """Of the thresholds between 256 bins the one that splits the values' variance best; of equal ones the middle."""
    low, high = values.min().item(), values.max().item()
    at = [min(255, int((value - low) / (high - low) * 256)) for value in values.flatten().tolist()]
    mean = lambda bins: sum(b + 0.5 for b in bins) / len(bins)  # noqa: E731
    between = {}
    for cut in range(1, 256):
        below, above = [b for b in at if b < cut], [b for b in at if b >= cut]
        between[cut] = len(below) * len(above) * (mean(below) - mean(above)) ** 2
    best = [cut for cut, value in between.items() if value >= max(between.values()) * (1 - 1e-9)]
    return low + (high - low) * sum(best) / len(best) / 256


class Formula:
    """An attention override. `looks` are for each frame lists of the frames that it sees, each list a sum of its own.

    A picture's tokens stand after the text's in a joint model. The regions are `boxes`, or those of the attention on
    the characters' words in the layers of the same pass, all heads and layers alike.
    """

    def __init__(self, conditioning, looks, sizes=SIZES, rate=1.0, boxes=None, joint=False):
        self.record = conditioning[0][1][KEY].record
        self.looks, self.sizes, self.rate, self.boxes, self.joint = looks, sizes, rate, boxes, joint
        self.maps = {}
        self.shared = 0

    def on(self, model):
        clone = overridden(model, self)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "formula", self.new_pass)
        return clone

    def new_pass(self, executor, *args, **kwargs):
        self.maps.clear()
        return executor(*args, **kwargs)

    def watch(self, frame, Q, K, size):
        weights = (Q @ K.mT / math.sqrt(Q.shape[-1])).softmax(-1).mean(0)
        for name in SHOWN[frame]:
            columns = [t for own, span in self.record.rows[frame].subjects[0] if own == name for t in range(*span)]
            seen = weights[:, columns].sum(-1).reshape(1, 1, *size)
            self.maps.setdefault((frame, name), []).append(seen)

    def inside(self, frame, size):
        height, width = size
        if self.boxes:
            found = {}
            for name, (x0, y0, x1, y1) in ((n, self.boxes[n]) for n in SHOWN[frame]):
                x = (torch.arange(width * 40, dtype=torch.float64) + 0.5) / (width * 40)
                y = (torch.arange(height * 40, dtype=torch.float64) + 0.5) / (height * 40)
                fine = ((y > y0) & (y < y1))[:, None] & ((x > x0) & (x < x1))
                found[name] = fine.double().reshape(height, 40, width, 40).mean((1, 3)).flatten() > 0.5
            return found
        means = {}
        for name in SHOWN[frame]:
            own = [self.resized(seen, size) for seen in self.maps.get((frame, name), [])]
            if own:
                means[name] = torch.stack(own).mean(0)
        scaled = {name: mean / mean.mean() for name, mean in means.items()}
        return {
            name: (mean > otsu(mean)) & (scaled[name] == torch.stack(list(scaled.values())).amax(0))
            for name, mean in means.items()
        }

    @staticmethod
    def resized(seen, size):
        if seen.shape[-2] >= size[0]:
            return torch.nn.functional.adaptive_avg_pool2d(seen, size).flatten()
        return torch.nn.functional.interpolate(seen, size, mode="bilinear").flatten()

    def sampled(self, sigma, tokens, what):
        """round(rate * n) of n positions, drawn as the method's samples are."""
        among = tokens if isinstance(what, int) else tokens * len(what)
        drawn = torch.randperm(among, generator=seeded(0, f"{sigma:.5g}", tokens, what))
        return set(drawn[: round(self.rate * among)].tolist())

    def row(self, frame, Q, K, V, first, size, sigma):
        """One row: Q are the picture's queries, K and V [frames, heads, keys, channels] those of all rows."""
        tokens = size[0] * size[1]
        inside = [self.inside(f, size) for f in range(len(SHOWN))]
        outs = []
        for look in self.looks[frame] or [[]]:
            may = torch.zeros(tokens, len(look), tokens, dtype=torch.bool)
            tile = sorted(look) if frame in look else None
            for query in range(tokens):
                within = [name for name in SHOWN[frame] if name in inside[frame] and inside[frame][name][query]]
                names = within if len(within) == 1 and len(SHOWN[frame]) > 1 else SHOWN[frame]
                for n, source in enumerate(look):
                    for name in names:
                        if name in inside[source]:
                            may[query, n] |= inside[source][name]
            for n, source in enumerate(look):
                drawn = self.sampled(sigma, tokens, tile or source)
                offset = tile.index(source) * tokens if tile else 0
                may[:, n] &= torch.tensor([t + offset in drawn for t in range(tokens)])
            self.shared += int(may.sum())
            keys = torch.cat([K[frame], *(K[s][:, first:] for s in look)], 1)
            values = torch.cat([V[frame], *(V[s][:, first:] for s in look)], 1)
            hidden = torch.zeros(tokens, keys.shape[1], dtype=torch.float64)
            hidden[:, K.shape[2] :] = torch.zeros(may.shape).masked_fill(~may, -math.inf).flatten(1)
            outs.append((Q @ keys.mT / math.sqrt(Q.shape[-1]) + hidden).softmax(-1) @ values)
        return torch.stack(outs).mean(0)

    def __call__(self, func, q, k, v, heads, mask=None, **options):
        at, ready = options.get("transformer_options", {}), options.get("skip_reshape")
        plain = func(q, k, v, heads, mask=mask, **options)
        Q, K, V = (x.double() if ready else by_head(x.double(), heads) for x in (q, k, v))
        text = self.record.tokens
        first = text if self.joint else 0
        size = self.sizes.get(Q.shape[2] - first)
        cross = K.shape[2] == text
        if size is None or not (cross or K.shape[2] == Q.shape[2]):
            return plain
        frames = len(SHOWN)
        out = plain.clone()
        for chunk, kind in sorted(enumerate(at["cond_or_uncond"]), key=lambda each: each[1]):
            rows = slice(chunk * frames, (chunk + 1) * frames)
            if kind == 0 and (cross or self.joint):
                for frame in range(frames):
                    self.watch(frame, Q[rows][frame][:, first:], K[rows][frame][:, :text], size)
            if not cross:
                for frame in (f for f in range(frames) if self.looks[f]):
                    own = self.row(
                        frame, Q[rows][frame][:, first:], K[rows], V[rows], first, size, float(at["sigmas"][0])
                    )
                    own = own if options.get("skip_output_reshape") else own.transpose(0, 1).flatten(1)
                    out[rows][frame, ..., first:, :] = own.to(out)
        return out


def looks_of(variant="anchors", anchors=1, tile=2):
    if variant == "anchors":
        of = anchor_frames(SHOWN, anchors)
        found = [sorted({a for name in shown for a in of[name]} - {j}) for j, shown in enumerate(SHOWN)]
        return [[look] if look else [] for look in found]
    found = [[] for _ in SHOWN]
    for group in ([j for j, shown in enumerate(SHOWN) if shown == cast] for cast in set(SHOWN) - {()}):
        for part in (group[t : t + tile] for t in tile_starts(len(group), tile)):
            for j in part if len(part) > 1 else []:
                found[j].append(part)
    return found


@pytest.mark.parametrize("cfg, steps, rate, places", [(1.0, 2, 0.5, "layout"), (5.0, 2, 1.0, "attention")])
def test_a_run_equals_the_formula(sd, frames, negative, latent, cfg, steps, rate, places):
    boxes = BOXES if places == "layout" else None
    formula = Formula(frames, looks_of(), rate=rate, boxes=boxes)
    draw = partial(run, cfg=cfg, steps=steps)
    want = draw(formula.on(sd.model), frames, negative, latent)
    model = the_character(sd.model, sampling_rate=rate)
    got = draw(regional(model) if boxes else model, frames, negative, latent)
    assert formula.shared
    assert scaled_error(got, want) < 1e-4
    every = draw(self_attention(sd.model, anchors=1, sampling_rate=rate), frames, negative, latent)
    plain = draw(sd.model, frames, negative, latent)
    assert min(scaled_error(got[[2, 4]], other[[2, 4]]) for other in (every, plain)) > 1e-3
    assert scaled_error(got[[0, 1, 3]], plain[[0, 1, 3]]) < 1e-4, "the anchors, and a frame that shows nobody"


def test_tiles_equal_the_formula(sd, frames, negative, latent):
    formula = Formula(frames, looks_of("tiles"), rate=0.5)
    want = run(formula.on(sd.model), frames, negative, latent)
    got = run(the_character(sd.model, variant="tiles", tile=2), frames, negative, latent)
    assert formula.shared and scaled_error(got, want) < 1e-4


@pytest.mark.parametrize("places", ["layout", "attention"])
def test_joint_attention_equals_the_formula(places):
    clip, model = sd3_clip("l"), sd3()
    conditioning, negative, latent = positive(clip, TALE), encode(clip, "blurry"), empty(TALE, 80, 112)
    boxes = BOXES if places == "layout" else None
    formula = Formula(conditioning, looks_of(), {35: (7, 5)}, boxes=boxes, joint=True)
    want = run(formula.on(model), conditioning, negative, latent)
    patched = the_character(model, sampling_rate=1.0)
    got = run(regional(patched) if boxes else patched, conditioning, negative, latent)
    assert formula.shared and scaled_error(got, want) < 1e-4
    assert scaled_error(got, run(model, conditioning, negative, latent)) > 1e-3


# --- in runs, in passes, and branches apart ---------------------------------------------------------------------------


def both_ways(sd):
    """The same model with regions from the pass's own attention, and from Story Regions."""
    model = ipca(the_character(sd.model))
    return model, regional(model)


def test_runs_passes_and_branches_apart_equal_one_batch(sd, frames, negative, latent, monkeypatch):
    given = frames, negative, latent
    guided = partial(sample, steps=1, cfg=2.0)
    for model in both_ways(sd):
        whole = guided(model, *given)
        assert scaled_error(in_runs(model, *given, 1, 1, steps=1, cfg=2.0), whole) < 1e-4
        assert scaled_error(guided(OneStoryRuns.execute(model, 2).result[0], *given), whole) < 1e-4
    monkeypatch.setattr(type(sd.model), "get_free_memory", lambda *args: 0)
    assert scaled_error(guided(model, *given), whole) < 1e-4


def test_turned_keys_too_are_those_of_one_batch():
    clip, model = FLUX.clip(), the_character(FLUX.model())
    given = positive(clip, TALE), encode(clip, "blurry"), empty(TALE, 5 * FLUX.pixels, 7 * FLUX.pixels)
    whole = run(model, *given)
    assert scaled_error(run(OneStoryRuns.execute(model, 1).result[0], *given), whole) < 1e-4
    assert scaled_error(whole, run(FLUX.model(), *given)) > 1e-3


# --- beside other nodes -----------------------------------------------------------------------------------------------


def recorded(model):
    return OneStoryAttentionRecorder.execute(model, "all", 0.0, 1.0).result[0]


def perturbed(model):
    return PerturbedAttentionGuidance.execute(model, 3.0)[0]


def test_the_order_of_the_nodes_does_not_matter(sd, frames, negative, latent):
    texts = control(frames, negative, random([5, HEIGHT, WIDTH, 3]))
    for others in ((perturbed, partial(regional, start_percent=0.0)), (recorded, ipca)):
        before, after = sd.model, the_character(sd.model)
        for other in others:
            before, after = other(before), other(after)
        first = run(the_character(before), *texts, latent)
        assert torch.equal(run(after, *texts, latent), first)
        assert scaled_error(first, run(before, *texts, latent)) > 1e-3


def test_regions_that_are_everywhere_share_everything_of_the_same_characters(sd, frames, negative, latent):
    model = regional(the_character(sd.model), "Mia: all\nOtto: all")
    want = run(self_attention(sd.model, anchors=1), frames, negative, latent)
    assert scaled_error(run(model, frames, negative, latent), want) < 1e-4


def test_masks_of_a_frame_count_there_and_attention_elsewhere(sd, frames, negative, latent):
    first = run(the_character(sd.model), frames, negative, latent)
    of_two = run(regional(the_character(sd.model), "Mia@5: left"), frames, negative, latent)
    assert torch.equal(of_two, first), "a frame alone asks nothing of its own region"
    elsewhere = run(regional(the_character(sd.model), "Mia@1: right"), frames, negative, latent)
    assert scaled_error(elsewhere[4], first[4]) > 1e-3 and scaled_error(elsewhere[1], first[1]) < 1e-5


@pytest.mark.parametrize("changed", [{"sampling_rate": 0.0}, {"start_percent": 1.0}])
def test_off_it_is_bit_equal(sd, frames, negative, latent, changed):
    want = run(sd.model, frames, negative, latent)
    assert torch.equal(run(the_character(sd.model, **changed), frames, negative, latent), want)


def test_everything_is_the_default_and_bit_equal(sd, frames, negative, latent):
    want = run(self_attention(sd.model), frames, negative, latent)
    assert torch.equal(run(self_attention(sd.model, share="everything"), frames, negative, latent), want)


def test_without_a_story_a_warning_says_what_to_do(sd, negative, latent, caplog):
    want = run(sd.model, negative, negative, latent)
    caplog.clear()
    assert torch.equal(run(the_character(sd.model), negative, negative, latent), want)
    assert sum("has no character to share" in text for text in warnings_of(caplog)) == 1
