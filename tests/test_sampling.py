"""Whole sampling runs on the real host: what IPCA must equal, what it leaves alone, and what may stand beside it."""

import threading

import comfy.model_patcher
import comfy.sample
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from duplicates import FOX, FRAMES, duplicated, latent_rows, rows, run
from graphs import control, empty, encode, ipca, positive, random, sample_advanced, scaled_error, story
from noise import PROMISED, Bounds, bound
from onestory.nodes.prompt import OneStoryPrompt
from onestory.svr.record import KEY
from reference import ONE_ROUNDING, relative_error
from warned import warnings_of

import nodes


@pytest.fixture(scope="module")
def tale():
    return story(FOX, *FRAMES)


@pytest.fixture(scope="module")
def latent(tale):
    return empty(tale, 64, 32)


@pytest.fixture(scope="module")
def bounds(sd, frames, negative, latent):
    return Bounds(sd.model, frames, negative, latent, run=run, error=relative_error)


@pytest.fixture(scope="module")
def latents(sd, frames, negative, latent):
    """`latents({...}, {...})`: the story's latents with IPCA applied with these settings, one after the other."""
    done = {}

    def of(*settings, steps=1):
        key = repr((settings, steps))
        if key not in done:
            model = sd.model
            for changed in settings:
                model = ipca(model, **changed)
            done[key] = run(model, frames, negative, latent, steps=steps)
        return done[key]

    return of


# --- IPCA, independently ----------------------------------------------------------------------------------------------


def assert_equals_duplicates(model, stories, *args, strength=1, **kwargs):
    want_model = duplicated(model, *stories, strength=strength)
    want = run(want_model, *args, **kwargs)
    got = run(ipca(model, strength=float(strength)), *args, **kwargs)
    assert relative_error(got, want) < bound(model, *args, run=run, error=relative_error, **kwargs)
    assert sum(want_model.seen), "the independent patch met the story"
    return got, want_model.seen


@pytest.mark.parametrize("strength", [1, 3])
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_ipca_equals_duplicated_keys_in_a_whole_run(sd, frames, negative, latent, cfg, strength):
    got, seen = assert_equals_duplicates(sd.model, [frames], frames, negative, latent, cfg, 3, strength=strength)
    assert set(seen) == {4}
    assert relative_error(got, run(sd.model, frames, negative, latent, cfg, 3)) > 1e-3, "and it matters"


def test_ipca_equals_duplicated_keys_in_a_sampler_that_goes_between_the_steps(sd, frames, negative, latent):
    assert_equals_duplicates(sd.model, [frames], frames, negative, latent, sampler="heun", steps=2)


def area(conditioning):
    return nodes.ConditioningSetArea().append(conditioning, 48, 32, 16, 0, 1.0)[0]


def mask(conditioning, bounds="default"):
    left = torch.zeros(1, 32, 64)
    left[:, :, :40] = 1
    return nodes.ConditioningSetMask().append(conditioning, left, bounds, 0.8)[0]


def time_range(conditioning, start, end):
    return nodes.ConditioningSetTimestepRange().set_range(conditioning, start, end)[0]


def concat(to, other):
    """ComfyUI concatenates equal numbers of rows only."""
    other = [[embeds.expand(len(to[0][0]), -1, -1), options] for embeds, options in other]
    return nodes.ConditioningConcat().concat(to, other)[0]


def combine(*conditionings):
    return sum(conditionings, [])


def text(sd, tokens):
    """A negative of so many chunks of 77 tokens."""
    return encode(sd.clip, " ".join(["blurry"] * (75 * tokens // 77)))


GRAPHS = {
    "the negative is the story zeroed out": lambda sd, p, n: ([p], p, nodes.ConditioningZeroOut().zero_out(p)[0]),
    "the negative is the story itself": lambda sd, p, n: ([p], p, p),
    "the negative is longer": lambda sd, p, n: ([p], p, text(sd, 154)),
    "tokens are appended": lambda sd, p, n: ([concat(p, n)], concat(p, n), n),
    "tokens are appended and the negative is longer still": lambda sd, p, n: (
        [concat(p, n)], concat(p, n), text(sd, 231)),
    "combined with another prompt": lambda sd, p, n: ([p], combine(encode(sd.clip, "a castle"), p), n),
    "combined with another prompt behind it": lambda sd, p, n: ([p], combine(p, encode(sd.clip, "a castle")), n),
    "combined with another story": lambda sd, p, n: ([p, other(sd)], combine(p, other(sd)), n),
    "in an area": lambda sd, p, n: ([p], area(p), n),
    "in an area over another prompt": lambda sd, p, n: ([p], combine(encode(sd.clip, "a castle"), area(p)), n),
    "the negative in an area": lambda sd, p, n: ([p], p, area(n)),
    "under a mask": lambda sd, p, n: ([p], combine(mask(p), encode(sd.clip, "a castle")), n),
    "in a mask's bounds": lambda sd, p, n: ([p], combine(mask(p, "mask bounds"), encode(sd.clip, "a castle")), n),
    "first the story, then another prompt": lambda sd, p, n: (
        [p], combine(time_range(p, 0, 0.4), time_range(encode(sd.clip, "a castle"), 0.4, 1)), n),
    "under one ControlNet": lambda sd, p, n: ([p], *control(p, n, random([1, 32, 64, 3]))),
    "under a ControlNet for each frame": lambda sd, p, n: ([p], *control(p, n, random([4, 32, 64, 3]))),
}  # fmt: skip


def other(sd):
    return positive(sd.clip, story("an old grey wolf with one eye", *FRAMES))


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_story_keeps_its_map_through_comfyuis_conditioning_nodes(sd, frames, negative, latent, graph):
    stories, pos, neg = GRAPHS[graph](sd, frames, negative)
    assert_equals_duplicates(sd.model, stories, pos, neg, latent, steps=3 if "then" in graph else 1)


MODELS = {
    "PerturbedAttentionGuidance": lambda model: PerturbedAttentionGuidance.execute(model, 3.0)[0],
    "RescaleCFG": lambda model: RescaleCFG().patch(model, 0.7)[0],
    "FreeU_V2": lambda model: FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0],
    "HyperTile": lambda model: HyperTile.execute(model, 32, 2, 0, False)[0],
}


@pytest.mark.parametrize("name", MODELS)
def test_other_model_patches_run_beside_it_in_either_order(sd, tale, frames, negative, name):
    patch = MODELS[name]
    wide = empty(tale, 128 if name == "HyperTile" else 64, 32)
    want = run(duplicated(patch(sd.model), frames), frames, negative, wide)
    nearest = bound(patch(sd.model), frames, negative, wide, run=run, error=relative_error)
    for both in (ipca(patch(sd.model)), patch(ipca(sd.model))):
        assert relative_error(run(both, frames, negative, wide), want) < nearest
    if name != "FreeU_V2":  # it works on widths that this small U-Net lacks
        assert relative_error(run(ipca(sd.model), frames, negative, wide), want) > 1e-3


def keys_and_values_by_turns(conditioning):
    """What a CLIP patched by NegPiP gives where all weights are positive: every token as a key, then as a value."""
    return [
        [
            embeds.repeat_interleave(2, dim=1),
            o | ({KEY: o[KEY]._replace(record=o[KEY].record._replace(interleaved=2))} if KEY in o else {}),
        ]
        for embeds, o in conditioning
    ]


@pytest.mark.parametrize("changed", [{}, {"variant": "paper"}, {"dropout": 0.5}])
def test_ipca_works_with_tokens_that_are_keys_and_values_by_turns(
    sd, frames, negative, latent, bounds, latents, changed
):
    model = ipca(sd.model, **changed)
    model.set_model_attn2_patch(lambda n, context, value, extra: (n, context[:, 0::2], value[:, 1::2]))
    got = run(model, keys_and_values_by_turns(frames), keys_and_values_by_turns(negative), latent)
    assert relative_error(got, latents(changed)) < bounds()


def test_a_conditioning_that_is_not_its_records_is_a_sentence_before_sampling(sd, frames, negative, latent):
    short = [[embeds[:, :40], options] for embeds, options in frames]
    with pytest.raises(ValueError, match="The sampler found 40 tokens where the story's record has 77"):
        run(ipca(sd.model), short, negative, latent)
    picked = [[embeds[:1], options] for embeds, options in frames]
    with pytest.raises(ValueError, match="The sampler found 1 rows where the story's record has 4"):
        run(ipca(sd.model), picked, negative, latent_rows(latent, [0]))


# --- off, before and after --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [[{"strength": 0.0}], [{}, {"strength": 0.0}], [{"start_percent": 1.0}]])
def test_off_and_unpatched_are_bit_equal(latents, off):
    assert torch.equal(latents(*off, steps=2), latents(steps=2))


def frozen(value):
    """A copy to compare with: what a nest of containers holds, tensors by value and everything else by identity."""
    if isinstance(value, dict):
        return {key: frozen(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return (type(value), [frozen(v) for v in value])
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.double().sum().item(), value.double().square().sum().item())
    return (type(value), id(value))


def test_the_model_and_what_goes_in_are_left_bit_equal(sd, frames, negative, latent, latents):
    patched = ipca(sd.model, dropout=0.5, start_percent=0.2)
    unet = sd.model.model.diffusion_model
    things = (sd.model.model_options, patched.model_options, frames, negative, latent, sd.model.object_patches)
    before = frozen(things)
    modules = [(name, sorted(vars(m)), len(m._forward_hooks)) for name, m in unet.named_modules()]
    weights = frozen(unet.state_dict())
    first = latents(steps=2)
    run(patched, frames, negative, latent, steps=2)
    assert torch.equal(run(sd.model, frames, negative, latent, steps=2), first)
    assert frozen(things) == before
    assert [(name, sorted(vars(m)), len(m._forward_hooks)) for name, m in unet.named_modules()] == modules
    assert frozen(unet.state_dict()) == weights
    assert KEY not in sd.model.model_options["transformer_options"]


def test_it_draws_nothing_from_the_global_generator(sd, frames, negative, latent):
    states = []
    for model in (sd.model, ipca(sd.model), ipca(sd.model, dropout=0.5)):
        run(model, frames, negative, latent)
        states.append(torch.random.get_rng_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


# --- batches ----------------------------------------------------------------------------------------------------------


def counting(model):
    """The model, and a list that gets the number of rows of every forward pass."""
    counts = []

    def forward(apply_model, args):
        counts.append(len(args["input"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(forward)
    return clone, counts


@pytest.mark.parametrize("changed", [{}, {"variant": "paper"}, {"dropout": 0.5}])
def test_cond_and_uncond_in_one_batch_and_one_by_one_agree(sd, frames, negative, latent, latents, monkeypatch, changed):
    together = latents(changed, steps=2)
    model, counts = counting(ipca(sd.model, **changed))
    if not changed:
        assert torch.equal(run(model, frames, negative, latent, steps=2), together) and set(counts) == {8}
        counts.clear()
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    alone = run(model, frames, negative, latent, steps=2)
    assert set(counts) == {4}
    assert scaled_error(alone, together) < PROMISED


@pytest.mark.parametrize("changed", [{}, {"variant": "paper"}, {"dropout": 0.5}])
def test_a_story_in_one_batch_and_frame_by_frame_agrees(sd, frames, negative, latent, latents, changed):
    model, together = ipca(sd.model, **changed), latents(changed, steps=2)
    alone = torch.cat([run(model, rows(frames, [j]), negative, latent_rows(latent, [j]), steps=2) for j in range(4)])
    assert scaled_error(alone, together) < PROMISED
    assert scaled_error(together[1:], together[:1]) > 0.1


def test_frames_in_another_order_come_out_in_that_order(sd, frames, negative, latent, latents):
    order = [2, 0, 3, 1]
    got = run(ipca(sd.model), rows(frames, order), negative, latent_rows(latent, order))
    assert scaled_error(got, latents({})[order]) < PROMISED


def test_changing_the_text_of_frame_3_changes_only_its_pixels_with_separate_prompts(sd, negative, latent):
    pictures, latents = [], []
    for third in ("sailing a boat", "sailing a boat in a violent storm at night"):
        tale = story(FOX, *FRAMES[:2], third, FRAMES[3])
        with torch.inference_mode():
            conditioning = OneStoryPrompt.execute(sd.clip, tale, "separate prompts", 0, "story").result[0]
            latents.append(run(ipca(sd.model), conditioning, negative, latent, steps=2))
            pictures.append(sd.vae.decode(latents[-1]))
    for a, b in (latents, pictures):
        changed = [not torch.equal(a[j], b[j]) for j in range(4)]
        assert changed == [False, False, True, False]


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_a_batch_that_is_not_the_storys_is_a_sentence_with_both_numbers(sd, frames, negative, latent, count):
    wrong = {**latent, "samples": torch.zeros(count, 4, 4, 8), "batch_index": [0] * count}
    with pytest.raises(ValueError) as error:
        run(ipca(sd.model), frames, negative, wrong)
    assert str(error.value) == (
        f"The latent batch has {count} {'frame' if count == 1 else 'frames'} and the story 4: use Story Latent, wired "
        "to the same story, as the latent image; or Repeat Latent Batch, where each frame is to start from a picture "
        "of yours."
    )


# --- noise ------------------------------------------------------------------------------------------------------------


def noise_of(sampler, model, *args):
    """The noise that a sampler starts from."""
    caught = []

    def catch(executor, noise, *args, **kwargs):
        caught.append(noise.clone())
        return executor(noise, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "catch", catch)
    sampler(clone, *args, steps=1)
    return caught[0]


@pytest.mark.parametrize("sampler", [run, sample_advanced], ids=["KSampler", "SamplerCustomAdvanced"])
@pytest.mark.parametrize(
    ("inputs", "ids"),
    [
        ({"noise": "same"}, [0, 0, 0, 0]),
        ({"noise": "different"}, [0, 1, 2, 3]),
        ({"noise_ids": "0, 0 5,0"}, [0, 0, 5, 0]),
        ({"noise": "same", "noise_ids": "3,1,1,3"}, [3, 1, 1, 3]),
    ],
)
def test_frames_start_from_the_noise_of_their_number(sd, tale, frames, negative, sampler, inputs, ids):
    noise = noise_of(sampler, ipca(sd.model), frames, negative, empty(tale, 64, 32, **inputs))
    draws = torch.Generator().manual_seed(1)
    numbered = [torch.randn([1, 4, 4, 8], generator=draws)[0] for _ in range(6)]
    for row, j in zip(noise, ids, strict=True):
        assert torch.equal(row, numbered[j])


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("applied", "same_as"),
    [
        ([{"strength": 3.0}, {"strength": 1.0}], [{"strength": 1.0}]),
        ([{"strength": 3.0}, {"strength": 0.0, "blocks": "up"}], [{"strength": 3.0, "blocks": "down+mid"}]),
        ([{"blocks": "up"}, {"blocks": "down+mid"}], [{}]),
        (
            [{"blocks": "up", "strength": 2.0}, {"strength": 0.0, "end_percent": 0.0}],
            [{"blocks": "up", "strength": 2.0}],
        ),
        ([{"end_percent": 0.5}, {"start_percent": 0.5000001}], [{}]),
        ([{"strength": 3.0}, {"strength": 0.0, "start_percent": 0.5}], [{"strength": 3.0, "end_percent": 0.49}]),
    ],
)
def test_applied_twice_the_later_one_counts_where_both_are_on(latents, applied, same_as):
    assert relative_error(latents(*applied, steps=2), latents(*same_as, steps=2)) < ONE_ROUNDING


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.3, 0.7), (0.5, 1.0)])
def test_it_is_on_between_its_two_percents(sd, frames, negative, latent, bounds, latents, start, end):
    want_model = duplicated(sd.model, frames, start=start, end=end)
    want = run(want_model, frames, negative, latent, steps=4)
    assert set(want_model.seen) == {0, 4}
    assert relative_error(latents({"start_percent": start, "end_percent": end}, steps=4), want) < bounds(steps=4)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("up", [("output", n) for n in range(12)]),
        ("late", [("output", n) for n in range(12)]),
        ("down+mid", [("middle", 0), *(("input", n) for n in range(12))]),
        ("output.1", [("output", 1)]),
        ("input.1-3, output.0-1", [("input", 1), ("input", 3), ("output", 0), ("output", 1)]),
    ],
)
def test_it_works_on_its_blocks_alone(sd, frames, negative, latent, bounds, latents, text, blocks):
    want = run(duplicated(sd.model, frames, blocks=blocks), frames, negative, latent)
    assert relative_error(latents({"blocks": text}), want) < bounds()


@pytest.mark.parametrize("blocks", ["left", "output.x", "up down", "", "output.3-"])
def test_blocks_that_are_not_understood_say_what_to_write(sd, blocks):
    with pytest.raises(ValueError, match="is not understood at .*: write all, down, mid, up"):
        ipca(sd.model, blocks=blocks)


def test_dropout_goes_from_none_to_all_and_follows_its_seed(sd, frames, negative, latent, bounds, latents):
    some = latents({"dropout": 0.5})
    assert torch.equal(some, run(ipca(sd.model, dropout=0.5), frames, negative, latent)), "the same graph again"
    assert relative_error(latents({"dropout": 0.5, "seed": 1}), some) > 1e-3
    assert relative_error(latents({"dropout": 1.0}), latents()) < bounds()
    assert relative_error(latents({"dropout": 1e-9}), latents({})) < bounds()


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_dropout_does_not_depend_on_other_rows(sd, frames, negative, latent, bounds, latents, variant):
    changed = {"dropout": 0.5, "variant": variant}
    part = run(ipca(sd.model, **changed), rows(frames, [1, 3]), negative, latent_rows(latent, [1, 3]))
    assert relative_error(part, latents(changed)[[1, 3]]) < bounds()


# --- unknown territory ------------------------------------------------------------------------------------------------


def test_a_model_without_cross_attention_passes_through_with_a_warning(caplog):
    inner = torch.nn.Module()
    inner.diffusion_model = torch.nn.Linear(2, 2)
    model = comfy.model_patcher.ModelPatcher(inner, torch.device("cpu"), torch.device("cpu"))
    before = frozen(model.model_options)
    assert frozen(ipca(model).model_options) == before
    [warning] = warnings_of(caplog)
    assert "is no U-Net with cross-attention" in warning and "used unchanged by IPCA" in warning


def test_a_graph_without_a_story_passes_through_with_one_warning(sd, negative, latent, caplog):
    plain = encode(sd.clip, FOX)
    assert torch.equal(run(ipca(sd.model), plain, negative, latent), run(sd.model, plain, negative, latent))
    [warning] = warnings_of(caplog)
    assert "carries no story" in warning and "Story Prompt" in warning


def test_a_sampler_that_batches_tiles_is_told_once_what_to_set(sd, frames, negative, latent, caplog):
    """Tiled Diffusion hands the model several tiles of every frame in one batch."""

    def tiled(apply_model, args):
        x, c = args["input"], args["c"]
        again = {name: torch.cat([value] * 3) for name, value in c.items() if isinstance(value, torch.Tensor)}
        return apply_model(torch.cat([x] * 3), torch.cat([args["timestep"]] * 3), **{**c, **again})[: len(x)]

    plain, patched = sd.model.clone(), ipca(sd.model)
    for model in (plain, patched):
        model.set_model_unet_function_wrapper(tiled)
    got = run(patched, frames, negative, latent, steps=3)
    assert torch.equal(got, run(plain, frames, negative, latent, steps=3))
    [warning] = warnings_of(caplog)
    assert "12 pictures are drawn at a time for the story's 4 frames" in warning and "tile batch size" in warning


@pytest.mark.parametrize("changed", [{}, {"dropout": 0.5}, {"start_percent": 0.1}])
def test_context_windows_pass_through_with_one_warning(sd, frames, negative, latent, caplog, changed):
    def windows(model):
        return ContextWindowsManualNode.execute(model, 2, 1, "standard_static", 1, False, "pyramid", 0, False)[0]

    want = run(windows(sd.model), frames, negative, latent, steps=2)
    caplog.clear()
    assert torch.equal(run(windows(ipca(sd.model, **changed)), frames, negative, latent, steps=2), want)
    assert len(warnings_of(caplog)) == 1


def test_a_story_as_the_negative_alone_changes_nothing(sd, frames, negative, latent):
    assert torch.equal(run(ipca(sd.model), negative, frames, latent), run(sd.model, negative, frames, latent))


# --- at once ----------------------------------------------------------------------------------------------------------


def test_two_samplers_at_once_give_the_same_as_alone(sd, checkpoint, frames, negative, latent):
    """Two models of their own, as two devices have them, with different stories and settings."""
    third = rows(other(sd), [0, 1, 2])
    twin = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0]
    jobs = [
        (ipca(sd.model, dropout=0.5), frames, negative, latent),
        (ipca(twin, variant="paper", strength=2.0, dropout=0.3), third, negative, latent_rows(latent, [0, 1, 2])),
    ]
    # ComfyUI draws a latent's noise from the global generator, which two threads would share.
    noises = [comfy.sample.prepare_noise(job[3]["samples"], 1, job[3]["batch_index"]) for job in jobs]

    @torch.inference_mode()
    def drawn(n):
        model, pos, neg, start = jobs[n]
        return comfy.sample.sample(model, noises[n], 2, 5.0, "euler", "normal", pos, neg, start["samples"], seed=1)

    alone = [drawn(n) for n in range(2)]
    together = [None, None]
    barrier = threading.Barrier(2)

    def work(n):
        barrier.wait()
        together[n] = drawn(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together):
        assert torch.equal(a, b)
