"""Pictures between a story's frames: text and noise lie between theirs, and they look at both."""

import pytest
import torch
import torch.nn.functional as F
from graphs import empty, ipca, ksampler, positive, random, sample, sample_advanced, scaled_error, self_attention, story
from onestory.attention.between import slerp
from onestory.nodes.between import OneStoryInBetweens
from onestory.nodes.passes import OneStoryRuns
from onestory.svr.record import KEY

TALE = story("[Mia] a girl\n[Otto] an owl", "[Mia] runs", "[Mia] eats", "[Otto] flies", "[NC] a castle")
STORY = [0, 3, 6, 9]
"""The rows of a film with two pictures in each gap that are the story's own frames."""


@pytest.fixture(scope="module")
def tale():
    return TALE


def between(model, conditioning, latent, count=2, pairs="all neighbours", cuts="", negative=None, **more):
    reach = {"blocks": "all", "start_percent": 0.0, "end_percent": 1.0} | more
    return OneStoryInBetweens.execute(
        model, conditioning, latent, count, pairs, cuts=cuts, negative=negative, **reach
    ).result


@pytest.mark.parametrize("patches", [(), (ipca, self_attention), (self_attention,)], ids=["alone", "both", "self"])
def test_the_storys_own_frames_are_in_the_film_as_they_were(sd, frames, negative, patches):
    model = sd.model
    for each in patches:
        model = each(model)
    latent = empty(TALE)
    want = sample(model, frames, negative, latent)
    patched, conditioning, stretched, _ = between(model, frames, latent)
    film = sample(patched, conditioning, negative, stretched)
    assert len(film) == 10
    assert scaled_error(film[STORY], want) < 1e-4
    gaps = film.diff(dim=0).flatten(1).norm(dim=1).view(3, 3)
    assert (gaps < (want.diff(dim=0).flatten(1).norm(dim=1))[:, None]).all()
