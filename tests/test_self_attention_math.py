"""Consistent self-attention in float64: the reference itself, from several sides."""

import math

import pytest
import torch
from reference import anchor_frames, anchors_attention, plain_attention, relative_error, tile_starts, tiles_attention

HEADS, DIM = 2, 8


def tensors(frames, tokens, seed=0):
    """q, k, v [frames, tokens, heads * dim]."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(frames, tokens, HEADS * DIM, generator=generator, dtype=torch.float64) for _ in range(3))


def draw(size, rate, seed):
    """Positions below `size`, each taken with probability `rate`, as the released code draws them."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(size, generator=generator) < rate).nonzero()[:, 0]


def scaled_dot_product(q, k, v, mask=None):
    """[queries, heads * dim] for one row, by torch."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1).flatten(-2)


SOLO = (("Ann",),) * 6
DUO = (("Ann",), ("Ann", "Bob"), ("Bob",), (), ("Ann",), ("Bob",), ("Bob",), ("Ann",), ("Ann", "Bob"))


def test_anchors_are_the_first_frames_that_show_a_character_alone():
    assert anchor_frames(SOLO, 4) == {"Ann": [0, 1, 2, 3]}
    assert anchor_frames(DUO, 2) == {"Ann": [0, 4], "Bob": [2, 5]}


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tokens", [1, 15])
@pytest.mark.parametrize("characters", [SOLO, DUO])
@pytest.mark.parametrize("anchors", [1, 4])
def test_anchors_reference_equals_the_released_codes_concatenation(characters, tokens, rate, anchors):
    """Released low-memory code: keys are the samples of the other anchors, then the frame's own tokens."""
    q, k, v = tensors(len(characters), tokens)
    by_name = anchor_frames(characters, anchors)
    samples = {f: draw(tokens, rate, f) for frames in by_name.values() for f in frames}
    got = anchors_attention(q, k, v, HEADS, characters, by_name, samples)
    for i, shown in enumerate(characters):
        others = [f for name in shown for f in by_name[name] if f != i]
        keys, values = (torch.cat([x[f][samples[f]] for f in others] + [x[i]]) for x in (k, v))
        torch.testing.assert_close(got[i], scaled_dot_product(q[i], keys, values))


def test_anchors_reference_of_a_chunk_behind_its_anchors_is_the_whole_storys():
    q, k, v = tensors(len(DUO), 15)
    by_name = anchor_frames(DUO, 2)
    samples = {f: draw(15, 0.5, f) for frames in by_name.values() for f in frames}
    whole = anchors_attention(q, k, v, HEADS, DUO, by_name, samples)
    chunk = [0, 2, 4, 5, 7, 8]
    by_place = {name: [chunk.index(f) for f in frames] for name, frames in by_name.items()}
    at_place = {chunk.index(f): samples[f] for f in samples}
    part = anchors_attention(q[chunk], k[chunk], v[chunk], HEADS, [DUO[f] for f in chunk], by_place, at_place)
    torch.testing.assert_close(part, whole[chunk])


@pytest.mark.parametrize("frames, tile", [(1, 4), (3, 4), (4, 4), (5, 4), (12, 4), (7, 1), (6, 2)])
@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_tiles_reference_equals_attention_that_counts_sampled_own_tokens_twice(frames, tile, rate):
    """The paper's concatenation is a mask with log 2 where an own token was sampled too."""
    tokens = 15
    q, k, v = tensors(frames, tokens)
    width = min(tile, frames)
    starts = tile_starts(frames, tile)
    assert len(starts) == frames - width + 1
    samples = [draw(width * tokens, rate, n) for n in range(len(starts))]
    got = tiles_attention(q, k, v, HEADS, tile, samples)
    for i in range(frames):
        outs = []
        for n, start in enumerate(starts):
            if start <= i < start + width:
                times = torch.zeros(width * tokens, dtype=torch.float64)
                times[samples[n]] += 1
                times[(i - start) * tokens : (i - start + 1) * tokens] += 1
                keys, values = (x[start : start + width].flatten(0, 1) for x in (k, v))
                outs.append(scaled_dot_product(q[i], keys, values, times.log().expand(tokens, -1)))
        torch.testing.assert_close(got[i], torch.stack(outs).mean(0))


def test_rate_zero_or_one_frame_is_plain_attention():
    q, k, v = tensors(6, 15)
    plain = plain_attention(q, k, v, HEADS)
    nothing = torch.empty(0, dtype=torch.long)
    by_name = anchor_frames(SOLO, 4)
    none = anchors_attention(q, k, v, HEADS, SOLO, by_name, dict.fromkeys(range(4), nothing))
    torch.testing.assert_close(none, plain)
    torch.testing.assert_close(tiles_attention(q, k, v, HEADS, 4, [nothing] * 3), plain)
    one = anchors_attention(q[:1], k[:1], v[:1], HEADS, SOLO[:1], {"Ann": [0]}, {0: torch.arange(15)})
    torch.testing.assert_close(one, plain[:1])


def test_everything_sampled_is_attention_over_all_frames_at_once():
    q, k, v = tensors(4, 15)
    got = anchors_attention(q, k, v, HEADS, SOLO[:4], {"Ann": [0, 1, 2, 3]}, dict.fromkeys(range(4), torch.arange(15)))
    together = plain_attention(*(x.reshape(1, 60, -1) for x in (q, k, v)), HEADS).reshape(4, 15, -1)
    assert relative_error(got, together) < 1e-12


def test_an_anchor_ignores_its_own_sample_and_a_tile_counts_it():
    """One token each, alike but for their values: the weights can be read off the output."""
    q, k = torch.zeros(2, 1, 16, dtype=torch.float64), torch.zeros(2, 1, 16, dtype=torch.float64)
    v = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None].expand(2, 1, 16)
    anchors = anchors_attention(q, k, v, HEADS, SOLO[:2], {"Ann": [0, 1]}, {0: [0], 1: [0]})
    assert anchors[:, 0, 0].tolist() == pytest.approx([1 / 2, 1 / 2])
    tiles = tiles_attention(q, k, v, HEADS, 2, [[0, 1]])
    assert tiles[:, 0, 0].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert math.isclose(tiles_attention(q, k, v, HEADS, 2, [[0]])[0, 0, 0].item(), 0.0)
