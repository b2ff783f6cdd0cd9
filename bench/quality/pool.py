"""Makes stories on several ComfyUI servers at once.

Each server makes a whole story in all its ways, then takes the next one; one that fails is tried again after a pause.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...story.files import StoryText
from ...tools import host
from ...tools.client import Client, WorkflowError, images
from ...tools.demo import check_server, fill_in
from ...tools.failure import Failure
from .graphs import PAIR_ROWS, ROWS, TEMPLATE, story_graph
from .jobs import RESULT, Job, write_json

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


@dataclass
class Outage:
    """A server makes nothing since then (`time.monotonic`), and is tried again after a pause (seconds)."""

    since: float
    pause: float
    told: bool = False


class Stopped(Exception):
    """The run is over, so this server's workflow is taken off."""


def check(server: Client, settings: dict[str, Any]) -> None:
    """Raise `Failure` unless a server has the pack, the checkpoint and the vision model."""
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


class Maker:
    """Makes the missing jobs, a thread for each server.

    A server that fails puts its story back into the queue and is tried again after a pause, which doubles until it has
    made something. After `patience` seconds without that it counts as gone; it may come back while others work.
    """

    def __init__(
        self,
        servers: list[Client],
        stories: Sequence[StoryText],
        jobs: list[Job],
        settings: dict[str, Any],
        patience: float = 600,
    ):
        self.servers, self.stories, self.settings, self.patience = servers, stories, settings, patience
        missing: dict[int, list[Job]] = {}
        for job in jobs:
            if not job.made:
                missing.setdefault(job.story, []).append(job)
        self.todo = deque(missing.values())
        self.total, self.made, self.tried = len(jobs), sum(job.made for job in jobs), 0
        self.busy = self.serving = 0
        self.errors: dict[Job, str] = {}
        self.outages: dict[Client, Outage] = {}
        self.gone: dict[Client, Failure] = {}
        self.broken: list[BaseException] = []
        self.changed = threading.Condition()
        self.stop = threading.Event()

    def run(self) -> dict[Job, str]:
        """Make everything; returns the nodes' complaints. Raises `Failure` when all servers are gone."""
        if self.made:
            host.say(f"{self.made} of {self.total} boards are there already.")
        self.started = time.monotonic()
        try:
            for server in self.servers:
                self.serving += 1
                threading.Thread(target=self.serve, args=(server,)).start()
            self.wait()
        except BaseException:
            self.halt()
            self.wait()
            raise
        host.show("")
        if self.broken:
            raise self.broken[0]
        if self.todo:
            raise Failure(
                f"{list(self.gone.values())[-1]} {self.made} of {self.total} boards are made: run the same command "
                "again to make the rest."
            )
        return self.errors

    def wait(self) -> None:
        """Return when every server is through. A thread's own join would lose count of it at Ctrl-C (bpo-45274)."""
        with self.changed:
            while self.serving:
                self.changed.wait(0.5)

    def halt(self) -> None:
        """Make all threads end soon."""
        self.stop.set()
        with self.changed:
            self.changed.notify_all()

    def serve(self, server: Client) -> None:
        """Make story after story on one server, until nothing is left or all servers are gone."""
        try:
            while jobs := self.take():
                left = deque(jobs)
                failed: Failure | None = None
                try:
                    while left:
                        self.make(server, left[0])
                        left.popleft()
                        self.works(server)
                    self.say(jobs[0], server)
                except Failure as failure:
                    failed = failure
                finally:
                    with self.changed:
                        self.busy -= 1
                        if left:
                            self.todo.append(list(left))
                        self.changed.notify_all()
                if failed:
                    self.wait_for(server, jobs[0], failed)
        except Stopped:
            pass
        except OSError as error:
            self.fail(Failure(f"The results cannot be kept: {error}."))
        except BaseException as error:
            self.fail(error)
        finally:
            with self.changed:
                self.serving -= 1
                self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        self.broken.append(error)
        self.halt()

    def over(self) -> bool:
        """Whether there is nothing more to make, or nobody left to make it."""
        return self.stop.is_set() or not (self.todo or self.busy) or len(self.gone) == len(self.servers)

    def take(self) -> list[Job]:
        """The next story's jobs; waits while another server may yet leave one. Empty at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.todo or self.over())
            if self.over():
                return []
            self.busy += 1
            return self.todo.popleft()

    def wait_for(self, server: Client, job: Job, failure: Failure) -> None:
        """Return when a server that failed is to be tried with another story, or at the end."""
        outage = self.outages.get(server)
        if not outage:
            outage = self.outages[server] = Outage(time.monotonic(), FIRST_PAUSE)
            title = self.stories[job.story].title
            self.tell(f"{failure} “{title}” goes back into the queue, and {server.url} is tried again.")
        while True:
            with self.changed:
                if time.monotonic() - outage.since >= self.patience:
                    self.gone[server] = failure
                    self.changed.notify_all()
                    if not outage.told and not self.over():
                        outage.told = True
                        minutes = f"{self.patience / 60:.0f} min"
                        self.tell(f"{server.url} has made nothing for {minutes}: the others go on without it.")
                self.changed.wait_for(self.over, outage.pause)
                if self.over():
                    return
            outage.pause = min(2 * outage.pause, LONGEST_PAUSE)
            try:
                check(server, self.settings)
            except Failure as found:
                failure = found
                continue
            with self.changed:
                self.gone.pop(server, None)
            return

    def works(self, server: Client) -> None:
        """Take note that a server has made something."""
        if self.outages.pop(server, None):
            self.tell(f"{server.url} works again.")

    def make(self, server: Client, job: Job) -> None:
        """Make one board on a server, and keep its pictures; a node's complaint is noted. Raises `Failure`."""
        story = self.stories[job.story]

        def progress(kind: str, data: dict) -> None:
            if self.stop.is_set():
                raise Stopped
            if kind == "progress" and data["max"]:
                self.show(f"{story.title}, {job.row} {data['value']}/{data['max']}")

        started = time.monotonic()
        graph = story_graph(story, (ROWS | PAIR_ROWS)[job.row], job.seed, self.settings)
        try:
            outputs = server.run(graph, progress)
        except WorkflowError as error:
            self.errors[job] = f"{story.title}: {error}"
            self.tried += 1
            return
        seconds = time.monotonic() - started
        job.folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images(outputs, ["frames"]), 1):
            (job.folder / f"frame_{number:02}.png").write_bytes(server.download(image))
        (board,) = images(outputs, ["board picture"])
        (job.folder / "board.webp").write_bytes(server.download({**board, "preview": "webp;85"}))
        result: dict[str, Any] = {"seconds": round(seconds, 2), "server": server.url}
        if "metrics" in outputs:
            (result["similarity"],) = outputs["metrics"]["similarity"]
        write_json(job.folder / RESULT, result)
        with self.changed:
            self.made += 1
            self.tried += 1

    def show(self, what: str) -> None:
        host.show(f"{self.made}/{self.total} boards{self.remaining()}: {what}")

    def tell(self, sentence: str) -> None:
        host.show("")
        host.say(sentence)

    def say(self, job: Job, server: Client) -> None:
        title = self.stories[job.story].title
        self.tell(f"{self.made}/{self.total} boards{self.remaining()}: {title} is done at {server.url}")

    def remaining(self) -> str:
        """How long it will take from here, as text; nothing before the first board."""
        if not self.tried:
            return ""
        left = (time.monotonic() - self.started) / self.tried * (self.total - self.made - len(self.errors))
        return f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"
