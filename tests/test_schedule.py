"""A step is what it is by its place in the model's whole schedule: however the steps are divided among samplers."""

import pytest
import torch
from graphs import empty, encode, ipca, ksampler, positive, sample, scaled_error, self_attention, story
from noise import PROMISED
from warned import warnings_of

STEPS = 6
DIVISIONS = {
    "one sampler": [(0, 6)],
    "two halves": [(0, 3), (3, 6)],
    "a base and a refiner": [(0, 5), (5, 6)],
    "six single steps": [(n, n + 1) for n in range(6)],
}


@pytest.fixture(scope="module")
def tale():
    return story("a red fox", "runs", "sleeps", "eats")


@pytest.fixture(scope="module")
def graph(sd, tale):
    return positive(sd.clip, tale), encode(sd.clip, "blurry"), empty(tale, 56, 40)


def in_steps(model, graph, division, **sampling):
    """KSampler (Advanced) after KSampler (Advanced), each with its part of the steps."""
    conditioning, negative, latent = graph
    for start, end in division:
        part = {"start_step": start, "last_step": end, "disable_noise": start > 0}
        latent = ksampler(
            model, conditioning, negative, latent, steps=STEPS, force_full_denoise=end == STEPS, **part, **sampling
        )
    return latent["samples"]


@pytest.mark.parametrize(
    "settings", [{"probability": "released"}, {"variant": "tiles", "end_percent": 0.6}], ids=["released", "tiles"]
)
def test_pictures_do_not_depend_on_how_the_steps_are_divided_among_samplers(sd, graph, settings):
    model = ipca(self_attention(sd.model, **settings), dropout=0.3)
    whole, *others = (in_steps(model, graph, division) for division in DIVISIONS.values())
    assert scaled_error(whole, in_steps(sd.model, graph, [(0, 6)])) > 100 * PROMISED
    for got in others:
        assert scaled_error(got, whole) < PROMISED


def test_a_second_pass_shares_from_its_first_step(sd, graph, caplog):
    """An image-to-image pass of one step begins far below the schedule's first step."""
    conditioning, negative, latent = graph
    first = ksampler(sd.model, conditioning, negative, latent, steps=4)
    got, plain = (
        sample(model, conditioning, negative, first, steps=1, denoise=0.3)
        for model in (self_attention(sd.model, probability="released", blocks="all"), sd.model)
    )
    assert scaled_error(got, plain) > 100 * PROMISED
    assert warnings_of(caplog) == []


def test_a_run_that_gets_none_of_it_is_one_warning(sd, graph, caplog):
    """A turbo model's single step is the first step, which the released code leaves out."""
    model = self_attention(sd.model, probability="released")
    assert torch.equal(sample(model, *graph, steps=1), sample(sd.model, *graph, steps=1))
    [warning] = warnings_of(caplog)
    assert "Consistent Self-Attention does nothing in this sampler" in warning
    assert "set its `probability` to “always”" in warning


@pytest.mark.parametrize(
    "wire",
    [
        lambda m: self_attention(m, probability="always"),
        lambda m: self_attention(self_attention(m, probability="released"), sampling_rate=0.0),
        lambda m: self_attention(self_attention(m, probability="released"), probability="always"),
        lambda m: self_attention(m, probability="released", start_percent=0.5),
    ],
    ids=["always", "switched off after", "overruled", "not on yet"],
)
def test_there_is_no_warning_where_it_is_on_or_was_taken_off_on_purpose(sd, graph, caplog, wire):
    sample(wire(sd.model), *graph, steps=1)
    assert warnings_of(caplog) == []
