"""Stories in runs, by Split Story, KSampler and Join Story: the frames of one batch, in less memory."""

from types import SimpleNamespace

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_base import BaseModel
from comfy.sample import sample as host_sample
from graphs import (
    control,
    controlnet_model,
    empty,
    encode,
    in_runs,
    ipca,
    join,
    ksampler,
    positive,
    random,
    sample,
    scaled_error,
    self_attention,
    split,
    story,
)
from noise import PROMISED
from onestory.attention.architectures import unet
from onestory.attention.gathers import anchor_sources
from onestory.nodes.runs import OneStoryJoin
from onestory.story.runs import Run, parse_frames, split_runs
from onestory.svr.record import KEY
from reference import ONE_ROUNDING, anchor_frames, tile_starts
from torch.profiler import ProfilerActivity, profile

import nodes

ANCHORS = 2
WIDTH, HEIGHT = 56, 40  # 35 tokens at the first level, 12 at the second
FRAMES = (
    "[Tom] runs",
    "[Mia] sits",
    "[Tom] and [Mia] dance",
    "[Tom] reads",
    "[NC] the sea",
    "[Mia] sings",
    "[Tom] eats",
    "[Mia] jumps",
    "[Tom] swims",
    "[Mia] and [Tom] sail",
    "[Mia] cooks",
    "[Tom] sleeps",
)
SAMPLINGS = {
    "euler, released": ({"probability": "released"}, {"sampler": "euler", "steps": 3}),
    "heun, always": ({"probability": "always"}, {"sampler": "heun", "steps": 2}),
}


class Twelve:
    """A story of twelve frames with two characters, ready to sample; `whole` keeps what one batch gave."""

    def __init__(self, sd):
        self.story = story("[Tom] a boy in a red coat\n[Mia] an old woman", *FRAMES)
        self.positive = positive(sd.clip, self.story)
        self.negative = encode(sd.clip, "blurry")
        self.latent = empty(self.story, WIDTH, HEIGHT)
        self.sd = sd
        self.done = {}

    def model(self, **changed):
        return ipca(self_attention(self.sd.model, **{"anchors": ANCHORS, **changed}))

    def whole(self, name):
        if name not in self.done:
            settings, sampling = SAMPLINGS[name]
            self.done[name] = sample(self.model(**settings), self.positive, self.negative, self.latent, **sampling)
        return self.done[name]


@pytest.fixture(scope="module")
def twelve(sd):
    return Twelve(sd)


@pytest.fixture(scope="module")
def five(sd):
    """A short story of one character: (positive, negative, latent), smaller still."""
    tale = story("a red fox", "runs", "sleeps", "eats", "swims", "reads")
    return positive(sd.clip, tale), encode(sd.clip, "blurry"), empty(tale, WIDTH, HEIGHT)


# --- which frames make a run ------------------------------------------------------------------------------------------

CASTS = {
    "one": (("Ann",),) * 12,
    "two": (("Ann",), ("Bob",), ("Ann", "Bob"), ("Ann",), (), ("Bob",), ("Ann",), ("Bob",), ("Ann",), ("Bob",)),
    "late": ((),) * 5 + (("Ann",),) * 5,
    "never alone": (("Ann", "Bob"), (), ("Ann", "Bob"), ("Bob",), ("Bob",), ("Ann", "Bob")),
    "nobody": ((),) * 7,
    "one frame": (("Ann",),),
}


@pytest.mark.parametrize("cast", CASTS)
def test_every_frame_is_drawn_in_order_beside_all_frames_it_looks_at(cast):
    characters = CASTS[cast]
    for anchors in range(7):
        sources = anchor_sources(characters, anchors)
        needed = {s for at in sources for s in at}
        for frames_per_run in (1, 3, 4, 100):
            runs = split_runs(sources, frames_per_run)
            assert {f for run in runs for f in run.frames} == set(range(len(characters)))
            for run in runs:
                assert run.total == len(characters)
                assert list(run.frames) == sorted(set(run.frames))
                assert all(set(sources[f]) <= set(run.frames) for f in run.frames)
                assert len(set(run.frames) - needed) <= frames_per_run
            if frames_per_run == 100:
                assert len(runs) == 1


def test_without_anchors_runs_have_the_asked_number_of_frames():
    assert split_runs(anchor_sources(CASTS["one"], 0), 5) == [
        Run(frames, 12, frames) for frames in ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (10, 11))
    ]


def test_behind_its_four_anchors_each_run_has_four_new_frames():
    runs = split_runs(anchor_sources((("Ann",),) * 12, 4), 4)
    assert [run.frames for run in runs] == [(0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3, 8, 9, 10, 11)]


# --- the same frames as one batch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames_per_run", [4, 3, 1])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_twelve_frames_in_runs_equal_one_batch(twelve, name, frames_per_run):
    settings, sampling = SAMPLINGS[name]
    got = in_runs(
        twelve.model(**settings), twelve.positive, twelve.negative, twelve.latent, frames_per_run, ANCHORS, **sampling
    )
    assert got.dtype == torch.float32
    assert scaled_error(got, twelve.whole(name)) < PROMISED


def test_frames_look_at_each_other_in_that_batch(twelve):
    """Else runs would equal it anyway: every frame changes but the one that shows nobody."""
    settings, sampling = SAMPLINGS["heun, always"]
    alone = sample(ipca(twelve.sd.model), twelve.positive, twelve.negative, twelve.latent, **sampling)
    change = (twelve.whole("heun, always") - alone).abs().amax(dim=(1, 2, 3)) / alone.std()
    nobody = FRAMES.index("[NC] the sea")
    assert change[nobody] < PROMISED
    assert (torch.cat([change[:nobody], change[nobody + 1 :]]) > 100 * PROMISED).all()


def test_the_same_graph_twice_is_bit_equal(twelve):
    name = "euler, released"
    settings, sampling = SAMPLINGS[name]
    again = sample(twelve.model(**settings), twelve.positive, twelve.negative, twelve.latent, **sampling)
    assert torch.equal(again, twelve.whole(name))


def test_without_self_attention_runs_of_one_frame_equal_one_batch(sd, five):
    conditioning, negative, latent = five
    model = ipca(sd.model, dropout=0.3)
    runs = split(conditioning, latent, 1, 0)
    assert [part["samples"].shape[0] for _, part, _ in runs] == [1] * 5
    got = in_runs(model, conditioning, negative, latent, 1, 0)
    assert scaled_error(got, sample(model, conditioning, negative, latent)) < PROMISED


@pytest.mark.parametrize("noise_ids", ["0,0,5,0,5", "4,3,2,1,0"])
def test_noise_ids_go_with_their_frames(sd, five, noise_ids):
    conditioning, negative, latent = five
    latent = {**latent, "batch_index": [int(n) for n in noise_ids.split(",")]}
    runs = [ksampler(sd.model, run, negative, part) for run, part, _ in split(conditioning, latent, 2, 0)]
    joined = join(runs)
    assert joined["batch_index"] == latent["batch_index"]
    assert scaled_error(joined["samples"], sample(sd.model, conditioning, negative, latent)) < PROMISED


@pytest.mark.parametrize("masks", [1, 2, 5])
def test_noise_masks_go_with_their_frames(sd, five, masks):
    """As with Set Latent Noise Mask; ComfyUI repeats masks where there are fewer than frames."""
    conditioning, negative, latent = five
    model = self_attention(sd.model)
    mask = (random([masks, HEIGHT, WIDTH]) > 0.5).float()
    drawn = {**latent, "samples": random([5, 4, HEIGHT // 8, WIDTH // 8], seed=1)}
    drawn = nodes.SetLatentNoiseMask().set_mask(drawn, mask)[0]
    runs = [ksampler(model, run, negative, part) for run, part, _ in split(conditioning, drawn, 2, ANCHORS)]
    joined = join(runs)
    whole = ksampler(model, conditioning, negative, drawn)
    assert scaled_error(joined["samples"], whole["samples"]) < PROMISED
    assert scaled_error(joined["samples"], sample(model, conditioning, negative, latent)) > 100 * PROMISED
    used = whole["noise_mask"].reshape(masks, HEIGHT, WIDTH)
    assert torch.equal(joined["noise_mask"].reshape(-1, HEIGHT, WIDTH), used[[j % masks for j in range(5)]])


@pytest.mark.parametrize("hints", [1, 2, 5, 8])
def test_controlnet_hints_go_with_their_frames(sd, five, hints):
    conditioning, negative, latent = five
    model = self_attention(sd.model)
    pos, neg = control(conditioning, negative, random([hints, HEIGHT, WIDTH, 3]))
    pos, neg = control(pos, neg, random([hints, HEIGHT, WIDTH, 3], seed=1))
    parts = split(pos, latent, 2, ANCHORS, neg)
    got = join([ksampler(model, run, negative_run, part) for run, part, negative_run in parts])["samples"]
    assert scaled_error(got, sample(model, pos, neg, latent)) < PROMISED
    assert scaled_error(got, sample(model, conditioning, negative, latent)) > 100 * PROMISED
    assert pos[0][1]["control"].cond_hint_original.shape[0] == hints, "the graph's own ControlNet is left as it is"


def test_masks_for_each_frame_go_with_their_frames(sd, five):
    conditioning, negative, latent = five
    pos = nodes.ConditioningSetMask().append(conditioning, random([5, HEIGHT, WIDTH]), "default", 1.0)[0]
    pos = pos + encode(sd.clip, "a castle")
    model = ipca(self_attention(sd.model))
    assert scaled_error(in_runs(model, pos, negative, latent, 2, ANCHORS), sample(model, pos, negative, latent)) < (
        PROMISED
    )


@pytest.mark.parametrize("masks", [2, 5, 8])
def test_other_numbers_of_masks_are_used_as_in_one_batch(sd, masks):
    """ComfyUI repeats masks over a batch that is a multiple of their number, and takes the first of more."""
    tale = story("a red fox", "runs", "sleeps", "eats", "swims")
    conditioning, negative, latent = positive(sd.clip, tale), encode(sd.clip, "blurry"), empty(tale, WIDTH, HEIGHT)
    pos = nodes.ConditioningSetMask().append(conditioning, random([masks, HEIGHT, WIDTH]), "default", 1.0)[0]
    pos = pos + encode(sd.clip, "a castle")
    if masks == 5:
        pos[0][1]["mask"] = pos[0][1]["mask"][:, :4]  # as many rows of pixels as frames
    want = sample(sd.model, pos, negative, latent)
    assert scaled_error(in_runs(sd.model, pos, negative, latent, 1, 0), want) < PROMISED


def test_a_mask_without_a_row_for_each_frame_is_never_cut(five):
    """Its height happens to be the number of frames."""
    conditioning, _, latent = five
    pos = nodes.ConditioningSetMask().append(conditioning, random([1, 5, 7]), "default", 1.0)[0]
    pos[0][1]["mask"] = pos[0][1]["mask"][0]
    for run, _, _ in split(pos, latent, 2, 0):
        assert torch.equal(run[0][1]["mask"], pos[0][1]["mask"])


@pytest.mark.parametrize("pictures", [1, 3, 5, 8])
def test_inpaint_pictures_and_masks_go_with_their_frames(pictures):
    """ComfyUI stretches another number of them over the batch."""
    model = SimpleNamespace(concat_keys=("mask", "masked_image"), process_latent_in=lambda latent: latent)
    noise = torch.zeros(5, 4, 6, 7)
    concat = {"concat_latent_image": random([pictures, 4, 6, 7]), "concat_mask": random([pictures, 1, 6, 7], 1)}

    def seen(options, noise):
        return BaseModel.concat_cond(model, noise=noise, device="cpu", **options)

    conditioning = [[torch.zeros(5, 77, 8), concat]]
    runs = split(conditioning, {"samples": noise}, 2, 0, conditioning)
    got = torch.cat([seen(run[0][1], part["samples"]) for run, part, _ in runs])
    assert torch.equal(got, seen(concat, noise))


def test_reference_latents_go_with_their_frames():
    references = [random([count, 4, 6, 7], count) for count in (1, 2, 5)]
    conditioning = [[torch.zeros(5, 77, 8), {"reference_latents": references, "pooled_output": None}]]
    runs = split(conditioning, {"samples": torch.zeros(5, 4, 6, 7)}, 2, 0)
    for n, reference in enumerate(references):
        cut = [run[0][1]["reference_latents"][n] for run, _, _ in runs]
        got = torch.cat([x.expand(len(part["samples"]), -1, -1, -1) for x, (_, part, _) in zip(cut, runs)])
        assert torch.equal(got, reference[[j % len(reference) for j in range(5)]])


def test_prompts_batched_without_a_record_are_one_group_and_split_too(sd, five):
    """Plain CLIPTextEncode rows and Empty Latent Image: no story, no noise ids."""
    _, negative, latent = five
    prompts = [encode(sd.clip, text)[0] for text in ("a fox", "a dog runs", "a cat", "a tree", "a cat sleeps")]
    pooled = torch.cat([options["pooled_output"] for _, options in prompts])
    conditioning = [[torch.cat([embeds for embeds, _ in prompts]), {"pooled_output": pooled}]]
    latent = nodes.EmptyLatentImage().generate(32, 64, 5)[0]
    model = self_attention(sd.model, anchors=ANCHORS)
    whole = sample(model, conditioning, negative, latent)
    change = (whole - sample(sd.model, conditioning, negative, latent)).abs().amax(dim=(1, 2, 3)) / whole.std()
    assert (change > 100 * PROMISED).all(), "every frame looks at others"
    for frames_per_run in (2, 1):
        got = in_runs(model, conditioning, negative, latent, frames_per_run, ANCHORS)
        assert scaled_error(got, whole) < PROMISED


# --- what a run computes ----------------------------------------------------------------------------------------------


def looking(model, looks):
    """The model where frame i attends to all tokens of the frames of `looks[i][n]`, averaged over n, by a patch that
    shares nothing with ours."""

    def patch(q, k, v, extra_options):
        out = torch.empty_like(q)
        for start in range(0, len(q), len(looks)):
            for i, choices in enumerate(looks, start):
                keys, values = ([torch.cat([x[start + f] for f in seen])[None] for seen in choices] for x in (k, v))
                outs = [attention_pytorch(q[i : i + 1], *kv, extra_options["n_heads"]) for kv in zip(keys, values)]
                out[i] = torch.cat(outs).mean(0)
        return out

    clone = model.clone()
    for block in unet.blocks(model.model):
        clone.set_model_attn1_replace(patch, *block)
    return clone


@pytest.mark.parametrize("variant", ["anchors", "tiles"])
def test_at_rate_1_a_whole_run_equals_attention_over_all_tokens(twelve, variant):
    characters = [frame.characters for frame in twelve.story.frames]
    looks = [[] for _ in characters]
    if variant == "anchors":
        of = anchor_frames(characters, ANCHORS)
        looks = [[[i, *(a for name in shown for a in of[name] if a != i)]] for i, shown in enumerate(characters)]
    else:
        for group in ([j for j, shown in enumerate(characters) if shown == cast] for cast in set(characters) - {()}):
            for tile in (group[t : t + 3] for t in tile_starts(len(group), 3)):
                for i in tile:
                    looks[i].append([*tile, i])
        looks[characters.index(())] = [[characters.index(())]]
    graph = twelve.positive, twelve.negative, twelve.latent
    model = self_attention(twelve.sd.model, variant=variant, anchors=ANCHORS, tile=3, sampling_rate=1.0)
    assert scaled_error(sample(model, *graph), sample(looking(twelve.sd.model, looks), *graph)) < PROMISED


# --- what it leaves alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"variant": "tiles"}])
def test_at_rate_0_frames_are_bit_equal_to_the_unpatched_models(sd, five, changed):
    """Also where that overrules an earlier application."""
    plain = sample(sd.model, *five)
    for model in (sd.model, self_attention(sd.model)):
        assert torch.equal(sample(self_attention(model, sampling_rate=0.0, **changed), *five), plain)


@pytest.mark.parametrize("variant", ["anchors", "tiles"])
def test_one_frame_is_bit_equal_to_the_unpatched_model(sd, variant):
    tale = story("a red fox", "runs")
    graph = positive(sd.clip, tale), encode(sd.clip, "blurry"), empty(tale, WIDTH, HEIGHT)
    assert torch.equal(sample(self_attention(sd.model, variant=variant), *graph), sample(sd.model, *graph))


def test_draws_neither_use_nor_touch_the_global_generator(sd, five):
    conditioning, negative, latent = five
    model = ipca(self_attention(sd.model, probability="released"), dropout=0.5)
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(0))
    got = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        with torch.inference_mode():
            got.append(
                host_sample(model, noise, 2, 5.0, "euler", "normal", conditioning, negative, latent["samples"], seed=0)
            )
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*got)


@pytest.mark.parametrize("variant", ["anchors", "tiles"])
def test_another_seed_draws_other_tokens(sd, five, variant):
    first, second = (sample(self_attention(sd.model, variant=variant, seed=seed), *five) for seed in (0, 1))
    assert scaled_error(first, second) > 100 * PROMISED


def test_branches_sampled_apart_equal_one_batch(sd, five, monkeypatch):
    """ComfyUI does so where memory is short."""
    model = self_attention(sd.model)
    together = sample(model, *five)
    monkeypatch.setattr(type(sd.model), "get_free_memory", lambda *args: 0)
    assert scaled_error(sample(model, *five), together) < PROMISED


# --- mistakes in the graph --------------------------------------------------------------------------------------------


def parts(frames_per_run=2, frames=5):
    runs = split_runs(anchor_sources((("",),) * frames, 1), frames_per_run)
    return [
        {"samples": torch.zeros(len(run.frames), 4, 5, 7), "batch_index": list(run.frames), KEY: run} for run in runs
    ]


def test_join_without_split_says_what_to_wire():
    with pytest.raises(ValueError, match="not a run of a story: wire Split Story in front of it"):
        join([{"samples": torch.zeros(2, 4, 5, 7)}])
    with pytest.raises(ValueError, match="not a run of a story"):
        join([*parts(), {"samples": torch.zeros(2, 4, 5, 7)}])


def test_join_without_one_run_names_the_first_missing_frame():
    with pytest.raises(ValueError, match="lacks frame 3 of 5: wire all runs of one Split Story"):
        join([parts()[0], parts()[2]])


def test_join_gives_an_ordinary_latent():
    joined = join(parts())
    assert KEY not in joined and joined["batch_index"] == [0, 1, 2, 3, 4] and joined["samples"].shape[0] == 5


def test_split_refuses_a_latent_of_another_story(five):
    conditioning, _, latent = five
    with pytest.raises(ValueError, match="The latent batch has 4 frames and the story 5"):
        split(conditioning, {**latent, "samples": latent["samples"][:4]}, 2, 2)


def test_a_run_without_its_anchors_says_which_number_to_set(sd, five):
    conditioning, negative, latent = five
    _, (run, part, _), *_ = split(conditioning, latent, 2, 1)
    with pytest.raises(ValueError, match="lacks frame 2, which others look at: set the input `anchors` of .* to 4"):
        sample(self_attention(sd.model, anchors=4), run, negative, part)


def test_tiles_in_runs_say_what_to_use(sd, five):
    conditioning, negative, latent = five
    run, part, _ = split(conditioning, latent, 2, 2)[0]
    with pytest.raises(ValueError, match=r"This run has \d of the story's 5 frames, and the variant “tiles”"):
        sample(self_attention(sd.model, variant="tiles"), run, negative, part)


def test_a_negative_that_is_not_split_is_an_error_at_split_story(sd, five):
    conditioning, negative, latent = five
    pos, neg = control(conditioning, negative, random([5, HEIGHT, WIDTH, 3]))
    with pytest.raises(ValueError, match="has a ControlNet with 5 entries, for frames, and `negative` is not wired"):
        split(pos, latent, 2, 0)
    assert split(*control(conditioning, negative, random([1, HEIGHT, WIDTH, 3]))[:1], latent, 2, 0)
    old = nodes.ControlNetApply().apply_controlnet(
        conditioning, controlnet_model(), random([5, HEIGHT, WIDTH, 3]), 0.05
    )[0]
    assert split(old, latent, 2, 0), "its negative gets the ControlNet from ComfyUI"


@pytest.mark.parametrize("branch", ["positive", "negative"])
def test_what_has_an_entry_for_each_frame_and_was_not_split_is_an_error_before_sampling(sd, five, branch):
    """A negative past Split Story, or a ControlNet that is applied after it."""
    conditioning, negative, latent = five
    run, part, _ = split(conditioning, latent, 2, 0)[0]
    applied = dict(zip(("positive", "negative"), control(run, negative, random([5, HEIGHT, WIDTH, 3]))))
    graph = {"positive": run, "negative": negative} | {branch: applied[branch]}
    with pytest.raises(ValueError, match=f"The {branch} conditioning has a ControlNet with 5 entries, and this run "):
        sample(ipca(sd.model), graph["positive"], graph["negative"], part)


def test_settings_that_are_off_or_overruled_do_not_veto_a_run(sd, five):
    conditioning, negative, latent = five
    _, (run, part, _), *_ = split(conditioning, latent, 2, 1)
    one = {"anchors": 1}
    for model in (
        self_attention(sd.model, anchors=4, sampling_rate=0.0),
        self_attention(self_attention(sd.model, anchors=4), sampling_rate=0.0),
        self_attention(self_attention(sd.model, anchors=4), **one),
        self_attention(self_attention(sd.model, variant="tiles"), **one),
        self_attention(self_attention(sd.model, anchors=4, end_percent=0.0), **one),
        self_attention(sd.model, anchors=4, blocks="up", start_percent=0.99),
    ):
        assert torch.isfinite(sample(model, run, negative, part)).all()
    partly = self_attention(self_attention(sd.model, anchors=4), blocks="up", **one)
    with pytest.raises(ValueError, match="lacks frame 2"):
        sample(partly, run, negative, part)


def test_a_run_split_again_a_picked_row_and_short_noise_numbers_are_a_sentence_each(sd, five):
    conditioning, negative, latent = five
    run, part, _ = split(conditioning, latent, 2, 1)[1]
    rows = len(part["samples"])
    with pytest.raises(ValueError, match=r"has frames 1, [\d, ]+ of a story of 5: Split Story takes the whole story"):
        split(run, part, 2, 1)
    with pytest.raises(ValueError, match="is a run of a story that has been split already"):
        split([[conditioning[0][0][:rows], {}]], part, 2, 1)
    with pytest.raises(ValueError, match=r"has 5 frames and 3 noise numbers \(its batch_index\)"):
        split(conditioning, {**latent, "batch_index": [0, 1, 2]}, 2, 1)
    picked = nodes.LatentFromBatch().frombatch(part, 0, 1)[0]
    with pytest.raises(ValueError, match="has 1 picture for the run of frames 1, "):
        join([picked, *(p for _, p, _ in split(conditioning, latent, 2, 1)[1:])])
    with pytest.raises(ValueError, match=r"The latent batch has 1 frame and the story \d: .* Repeat Latent Batch"):
        sample(ipca(sd.model), run, negative, picked)


def test_runs_of_two_stories_are_not_joined():
    with pytest.raises(ValueError, match="has runs of a story of 5 frames and of one of 4"):
        join([*parts(), *parts(frames=4)])


def test_join_takes_masks_that_were_set_on_the_runs_and_latents_without_noise_numbers():
    runs = [nodes.SetLatentNoiseMask().set_mask(part, random([1, 5, 7], n))[0] for n, part in enumerate(parts())]
    joined = join([{name: value for name, value in run.items() if name != "batch_index"} for run in runs])
    assert joined["noise_mask"].shape == (5, 5, 7)
    assert "batch_index" not in joined


# --- frames drawn again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, frames",
    [("", range(12)), (" , ", range(12)), ("3", [2]), ("2, 5-7", [1, 4, 5, 6]), ("7-5;12", [4, 5, 6, 11])]
    + [("３、５－６", [2, 4, 5]), ("1 – 2 2 1", [0, 1]), ("1-12", range(12))],
)
def test_frames_are_read_as_people_write_them(text, frames):
    assert parse_frames(text, 12) == tuple(frames)


@pytest.mark.parametrize("text, part", [("0", "0"), ("2, 13", "13"), ("5-99", "5-99"), ("0-3", "0-3")])
def test_a_frame_that_the_story_has_not_is_named(text, part):
    with pytest.raises(ValueError, match=f"frames has “{part}”, and the story has 12 frames: .* from 1 to 12"):
        parse_frames(text, 12)


@pytest.mark.parametrize("text, part", [("3 to 5", "to"), ("x", "x"), ("2.5", "2.5"), ("1-", "1-"), ("2-3-4", "2-3-4")])
def test_what_is_no_frame_is_named(text, part):
    with pytest.raises(ValueError, match=f"frames has “{part}”: write numbers of frames such as 3 or 2, 5-7"):
        parse_frames(text, 12)


@pytest.mark.parametrize("cast", CASTS)
def test_wanted_frames_are_drawn_once_beside_those_they_look_at_and_no_others(cast):
    sources = anchor_sources(CASTS[cast], 2)
    for wanted in ([len(sources) - 1], range(1, len(sources), 2) or [0]):
        for frames_per_run in (1, 3):
            runs = split_runs(sources, frames_per_run, wanted)
            assert sorted(frame for run in runs for frame in run.taken) == sorted(wanted)
            for run in runs:
                needed = set(run.taken)
                while more := {s for frame in needed for s in sources[frame]} - needed:
                    needed |= more
                assert set(run.frames) == needed


@pytest.mark.parametrize("frames, noise_ids", [("9", "50"), ("8, 11-12", "7 8 9")])
def test_a_redrawn_frame_is_that_of_one_batch_with_its_new_noise_and_all_others_stay(twelve, frames, noise_ids):
    name = "heun, always"
    settings, sampling = SAMPLINGS[name]
    earlier = {**twelve.latent, "samples": twelve.whole(name)}
    runs = split(twelve.positive, twelve.latent, 4, ANCHORS, frames=frames, noise_ids=noise_ids)
    drawn = [ksampler(twelve.model(**settings), run, twelve.negative, part, **sampling) for run, part, _ in runs]
    joined = join(drawn, earlier)
    at = parse_frames(frames, 12)
    ids = [*range(12)]
    for frame, number in zip(at, noise_ids.split()):
        ids[frame] = int(number)
    assert joined["batch_index"] == ids
    latent = {**twelve.latent, "batch_index": ids}
    want = sample(twelve.model(**settings), twelve.positive, twelve.negative, latent, **sampling)
    assert scaled_error(joined["samples"], want) < PROMISED
    for frame in range(12):
        changed = not torch.equal(joined["samples"][frame], earlier["samples"][frame])
        assert changed == (frame in at)
    assert torch.equal(earlier["samples"], twelve.whole(name)), "the earlier latent is left as it is"


def test_with_a_mask_only_its_part_of_the_wanted_frame_is_drawn_beside_the_others_as_they_are(sd, five):
    conditioning, negative, latent = five
    model = self_attention(sd.model)
    drawn = ksampler(model, conditioning, negative, latent)
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, :, :24] = 1
    masked = nodes.SetLatentNoiseMask().set_mask(drawn, mask)[0]
    ((run, part, _),) = split(conditioning, masked, 4, ANCHORS, frames="4", noise_ids="9")
    again = ksampler(model, run, negative, part)
    joined = join([again], drawn)
    rows = part[KEY].frames
    assert rows == (0, 1, 3)
    kept = again["samples"][:2] - drawn["samples"][:2]
    assert kept.abs().max() < 10 * ONE_ROUNDING, "its anchors are there as they are"
    change = (joined["samples"] - drawn["samples"]).abs()
    assert change[3, :, :, :3].max() > 100 * PROMISED and change[3, :, :, 3:].max() < 10 * ONE_ROUNDING
    assert not change[[0, 1, 2, 4]].any()
    assert "noise_mask" not in joined
    alone = sample(sd.model, run, negative, part)
    assert scaled_error(again["samples"], alone) > 100 * PROMISED, "it looks at them"


def test_takes_of_a_split_story_come_back_as_takes(five):
    conditioning, _, latent = five
    takes = [{**latent, "samples": random([5, 4, 5, 7], n)} for n in range(3)]
    runs = [part for take in takes for _, part, _ in split(conditioning, take, 2, ANCHORS)]
    (joined,) = OneStoryJoin.execute(runs).result
    assert [torch.equal(got["samples"], take["samples"]) for got, take in zip(joined, takes, strict=True)] == [True] * 3
    redrawn = [part for take in takes for _, part, _ in split(conditioning, take, 2, ANCHORS, frames="5")]
    (joined,) = OneStoryJoin.execute(redrawn, [latent]).result
    for got, take in zip(joined, takes, strict=True):
        assert torch.equal(got["samples"][4], take["samples"][4]) and not got["samples"][:4].any()
    with pytest.raises(ValueError, match="has 2 earlier latents for 3 takes of the story"):
        OneStoryJoin.execute(redrawn, [latent, latent])


def test_mistakes_in_redrawing_are_a_sentence_each(five):
    conditioning, _, latent = five
    with pytest.raises(ValueError, match="noise_ids has 2 numbers for 3 frames: write one number for all of them"):
        split(conditioning, latent, 4, 0, frames="1-3", noise_ids="4,5")
    with pytest.raises(ValueError, match="noise_ids has “x”"):
        split(conditioning, latent, 4, 0, frames="1-3", noise_ids="x")
    runs = [part for _, part, _ in split(conditioning, latent, 4, 0, frames="2")]
    with pytest.raises(ValueError, match="lacks frame 1 of 5: .* the whole story's latent into `earlier`"):
        join(runs)
    with pytest.raises(ValueError, match="`earlier` has 4 frames and the story 5: wire the latent of the whole story"):
        join(runs, {"samples": latent["samples"][:4]})
    with pytest.raises(ValueError, match="`earlier` has latents of 4 x 5 x 8 and the redrawn frames of 4 x 5 x 7"):
        join(runs, {"samples": torch.zeros(5, 4, 5, 8)})


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(work) -> int:
    """The most bytes that were allocated at once since `work` began, counted by torch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def test_peak_memory_does_not_grow_with_the_number_of_frames(sd):
    """Sampling a 40-frame story in runs of 4 peaks within 10% of an 8-frame one, in runs or in one batch."""
    model, negative = self_attention(sd.model, anchors=4), encode(sd.clip, "blurry")

    def peak(frames, frames_per_run=4):
        tale = story("a red fox", *["runs"] * frames)  # all in one prompt
        runs = split(positive(sd.clip, tale, svr=False), empty(tale, WIDTH, HEIGHT), frames_per_run, 4)
        return peak_bytes(lambda: join([ksampler(model, run, negative, part, steps=1) for run, part, _ in runs]))

    eight = peak(8)
    assert eight > 1e6
    assert peak(40) < 1.1 * eight
    assert eight < 1.1 * peak(8, frames_per_run=8)
