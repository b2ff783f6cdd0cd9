"""Whole steps and whole stories on the host, with the random checkpoint."""

import pytest
import stories
from sampling import latents, patched, sample, with_pictures

STEPS = 2
PRECISE = {"fewest_rounds": 15}
"""One percent is little beside what two runs of the same differ by."""


@pytest.fixture(scope="session")
def nodes():
    """The pack's nodes and ComfyUI's CLIPTextEncode."""
    from types import SimpleNamespace

    from onestory.nodes.passes import OneStoryRuns
    from onestory.nodes.prompt import OneStoryPrompt
    from onestory.nodes.reweight import OneStorySVR
    from onestory.nodes.runs import OneStoryJoin, OneStorySplit

    from nodes import CLIPTextEncode

    def encode(clip, frames, characters=0):
        """Story Prompt and SVR."""
        story = stories.story(frames, characters)
        (conditioning,) = OneStoryPrompt.execute(clip, story, "one prompt", 0, "story").result
        return OneStorySVR.execute(conditioning).result[0]

    def encode_text(clip, text):
        return CLIPTextEncode().encode(clip, text)[0]

    return SimpleNamespace(
        encode=encode,
        encode_text=encode_text,
        split=OneStorySplit.execute,
        join=OneStoryJoin.execute,
        at_a_time=OneStoryRuns.execute,
    )


@pytest.fixture(scope="session")
def step_side(pytestconfig, device):
    """Pictures for whole steps: smaller on a CPU."""
    if device.type == "cuda" or pytestconfig.getoption("full"):
        return 512
    return 64 if pytestconfig.getoption("quick") else 128


@pytest.fixture
def short(pytestconfig):
    """Leaves long stories out of a quick run."""

    def check(frames, most):
        if pytestconfig.getoption("quick") and frames > most:
            pytest.skip("long stories: without --quick")

    return check


@pytest.mark.parametrize("method", ["IPCA", "self-attention", "IPCA and self-attention"])
@pytest.mark.parametrize("frames", [2, 4, 10])
def bench_step(compare, pytestconfig, checkpoint, nodes, step_side, short, frames, method):
    """The same frames with the method and without, and without text encoding."""
    short(frames, 4)
    model, clip, _ = checkpoint
    positive, negative = nodes.encode(clip, frames), nodes.encode_text(clip, "")
    ours, latent = patched(model, method), latents(frames, step_side)
    more = PRECISE if method == "IPCA" and not pytestconfig.getoption("quick") else {}
    compare(
        f"one step, {frames} frames of {step_side}, {method}",
        lambda: sample(ours, positive, negative, latent, 1),
        "unpatched",
        lambda: sample(model, positive, negative, latent, 1),
        goal=1.01 if method == "IPCA" else None,
        memory=True,
        **more,
    )


@pytest.mark.parametrize("frames", [4, 10])
def bench_sharing_the_character(compare, checkpoint, nodes, step_side, short, frames):
    """Consistent self-attention that looks for the character in every pass and shares only that, against all of it."""
    short(frames, 4)
    model, clip, _ = checkpoint
    positive, negative = nodes.encode(clip, frames), nodes.encode_text(clip, "")
    latent = latents(frames, step_side)
    ours, everything = patched(model, "self-attention of the character"), patched(model, "self-attention")
    compare(
        f"one step, {frames} frames of {step_side}, self-attention sharing only the character",
        lambda: sample(ours, positive, negative, latent, 1),
        "sharing everything",
        lambda: sample(everything, positive, negative, latent, 1),
        memory=True,
    )


@pytest.mark.parametrize("characters", [1, 4])
def bench_pictures(compare, pytestconfig, checkpoint, nodes, step_side, characters):
    """Characters from pictures: the same frames with Image Characters and without."""
    model, clip, _ = checkpoint
    positive, negative = nodes.encode(clip, 4, characters), nodes.encode_text(clip, "")
    ours, latent = with_pictures(model, stories.CAST[:characters]), latents(4, step_side)
    shown = f"{characters} {'character' if characters == 1 else 'characters'}"
    compare(
        f"one step, 4 frames of {step_side}, pictures of {shown}",
        lambda: sample(ours, positive, negative, latent, 1),
        "unpatched",
        lambda: sample(model, positive, negative, latent, 1),
        goal=1.02,
        memory=True,
        **(PRECISE if not pytestconfig.getoption("quick") else {}),
    )


@pytest.mark.parametrize("frames", [2, 5, 10, 20])
def bench_one_batch(compare, checkpoint, nodes, step_side, short, frames):
    """A story with SVR and IPCA, from its text to its latents, against so many pictures one by one."""
    short(frames, 5)
    model, clip, _ = checkpoint
    ours, side, text = patched(model, "IPCA"), step_side // 2, stories.story(frames)
    negative = nodes.encode_text(clip, "")

    def story():
        return sample(ours, nodes.encode(clip, frames), negative, latents(frames, side), STEPS)

    def picture(frame):
        positive = nodes.encode_text(clip, f"{frame.identity} {frame.prompt}")
        sample(model, positive, negative, latents(1, side), STEPS)

    compare(
        f"story of {frames} frames of {side}, {STEPS} steps, one batch",
        story,
        "single pictures",
        lambda: [picture(frame) for frame in text.frames],
        goal=1.02,
        memory=lambda: picture(text.frames[0]),
        memory_name="one picture",
    )


def in_runs(nodes, model, positive, negative, frames, side, anchors, steps=STEPS):
    latent = {"samples": latents(frames, side), "batch_index": [0] * frames}
    runs = nodes.split(positive, latent, 4, anchors).result
    drawn = [
        {**part, "samples": sample(model, conditioning, negative, part["samples"], steps)}
        for conditioning, part in zip(*runs[:2])
    ]
    return nodes.join(drawn).result[0][0]


@pytest.mark.parametrize("method, anchors", [("IPCA", 0), ("IPCA and self-attention", 4)])
@pytest.mark.parametrize("frames", [12, 24])
def bench_runs(compare, compare_memory, checkpoint, nodes, step_side, short, frames, method, anchors):
    """In runs of 4: time against one batch, and memory, of larger pictures, against a story of 8 frames in runs."""
    short(frames, 12)
    model, clip, _ = checkpoint
    ours, side = patched(model, method), step_side // 2
    positive, eight, negative = nodes.encode(clip, frames), nodes.encode(clip, 8), nodes.encode_text(clip, "")
    compare(
        f"story of {frames} frames of {side} in runs of 4, {method}",
        lambda: in_runs(nodes, ours, positive, negative, frames, side, anchors),
        "one batch",
        lambda: sample(ours, positive, negative, latents(frames, side), STEPS),
        most_rounds=5,
    )
    compare_memory(
        f"story of {frames} frames of {step_side} in runs of 4, {method}, memory",
        lambda: in_runs(nodes, ours, positive, negative, frames, step_side, anchors, 1),
        "8 frames in runs of 4",
        lambda: in_runs(nodes, ours, eight, negative, 8, step_side, anchors, 1),
        goal=1.05,
    )


@pytest.mark.parametrize("method", ["IPCA", "IPCA and self-attention"])
def bench_runs_in_one_sampler(compare, compare_memory, checkpoint, nodes, step_side, short, method):
    """40 frames, 4 at a time: time against one batch, and memory against 8 frames."""
    frames = 40
    short(frames, 12)
    model, clip, _ = checkpoint
    plain = patched(model, method)
    ours = nodes.at_a_time(plain, 4).result[0]
    positive, eight, negative = nodes.encode(clip, frames), nodes.encode(clip, 8), nodes.encode_text(clip, "")
    compare(
        f"story of {frames} frames of {step_side}, 4 at a time, {method}, one step",
        lambda: sample(ours, positive, negative, latents(frames, step_side), 1),
        "one batch",
        lambda: sample(plain, positive, negative, latents(frames, step_side), 1),
        goal=1.03,
        fewest_rounds=5,
    )
    compare_memory(
        f"story of {frames} frames of {step_side}, 4 at a time, {method}, memory",
        lambda: sample(ours, positive, negative, latents(frames, step_side), 1),
        "8 frames, 4 at a time",
        lambda: sample(ours, eight, negative, latents(8, step_side), 1),
        goal=1.1,
    )


def bench_svr_share(compare, checkpoint, text_encoders, nodes, step_side):
    """SVR beside SDXL's text encoding and a step of 10 frames. It is the small U-Net's, which SDXL's would only
    lengthen; --full has that."""
    from onestory.svr.reweight import singular_value_reweight

    model, clip, _ = checkpoint
    record = stories.record(10, "SDXL")
    embeds = stories.embeddings(record)
    positive, negative = nodes.encode(clip, 10), nodes.encode_text(clip, "")

    def encode_and_step():
        nodes.encode_text(text_encoders, stories.prompt(10))
        sample(model, positive, negative, latents(10, step_side), 1)

    compare(
        f"SVR, 10 frames, SDXL, beside its text encoding and one step of {step_side} of the small U-Net",
        lambda: singular_value_reweight(embeds, record),
        "encoding and step",
        encode_and_step,
        goal=0.03,
        most_rounds=5,
    )


def bench_svr_encoding(compare, text_encoders, nodes):
    """SVR beside SDXL's text encoding alone."""
    from onestory.svr.reweight import singular_value_reweight

    record = stories.record(10, "SDXL")
    embeds = stories.embeddings(record)
    compare(
        "SVR, 10 frames, SDXL, beside its text encoding alone",
        lambda: singular_value_reweight(embeds, record),
        "encoding",
        lambda: nodes.encode_text(text_encoders, stories.prompt(10)),
        most_rounds=5,
    )
