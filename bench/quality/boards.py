"""A story's board in one way, as servers make it and as it is kept."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...story.files import StoryText
from ...tools.client import Client, Workflow, images
from ...tools.demo import check_server, fill_in
from ...tools.failure import Failure
from ...tools.pool import Maker, Server
from ...tools.results import RESULT, write_json
from .graphs import ALL_ROWS, TEMPLATE, story_graph
from .jobs import Job


@dataclass(frozen=True, eq=False)
class Board:
    job: Job
    story: StoryText
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        return self.story.title

    @property
    def what(self) -> str:
        return self.job.row

    @property
    def made(self) -> bool:
        return self.job.made

    def graph(self) -> Workflow:
        return story_graph(self.story, ALL_ROWS[self.job.row], self.job.seed, self.settings)

    def keep(self, server: Server, outputs: dict[str, dict[str, Any]], seconds: float) -> None:
        folder = self.job.folder
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images(outputs, ["frames"]), 1):
            (folder / f"frame_{number:02}.png").write_bytes(server.download(image))
        (board,) = images(outputs, ["board picture"])
        (folder / "board.webp").write_bytes(server.download({**board, "preview": "webp;85"}))
        result: dict[str, Any] = {"seconds": round(seconds, 2), "server": server.url}
        if "metrics" in outputs:
            (result["similarity"],) = outputs["metrics"]["similarity"]
        write_json(folder / RESULT, result)


def maker(
    servers: Sequence[Client],
    stories: Sequence[StoryText],
    jobs: Sequence[Job],
    settings: dict[str, Any],
    patience: float = 600,
) -> Maker[Client, Board]:
    """What makes the jobs' boards, each story as a whole on one server."""
    groups: dict[int, list[Board]] = {}
    for job in jobs:
        groups.setdefault(job.story, []).append(Board(job, stories[job.story], settings))
    return Maker(servers, list(groups.values()), checker(settings), patience=patience)


def make(*given: Any, **more: Any) -> dict[Job, str]:
    """Make them; returns the nodes' complaints. Takes what `maker` takes, and raises as `Maker.run`."""
    return {board.job: error for board, error in maker(*given, **more).run().items()}


def checker(settings: dict[str, Any]) -> Callable[[Client], None]:
    """What raises `Failure` unless a server has the pack, the checkpoint and the vision model."""

    def check(server: Client) -> None:
        workflow = json.loads(TEMPLATE.read_text(encoding="utf-8"))
        check_server(server, fill_in(workflow, None, {"checkpoint": settings["checkpoint"]}), False)
        name = settings["clip-vision"]
        if name is None:
            return
        if not server.get("/object_info/OneStoryMetrics"):
            raise Failure(f"The OneStory pack at {server.url} is too old for --clip-vision: update it there.")
        known = server.choices("CLIPVisionLoader", "clip_name") or []
        if name not in known:
            raise Failure(
                f"{server.url} has no vision model {name}: name one with --clip-vision. It has "
                f"{', '.join(known[:8]) or 'none'}."
            )

    return check
