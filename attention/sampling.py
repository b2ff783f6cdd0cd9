"""One run of a sampler: which methods it uses where, and what has been said about it."""

import logging
from functools import cache
from typing import Any

from ..svr.record import Record
from .architectures import Architecture, layers_of
from .batch import Cast
from .blocks import Block
from .method import Method
from .rows import Cut
from .runs import Passes
from .schedule import Place


class Sampling:
    """One run of a sampler: its methods, the model's architecture and schedule, and what has been said already."""

    def __init__(self, patcher: Any, methods: tuple[Method, ...], frames_at_a_time: int = 0):
        self.passes = Passes(frames_at_a_time) if frames_at_a_time else None
        self.layers = layers_of(patcher.model)
        self.blocks = self.layers.blocks if self.layers else []
        self.reach = {method: self.layers.selected(method.blocks) for method in methods if self.layers}
        self.to_sigma = cache(patcher.get_model_object("model_sampling").percent_to_sigma)
        self.methods = methods
        self.told: set[str] = set()
        self.skipped: dict[str, set[Block]] = {}

    @property
    def architecture(self) -> Architecture:
        assert self.layers is not None
        return self.layers.architecture

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

    def check(self, records: list[Record], sigmas: list[float], rows: int) -> None:
        """Let every method that has a part in this run see to it, and see that a batch of so many rows can be cut."""
        places: dict[Method, list[Place]] = {}
        for place in map(self.at, sigmas):
            methods = self.on(place)
            for method in {m for block in self.blocks for m in self.chosen(methods, block) if not m.off()}:
                places.setdefault(method, []).append(place)
        for method, where in places.items():
            method.check(records, where, self)
        casts = {cast_of(record) for record in records} or {without_story(rows)}
        for sigma in sigmas:
            self.cuts(self.on(self.at(sigma)), rows, casts)

    def cuts(self, methods: tuple[Method, ...], rows: int, casts: set[Cast]) -> tuple[Cut, ...]:
        """The passes that a batch of so many rows is drawn in where these methods are on; none for a single one."""
        if self.passes is None:
            return ()
        counting = {m for block in self.blocks for m in self.chosen(methods, block) if not m.off()}
        return self.passes.of(rows, casts, tuple(m for m in methods if m in counting))

    def chosen(self, methods: tuple[Method, ...], block: Block) -> list[Method]:
        """The methods that count in a block, those that stack before the others: of these, the last of each kind."""
        here = [m for m in methods if block in self.reach[m]]
        last = {type(m): m for m in here if not m.stacks}
        return sorted([*(m for m in here if m.stacks), *last.values()], key=lambda m: (not m.adds, m.widens))


def cast_of(record: Record) -> Cast:
    return Cast(tuple(row.frame for row in record.rows), record.characters, record.between)


def without_story(rows: int) -> Cast:
    """The cast of a batch of so many rows that no story goes with: all show the same."""
    return Cast(tuple(range(rows)), (("",),) * rows)
