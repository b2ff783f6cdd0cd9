"""Story Delay: one conditioning and then another one are two samplers that hand the latent over."""

import pytest
import torch
from graphs import empty, encode, ipca, ksampler, positive, sample, scaled_error, story
from noise import PROMISED
from onestory.nodes.delay import OneStoryDelay

FRAMES = "runs", "sleeps"
PLAIN, FULL = story("an animal", *FRAMES), story("a watercolor of a red fox", *FRAMES)


def delayed(before, after, percent):
    return OneStoryDelay.execute(before, after, percent).result[0]


@pytest.fixture(scope="module")
def both(sd):
    return positive(sd.clip, PLAIN), positive(sd.clip, FULL)


@pytest.mark.parametrize("percent", [0.3, 0.5])
def test_it_equals_two_samplers(sd, both, negative, percent):
    model, latent = ipca(sd.model), empty(PLAIN, 40, 64)
    before, after = both
    got = sample(model, delayed(before, after, percent), negative, latent)
    half = ksampler(model, before, negative, latent, last_step=1)
    want = sample(model, after, negative, half, start_step=1, disable_noise=True)
    assert scaled_error(got, want) < PROMISED
    assert scaled_error(got, sample(model, after, negative, latent)) > 1e-3


def test_at_the_ends_one_of_them_is_alone(both):
    before, after = both
    for percent, (embeds, _) in ((0.0, after[0]), (1.0, before[0])):
        [[kept, options]] = delayed(before, after, percent)
        assert torch.equal(kept, embeds) and (options["start_percent"], options["end_percent"]) == (0.0, 1.0)


def test_ranges_that_are_there_already_are_kept(both):
    before, after = ([[c[0][0], {**c[0][1], "start_percent": 0.1, "end_percent": 0.7}]] for c in both)
    ranges = [(o["start_percent"], round(o["end_percent"], 3)) for _, o in delayed(before, after, 0.4)]
    assert ranges == [(0.1, 0.4), (0.4, 0.7)]


def test_other_frames_get_a_sentence(sd, both):
    with pytest.raises(ValueError, match="has 2 frames in `before` and 1 in `after`"):
        delayed(both[0], encode(sd.clip, "a fox"), 0.2)
