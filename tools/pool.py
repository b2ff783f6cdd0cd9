"""Makes works, such as a story in several ways, on several ComfyUI servers at once, or on the actors of a Ray.

Each server makes a whole group of works, then takes the next one; one that fails is tried again after a pause.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from . import host
from .client import Progress, Workflow, WorkflowError
from .failure import Failure

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
LOSSES = 3
"""So many servers that end while they make a work are blamed on the work."""


@dataclass
class Outage:
    """A server makes nothing since then (`time.monotonic`), and is tried again after a pause (seconds)."""

    since: float
    pause: float
    told: bool = False


class Stopped(Exception):
    """The run is over, so this server's workflow is taken off."""


class Lost(Failure):
    """A server ended while it made a work, perhaps because of it."""


class Server(Protocol):
    """What runs workflows: `client.Client`, or `cluster.Actor`. `url` is its address, or its name for people."""

    url: str

    def run(self, workflow: Workflow, progress: Progress | None = None) -> dict[str, dict]:
        """As `Client.run`; raises `Lost` where the server may have ended because of the workflow."""

    def download(self, image: dict) -> bytes: ...


class Work(Protocol):
    """Something that a server makes by one workflow, equal only to itself. `title` is its group's, `what` its own."""

    @property
    def title(self) -> str: ...

    @property
    def what(self) -> str: ...

    @property
    def made(self) -> bool:
        """Whether it is kept already."""

    def graph(self) -> Workflow: ...

    def keep(self, server: Server, outputs: dict[str, dict[str, Any]], seconds: float) -> None:
        """Fetch and keep what the workflow gave, after so many seconds. Raises `Failure`."""


W = TypeVar("W", bound=Work)
S = TypeVar("S", bound=Server)


class Maker(Generic[S, W]):
    """Makes the works that are missing, a thread for each server.

    A server that fails puts its group back into the queue and is tried again after a pause, which doubles until it has
    made something. After `patience` seconds without that it counts as gone; it may come back while others work.
    """

    def __init__(
        self,
        servers: Sequence[S],
        groups: Sequence[Sequence[W]],
        check: Callable[[S], None],
        of: str = "boards",
        patience: float = 600,
        started: bool = True,
    ):
        """`check` raises `Failure` for a server that can't make them; `of` is what people call the works.

        Servers that are not `started` yet get work once they pass it.
        """
        self.servers, self.check, self.of, self.patience, self.started = servers, check, of, patience, started
        missing = [[work for work in group if not work.made] for group in groups]
        self.todo = deque(group for group in missing if group)
        self.total, self.tried = sum(map(len, groups)), 0
        self.made = self.total - sum(map(len, missing))
        self.busy = 0
        self.errors: dict[W, str] = {}
        self.losses: Counter[W] = Counter()
        self.outages: dict[S, Outage] = {}
        self.gone: dict[S, Failure] = {}
        self.broken: list[BaseException] = []
        self.changed = threading.Condition()
        self.stop = threading.Event()

    def run(self) -> dict[W, str]:
        """Make everything; returns the nodes' complaints. Raises `Failure` when all servers are gone."""
        if self.made:
            host.say(f"{self.made} of {self.total} {self.of} are there already.")
        self.began = time.monotonic()
        try:
            for server in self.servers:
                threading.Thread(target=self.serve, args=(server,), daemon=True).start()
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
                f"{list(self.gone.values())[-1]} {self.made} of {self.total} {self.of} are made: run the same "
                "command again to make the rest."
            )
        return self.errors

    def wait(self) -> None:
        """Return when no server makes anything, and none will. One that is only being checked is not waited for."""
        with self.changed:
            while self.busy or not self.over():
                self.changed.wait(0.5)

    def halt(self) -> None:
        """Make all threads end soon."""
        self.stop.set()
        with self.changed:
            self.changed.notify_all()

    def serve(self, server: S) -> None:
        """Make group after group on one server, until nothing is left or all servers are gone."""
        try:
            if not self.started:
                self.outages[server] = Outage(time.monotonic(), 0)
                self.wait_for(server, Failure(f"{server.url} has not started."))
                self.outages.pop(server)
            while group := self.take():
                left = deque(group)
                failed: Failure | None = None
                try:
                    while left:
                        self.make(server, left[0])
                        left.popleft()
                        self.works(server)
                    self.say(group, server)
                except Failure as failure:
                    failed = failure
                    if isinstance(failure, Lost) and self.is_to_blame(left[0], failure):
                        left.popleft()
                finally:
                    with self.changed:
                        self.busy -= 1
                        if left:
                            self.todo.append(list(left))
                        self.changed.notify_all()
                if failed:
                    if server not in self.outages:
                        self.outages[server] = Outage(time.monotonic(), FIRST_PAUSE)
                        back = f"“{left[0].title}” goes back into the queue, and " if left else ""
                        self.tell(f"{failed} {back}{server.url} is tried again.")
                    self.wait_for(server, failed)
        except Stopped:
            pass
        except OSError as error:
            self.fail(Failure(f"The results cannot be kept: {error}."))
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        self.broken.append(error)
        self.halt()

    def over(self) -> bool:
        """Whether there is nothing more to make, or nobody left to make it."""
        return self.stop.is_set() or not (self.todo or self.busy) or len(self.gone) == len(self.servers)

    def take(self) -> list[W]:
        """The next group; waits while another server may yet leave one. Empty at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.todo or self.over())
            if self.over():
                return []
            self.busy += 1
            return self.todo.popleft()

    def is_to_blame(self, work: W, lost: Lost) -> bool:
        """Whether a work has cost so many servers that it is an error of its own."""
        self.losses[work] += 1
        if self.losses[work] == LOSSES:
            self.refuse(work, f"{lost} So ended {LOSSES} attempts.")
        return self.losses[work] == LOSSES

    def wait_for(self, server: S, failure: Failure) -> None:
        """Return when a server in an outage is to be tried with another group, or at the end."""
        outage = self.outages[server]
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
            outage.pause = min(2 * outage.pause or FIRST_PAUSE, LONGEST_PAUSE)
            try:
                self.check(server)
            except Failure as found:
                failure = found
                continue
            with self.changed:
                self.gone.pop(server, None)
            return

    def works(self, server: S) -> None:
        """Take note that a server has made something."""
        if self.outages.pop(server, None):
            self.tell(f"{server.url} works again.")

    def make(self, server: S, work: W) -> None:
        """Make one work on a server, and keep it; a node's complaint is noted. Raises `Failure`."""

        def progress(kind: str, data: dict) -> None:
            if self.stop.is_set():
                raise Stopped
            if kind == "progress" and data["max"]:
                self.show(f"{work.title}, {work.what} {data['value']}/{data['max']}")

        self.show(f"{work.title}, {work.what}")
        started = time.monotonic()
        try:
            outputs = server.run(work.graph(), progress)
        except WorkflowError as error:
            self.refuse(work, str(error))
            return
        work.keep(server, outputs, time.monotonic() - started)
        with self.changed:
            self.made += 1
            self.tried += 1

    def refuse(self, work: W, why: str) -> None:
        """Take note that a work can't be made."""
        with self.changed:
            self.errors[work] = f"{work.title}: {why}"
            self.tried += 1

    def show(self, what: str) -> None:
        host.show(f"{self.made}/{self.total} {self.of}{self.remaining()}: {what}")

    def tell(self, sentence: str) -> None:
        host.show("")
        host.say(sentence)

    def say(self, group: Sequence[W], server: S) -> None:
        what = f" ({group[0].what})" if len(group) == 1 else ""
        name = f"{group[0].title}{what}"
        self.tell(f"{self.made}/{self.total} {self.of}{self.remaining()}: {name} is done at {server.url}")

    def remaining(self) -> str:
        """How long it will take from here, as text; nothing before the first work."""
        if not self.tried:
            return ""
        left = (time.monotonic() - self.began) / self.tried * (self.total - self.made - len(self.errors))
        return f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"
