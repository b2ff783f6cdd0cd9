"""Measure how many actors of a Ray one driver keeps busy: `run.py make`'s own queue and files, actors that sleep.

Each actor “draws” for so many seconds and gives five files back. Ideal is that time for every drawing of an actor, one
after another. Several actors share a process, so that 64 fit a small machine.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...story.files import StoryText
from ...tools import host
from ...tools.demo import WORKFLOW, whole
from ...tools.make import drawings, ray_engine, read_workflow
from ...tools.pool import Maker

FILES = 5


class Run(NamedTuple):
    """What some actors took for all drawings, each of so many megabytes; one takes an actor `drawing` seconds.

    `driver` is the driver's own CPU seconds for all: what it cannot do without, whatever the machines.
    """

    actors: int
    drawing: float
    drawings: int
    megabytes: float
    seconds: float
    driver: float

    @property
    def ideal(self) -> float:
        return math.ceil(self.drawings / self.actors) * self.drawing


class Sleeper:
    """Several actors in one: as many as are called at a time. It has the methods of `ray_actor.Station`."""

    def __init__(self, seconds: float, size: int):
        """A drawing takes `seconds` and has `size` bytes."""
        self.seconds, self.content = seconds, os.urandom(size // FILES)

    def ready(self) -> tuple[str, dict]:
        return "this machine", {"defaults": {}}

    def draw(self, workflow: dict) -> tuple[dict, list[bytes]]:
        """Sleep, and give files as if the first node that saves any had saved them."""
        time.sleep(self.seconds)
        saver = next(key for key, node in workflow.items() if "filename_prefix" in node["inputs"])
        files = [{"filename": f"{number}.png", "subfolder": "", "type": "output"} for number in range(FILES)]
        return {"outputs": {saver: {"images": files}}, "files": files}, [self.content] * FILES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--most", metavar="N", type=whole(1, 1024), default=64, help="up to so many actors (64)")
    parser.add_argument(
        "--seconds", metavar="S", nargs="+", type=float, default=[4.0, 1.0, 0.0], help="of a drawing (4 1 0)"
    )
    parser.add_argument("--each", metavar="N", type=whole(1, 1000), default=5, help="drawings for each actor (5)")
    parser.add_argument("--megabytes", metavar="N", type=whole(0, 1000), default=8, help="that a drawing has (8)")
    parser.add_argument("--processes", metavar="N", type=whole(1, 64), default=4, help="that the actors share (4)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results here")


def run(args: argparse.Namespace) -> int:
    """Measure 1, 2, 4, ... actors and print the table."""
    cluster = ray_engine("local")
    found = []
    with cluster.connected(cluster.LOCAL, 1, 1, False):
        for seconds in args.seconds:
            for count in (2**power for power in range(args.most.bit_length())):
                with sleepers(cluster, count, args.processes, seconds, args.megabytes * 10**6) as actors:
                    found.append(measure(actors, seconds, count * args.each))
                host.say(row(found[-1]))
    if args.json:
        args.json.write_text(json.dumps([each._asdict() for each in found], indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return 0


@contextmanager
def sleepers(cluster: Any, count: int, processes: int, seconds: float, size: int) -> Iterator[list]:
    """Sleeping actors, shared by some processes that have begun."""
    shared = math.ceil(count / processes)
    remote = cluster.ray.remote(Sleeper).options(num_cpus=0, max_concurrency=shared)
    handles = [remote.remote(seconds, size) for _ in range(math.ceil(count / shared))]
    cluster.ray.get([handle.ready.remote() for handle in handles])
    yield [cluster.Actor(number, handles[number % len(handles)]) for number in range(count)]
    for handle in handles:
        cluster.ray.kill(handle)


def measure(actors: Sequence[Any], seconds: float, count: int) -> Run:
    """Draw so many stories as `make` does, into a folder that goes again."""
    workflow, _ = read_workflow(WORKFLOW.stem)
    stories = [StoryText(f"Story {number}", "a fox", "runs\nsleeps") for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="onestory-bench-") as folder:
        works = [[replace(each, workflow=workflow) for each in group] for group in drawings(Path(folder), stories, [1])]
        maker = Maker(actors, works, lambda actor: actor.ready(), "drawings", started=False)
        maker.tell = lambda sentence: None  # type: ignore[method-assign]
        began, worked = time.perf_counter(), time.process_time()
        errors = maker.run()
        took, driver = time.perf_counter() - began, time.process_time() - worked
        kept = list(Path(folder).glob("*/*/result.json"))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.png"))
    if errors or len(kept) != count:
        raise RuntimeError(f"{count} drawings were to be made, and {len(kept)} were: {errors}")
    return Run(len(actors), seconds, count, round(size / count / 10**6, 3), round(took, 3), round(driver, 3))


def table(found: Sequence[Run]) -> str:
    """The results as a Markdown table."""
    head = "| actors | a drawing | drawings | ideal | took | actors busy | drawings per second | driver's CPU for one |"
    return "\n".join([head, "| --- |" + " --- |" * 7, *map(row, found)])


def row(one: Run) -> str:
    share = f"{one.ideal / one.seconds:.0%}" if one.ideal else ""
    cells = one.actors, f"{one.drawing:g} s, {one.megabytes:g} MB", one.drawings, f"{one.ideal:g} s"
    rate, driver = one.drawings / one.seconds, one.driver / one.drawings * 1000
    return f"| {' | '.join(map(str, cells))} | {one.seconds:.1f} s | {share} | {rate:.1f} | {driver:.0f} ms |"
