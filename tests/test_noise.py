"""The bounds on float noise let right results pass on any machine, and nothing that is slightly wrong."""

import pytest
from families import QWEN_IMAGE
from graphs import ipca, sample, scaled_error
from joint import overridden
from noise import PROMISED, Bounds
from test_families import References, columns, graph


@pytest.fixture(scope="module")
def given():
    return graph(QWEN_IMAGE)


@pytest.fixture(scope="module")
def bounds(given):
    return Bounds(QWEN_IMAGE.model(), *given)


def by_reference(given, kept, cfg):
    references = References(QWEN_IMAGE, given[:2], columns=kept, strength=1)
    return sample(overridden(QWEN_IMAGE.model(), references), *given, cfg=cfg)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_a_strength_that_is_two_percent_off_and_a_missing_token_are_outside(given, bounds, cfg):
    kept, model = columns(given[0]), QWEN_IMAGE.model()
    want = by_reference(given, kept, cfg)
    assert scaled_error(sample(ipca(model), *given, cfg=cfg), want) < bounds(cfg=cfg) < PROMISED
    assert scaled_error(sample(ipca(model, strength=1.02), *given, cfg=cfg), want) > bounds(cfg=cfg)
    assert scaled_error(by_reference(given, [row[1:] for row in kept], cfg), want) > PROMISED
