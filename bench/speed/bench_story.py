"""Whole steps and whole stories on the host, with the random checkpoint."""

import pytest
import stories
from sampling import latents, patched, sample

STEPS = 2


@pytest.fixture(scope="session")
def nodes():
    """The pack's nodes and ComfyUI's CLIPTextEncode."""
    from types import SimpleNamespace

    from onestory.nodes.prompt import OneStoryPrompt
    from onestory.nodes.reweight import OneStorySVR
    from onestory.nodes.runs import OneStoryJoin, OneStorySplit

    from nodes import CLIPTextEncode

    def encode(clip, frames):
        """Story Prompt and SVR."""
        (conditioning,) = OneStoryPrompt.execute(clip, stories.story(frames), "one prompt", 0, "story").result
        return OneStorySVR.execute(conditioning).result[0]

    def encode_text(clip, text):
        return CLIPTextEncode().encode(clip, text)[0]

    return SimpleNamespace(
        encode=encode, encode_text=encode_text, split=OneStorySplit.execute, join=OneStoryJoin.execute
    )


@pytest.fixture(scope="session")
def step_side(pytestconfig, device):
    """Pictures for whole steps: smaller on a CPU."""
    if device.type == "cuda" or pytestconfig.getoption("full"):
        return 512
    return 64 if pytestconfig.getoption("quick") else 256


@pytest.mark.parametrize("method", ["IPCA", "self-attention", "IPCA and self-attention"])
@pytest.mark.parametrize("frames", [2, 4, 10])
def bench_step(compare, checkpoint, nodes, step_side, frames, method):
    """The same frames with the method and without, and without text encoding."""
    model, clip, _ = checkpoint
    positive, negative = nodes.encode(clip, frames), nodes.encode_text(clip, "")
    ours, latent = patched(model, method), latents(frames, step_side)
    compare(
        f"{STEPS} steps, {frames} frames of {step_side}, {method}",
        lambda: sample(ours, positive, negative, latent, STEPS),
        "unpatched",
        lambda: sample(model, positive, negative, latent, STEPS),
        goal=1.01 if method == "IPCA" else None,
        memory=True,
    )


@pytest.mark.parametrize("frames", [2, 5, 10, 20])
def bench_one_batch(compare, checkpoint, nodes, step_side, frames):
    """A story with SVR and IPCA, from its text to its latents, against so many pictures one by one."""
    model, clip, _ = checkpoint
    ours, side, text = patched(model, "IPCA"), step_side // 2, stories.story(frames)
    negative = nodes.encode_text(clip, "")

    def story():
        return sample(ours, nodes.encode(clip, frames), negative, latents(frames, side), STEPS)

    def pictures():
        for frame in text.frames:
            positive = nodes.encode_text(clip, f"{frame.identity} {frame.prompt}")
            sample(model, positive, negative, latents(1, side), STEPS)

    piece = f"story of {frames} frames of {side}, {STEPS} steps, one batch"
    compare(piece, story, "single pictures", pictures, goal=1.02)


def in_runs(nodes, model, positive, negative, frames, side, anchors):
    latent = {"samples": latents(frames, side), "batch_index": [0] * frames}
    runs = nodes.split(positive, latent, 4, anchors).result
    drawn = [
        {**part, "samples": sample(model, conditioning, negative, part["samples"], STEPS)}
        for conditioning, part in zip(*runs[:2])
    ]
    return nodes.join(drawn).result[0]


@pytest.mark.parametrize("method, anchors", [("IPCA", 0), ("IPCA and self-attention", 4)])
@pytest.mark.parametrize("frames", [12, 24])
def bench_runs(compare, checkpoint, nodes, step_side, frames, method, anchors):
    """In runs of 4: time against one batch, and memory against a story of 8 frames in runs."""
    model, clip, _ = checkpoint
    ours, side = patched(model, method), step_side // 2
    positive, short, negative = nodes.encode(clip, frames), nodes.encode(clip, 8), nodes.encode_text(clip, "")
    compare(
        f"story of {frames} frames of {side} in runs of 4, {method}",
        lambda: in_runs(nodes, ours, positive, negative, frames, side, anchors),
        "one batch",
        lambda: sample(ours, positive, negative, latents(frames, side), STEPS),
        most_rounds=5,
        memory=lambda: in_runs(nodes, ours, short, negative, 8, side, anchors),
        memory_name="8 frames in runs of 4",
        memory_goal=1.05,
    )


def bench_svr_share(compare, checkpoint, nodes, step_side):
    """SVR beside what it precedes: encoding the text and one step, for 10 frames."""
    from onestory.svr.record import KEY
    from onestory.svr.reweight import singular_value_reweight

    model, clip, _ = checkpoint
    embeds, options = nodes.encode(clip, 10)[0]
    negative = nodes.encode_text(clip, "")

    def encode_and_step():
        positive = nodes.encode_text(clip, stories.IDENTITY)
        sample(model, [[embeds, positive[0][1]]], negative, latents(10, step_side), 1)

    compare(
        f"SVR, 10 frames, SD1.5, beside one text encoding and one step of the small U-Net at {step_side}",
        lambda: singular_value_reweight(embeds, options[KEY]),
        "encoding and step",
        encode_and_step,
    )
