"""What is to be made and what is there: the results' folder, its settings and its jobs."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...story.files import StoryText
from ...tools import host
from ...tools.demo import slug
from ...tools.results import RESULT, digest
from .graphs import ALL_ROWS, TEMPLATE

DIGESTS = {"texts": "other story texts", "workflow": "another shipped workflow", "weights": "another Story World asset"}


class Job(NamedTuple):
    """One story made in one way with one seed; `folder` gets its frames, board and result."""

    story: int
    row: str
    seed: int
    folder: Path

    @property
    def made(self) -> bool:
        return (self.folder / RESULT).is_file()


def settings_of(
    args: Namespace,
    checkpoint: str,
    source: str,
    size: tuple[int, int],
    steps: int,
    clip_vision: str | None,
    stories: Sequence[StoryText],
) -> dict[str, Any]:
    """What has to be equal for results to stand in one table, by the names of the options."""
    return {
        "checkpoint": checkpoint,
        "stories": source,
        "size": "{}x{}".format(*size),
        "steps": steps,
        "eot": args.eot,
        "dtype": args.dtype,
        "set": dict(sorted(args.set)) if args.set else None,
        "clip-vision": clip_vision,
        "texts": digest(stories),
        "workflow": host.digest(TEMPLATE),
    }


def without_digests(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a report shows."""
    return {name: value for name, value in settings.items() if name not in DIGESTS}


def jobs_of(out: Path, stories: Sequence[StoryText], rows: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Everything to be made, story after story."""
    return [
        Job(i, row, seed, out / f"{i:03}_{slug(story.title)}" / f"{row}-{seed}")
        for i, story in enumerate(stories)
        for seed in dict.fromkeys(seeds)
        for row in ALL_ROWS
        if row in rows
    ]


def json_of(job: Job) -> dict[str, Any]:
    return json.loads((job.folder / RESULT).read_text(encoding="utf-8"))
