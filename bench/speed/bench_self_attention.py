"""Consistent self-attention per call at SDXL's layer shapes: against the floor and against two other formulations."""

import layers
import pytest
import released
import torch
from layers import random

ANCHORS = 4
RATE = 0.5
MOST_ON_CPU = 7e11
"""Multiplications and additions of a call that a CPU does without --full."""


@pytest.fixture
def tokens(pytestconfig, device, fits, frames, side, layer):
    """The layer's tokens, where its keys fit into memory and its attention into a run's time."""
    tokens = layer.tokens(side)
    keys = round(tokens * (1 + RATE * min(frames, ANCHORS)))
    name = f"{frames} frames, {tokens} x {layer.channels}"
    if device.type == "cpu" and not pytestconfig.getoption("full"):
        work = 2 * 2 * 2 * frames * tokens * keys * layer.channels
        if work > MOST_ON_CPU:
            pytest.skip(f"self-attention call, {name}, takes minutes on a CPU: with --full")
    fits(2 * frames * 4 * layer.channels * (2 * keys + 6 * tokens), f"self-attention call, {name},")
    return tokens


def prepare(frames, tokens, device):
    """What a forward pass prepares for the layers of one size: gathers for conditional and unconditional rows."""
    from onestory.attention.gathers import anchor_gathers, anchor_sources, sample
    from onestory.attention.schedule import seeded

    sources = anchor_sources((("",),) * frames, ANCHORS)
    samples = [sample(tokens, RATE, seeded(0, f)) for f in range(frames)]
    gathers = anchor_gathers(sources, list(range(frames)), [0, frames], tokens, samples.__getitem__, device)
    return gathers, [s.to(device) for s in samples]


@pytest.mark.parametrize("layer", layers.SDXL, ids=["640", "1280"])
def bench_floor(compare, device, dtype, frames, layer, tokens):
    """The floor: fused attention on keys and values that are gathered already, in one call for each key length."""
    from comfy.ldm.modules.attention import optimized_attention
    from onestory.attention.gathered import consistent_attention

    channels, heads = layer.channels, layer.heads
    q, k, v = (random(2 * frames, tokens, channels, device=device, dtype=dtype, seed=s) for s in (0, 1, 2))
    gathers, _ = prepare(frames, tokens, device)
    calls: dict[int, list[tuple[torch.Tensor, ...]]] = {}
    for gather in gathers:
        seen = (x.flatten(0, 1)[gather.keys] for x in (k, v))
        calls.setdefault(gather.keys.shape[1], []).append((q[gather.start : gather.stop], *seen))
    ready = [[torch.cat(parts) for parts in zip(*call)] for call in calls.values()]
    compare(
        f"self-attention call, {frames} frames, {tokens} x {channels}",
        lambda: consistent_attention(optimized_attention, q, k, v, heads, gathers),
        "floor",
        lambda: [optimized_attention(*call, heads) for call in ready],
        goal=1.10,
    )


@pytest.mark.parametrize("layer", layers.SDXL, ids=["640", "1280"])
def bench_full_mask(compare, fits, device, dtype, frames, layer, tokens):
    """Up to 4 frames, where both look at the same tokens."""
    from comfy.ldm.modules.attention import optimized_attention
    from onestory.attention.gathered import consistent_attention

    if frames > ANCHORS:
        pytest.skip("the mask would let everyone see everyone")
    fits(6 * (frames * tokens) ** 2, f"self-attention call, {frames} frames, {tokens} tokens, full mask,")
    channels, heads = layer.channels, layer.heads
    q, k, v = (random(2 * frames, tokens, channels, device=device, dtype=dtype, seed=s) for s in (0, 1, 2))
    gathers, samples = prepare(frames, tokens, device)

    def ours():
        return consistent_attention(optimized_attention, q, k, v, heads, gathers)

    def masked():
        mask = released.full_mask(samples, tokens)
        return released.full_mask_attention(optimized_attention, q, k, v, heads, mask)

    torch.testing.assert_close(ours(), masked(), rtol=1e-2, atol=1e-2)
    goals = {"goal": 1 / 2, "memory_goal": 1 / 4} if frames == 4 else {}
    piece = f"self-attention call, {frames} frames, {tokens} x {channels}"
    plain = lambda: optimized_attention(q, k, v, heads)  # noqa: E731
    compare(piece, ours, "full mask", masked, memory=True, plain=plain, **goals)


@pytest.mark.parametrize("layer", layers.SDXL, ids=["640", "1280"])
def bench_reprojecting(compare, device, dtype, frames, layer, tokens):
    """With the projections, since this formulation repeats them."""
    from comfy.ldm.modules.attention import optimized_attention
    from onestory.attention.gathered import consistent_attention

    if frames > ANCHORS:
        pytest.skip("written for anchors only")
    channels, heads = layer.channels, layer.heads
    hidden = random(2 * frames, tokens, channels, device=device, dtype=dtype)
    weights = [random(channels, channels, device=device, dtype=dtype, seed=s) * channels**-0.5 for s in (1, 2, 3)]
    projections = [lambda x, w=w: torch.nn.functional.linear(x, w) for w in weights]
    gathers, samples = prepare(frames, tokens, device)

    def ours():
        q, k, v = (p(hidden) for p in projections)
        return consistent_attention(optimized_attention, q, k, v, heads, gathers)

    def theirs():
        return released.reprojecting_attention(optimized_attention, hidden, *projections, heads, samples)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-2, atol=1e-2)
    piece = f"self-attention with projections, {frames} frames, {tokens} x {channels}"
    compare(piece, ours, "re-projecting", theirs)


@pytest.mark.parametrize("frames, tokens", [(4, 4096), (20, 4096)])
def bench_prepare(compare, device, frames, tokens):
    compare(
        f"self-attention, all that a forward pass prepares, {frames} frames, {tokens} tokens",
        lambda: prepare(frames, tokens, device),
    )
