"""IPCA per attention call: against the unpatched call, and against the released formulation."""

import layers
import pytest
import released
import stories
import torch
from layers import random


class Silent:
    """A `Report` that nobody reads."""

    def warn(self, text: str) -> None:
        pass

    def skip(self, reason: str, block: tuple[str, int]) -> None:
        pass


def bias_of(record, device, dtype):
    """The bias of a batch [conditional rows, unconditional rows], as a forward pass has it."""
    from onestory.attention.ipca import identity_bias

    rows = torch.stack([identity_bias(row, record, 1.0, "released", record.tokens) for row in record.rows])
    return torch.cat([rows, torch.zeros_like(rows)]).to(device, dtype)


@pytest.mark.parametrize("layer", layers.SDXL, ids=["640", "1280"])
@pytest.mark.parametrize("against", ["unpatched", "released"])
def bench_call(compare, fits, device, dtype, frames, side, layer, against):
    from comfy.ldm.modules.attention import optimized_attention
    from onestory.attention.ipca import biased_attention

    tokens, channels, heads = layer.tokens(side), layer.channels, layer.heads
    q = random(2 * frames, tokens, channels, device=device, dtype=dtype)
    k, v = (random(2 * frames, 77, channels, device=device, dtype=dtype, seed=s) for s in (1, 2))
    record = stories.record(frames, "SDXL")
    bias = bias_of(record, device, dtype)
    ours = lambda: biased_attention(optimized_attention, q, k, v, heads, bias)  # noqa: E731
    piece = f"IPCA call, {frames} frames, {tokens} x {channels}"
    plain = lambda: optimized_attention(q, k, v, heads)  # noqa: E731
    if against == "unpatched":
        compare(piece, ours, "unpatched call", plain, memory=True)
        return
    scores = frames * heads * tokens * 154 * q.element_size()
    fits(6 * scores, f"{piece}, released formulation")
    identity = released.IdentityAttention(heads, identity_tokens=record.rows[0].spans[0].identity.stop)
    rows = [0, frames]

    def both_passes():
        identity.store(q[rows], k[rows], v[rows])
        return identity(q, k, v)

    goals = {"goal": 1 / 5, "memory_goal": 1 / 10}
    compare(piece, ours, "released formulation", both_passes, memory=True, plain=plain, **goals)


@pytest.mark.parametrize("back_end", ["pytorch", "sub_quad", "split", "basic"])
@pytest.mark.parametrize("against", ["unpatched call", "duplicated keys"])
def bench_back_end(compare, pytestconfig, device, dtype, back_end, against):
    """The bias on ComfyUI's attention back ends, against no bias and against copies of the identity's keys."""
    import comfy.ldm.modules.attention
    from onestory.attention.ipca import biased_attention

    attention = getattr(comfy.ldm.modules.attention, f"attention_{back_end}")
    frames, layer = 4, layers.SDXL[0]
    tokens, channels, heads = layer.tokens(256 if pytestconfig.getoption("quick") else 512), layer.channels, layer.heads
    q = random(2 * frames, tokens, channels, device=device, dtype=dtype)
    k, v = (random(2 * frames, 77, channels, device=device, dtype=dtype, seed=s) for s in (1, 2))
    record = stories.record(frames, "SDXL")
    bias, stop = bias_of(record, device, dtype), record.rows[0].spans[0].identity.stop

    def copies():
        return attention(q, torch.cat([k, k[:, :stop]], dim=1), torch.cat([v, v[:, :stop]], dim=1), heads)

    theirs = copies if against == "duplicated keys" else lambda: attention(q, k, v, heads)
    piece = f"IPCA call, {back_end} attention, {frames} frames, {tokens} x {channels}"
    compare(piece, lambda: biased_attention(attention, q, k, v, heads, bias), against, theirs)


@pytest.mark.parametrize("frames", [4, 100])
def bench_bias(compare, device, dtype, frames):
    """What a forward pass makes for all its layers."""
    from onestory.attention.batch import Batch, Chunk, Placement
    from onestory.attention.blocks import parse_blocks
    from onestory.attention.ipca import IPCA
    from onestory.attention.schedule import Place

    record = stories.record(frames, "SDXL")
    ipca = IPCA(1.0, "released", 0.0, parse_blocks("all"), 0.0, 1.0, 0)
    chunks = Chunk(0, frames, Placement(record, 77)), Chunk(frames, 2 * frames, None)
    characters, size, place = (("",),) * frames, (8, 8), Place(1.0, lambda percent: 1 - percent)
    batch = Batch(
        chunks, tuple(range(frames)), characters, 77, size, size, lambda tokens: None, place, dtype, device, Silent()
    )
    compare(f"IPCA, all that a forward pass prepares, {frames} frames", lambda: ipca.prepare(batch))
