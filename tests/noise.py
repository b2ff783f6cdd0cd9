"""How far apart two right computations of one thing may be: what the tests' bounds on float noise rest on."""

import torch
from graphs import sample, scaled_error
from joint import overridden
from reference import ONE_ROUNDING

TIMES = 8
"""A difference is a draw of noise as the measured one is, of one element in thousands: the tail is this much wider."""

PROMISED = 1e-4
"""What the pack promises of a frame that is drawn in another batch: kernels add up in another order there, in every
layer and step. `test_noise.py` measures that this lies above the noise of such runs and below a wrong formula."""


def in_float64(func, q, k, v, heads, mask=None, **options):
    """An attention override: the host's attention, in float64."""
    if mask is not None and mask.is_floating_point():
        mask = mask.double()
    return func(q.double(), k.double(), v.double(), heads, mask=mask, **options).to(q.dtype)


def measured(model, *given, run=sample, error=scaled_error, **sampling) -> float:
    """The host's own noise: its run of this graph against the same with its attention in float64."""
    return error(run(model, *given, **sampling), run(overridden(model, in_float64), *given, **sampling))


def bound(model, *given, **how) -> float:
    """Two right runs of this graph, on this host and machine, are nearer than this: `TIMES` its measured noise.

    Layers and steps carry rounding on, and CFG multiplies it: no one number holds for all models.
    """
    found = TIMES * measured(model, *given, **how)
    assert found < 1e-3, "the noise would hide what the tests look for"
    return max(found, ONE_ROUNDING)


class Bounds:
    """The bounds of a graph, measured once for each way to sample it: `bounds(cfg=1.0)`."""

    def __init__(self, model, *given, **how):
        self.graph, self.how = (model, *given), how
        self.found = {}

    def __call__(self, **sampling) -> float:
        key = tuple(sorted(sampling.items()))
        if key not in self.found:
            with torch.inference_mode():
                self.found[key] = bound(*self.graph, **self.how, **sampling)
        return self.found[key]
