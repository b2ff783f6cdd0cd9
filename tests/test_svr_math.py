"""Naive reweighting and SVR against an SVD, one frame prompt at a time, in float64."""

import math

import pytest
import torch
from onestory.svr.reweight import naive_reweight, singular_value_reweight
from reference import ONE_LAYER, relative_error
from reference import naive_reweight as naive_reference
from reference import singular_value_reweight as svr_reference
from stories import REFINER, SD2, SDXL, embeddings, mixed, record, repeat_words

STORIES = {
    "2 frames, 768": record([7, 9]),
    "12 frames, 768": record([3, 5, 4, 6, 3, 5, 4, 6, 3, 5, 4, 6]),
    "9 frames in windows of 4, 768": record([8, 3, 5, 9, 4, 6, 7, 3, 5], width=4),
    "one frame a window, 768": record([30, 25, 40], width=1),
    "one-token frames, 1024": record([1, 4, 1], encoders=SD2),
    "5 frames, one of one token, 1280": record([6, 1, 7, 3, 5], encoders=REFINER),
    "4 frames, encoders that differ, 768 + 1280": record([6, 4, 1, 8], encoders=SDXL, longer=(0, 2)),
    "3 of 12 frames in windows of 4, 768 + 1280": record([9] * 12, width=4, encoders=SDXL, longer=(1, 0)).select(
        [0, 7, 11]
    ),
    "no padding, 768": record([35, 34], identity=6),
}
PARAMETERS = [
    {},
    {"express_alpha": 0.02, "express_beta": 2.0, "suppress_alpha": 0.001, "suppress_beta": 1.0},
    {"express_alpha": 0.0, "express_beta": 1.0, "suppress_alpha": 0.0, "suppress_beta": 0.0},
    {"express_alpha": 0.0, "express_beta": 1.0, "suppress_alpha": 0.0, "suppress_beta": 1.0},
    {"express_alpha": -0.001, "express_beta": 1.5, "suppress_alpha": 0.5, "suppress_beta": 0.5},
]


def assert_agree(got, want, record, tolerance=ONE_LAYER):
    """Close as a whole, and in each span by itself: a suppressed span is far smaller than the others."""
    assert relative_error(got, want) < tolerance
    floor = 1e-12 * want.norm()
    for r, row in enumerate(record.rows):
        for encoder, spans in zip(record.encoders, row.spans, strict=True):
            for span in (spans.identity, *spans.frames, spans.eot):
                at = r, slice(*span), slice(*encoder.channels)
                off = (got[at].double() - want[at]).norm()
                assert off <= tolerance * want[at].norm() + floor, (row.frame, encoder.name, span, off, want[at].norm())


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("name", STORIES)
def test_svr_equals_the_papers_svd(name, variant):
    story = STORIES[name]
    embeds = embeddings(story, seed=len(name))
    got = singular_value_reweight(embeds, story, variant)
    assert got.shape == embeds.shape and got.dtype == embeds.dtype
    assert_agree(got, svr_reference(embeds, story, variant), story)


@pytest.mark.parametrize("eot", ["reweight", "scale"])
@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_svr_equals_the_papers_svd_whatever_the_parameters(parameters, variant, eot):
    story = record([4, 1, 6], tokens=40)
    embeds = embeddings(story, seed=1)
    got = singular_value_reweight(embeds, story, variant, eot=eot, **parameters)
    assert_agree(got, svr_reference(embeds, story, variant, eot=eot, **parameters), story)


@pytest.mark.parametrize("eot", ["reweight", "scale"])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_svr_equals_the_papers_svd_where_words_repeat(variant, eot):
    story = record([5, 1, 4, 2], tokens=50, encoders=(("l", 768), ("g", 1280)), longer=(0, 1))
    embeds = repeat_words(embeddings(story, seed=2), story)
    got = singular_value_reweight(embeds, story, variant, eot=eot)
    assert_agree(got, svr_reference(embeds, story, variant, eot=eot), story)


@pytest.mark.parametrize("norm, common", [(1e-3, 0.0), (1.0, 0.0), (28.0, 0.999999), (60.0, 0.5)])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_svr_equals_the_papers_svd_from_tiny_to_nearly_parallel_tokens(variant, norm, common):
    story = record([4, 5, 3], tokens=40)
    embeds = embeddings(story, seed=3, norm=norm, common=common)
    assert_agree(singular_value_reweight(embeds, story, variant), svr_reference(embeds, story, variant), story)


@pytest.mark.parametrize("eot", ["reweight", "scale"])
def test_svr_equals_the_papers_svd_in_half_precision_up_to_rounding(eot):
    story = record([4, 5, 3], tokens=40, encoders=SDXL)
    embeds = embeddings(story, seed=4, dtype=torch.float16)
    got = singular_value_reweight(embeds, story, eot=eot)
    want = svr_reference(embeds, story, eot=eot)
    assert got.dtype == torch.float16
    assert torch.equal(got, want.to(torch.float16)) or (got.double() - want).abs().max() <= want.abs().max() * 2**-10
    assert relative_error(got, want) < 1e-3


def test_svr_does_by_hand_what_orthogonal_tokens_ask_for():
    """Orthogonal tokens are their own singular vectors, with their norms as singular values."""
    story = record([2, 1, 1], identity=2, tokens=9)
    embeds = torch.zeros(3, 9, 768, dtype=torch.float64)
    norms = torch.tensor([5.0, 6.0, 7.0, 20.0, 10.0, 30.0, 40.0, 50.0, 60.0])
    embeds[:, range(9), range(9)] = norms.double()
    want = embeds.clone()
    for row, frame in enumerate([(3, 4), (5,), (6,)]):
        s = norms.tolist()
        for k, prompt in enumerate([(3, 4), (5,), (6,)]):
            if k != row:
                for t in (*prompt, 7, 8):
                    s[t] *= 0.05 * math.exp(-0.01 * s[t])
        for t in (*frame, 7, 8):
            s[t] *= math.exp(0.01 * s[t])
        want[row, range(9), range(9)] = torch.tensor(s, dtype=torch.float64)
    assert relative_error(singular_value_reweight(embeds, story), want) < 1e-12


def test_svr_scales_equal_tokens_by_the_one_singular_value_they_share():
    """n equal tokens of norm a have one singular value, a * sqrt(n)."""
    story = record([3, 1], identity=1, tokens=10)
    embeds = torch.zeros(2, 10, 768)
    embeds[..., 0] = 28.0
    off = {"suppress_alpha": 0.0, "suppress_beta": 1.0}
    got = singular_value_reweight(embeds, story, express_alpha=0.01, express_beta=1.5, **off)
    factor = 1.5 * math.exp(0.01 * 28.0 * math.sqrt(3 + 4))
    own = [2, 3, 4, 6, 7, 8, 9]
    torch.testing.assert_close(got[0, own], embeds[0, own] * factor, rtol=1e-6, atol=1e-9)


LONE = {
    "a story of one frame": record([5]),
    "one frame a window": record([30, 25, 40], width=1),
    "one frame a window, two encoders": record([3, 4], width=1, encoders=SDXL, longer=(0, 1)),
    "lone frames among others": mixed(record([4, 6, 3]), record([4, 6], width=1), record([6, 4, 5, 3], width=2)),
}


@pytest.mark.parametrize("eot", ["reweight", "scale"])
@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("name", LONE)
def test_a_frame_alone_in_its_window_stays_bit_for_bit_and_the_others_are_as_without_it(name, variant, eot):
    story = LONE[name]
    embeds = embeddings(story, seed=10, appended=3)
    embeds[:, 9] *= -0.0  # signed zeros too
    out = singular_value_reweight(embeds, story, variant, express_beta=3.0, eot=eot), naive_reweight(embeds, story)
    alone = [r for r, row in enumerate(story.rows) if len(row.window) == 1]
    others = [r for r, row in enumerate(story.rows) if len(row.window) > 1]
    for got in out:
        assert got.data_ptr() != embeds.data_ptr()
        assert torch.equal(got[alone].view(torch.int32), embeds[alone].view(torch.int32))
    if others:
        without = singular_value_reweight(embeds[others], story.select(others), variant, express_beta=3.0, eot=eot)
        torch.testing.assert_close(out[0][others], without, rtol=1e-6, atol=1e-9)
        assert_agree(out[0], svr_reference(embeds, story, variant, express_beta=3.0, eot=eot), story)


def test_equal_prompts_in_different_windows_and_places_are_not_mixed():
    """Every row is the same embedding; rows differ in what they express, in their spans, or in both."""
    story = mixed(record([5, 5]), record([5]), record([3, 7]), record([10]), record([5, 5]))
    embeds = embeddings(record([5]), seed=11).repeat(len(story.rows), 1, 1)
    got = singular_value_reweight(embeds, story)
    assert_agree(got, svr_reference(embeds, story), story)
    assert torch.equal(got[0], got[6]) and torch.equal(got[1], got[7])
    assert not torch.equal(got[0], got[1]) and not torch.equal(got[0], got[3])


@pytest.mark.parametrize("eot", ["reweight", "scale"])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_interleaved_tokens_are_reweighted_as_keys_and_as_values(variant, eot):
    """NegPiP: each token stands as key and as value, side by side; values of negative weights are negated keys."""
    story = record([4, 5, 3], tokens=40, encoders=SDXL, longer=(0, 1))
    keys = embeddings(story, seed=12)
    signs = torch.ones(40, 1)
    signs[[2, 9, 14]] = -1
    embeds = torch.stack([keys, keys * signs], dim=2).flatten(1, 2)
    embeds = torch.cat([embeds, embeddings(story, seed=13)], dim=1)
    twice = story._replace(interleaved=2)
    for reweight, settings in ((singular_value_reweight, {"variant": variant, "eot": eot}), (naive_reweight, {})):
        got, want = reweight(embeds, twice, **settings), reweight(keys, story, **settings)
        assert_agree(got[:, 0:80:2], want.double(), story)
        assert_agree(got[:, 1:80:2], (want * signs).double(), story)
        assert torch.equal(got[:, 80:], embeds[:, 80:])


@pytest.mark.parametrize("eot", ["reweight", "scale"])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_svr_leaves_sot_identity_and_what_others_appended_bit_equal(variant, eot):
    story = record([4, 5, 1], tokens=40, encoders=SDXL, longer=(0, 1))
    embeds = embeddings(story, seed=5, appended=77)
    before = embeds.clone()
    got = singular_value_reweight(embeds, story, variant, eot=eot)
    assert torch.equal(embeds, before)
    for r, row in enumerate(story.rows):
        for encoder, spans in zip(story.encoders, row.spans, strict=True):
            channels = slice(*encoder.channels)
            assert torch.equal(got[r, : spans.identity.stop, channels], embeds[r, : spans.identity.stop, channels])
    assert torch.equal(got[:, 40:], embeds[:, 40:])
    torch.testing.assert_close(got[:, :40], singular_value_reweight(embeds[:, :40].clone(), story, variant, eot=eot))


def test_svr_of_some_rows_is_those_rows_of_svr():
    story = record([4, 5, 3, 6], width=2, tokens=40)
    embeds = embeddings(story, seed=6)
    whole = singular_value_reweight(embeds, story)
    for rows in ([2], [3, 0], [1, 1, 2]):
        part = singular_value_reweight(embeds[rows], story.select(rows))
        torch.testing.assert_close(part, whole[rows], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "dtype, variant, parameters, to_lower",
    [
        (torch.float32, "released", {"express_alpha": 5.0, "suppress_alpha": 0.0}, "express_alpha"),
        (torch.float32, "paper", {"express_alpha": 5.0}, "express_alpha"),
        (torch.float32, "paper", {"express_alpha": 0.8, "suppress_alpha": 0.0, "suppress_beta": 1.0}, "express_alpha"),
        (torch.float16, "paper", {"express_alpha": 0.1, "suppress_alpha": 0.0, "suppress_beta": 1.0}, "express_alpha"),
        (torch.float32, "released", {"express_alpha": 0.0, "express_beta": 1e39, "suppress_beta": 1.0}, "express_beta"),
        (torch.float32, "released", {"express_alpha": 0.0, "suppress_beta": 1e39}, "suppress_beta"),
        (torch.float32, "paper", {"express_alpha": 0.0, "suppress_beta": 1e39}, "suppress_beta"),
    ],
)
def test_svr_that_overflows_names_the_frame_and_the_parameter_to_lower(dtype, variant, parameters, to_lower):
    story = record([4, 5, 3], tokens=40)
    embeds = embeddings(story, seed=7, dtype=torch.float32)
    embeds[[0, 2]] *= 1e-40  # only frame 2 is large enough to overflow
    with pytest.raises(ValueError, match=rf"frame 2\b.*lower [^;]*\b{to_lower}\b"):
        singular_value_reweight(embeds.to(dtype), story, variant, **parameters)


@pytest.mark.parametrize("name", STORIES)
def test_naive_reweighting_equals_the_formula(name):
    story = STORIES[name]
    embeds = embeddings(story, seed=8, appended=10)
    before = embeds.clone()
    for factors in ((2.0, 0.5), (1.3, 0.0)):
        want = naive_reference(embeds, story, *factors)
        got = naive_reweight(embeds, story, *factors)
        assert got.dtype == embeds.dtype
        assert_agree(got, want, story, tolerance=1e-7)
    assert torch.equal(naive_reweight(embeds, story), naive_reference(embeds, story, 2.0, 0.5).float())
    assert torch.equal(embeds, before)


def test_naive_reweighting_leaves_everything_but_frame_prompts_bit_equal():
    story = record([4, 5, 1], tokens=40, encoders=SDXL, longer=(0, 1))
    embeds = embeddings(story, seed=9, appended=77)
    got = naive_reweight(embeds, story, 1.7, 0.3)
    for r, row in enumerate(story.rows):
        for encoder, spans in zip(story.encoders, row.spans, strict=True):
            channels = slice(*encoder.channels)
            for at in (slice(0, spans.identity.stop), slice(spans.eot.start, None)):
                assert torch.equal(got[r, at, channels], embeds[r, at, channels])
