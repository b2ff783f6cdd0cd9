"""Two functions timed in turn, and the memory that one takes."""

import math
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SHORTEST = 2e-3
"""A round repeats a function until it takes this many seconds."""

clock = time.perf_counter


def compare(
    benchmark: Any,
    device: torch.device,
    piece: str,
    ours: Callable[[], Any],
    name: str = "",
    against: Callable[[], Any] | None = None,
    goal: float | None = None,
    memory: bool | Callable[[], Any] = False,
    memory_name: str = "",
    memory_goal: float | None = None,
    plain: Callable[[], Any] | None = None,
    most_rounds: int = 60,
    fewest_rounds: int = 3,
    seconds: float = 4.0,
) -> None:
    """Time `ours` and `against` in turn, each first in every other round, and leave rows for the report.

    The ratio is the median over the rounds of ours / against, `goal` the most it may be. With `memory`, the peak of
    the memory that a call takes beside what was there is compared too, with that of `against` or of another function;
    with `plain`, only what both take more than this. Rounds end after some `seconds`, but not before the fewest.
    """
    once = timed(ours, 1, device) + (timed(against, 1, device) if against else 0)
    if once < seconds:
        once = timed(ours, 1, device) + (timed(against, 1, device) if against else 0)
    loops = max(1, math.ceil(SHORTEST / once))
    rounds = min(most_rounds, max(fewest_rounds, int(seconds / (once * loops))))
    mine: list[float] = []
    theirs: list[float] = []
    pair = [(mine, ours)] + ([(theirs, against)] if against else [])

    def both() -> None:
        for times, function in pair if len(mine) % 2 else pair[::-1]:
            times.append(timed(function, loops, device))

    benchmark.pedantic(both, rounds=rounds)
    rows = [row(piece, name, "s", mine, theirs, goal)]
    benchmark.extra_info["rows"] = rows
    if memory:
        other = memory if callable(memory) else against
        label = "extra memory" if plain else "memory"
        compare_memory(benchmark, device, f"{piece}, {label}", ours, memory_name or name, other, memory_goal, plain)


def compare_memory(
    benchmark: Any,
    device: torch.device,
    piece: str,
    ours: Callable[[], Any],
    name: str,
    against: Callable[[], Any] | None,
    goal: float | None = None,
    plain: Callable[[], Any] | None = None,
) -> None:
    """Leave one more row: the peak of the memory that a call takes beside what was there, or beside `plain`'s peak."""
    least = peak(plain, device) if plain else 0
    mine, theirs = ([float(max(0, peak(f, device) - least))] if f else [] for f in (ours, against))
    benchmark.extra_info["rows"].append(row(piece, name, "B", mine, theirs, goal))


def row(piece: str, name: str, unit: str, ours: list[float], theirs: list[float], goal: float | None) -> dict[str, Any]:
    """One row of the report. Without anything to compare with, the goal is one for `ours`."""
    ratios = [a / b if b else math.inf for a, b in zip(ours, theirs)]
    low, ratio, high = quartiles(ratios or ours)
    return {
        "piece": piece,
        "against": name,
        "unit": unit,
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs) if theirs else None,
        "ratio": ratio if theirs else None,
        "low": low,
        "high": high,
        "goal": goal,
        "reached": None if goal is None else ratio <= goal,
        "rounds": len(ours),
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def timed(function: Callable[[], Any], loops: int, device: torch.device) -> float:
    """Seconds for one of `loops` calls in a row."""
    synchronize(device)
    start = clock()
    for _ in range(loops):
        function()
    synchronize(device)
    return (clock() - start) / loops


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(function: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors that a call has alive at once, beside those that were there before it.

    On the CPU these are the tensors that operators give back; what a kernel takes for itself is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.no_grad(), LiveBytes() as live:
        function()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode, operators made of others come here whole
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        known = {id(s) for s in storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in storages(out):
            if id(storage) not in self.seen and id(storage) not in known:
                self.seen.add(id(storage))
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.freed, id(storage), storage.nbytes())
        return out

    def freed(self, number: int, size: int) -> None:
        self.seen.discard(number)
        self.live -= size


def storages(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value.untyped_storage()]
    if isinstance(value, (list, tuple)):
        return [s for v in value for s in storages(v)]
    if isinstance(value, dict):
        return [s for v in value.values() for s in storages(v)]
    return []
