"""The attention view in whole sampling runs: it sees what attention does, and changes not one bit of it."""

import json
import math
from functools import partial

import duplicates
import pytest
import torch
from conftest import ROOT
from duplicates import FOX, FRAMES
from graphs import empty, ipca, positive, random, split, story
from noise import PROMISED
from onestory.attention.architectures import unet
from onestory.attention.recorder import Recorder, Recording, Watch, stretch
from onestory.nodes.attention_view import OneStoryAttentionRecorder, OneStoryAttentionView
from onestory.svr.record import KEY
from onestory.tools.client import images
from reference import ONE_ROUNDING, relative_error

pytestmark = pytest.mark.usefixtures("temporary")

run = partial(duplicates.run, steps=2)


@pytest.fixture(scope="module")
def tale():
    return story(FOX, *FRAMES[:3])


@pytest.fixture(scope="module")
def latent(tale):
    return empty(tale, 64, 96)


def record(model, blocks="output.3-5", start_percent=0.0, end_percent=1.0):
    return OneStoryAttentionRecorder.execute(model, blocks, start_percent, end_percent).result


def view(images, attention, scale="story", opacity=0.7):
    return OneStoryAttentionView.execute(images, attention, scale, opacity)


# --- it sees what attention does --------------------------------------------------------------------------------------


class Onlooker:
    """Sees the cross-attention of one block from its module's inputs, by the formula in float64: no hook of ours.

    Rows are a story's where their context is one of its rows. `copies` is how often SOT and identity stand again.
    """

    def __init__(self, model, block, conditioning, copies=0):
        self.conditioning, self.copies = conditioning, copies
        self.seen: dict[int, list[torch.Tensor]] = {}
        layer = model.model.diffusion_model.output_blocks[block][1].transformer_blocks[0]
        self.attn2 = layer.attn2
        self.handle = self.attn2.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module, args, kwargs):
        for x, context in zip(args[0], kwargs["context"]):
            for embeds, options in self.conditioning:
                for own, row in zip(embeds, options[KEY].record.rows):
                    if torch.equal(context, own.to(context)):
                        self.seen.setdefault(row.frame, []).append(self.mass(module, x, context, row.spans[0].identity))

    def mass(self, module, x, context, identity):
        q, k = (
            to(t).double().unflatten(-1, (module.heads, -1)) for to, t in ((module.to_q, x), (module.to_k, context))
        )
        again = [0, *range(*identity)] * self.copies
        k = torch.cat([k, k[again]])
        logits = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(q.shape[-1])
        columns = [t for t in range(len(k)) if t in range(*identity)]
        columns += [len(context) + n for n, t in enumerate(again) if t in range(*identity)]
        return logits.softmax(-1)[:, :, columns].sum(-1).mean(0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()

    def maps(self, height, width):
        return torch.stack([torch.stack(self.seen[f]).mean(0).unflatten(0, (height, width)) for f in sorted(self.seen)])


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("strength", [0, 1])
@torch.inference_mode()
def test_the_maps_are_the_attention_on_the_identity_averaged_over_heads_and_steps(
    sd, frames, negative, latent, cfg, strength
):
    model, attention = record(ipca(sd.model, strength=float(strength)) if strength else sd.model)
    with Onlooker(sd.model, 3, frames, strength) as onlooker:
        run(model, frames, negative, latent, cfg)
    maps = attention.maps()
    assert maps.shape == (3, 12, 8)
    assert {len(looks) for looks in onlooker.seen.values()} == {2}
    assert relative_error(maps, onlooker.maps(12, 8)) < PROMISED
    assert maps.min() > 0 and maps.max() < 1 and maps.std() > 1e-4


def test_layers_of_different_sizes_are_averaged_at_the_finest(sd, frames, negative, latent):
    both, one = record(sd.model, "output.1+output.3"), {b: record(sd.model, f"output.{b}") for b in (1, 3)}
    for model, _ in (both, *one.values()):
        run(model, frames, negative, latent)
    coarse, fine = one[1][1].maps(), one[3][1].maps()
    assert coarse.shape == (3, 6, 4) and fine.shape == (3, 12, 8)
    enlarged = torch.nn.functional.interpolate(coarse[None], scale_factor=2, mode="bilinear")[0]
    assert relative_error(both[1].maps(), (enlarged + fine) / 2) < ONE_ROUNDING


def test_percents_choose_the_steps(sd, frames, negative, latent):
    whole, first, second = (record(sd.model, "up", a, b) for a, b in ((0.0, 1.0), (0.0, 0.2), (0.2, 1.0)))
    for model, _ in (whole, first, second):
        run(model, frames, negative, latent)
    assert relative_error((first[1].maps() + second[1].maps()) / 2, whole[1].maps()) < ONE_ROUNDING
    assert not torch.equal(first[1].maps(), second[1].maps())


def test_a_foreign_patch_of_the_same_blocks_hides_nothing(sd, frames, negative, latent):
    from comfy.ldm.modules.attention import optimized_attention

    foreign = sd.model.clone()
    for block in range(4):
        foreign.set_model_attn2_replace(
            lambda q, k, v, options: optimized_attention(q, k, v, options["n_heads"]), "output", block
        )
    plain, patched = record(ipca(sd.model), "up"), record(ipca(foreign), "up")
    for model, _ in (plain, patched):
        run(model, frames, negative, latent)
    assert relative_error(patched[1].maps(), plain[1].maps()) < PROMISED


def test_a_split_story_gives_the_maps_of_the_whole_one(sd, frames, negative, latent):
    whole, parts = record(sd.model, "up"), record(sd.model, "up")
    run(whole[0], frames, negative, latent)
    for conditioning, samples, _ in split(frames, latent, 1, 1, negative):
        run(parts[0], conditioning, negative, samples)
    assert relative_error(parts[1].maps(), whole[1].maps()) < PROMISED


def test_an_area_of_the_picture_is_not_seen(sd, frames, negative, latent):
    model, attention = record(sd.model, "up")
    area = [[embeds, {**options, "area": (8, 4, 0, 0), "strength": 1.0}] for embeds, options in frames]
    run(model, area, negative, latent)
    with pytest.raises(ValueError, match="has seen no story"):
        attention.maps()


@pytest.mark.parametrize(
    "tokens, height, width, size",
    [(96, 12, 8, (12, 8)), (24, 12, 8, (6, 4)), (35, 9, 13, (5, 7)), (12, 9, 13, (3, 4)), (90, 12, 8, None)],
)
def test_a_layers_size_follows_from_its_tokens(tokens, height, width, size):
    assert unet.layer_size(None, tokens, height, width) == size


# --- it changes nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patches",
    [
        [],
        [lambda m: ipca(m)],
        [lambda m: ipca(m, variant="paper", dropout=0.3)],
    ],
    ids=["alone", "IPCA", "paper's IPCA with dropout"],
)
def test_latents_are_bit_equal_with_the_view_before_and_behind_other_patches(sd, frames, negative, latent, patches):
    want_model, behind, before = sd.model, sd.model, record(sd.model, "all")[0]
    for patch in patches:
        want_model, behind, before = patch(want_model), patch(behind), patch(before)
    want = run(want_model, frames, negative, latent)
    assert torch.equal(run(record(behind, "all")[0], frames, negative, latent), want)
    assert torch.equal(run(before, frames, negative, latent), want)


def test_without_a_recorder_nothing_is_watched_and_without_methods_nothing_listens(
    sd, frames, negative, latent, monkeypatch
):
    def fail(*_, **__):
        raise AssertionError("watched")

    monkeypatch.setattr(Recorder, "prepare", fail)
    monkeypatch.setattr(Watch, "mass", fail)
    run(ipca(sd.model), frames, negative, latent)
    monkeypatch.setattr(unet, "install", fail)
    run(sd.model, frames, negative, latent)


def test_with_the_recorder_off_in_a_step_nothing_listens(sd, frames, negative, latent, monkeypatch):
    heard = []
    install = unet.install
    monkeypatch.setattr(unet, "install", lambda *args: heard.append(1) or install(*args))
    run(record(sd.model, "up", 0.0, 0.2)[0], frames, negative, latent)
    assert len(heard) == 1


# --- what it keeps ----------------------------------------------------------------------------------------------------


def test_each_sampling_starts_afresh(sd, frames, negative, latent):
    (again, attention), (once, fresh) = record(sd.model, "up"), record(sd.model, "up")
    run(again, frames, negative, latent, seed=2)
    run(again, frames, negative, latent)
    run(once, frames, negative, latent)
    assert torch.equal(attention.maps(), fresh.maps())


def test_a_sampling_without_a_story_leaves_none(sd, frames, negative, latent):
    model, attention = record(sd.model, "up")
    run(model, frames, negative, latent)
    run(model, negative, negative, latent)
    with pytest.raises(ValueError, match="has seen no story: wire its model"):
        attention.maps()


def test_another_story_replaces_the_one_before(sd, frames, negative, latent):
    model, attention = record(sd.model, "up")
    run(model, frames, negative, latent)
    pair = story(FOX, *FRAMES[:2])
    run(model, positive(sd.clip, pair), negative, empty(pair))
    assert attention.maps().shape == (2, 8, 8)


def test_a_frame_that_was_not_drawn_is_named(sd, frames, negative, latent):
    model, attention = record(sd.model, "up")
    conditioning, samples, _ = split(frames, latent, 1, 1, negative)[1]
    run(model, conditioning, negative, samples)
    with pytest.raises(ValueError, match="has seen no frame 3"):
        attention.maps()


def test_two_recorders_see_the_same(sd, frames, negative, latent):
    model, first = record(sd.model, "up")
    model, second = record(model, "up")
    run(model, frames, negative, latent)
    assert torch.equal(first.maps(), second.maps())


def test_blocks_that_the_model_lacks_are_named(sd):
    with pytest.raises(ValueError, match="“output.7” are none .* write “all”, or some of input.1, .*output.3"):
        record(sd.model, "output.7")


# --- the picture ------------------------------------------------------------------------------------------------------


class Seen(Recording):
    def __init__(self, maps):
        super().__init__()
        self.maps = lambda: maps


def test_the_view_covers_each_picture_and_gives_the_maps_as_masks():
    images = random([3, 64, 48, 3])
    maps = random([3, 8, 6]) * torch.tensor([1.0, 0.1, 0.5])[:, None, None]
    output = view(images, Seen(maps))
    shown, masks = output.result
    assert shown.shape == images.shape and masks.shape == images.shape[:3]
    assert shown.min() >= 0 and shown.max() <= 1 and masks.min() >= 0 and masks.max() <= 1
    assert len(output.ui.as_dict()["images"]) == 3
    assert masks[0].max() > masks[2].max() > masks[1].max(), "one scale for the story"
    own = view(images, Seen(maps), scale="frame").result[1]
    torch.testing.assert_close(own.amax((1, 2)), torch.ones(3), rtol=0.05, atol=0)
    assert torch.equal(view(images, Seen(maps), opacity=0.0).result[0], images)


def test_a_frame_without_identity_is_dark():
    maps = torch.stack([torch.zeros(8, 8), random([8, 8])])
    assert stretch(maps, together=False)[0].max() == 0


def test_the_brightest_place_glows():
    maps = torch.zeros(1, 16, 16)
    maps[0, 4:8, 8:12] = 1
    shown = view(torch.full((1, 64, 64, 3), 0.5), Seen(maps)).result[0][0]
    assert shown[24, 40].sum() > shown[40, 24].sum() + 0.5


def test_another_number_of_images_is_an_error_that_says_both():
    with pytest.raises(ValueError, match="has 2 images and a story of 3 frames: wire `images`"):
        view(random([2, 64, 64, 3]), Seen(random([3, 8, 8])))


# --- in the host ------------------------------------------------------------------------------------------------------


def test_on_the_server_views_follow_the_sampler_and_keep_their_maps_when_it_is_cached(server, checkpoint):
    workflow = json.loads((ROOT / "workflows" / "api" / "One Prompt One Story.json").read_text(encoding="utf-8"))
    nodes_of = {node["class_type"]: (id_, node["inputs"]) for id_, node in workflow.items()}
    nodes_of["CheckpointLoaderSimple"][1]["ckpt_name"] = checkpoint.name
    nodes_of["OneStoryLatent"][1].update(width=64, height=64)
    sampler, decode = nodes_of["KSampler"][1], nodes_of["VAEDecode"][0]
    workflow["recorder"] = {
        "class_type": "OneStoryAttentionRecorder",
        "inputs": {"model": sampler["model"], "blocks": "output.3-5", "start_percent": 0.0, "end_percent": 1.0},
    }
    sampler.update(model=["recorder", 0], steps=2)
    view = {"images": [decode, 0], "attention": ["recorder", 1], "scale": "story", "opacity": 0.7}
    workflow["view"] = {"class_type": "OneStoryAttentionView", "inputs": view}
    workflow["inspect"] = {"class_type": "OneStoryInspect", "inputs": {"conditioning": sampler["positive"]}}

    def pictures():
        executed.clear()
        outputs = server.run(
            workflow, lambda kind, data: executed.append(data["node"]) if kind == "executing" else None
        )
        return [server.download(image) for image in images(outputs, ["view"])]

    executed: list = []
    first = pictures()
    assert len(first) == 4
    assert {"inspect", "recorder", nodes_of["KSampler"][0]} <= set(executed)
    view["opacity"] = 0.5
    assert len(pictures()) == 4
    assert "view" in executed and nodes_of["KSampler"][0] not in executed, "the sampler was cached"
    view["opacity"] = 0.7
    sampler["seed"] += 1
    assert len(set(first) | set(pictures())) == 8
    sampler["seed"] -= 1
    assert pictures() == first, "the same seed shows the same again"
