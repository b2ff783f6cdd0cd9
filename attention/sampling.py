"""One run of a sampler: which methods it uses where, and what has been said about it."""

import logging
from functools import cache
from typing import Any

from ..svr.record import Record
from .architectures import layers_of
from .blocks import Block
from .method import Method
from .schedule import Place


class Sampling:
    """One run of a sampler: its methods, the model's architecture and schedule, and what has been said already."""

    def __init__(self, patcher: Any, methods: tuple[Method, ...]):
        layers = layers_of(patcher.model)
        assert layers is not None
        self.architecture, self.blocks = layers
        self.reach = {method: layers.selected(method.blocks) for method in methods}
        self.to_sigma = cache(patcher.get_model_object("model_sampling").percent_to_sigma)
        self.methods = methods
        self.told: set[str] = set()
        self.skipped: dict[str, set[Block]] = {}

    def warn(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            logging.warning("OneStory: %s", text)

    def skip(self, reason: str, block: Block) -> None:
        self.skipped.setdefault(reason, set()).add(block)

    def close(self) -> None:
        for reason, blocks in self.skipped.items():
            shown = [f"{name}.{number}" for name, number in self.blocks if (name, number) in blocks]
            self.warn(f"{reason} (block{'s' * (len(shown) > 1)} {', '.join(shown)}).")

    def at(self, sigma: float) -> Place:
        return Place(sigma, self.to_sigma)

    def on(self, place: Place) -> tuple[Method, ...]:
        return tuple(m for m in self.methods if place.between(m.start_percent, m.end_percent))

    def check(self, records: list[Record], sigmas: list[float]) -> None:
        """Let every method that has a part in this run see to it."""
        places: dict[Method, list[Place]] = {}
        for place in map(self.at, sigmas):
            methods = self.on(place)
            for method in {m for block in self.blocks for m in self.chosen(methods, block) if not m.off()}:
                places.setdefault(method, []).append(place)
        for method, where in places.items():
            method.check(records, where, self)

    def chosen(self, methods: tuple[Method, ...], block: Block) -> list[Method]:
        """The methods that count in a block, those that stack first: of the others, the last of each kind."""
        here = [m for m in methods if block in self.reach[m]]
        last = {type(m): m for m in here if not m.stacks}
        return sorted([*(m for m in here if m.stacks), *last.values()], key=lambda m: m.widens)
