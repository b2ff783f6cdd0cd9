"""Where a step stands in a model's whole noise schedule, whatever sampler it belongs to; and draws seeded by that."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Place(NamedTuple):
    """The noise level `sigma` in a model's schedule, where `to_sigma(0.0)` is its start and `to_sigma(1.0)` its end."""

    sigma: float
    to_sigma: Callable[[float], float]

    def reached(self, percent: float) -> bool:
        return self.sigma <= self.to_sigma(percent)

    def between(self, start: float, end: float) -> bool:
        """Whether it lies between two shares of the schedule, ends included, as ComfyUI counts them."""
        return self.to_sigma(end) <= self.sigma <= self.to_sigma(start)

    @property
    def key(self) -> str:
        """What draws at this place are seeded by: the same on every device, which may differ in the last digit."""
        return f"{self.sigma:.5g}"


def seeded(*key: Any) -> torch.Generator:
    """A generator that depends on `key` alone: the same draws on every device and beside any other rows."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
