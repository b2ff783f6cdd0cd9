"""IPCA's bias against explicit second copies of keys and values, in float64."""

import math

import pytest
import torch
from onestory.attention.ipca import biased_attention, identity_bias
from reference import ONE_LAYER, ONE_ROUNDING, kept_columns, plain_attention, relative_error
from reference import identity_attention as identity_reference
from stories import REFINER, SD2, SD15, SDXL, record

STORIES = {
    "2 frames, SD1.5": record([7, 9], encoders=SD15),
    "12 frames, SD2": record([3, 5, 4, 6, 3, 5, 4, 6, 3, 5, 4, 6], encoders=SD2),
    "one-token frames in windows of 3, refiner": record([1, 8, 1, 9, 5], width=3, encoders=REFINER),
    "one-token identity, SDXL": record([6, 4, 1, 8], encoders=SDXL, identity=1),
    "encoders that differ, SDXL": record([6, 4, 1, 8], width=3, encoders=SDXL, longer=(0, 3)),
    "no padding, SD1.5": record([35, 34], identity=6),
    "some rows, out of order": record([6, 9, 5, 8], width=2).select([3, 0, 3]),
}


def scaled_dot_product(q, k, v, heads, mask=None, **kwargs):
    """ComfyUI's attention functions, reduced to torch's."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(-2)


def identity_attention(q, k, v, heads, record, strength, variant, own_tokens=None, plain_rows=0):
    """One cross-attention of a batch: `plain_rows` rows without a story first, then the story's."""
    own_tokens = own_tokens or k.shape[1]
    repeats = k.shape[1] // own_tokens
    rows = [identity_bias(row, record, strength, variant, own_tokens, repeats) for row in record.rows]
    none = torch.zeros_like(rows[0])
    none[:, k.shape[1] :] = -math.inf
    return biased_attention(scaled_dot_product, q, k, v, heads, torch.stack([none] * plain_rows + rows).to(q))


def tensors(rows, context, heads=4, dim=40, queries=24, seed=0, dtype=torch.float32, spread=2.0):
    """q [rows, queries, heads * dim]; k and v [rows, context, heads * dim]; logits with a deviation of `spread`."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(rows, n, heads * dim, generator=generator, dtype=torch.float64) for n in (queries, context, context)
    )
    return (spread * q).to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("name", STORIES)
def test_ipca_equals_attention_over_concatenated_copies(name, variant, strength):
    story = STORIES[name]
    q, k, v = tensors(len(story.rows), story.tokens, seed=len(name))
    want = identity_reference(q, k, v, 4, story, strength, variant)
    got = identity_attention(q, k, v, 4, story, strength, variant)
    assert got.shape == q.shape and got.dtype == q.dtype
    assert relative_error(got, want) < ONE_LAYER
    for i in range(len(story.rows)):
        assert relative_error(got[i], want[i]) < ONE_LAYER


@pytest.mark.parametrize("spread", [0.01, 8.0])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_ipca_equals_the_copies_for_flat_and_for_sharp_attention(variant, spread):
    story = record([6, 4, 1, 8])
    q, k, v = tensors(4, 77, seed=1, spread=spread)
    want = identity_reference(q, k, v, 4, story, 1.0, variant)
    assert relative_error(identity_attention(q, k, v, 4, story, 1.0, variant), want) < ONE_LAYER


@pytest.mark.parametrize("appended", [0, 5, 77])
@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_ipca_equals_the_copies_where_comfyui_repeats_the_context_and_nodes_append_to_it(variant, repeats, appended):
    story = record([4, 1, 6], tokens=30)
    own = 30 + appended
    q, k, v = tensors(3, own, queries=10, seed=2)
    k, v = k.repeat(1, repeats, 1), v.repeat(1, repeats, 1)
    want = identity_reference(q, k, v, 4, story, 0.7, variant, own_tokens=own)
    got = identity_attention(q, k, v, 4, story, 0.7, variant, own_tokens=own)
    assert relative_error(got, want) < ONE_LAYER
    once = identity_reference(q, k[:, :own], v[:, :own], 4, story, 0.7, variant)
    assert relative_error(got, once) < ONE_LAYER, "repeating a context changes nothing"


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_rows_without_a_story_keep_their_attention(variant, strength):
    story = record([4, 1, 6])
    q, k, v = tensors(8, 77, seed=3)
    got = identity_attention(q, k, v, 4, story, strength, variant, plain_rows=5)
    plain = scaled_dot_product(q, k, v, 4)
    assert relative_error(got[5:], identity_reference(q[5:], k[5:], v[5:], 4, story, strength, variant)) < ONE_LAYER
    assert relative_error(got[:5], plain[:5]) < ONE_ROUNDING
    masked = scaled_dot_product(q, k, v, 4, mask=torch.zeros(8, 1, 77))
    if variant == "released":
        assert torch.equal(got[:5], masked[:5])
    assert relative_error(got[5:], plain[5:]) > 1e-2


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_ipca_in_half_precision_is_as_close_as_plain_attention_is(variant):
    story = record([4, 1, 6])
    q, k, v = tensors(3, 77, seed=4, dtype=torch.float16)
    got = identity_attention(q, k, v, 4, story, 1.0, variant)
    want = identity_reference(q, k, v, 4, story, 1.0, variant)
    plain = relative_error(scaled_dot_product(q, k, v, 4), plain_attention(q, k, v, 4))
    assert got.dtype == torch.float16
    assert relative_error(got, want) < 3 * plain + 1e-3


@pytest.mark.parametrize("kind", ["per query", "shared by queries"])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_ipca_respects_a_mask_that_is_there_already(variant, kind):
    """The mask hides keys of the first copy and their duplicates alike: as if these tokens had not been there."""
    story = record([4, 1, 6], tokens=30)
    q, k, v = tensors(3, 30, queries=10, seed=5)
    bias = torch.stack([identity_bias(row, story, 1.0, variant, 30) for row in story.rows])
    mask = torch.zeros(3, 10 if kind == "per query" else 1, 30)
    mask[:, :, 2:4] = -math.inf
    got = biased_attention(scaled_dot_product, q, k, v, 4, bias, mask=mask)
    visible = [t for t in range(30) if t not in (2, 3)]
    shorter = record([4, 1, 6], tokens=28, identity=4)
    want = identity_reference(q, k[:, visible], v[:, visible], 4, shorter, 1.0, variant)
    assert relative_error(got, want) < ONE_LAYER


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_drops_single_second_copies_for_single_queries(p, variant, repeats):
    """Read off the bias which second copies were dropped, then drop exactly these from the reference."""
    story = record([4, 1, 6], tokens=30)
    own, queries = 33, 200
    q, k, v = tensors(3, own, queries=queries, seed=6)
    k, v = k.repeat(1, repeats, 1), v.repeat(1, repeats, 1)
    bias = torch.stack(
        [
            identity_bias(
                row, story, 0.8, variant, own, repeats, p, queries, generator=torch.Generator().manual_seed(row.frame)
            )
            for row in story.rows
        ]
    )
    context = repeats * own
    dropped = torch.zeros(3, queries, context, dtype=torch.bool)
    for i, row in enumerate(story.rows):
        identity, eot = kept_columns(row, story.tokens)
        kept = identity + eot * (variant == "paper")
        columns = [r * own + t for r in range(repeats) for t in range(own)]
        copied = [c for c in columns if c % own in kept]
        dropped[i][:, copied] = bias[i][:, copied] == 0
        there = bias[i][:, copied][bias[i][:, copied] != 0]
        torch.testing.assert_close(there, torch.full_like(there, math.log(1.8)))
        assert not bias[i][:, [c for c in columns if c not in copied]].any()
        assert abs(dropped[i][:, copied].double().mean() - p) < 0.05
        if variant == "paper":  # its zeroed copies are alike: only how many are left shows
            zeroed = [c for c in columns if c % own < story.tokens and c % own not in kept]
            left = (bias[i][:, context].double().exp() / 0.8).round().long()
            assert abs(left.double().mean() / len(zeroed) - (1 - p)) < 0.05
            for query in range(queries):
                dropped[i, query, zeroed[: len(zeroed) - left[query]]] = True
    want = identity_reference(q, k, v, 4, story, 0.8, variant, own_tokens=own, dropped=dropped)
    assert relative_error(biased_attention(scaled_dot_product, q, k, v, 4, bias), want) < ONE_LAYER
