"""Story Runs: the sampler has the whole story, the model sees a few frames at a time, the pictures are the same."""

import gc
import weakref

import pytest
import torch
from comfy.model_base import BaseModel
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from families import FLUX
from graphs import control, empty, encode, ipca, positive, random, sample, scaled_error, self_attention, story
from noise import PROMISED
from onestory.attention import runs
from onestory.attention.runs import plan
from onestory.nodes.attention_view import OneStoryAttentionRecorder
from onestory.nodes.passes import OneStoryRuns
from test_runs import ANCHORS, HEIGHT, SAMPLINGS, WIDTH, Twelve
from tiny import sd3, sd3_clip

import nodes

ONE_BY_ONE = 2**60


def at_a_time(model, frames):
    return OneStoryRuns.execute(model, frames).result[0]


@pytest.fixture(scope="module")
def twelve(sd):
    return Twelve(sd)


@pytest.fixture(scope="module")
def five(sd):
    tale = story("a red fox", "runs", "sleeps", "eats", "swims", "reads")
    return positive(sd.clip, tale), encode(sd.clip, "blurry"), empty(tale, WIDTH, HEIGHT)


@pytest.fixture
def passes(monkeypatch):
    """The rows of every evaluation's passes, in order; those that the model evaluates are counted."""
    seen = {"passes": [], "rows": []}
    plain = BaseModel.apply_model

    def apply_model(self, x, t, *args, transformer_options={}, **kwargs):
        seen["rows"].append(len(x) // len(transformer_options["uuids"]))
        if sub := transformer_options.get("ad_params"):
            seen["passes"].append(tuple(sub["sub_idxs"]))
        return plain(self, x, t, *args, transformer_options=transformer_options, **kwargs)

    monkeypatch.setattr(BaseModel, "apply_model", apply_model)
    return seen


# --- what is drawn with what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [3, 4, 7, 40])
def test_every_row_is_drawn_once_and_none_before_what_it_looks_at(most):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        count = int(torch.randint(1, 30, (), generator=generator))
        anchors = torch.randperm(count, generator=generator)[:3].tolist()
        looks = [{a for a in anchors if a != row and (row + a) % 3} for row in range(count)]
        planned = plan(looks, most)
        assert sorted(row for rows in planned for row in rows) == list(range(count))
        assert all(len(rows) <= most for rows in planned)
        pass_of = {row: n for n, rows in enumerate(planned) for row in rows}
        assert all(pass_of[other] <= pass_of[row] for row in range(count) for other in looks[row])


def test_passes_are_no_more_than_needed():
    anchors = [{0, 1, 2, 3} - {row} for row in range(40)]
    assert [len(rows) for rows in plan(anchors, 4)] == [4] * 10
    assert plan([set()] * 5, 2) == [(0, 1), (2, 3), (4,)]


def test_frames_that_look_at_each_other_need_room_together():
    with pytest.raises(ValueError, match="draws 2 frames at a time, and frames 1, 3, 5 look at each other.* to 3, or"):
        plan([{2, 4}, set(), {0, 4}, set(), {0, 2}], 2)


# --- the same pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [4, 5])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_twelve_frames_a_few_at_a_time_equal_one_batch(twelve, passes, name, frames):
    settings, sampling = SAMPLINGS[name]
    whole = twelve.whole(name)
    passes["rows"].clear()
    model = at_a_time(twelve.model(**settings), frames)
    got = sample(model, twelve.positive, twelve.negative, twelve.latent, **sampling)
    assert scaled_error(got, whole) < PROMISED
    evaluations = {"euler": 3, "heun": 3}[sampling["sampler"]]
    assert sum(passes["rows"]) == 12 * evaluations, "no frame is evaluated twice in a step"
    assert max(passes["rows"]) <= frames and len(passes["rows"]) == -(-12 // frames) * evaluations


def test_cfg_1_conditionings_one_by_one_and_nodes_in_any_order(twelve, passes, monkeypatch):
    graph = twelve.positive, twelve.negative, twelve.latent
    settings = {"sampler": "euler", "steps": 2}
    want = sample(twelve.model(), *graph, cfg=1.0, **settings)
    model = ipca(self_attention(at_a_time(twelve.sd.model, 5), anchors=ANCHORS))
    assert scaled_error(sample(model, *graph, cfg=1.0, **settings), want) < PROMISED
    want = sample(model, *graph, **settings)
    passes["rows"].clear()
    monkeypatch.setattr(BaseModel, "memory_required", lambda *args, **kwargs: ONE_BY_ONE)
    got = sample(model, *graph, **settings)
    assert sum(passes["rows"]) == 2 * 2 * 12, "positive and negative in passes of their own"
    assert scaled_error(got, want) < PROMISED


def test_a_batch_that_fits_is_bit_equal(five, sd):
    conditioning, negative, latent = five
    model = ipca(self_attention(sd.model))
    assert torch.equal(sample(at_a_time(model, 5), *five), sample(model, *five))


def test_the_last_number_counts_and_the_model_before_is_unchanged(five, sd, passes):
    plain = sample(sd.model, *five)
    model = at_a_time(at_a_time(sd.model, 2), 3)
    passes["rows"].clear()
    assert scaled_error(sample(model, *five), plain) < PROMISED
    assert passes["rows"] == [3, 2] * 2
    assert torch.equal(sample(sd.model, *five), plain)


def test_pictures_without_a_story_and_a_patch_of_ours(sd, passes):
    text = encode(sd.clip, "a fox")
    latent = nodes.EmptyLatentImage().generate(32, 64, 5)[0]
    want = sample(sd.model, text, text, latent)
    assert scaled_error(sample(at_a_time(sd.model, 2), text, text, latent), want) < PROMISED
    assert passes["passes"] == [(0, 1), (2, 3), (4,)] * 2


# --- what has a row for each frame ------------------------------------------------------------------------------------


def hints(sd, conditioning, negative):
    for seed, count in enumerate((5, 2)):
        conditioning, negative = control(conditioning, negative, random([count, HEIGHT, WIDTH, 3], seed))
    return sd.model, conditioning, negative


def masks(sd, conditioning, negative):
    masked = nodes.ConditioningSetMask().append(conditioning, random([5, HEIGHT, WIDTH]), "default", 1.0)[0]
    return sd.model, masked + encode(sd.clip, "a castle"), negative


def areas(sd, conditioning, negative):
    castle = nodes.ConditioningSetArea().append(encode(sd.clip, "a castle"), 32, 32, 0, 8, 1.0)[0]
    return sd.model, conditioning + castle, negative


def perturbed(sd, conditioning, negative):
    return PerturbedAttentionGuidance.execute(sd.model, 3.0)[0], conditioning, negative


def dropout(sd, conditioning, negative):
    return ipca(sd.model, dropout=0.3), conditioning, negative


@pytest.mark.parametrize("graph", [hints, masks, areas, perturbed, dropout], ids=lambda graph: graph.__name__)
def test_what_belongs_to_a_frame_goes_with_it(sd, five, graph):
    conditioning, negative, latent = five
    model, *texts = graph(sd, conditioning, negative)
    model = self_attention(model)
    want = sample(model, *texts, latent)
    assert scaled_error(sample(at_a_time(model, 2), *texts, latent), want) < PROMISED
    assert scaled_error(sample(self_attention(sd.model), conditioning, negative, latent), want) > 100 * PROMISED


def test_noise_masks_and_inpaint_rows(sd, five):
    conditioning, negative, latent = five
    drawn = {**latent, "samples": random([5, 4, HEIGHT // 8, WIDTH // 8], seed=1)}
    drawn = nodes.SetLatentNoiseMask().set_mask(drawn, (random([5, HEIGHT, WIDTH]) > 0.5).float())[0]
    model = self_attention(sd.model)
    want = sample(model, conditioning, negative, drawn)
    assert scaled_error(sample(at_a_time(model, 3), conditioning, negative, drawn), want) < PROMISED


@pytest.mark.parametrize("kind", ["U-Net", "SD3"])
def test_attention_maps_are_those_of_one_batch(sd, five, kind):
    model, given = (sd.model, five) if kind == "U-Net" else (sd3(), sd3_graph())
    maps = []
    for frames in (5, 2):
        recorded, attention = OneStoryAttentionRecorder.execute(
            at_a_time(self_attention(model), frames), "all", 0.0, 1.0
        ).result
        sample(recorded, *given)
        maps.append(attention.maps())
    assert (maps[0] - maps[1]).abs().max() < PROMISED * maps[0].abs().max()


# --- transformers -----------------------------------------------------------------------------------------------------


def sd3_graph():
    clip = sd3_clip()
    tale = story("a red fox", "runs", "sleeps", "eats", "swims", "reads")
    return positive(clip, tale), encode(clip, "blurry"), empty(tale, WIDTH, HEIGHT)


def flux_graph():
    clip = FLUX.clip()
    tale = story("a red fox", "runs", "sleeps", "eats", "swims", "reads")
    return positive(clip, tale), encode(clip, "blurry"), empty(tale, 6 * FLUX.pixels, 4 * FLUX.pixels)


@pytest.mark.parametrize("kind", ["SD3", "Flux"])
@pytest.mark.parametrize("sampling", [{"sampler": "euler", "cfg": 1.0}, {"sampler": "heun", "cfg": 2.0}], ids=str)
def test_transformers_too_also_where_keys_are_turned(kind, sampling):
    model, graph = (sd3(), sd3_graph()) if kind == "SD3" else (FLUX.model(), flux_graph())
    ours = self_attention(ipca(model))
    want = sample(ours, *graph, **sampling)
    assert scaled_error(sample(at_a_time(ours, 2), *graph, **sampling), want) < PROMISED
    assert scaled_error(sample(ipca(model), *graph, **sampling), want) > 100 * PROMISED


# --- what it refuses, and what it leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize("changed, frames", [({"anchors": 4}, "1–4"), ({"variant": "tiles"}, "1–5")])
def test_too_few_at_a_time_is_a_sentence_before_sampling(sd, five, passes, changed, frames):
    with pytest.raises(
        ValueError, match=f"Story Runs draws 3 frames at a time, and frames {frames} look at each other"
    ):
        sample(at_a_time(self_attention(sd.model, **changed), 3), *five)
    assert passes["rows"] == []


def test_tiles_that_fit_are_drawn_together(sd):
    tale = story("[Ann] a girl\n[Bob] a boy", "[Ann] a", "[Bob] b", "[Ann] c", "[Bob] d", "[NC] e")
    given = positive(sd.clip, tale), encode(sd.clip, "blurry"), empty(tale, WIDTH, HEIGHT)
    model = self_attention(sd.model, variant="tiles", tile=2)
    assert scaled_error(sample(at_a_time(model, 2), *given), sample(model, *given)) < PROMISED


def test_nothing_is_kept_after_a_step(sd, five, monkeypatch):
    kept = []

    def execute(executor, model, conds, x, timestep, model_options):
        step = model_options["transformer_options"]["onestory"]
        if step.kept is not None:
            kept.append(weakref.ref(next(iter(step.kept.values()))[0]) if step.kept else None)
        return executor(model, conds, x, timestep, model_options)

    model = at_a_time(self_attention(sd.model), 2)
    model.add_wrapper_with_key("calc_cond_batch", "watch", execute)
    sample(model, *five)
    gc.collect()
    assert any(ref is not None for ref in kept) and all(ref is None or ref() is None for ref in kept)


def test_the_host_makes_room_for_one_pass(sd, five, monkeypatch):
    asked = []
    plain = BaseModel.memory_required

    def memory_required(self, input_shape, cond_shapes={}):
        asked.append(input_shape[0])
        return plain(self, input_shape, cond_shapes=cond_shapes)

    monkeypatch.setattr(BaseModel, "memory_required", memory_required)
    sample(at_a_time(sd.model, 2), *five)
    assert max(asked) <= 2 * 2
    assert runs.FRAMES_AT_A_TIME not in sd.model.model_options["transformer_options"]
