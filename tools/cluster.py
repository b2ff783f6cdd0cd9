"""Ray as the engine for more than one machine: actors with a ComfyUI each, as servers that pool.py makes works on.

Imported once Ray is there (`make.with_ray`).
"""

import argparse
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from . import host
from .client import CONNECT_SECONDS, Progress, Workflow, WorkflowError
from .demo import NoCheckpoint, find_checkpoint
from .failure import Failure
from .pool import Lost
from .ray_actor import Station

LOCAL = "local"
"""Ray's own word for one that is started here."""
PACKAGE = (
    *("run.py", "onestory.py", "__init__.py"),
    *("attention", "nodes", "pages", "story", "subjects", "svr", "locales", "web", "tools", "world"),
)
"""What machines get of this folder: what the pack and the tools import."""
LEFT_OUT = ("__pycache__", "*.pyc")
MACHINE_FOLDER = "~/.cache/onestory"
"""Where machines keep what is set up there, beyond this run."""
OBJECT_STORE = 512 * 2**20
"""Bytes of shared memory for results on their way, in a Ray that is started here; more goes through its folder."""
PIECE = 64 * 2**20
"""Bytes of a checkpoint that are sent at a time."""
TICK, START_SECONDS = 1.0, 600.0


SENDING = threading.Lock()
"""Checkpoints are sent one after another: a machine's other actors find what the first one got."""


class Actor:
    """An actor as a server: `url` is its name for people. What it drew comes along, to be downloaded from here."""

    def __init__(self, number: int, handle: Any, checkpoint: Path | None = None):
        """`checkpoint` is the file that is sent where it is missing."""
        self.url = f"actor {number}"
        self.number, self.handle, self.checkpoint = number, handle, checkpoint
        self.starting: Any = None
        self.files: dict[tuple[str, str], bytes] = {}

    def ready(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """The settings that suit its checkpoint, once it can draw. Raises `Failure`, also after so many seconds."""
        self.starting = self.starting or self.handle.ready.remote()
        done, _ = ray.wait([self.starting], timeout=seconds)
        if not done:
            raise Failure(f"{self.url} has not started yet: Ray has no place for it, or its machine is being set up.")
        begun, self.starting = self.starting, None
        machine, answer = fetch(begun, self.url)
        self.url = f"actor {self.number} on {machine}"
        if "missing" in answer and self.checkpoint:
            self.send(self.checkpoint, machine)
            return self.ready(seconds)
        if "defaults" not in answer:
            raise Failure(f"{self.url} has no ComfyUI: {next(iter(answer.values()))}")
        return answer["defaults"]

    def send(self, file: Path, machine: str) -> None:
        """Give the actor's machine a checkpoint, unless another actor did."""
        size = file.stat().st_size
        with SENDING:
            if fetch(self.handle.has.remote(file.name, size), self.url):
                return
            host.say(f"Sending {file.name} ({size / 2**30:.1f} GB) to {machine} ...")
            with open(file, "rb") as content:
                for at in range(0, size, PIECE):
                    fetch(self.handle.receive.remote(file.name, at, content.read(PIECE), size), self.url)

    def run(self, workflow: Workflow, progress: Progress | None = None) -> dict[str, dict]:
        """Draw a workflow, as `Client.run`. Raises `Lost` when the actor or its ComfyUI ended meanwhile."""
        drawn = self.handle.draw.remote(workflow)
        while not ray.wait([drawn], timeout=TICK)[0]:
            if progress:
                progress("", {})
        answer, contents = fetch(drawn, self.url)
        if "refused" in answer:
            raise WorkflowError(answer["refused"])
        if "lost" in answer:
            raise Lost(f"{self.url} lost its ComfyUI: {answer['lost']}")
        self.files = {place_of(file): content for file, content in zip(answer["files"], contents)}
        return answer["outputs"]

    def download(self, image: dict) -> bytes:
        """The contents of a file that the last workflow saved."""
        return self.files[place_of(image)]


def place_of(file: dict) -> tuple[str, str]:
    """What tells a saved file from others."""
    return file.get("subfolder", ""), file["filename"]


def fetch(reference: Any, url: str) -> Any:
    """What an actor gave. Raises `Lost` when the actor or the object is gone."""
    try:
        return ray.get(reference)
    except RayError as error:
        cause = getattr(error, "cause", error)
        raise Lost(f"{url} was lost: {(str(cause) or repr(cause)).splitlines()[0]}") from None


@contextmanager
def connected(address: str, actors: int, cpus: int, world: bool) -> Iterator[None]:
    """A Ray that is started here for `actors`, or the one at the address, which gets the code; with the Story World's
    asset where `world`."""
    quiet = logging.ERROR
    if address == LOCAL:
        with tempfile.TemporaryDirectory(prefix="onestory-", ignore_cleanup_errors=True) as folder:
            cores = max(os.cpu_count() or 1, actors * cpus)
            ray.init(
                LOCAL,
                num_cpus=cores,
                object_store_memory=OBJECT_STORE,
                include_dashboard=False,
                logging_level=quiet,
                _temp_dir=folder,
            )
            try:
                yield
            finally:
                ray.shutdown()
        return
    knock(address)
    others = [path.name for path in host.ROOT.iterdir() if path.name not in PACKAGE]
    asset = [] if world else [str(host.WORLD.relative_to(host.ROOT))]
    environment = {
        "working_dir": str(host.ROOT),
        "excludes": [*(f"/{name}" for name in (*others, *asset)), *LEFT_OUT],
        "env_vars": {"ONESTORY_HOST": os.environ.get("ONESTORY_HOST", MACHINE_FOLDER)},
    }
    try:
        ray.init(address, runtime_env=environment, logging_level=quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Failure(f"No Ray answers at --ray {address}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def knock(address: str) -> None:
    """Raise `Failure` unless somebody listens at a HOST:PORT. Ray itself would try for minutes."""
    name, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((name, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise Failure(f"No Ray answers at --ray {address}: {error}.") from None


def places(actors: int | None, cpus: int | None) -> tuple[int, dict[str, float], int | None]:
    """How many actors there are room for, what each takes by Ray's options, and the cores it draws on, None for a GPU.

    Without `cpus` one for each GPU; where there is none, all cores of the smallest machine.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus and not cpus:
        return actors or gpus, {"num_gpus": 1, "num_cpus": 0}, None
    cores = [int(machine["CPU"]) for machine in machines if machine.get("CPU")]
    if not cores:
        raise Failure("No machine of this Ray has a GPU or a CPU core to give: add machines to it.")
    each = cpus or min(cores)
    count = actors or sum(core // each for core in cores)
    if not count:
        raise Failure(f"--cpus {each}: no machine of this Ray has so many cores, {max(cores)} at most.")
    return count, {"num_cpus": each}, each


@contextmanager
def actors(args: argparse.Namespace, drawings: int) -> Iterator[tuple[list[Actor], dict[str, Any]]]:
    """The actors for so many drawings at most, and the settings that suit the checkpoint of the first that is ready."""
    file = None
    if args.checkpoint:
        try:
            file = find_checkpoint(args.checkpoint, None)
        except NoCheckpoint:
            file = None
    given = {"comfyui": args.comfyui, "checkpoint": str(file or args.checkpoint) if args.checkpoint else None}
    said = redirect_stdout(sys.stderr)  # what Ray and the stations say: the output is the page's path
    with said, connected(args.ray, args.actors or 1, args.cpus or 1, not args.checkpoint):
        count, takes, cpus = places(args.actors, args.cpus)
        options = [
            word for name, value in {**given, "cpus": cpus}.items() if value for word in (f"--{name}", str(value))
        ]
        count = min(count, drawings)
        host.say(f"Starting {count} ComfyUI{'s' if count > 1 else ''} by Ray ...")
        remote = ray.remote(Station).options(max_restarts=-1, scheduling_strategy="SPREAD", **takes)
        servers = [Actor(number, remote.remote(options), file) for number in range(1, count + 1)]
        try:
            yield servers, first_ready(servers)
        finally:
            for server in servers:
                ray.kill(server.handle)


def first_ready(servers: Sequence[Actor]) -> dict[str, Any]:
    """The settings that suit the checkpoint of the first actor that is ready. Raises `Failure` when none can be."""
    failed: dict[Actor, Failure] = {}
    while len(failed) < len(servers):
        for server in servers:
            server.starting = server.starting or server.handle.ready.remote()
        waiting = [server for server in servers if server not in failed]
        ray.wait([server.starting for server in waiting], timeout=TICK)
        host.show("Waiting for the first ComfyUI ...")
        for server in waiting:
            if ray.wait([server.starting], timeout=0)[0]:
                try:
                    return server.ready()
                except Failure as failure:
                    failed[server] = failure
    raise next(iter(failed.values()))
