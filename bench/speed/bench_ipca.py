"""IPCA per attention call: against the unpatched call, and against the released formulation."""

import layers
import pytest
import released
import stories
import torch
from layers import random


def bias_of(record, device, dtype):
    """The bias of a batch [conditional rows, unconditional rows], as a forward pass has it."""
    from onestory.attention.ipca import identity_bias

    rows = torch.stack([identity_bias(row, record, 1.0, "released", record.tokens) for row in record.rows])
    return torch.cat([rows, torch.zeros_like(rows)]).to(device, dtype)


@pytest.mark.parametrize("layer", layers.SDXL, ids=["640", "1280"])
@pytest.mark.parametrize("against", ["unpatched", "released"])
def bench_call(compare, device, dtype, frames, side, layer, against):
    from comfy.ldm.modules.attention import optimized_attention
    from onestory.attention.ipca import biased_attention

    tokens, channels, heads = layer.tokens(side), layer.channels, layer.heads
    q = random(2 * frames, tokens, channels, device=device, dtype=dtype)
    k, v = (random(2 * frames, 77, channels, device=device, dtype=dtype, seed=s) for s in (1, 2))
    record = stories.record(frames, "SDXL")
    bias = bias_of(record, device, dtype)
    ours = lambda: biased_attention(optimized_attention, q, k, v, heads, bias)  # noqa: E731
    piece = f"IPCA call, {frames} frames, {tokens} x {channels}"
    if against == "unpatched":
        compare(piece, ours, "unpatched call", lambda: optimized_attention(q, k, v, heads), memory=True)
        return
    identity = released.IdentityAttention(heads, identity_tokens=record.rows[0].spans[0].identity.stop)
    rows = [0, frames]

    def both_passes():
        identity.store(q[rows], k[rows], v[rows])
        return identity(q, k, v)

    goals = {"goal": 1 / 5, "memory_goal": 1 / 10}
    compare(piece, ours, "released formulation", both_passes, memory=True, **goals)


@pytest.mark.parametrize("frames", [4, 100])
def bench_bias(compare, device, dtype, frames):
    """What a forward pass makes for all its layers."""
    from onestory.attention.blocks import parse_blocks
    from onestory.attention.ipca import IPCA
    from onestory.attention.runtime import Forward, Patches, Placement, Step

    record = stories.record(frames, "SDXL")
    ipca = IPCA(1.0, "released", 0.0, parse_blocks("all"), 0.0, 1.0, 0)
    characters = (("",),) * frames
    step = Step(Patches((ipca,)), {1: Placement(record, 77)}, 0, 1, tuple(range(frames)), characters, (8, 8))
    x, context = torch.zeros(2 * frames, 4, 8, 8), torch.zeros(2 * frames, 77, 8, device=device)
    q = torch.zeros(2 * frames, 16, 8, device=device, dtype=dtype)

    def bias():
        return Forward(step, {"uuids": [1, 2]}, x, context).bias(("attn2", "input", 1, 0), q, context)

    assert bias() is not None
    compare(f"IPCA, all that a forward pass prepares, {frames} frames", bias)
