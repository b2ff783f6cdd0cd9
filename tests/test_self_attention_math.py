"""Consistent self-attention: the float64 reference itself, from several sides, then the implementation against it."""

import math

import pytest
import torch
from comfy.ldm.modules.attention import attention_basic, attention_pytorch
from onestory.attention import gathered as gathered_module
from onestory.attention.gathered import consistent_attention
from onestory.attention.gathers import (
    anchor_gathers,
    anchor_sources,
    anchors_of,
    sample,
    tile_gathers,
    tiles_of,
)
from onestory.attention.schedule import Place, seeded
from onestory.attention.self_attention import SelfAttention
from reference import (
    ONE_LAYER,
    ONE_ROUNDING,
    anchor_frames,
    anchors_attention,
    plain_attention,
    relative_error,
    tile_starts,
    tiles_attention,
)

HEADS, DIM = 2, 8


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only wait for each other over tensors as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


# --- the implementation ----------------------------------------------------------------------------------------------

CPU = torch.device("cpu")
TRIO = (("Ann",), ("Bob",), ("Cat",), ("Ann", "Bob", "Cat"), (), ("Cat",), ("Bob",), ("Ann", "Cat"), ("Ann",))
TRIO += (("Bob",), (), ("Cat",))
TOGETHER = (("Ann", "Bob"), ("Ann", "Bob"), (), ("Ann", "Bob"), ("Bob",), ("Bob",))  # Ann is never alone


def plain(q, k, v, heads, **kwargs):
    """Scaled dot-product attention, with nothing of ComfyUI."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def both_branches(frames, tokens):
    """q, k, v in float32, [2 * frames, tokens, heads * dim]: unconditional rows behind conditional ones."""
    return tuple(x.float() for x in tensors(2 * frames, tokens))


def picked(tokens, rate, seed):
    """Section 5's sample: round(rate * tokens) positions."""
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: round(rate * tokens)]


def want_anchors(qkv, characters, anchors, samples):
    """The reference for both branches, each among itself."""
    rows = len(characters)
    lists = {f: s.tolist() for f, s in samples.items()}
    branches = [[x[start : start + rows] for x in qkv] for start in (0, rows)]
    return torch.cat([anchors_attention(*branch, HEADS, characters, anchors, lists) for branch in branches])


def got_anchors(qkv, characters, anchors, samples, attention=plain, starts=None):
    rows, tokens = len(characters), qkv[0].shape[1]
    sources = anchor_sources(characters, anchors)
    starts = [0, rows] if starts is None else starts
    gathers = anchor_gathers(sources, list(range(rows)), starts, tokens, samples.__getitem__, CPU)
    return consistent_attention(attention, *qkv, HEADS, gathers)


def check_anchors(characters, tokens, rate, anchors, attention=plain):
    qkv = both_branches(len(characters), tokens)
    by_name = anchor_frames(characters, anchors)
    samples = {f: picked(tokens, rate, f) for frames in by_name.values() for f in frames}
    got = got_anchors(qkv, characters, anchors, samples, attention)
    assert relative_error(got, want_anchors(qkv, characters, by_name, samples)) < ONE_LAYER


@pytest.mark.parametrize("frames", range(1, 13))
def test_anchors_equal_the_reference_for_any_number_of_frames_and_anchors(frames):
    for anchors in range(1, 7):
        check_anchors((("Ann",),) * frames, 35, 0.5, anchors)


@pytest.mark.parametrize("tokens", [35, 63, 77])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("characters", [SOLO, DUO, TRIO], ids=["one character", "two", "three"])
def test_anchors_equal_the_reference_at_any_rate_token_count_and_cast(characters, rate, tokens):
    check_anchors(characters, tokens, rate, anchors=2)


@pytest.mark.parametrize("attention", [attention_basic, attention_pytorch])
def test_anchors_and_tiles_equal_the_reference_with_the_hosts_own_attention(attention):
    check_anchors(TRIO, 35, 0.5, 1, attention)
    check_tiles(7, 35, 0.5, 3, attention)


def test_a_character_that_is_never_alone_is_anchored_where_it_is_shown():
    assert anchors_of(TOGETHER, 2) == {"Ann": [0, 1], "Bob": [4, 5]}
    qkv = both_branches(len(TOGETHER), 35)
    samples = {f: picked(35, 0.5, f) for f in (0, 1, 4, 5)}
    want = want_anchors(qkv, TOGETHER, {"Ann": [0, 1], "Bob": [4, 5]}, samples)
    assert relative_error(got_anchors(qkv, TOGETHER, 2, samples), want) < ONE_LAYER


def test_anchors_never_look_at_later_frames_and_nobody_at_a_frame_that_is_no_anchor():
    for characters in (SOLO, DUO, TRIO):
        for anchors in (1, 2, 4):
            of = anchor_frames(characters, anchors)
            for frame, sources in enumerate(anchor_sources(characters, anchors)):
                seen = {a for name in characters[frame] for a in of[name]}
                assert set(sources) == seen - {frame}


@pytest.mark.parametrize("characters", [DUO, TRIO], ids=["two characters", "three"])
def test_a_run_behind_its_anchors_is_computed_as_in_the_whole_story(characters):
    tokens, rows = 35, len(characters)
    q, k, v = both_branches(rows, tokens)
    samples = {f: picked(tokens, 0.5, f) for f in range(rows)}
    whole = got_anchors((q, k, v), characters, 2, samples)
    sources = anchor_sources(characters, 2)
    chunk = sorted({f for j in (rows - 1, rows - 2, 1) for f in [j, *sources[j]]})
    chunk = sorted({*chunk, *(s for f in chunk for s in sources[f])})
    assert len(chunk) < rows
    part = [*chunk, *(f + rows for f in chunk)]
    gathers = anchor_gathers(sources, chunk, [0, len(chunk)], tokens, samples.__getitem__, CPU)
    got = consistent_attention(plain, q[part], k[part], v[part], HEADS, gathers)
    assert relative_error(got, whole[part]) < ONE_ROUNDING


def want_tiles(qkv, groups, tile, samples):
    """The reference, group by group and branch by branch; rows in no group are plain. `samples[tile's frames]`."""
    rows = len(qkv[0]) // 2
    out = plain_attention(*qkv, HEADS)
    for start in (0, rows):
        for group in groups:
            at = [start + f for f in group]
            of_group = [samples[tuple(group[t : t + tile])].tolist() for t in tile_starts(len(group), tile)]
            out[at] = tiles_attention(*(x[at] for x in qkv), HEADS, tile, of_group)
    return out


def got_tiles(qkv, characters, tile, samples, attention=plain, starts=None):
    rows, tokens = len(characters), qkv[0].shape[1]
    tiles = tiles_of(characters, tile)
    starts = [0, rows] if starts is None else starts
    gathers = tile_gathers(tiles, list(range(rows)), starts, tokens, lambda t: samples[tuple(t)], CPU)
    return consistent_attention(attention, *qkv, HEADS, gathers)


def check_tiles(frames, tokens, rate, tile, attention=plain):
    characters, groups = (("Ann",),) * frames, [list(range(frames))]
    qkv = both_branches(frames, tokens)
    samples = {tuple(t): picked(tokens * len(t), rate, t[0]) for t in tiles_of(characters, tile)}
    if frames == 1:
        samples[0,] = torch.empty(0, dtype=torch.long)  # a frame alone is left plain
    got = got_tiles(qkv, characters, tile, samples, attention)
    assert relative_error(got, want_tiles(qkv, groups, tile, samples)) < ONE_LAYER


@pytest.mark.parametrize("frames", range(1, 13))
def test_tiles_equal_the_reference_for_any_number_of_frames_and_width(frames):
    for tile in (2, 3, 4, 7, 12):
        check_tiles(frames, 35, 0.5, tile)


@pytest.mark.parametrize("tokens", [35, 63, 77])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.75, 1.0])
def test_tiles_equal_the_reference_at_any_rate_and_token_count(rate, tokens):
    check_tiles(6, tokens, rate, 3)


def test_tiles_slide_over_the_frames_that_show_the_same_characters():
    groups = [[0, 4, 7], [1, 8], [2, 5, 6]]  # DUO's; frame 3 shows nobody
    assert tiles_of(DUO, 2) == [[0, 4], [4, 7], [1, 8], [2, 5], [5, 6]]
    qkv = both_branches(len(DUO), 35)
    samples = {tuple(t): picked(70, 0.5, t[0]) for t in tiles_of(DUO, 2)}
    assert relative_error(got_tiles(qkv, DUO, 2, samples), want_tiles(qkv, groups, 2, samples)) < ONE_LAYER


def test_both_branches_in_one_call_equal_two_calls():
    qkv = both_branches(len(DUO), 35)
    first, second = ([x[at] for x in qkv] for at in (slice(0, len(DUO)), slice(len(DUO), None)))
    samples = {f: picked(35, 0.5, f) for f in range(len(DUO))}
    tile_samples = {tuple(t): picked(70, 0.5, t[0]) for t in tiles_of(DUO, 2)}
    for got, drawn in ((got_anchors, samples), (got_tiles, tile_samples)):
        apart = torch.cat([got(branch, DUO, 2, drawn, starts=[0]) for branch in (first, second)])
        assert relative_error(got(qkv, DUO, 2, drawn), apart) < ONE_ROUNDING


def test_keys_gathered_for_a_few_rows_at_a_time_give_the_same(monkeypatch):
    qkv = both_branches(len(TRIO), 35)
    samples = {f: picked(35, 0.5, f) for f in range(len(TRIO))}
    tile_samples = {tuple(t): picked(35 * len(t), 0.5, t[0]) for t in tiles_of(TRIO, 2)}
    at_once = got_anchors(qkv, TRIO, 2, samples), got_tiles(qkv, TRIO, 2, tile_samples)
    for limit in (1, 2**14):
        monkeypatch.setattr(gathered_module, "GATHERED_ON_CPU", limit)
        few = got_anchors(qkv, TRIO, 2, samples), got_tiles(qkv, TRIO, 2, tile_samples)
        assert all(relative_error(*pair) < ONE_ROUNDING for pair in zip(few, at_once, strict=True))


def test_a_sample_has_the_rates_share_of_the_tokens_each_once_in_order():
    for tokens, rate, count in ((77, 0.5, 38), (63, 1.0, 63), (35, 0.0, 0), (1, 0.5, 0), (9, 0.75, 7)):
        positions = sample(tokens, rate, torch.Generator().manual_seed(0)).tolist()
        assert len(positions) == count
        assert positions == sorted(set(positions)) and all(0 <= p < tokens for p in positions)


def test_samples_cover_all_tokens_alike():
    drawn = torch.cat([sample(35, 0.4, seeded(0, step)) for step in range(2000)])
    assert torch.bincount(drawn, minlength=35).float().div(2000).sub(0.4).abs().max() < 0.05


def test_draws_depend_on_their_key_alone():
    torch.manual_seed(1)
    first, state = sample(77, 0.5, seeded(0, 3, 77, 2)), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(sample(77, 0.5, seeded(0, 3, 77, 2)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    others = [seeded(1, 3, 77, 2), seeded(0, 4, 77, 2), seeded(0, 3, 77, 1), seeded(2**64 - 1, 3, 77, 2)]
    assert all(not torch.equal(sample(77, 0.5, generator), first) for generator in others)
    assert all(generator.device == CPU for generator in others)


def chances(setting, *shares):
    """How likely a call is to be consistent at these shares of a schedule whose noise falls evenly from 1 to 0."""
    method = SelfAttention("anchors", 4, 4, 0.5, (), 0.0, 1.0, setting, 0)
    return [method.chance(Place(1 - share, lambda percent: 1 - percent)) for share in shares]


def test_the_released_probabilities_by_the_place_in_the_whole_schedule():
    assert chances("released", *(step / 10 for step in range(10))) == [0.0] + [0.7] * 3 + [0.9] * 6
    assert chances("released", 0.001, 0.39, 0.41, 1.0) == [0.7, 0.7, 0.9, 0.9]
    assert set(chances("always", *(step / 10 for step in range(10)))) == {1.0}
