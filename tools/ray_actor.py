"""What runs in a Ray worker: the way to a ComfyUI of its own. It needs Ray and Python's standard library alone.

The ComfyUI belongs to a station (station.py), a process in the tools' own Python. It and this talk in lines of JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import ray

from .environment import HOST, ROOT

DETACH = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
"""Starts a process that is not this one's child: Ray kills a worker's children, and a station has to clean up first."""
CHECKPOINTS = HOST / "models" / "checkpoints"


class Station:
    """The actor. An answer is what the station said, a dict with one of these keys, or more where it is "outputs":

    "defaults": the settings that suit its checkpoint. "outputs": what a workflow's output nodes gave. "refused": why
    ComfyUI didn't draw a workflow. "failure": why it can't draw any. "missing": it has no checkpoint, and where it
    looked. "lost": it ended while it drew.
    """

    def __init__(self, options: list[str]):
        """`options` are station.py's."""
        self.command = [sys.executable, str(ROOT / "run.py"), "station", *options]
        self.process: subprocess.Popen[str] | None = None
        self.said: deque[str] = deque(maxlen=15)
        self.listener = threading.Thread()
        self.defaults: dict = {}

    @ray.method(max_task_retries=-1)
    def ready(self) -> tuple[str, dict]:
        """Start the station, if it doesn't run, and wait until it can draw. Returns this machine's address too.

        Ray asks again by itself while this actor is lost or moves to another machine.
        """
        if not self.process:
            environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # set by Ray
            command = [sys.executable, "-c", DETACH, *self.command]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, env=environment, encoding="utf-8", stdin=pipe, stdout=pipe, stderr=pipe
            )
            self.said.clear()
            self.listener = threading.Thread(target=self.listen, args=(self.process,), daemon=True)
            self.listener.start()
            self.defaults = self.answer("failure")
        return ray.util.get_node_ip_address(), self.defaults

    def draw(self, workflow: dict) -> tuple[dict, list[bytes]]:
        """Draw a workflow. Returns the answer and the contents of the files that it names.

        The files stay until the station ends: ComfyUI names them again for a workflow that it still remembers.
        """
        if not (self.process and self.process.stdin):
            return {"lost": "Ray started the actor again"}, []
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(workflow) + "\n")
            self.process.stdin.flush()
        answer = self.answer("lost")
        return answer, [Path(file["path"]).read_bytes() for file in answer.get("files", ())]

    def answer(self, ended: str) -> dict:
        """The station's next answer; under the key `ended` its last words when it has none."""
        assert self.process and self.process.stdout
        line = self.process.stdout.readline()
        if line:
            answer = json.loads(line)
        else:
            self.listener.join(5)
            answer = {ended: "".join(self.said).strip() or "it said nothing"}
        if not {"defaults", "outputs", "refused"} & answer.keys():
            self.process = None
        return answer

    def listen(self, process: subprocess.Popen) -> None:
        """Pass on what the station says to people, which Ray shows where the command was given."""
        for line in process.stderr or ():
            self.said.append(line)
            print(line, end="", file=sys.stderr, flush=True)

    def has(self, name: str, size: int) -> bool:
        """Whether a checkpoint of this name and size (bytes) was sent to this machine."""
        file = CHECKPOINTS / name
        return file.is_file() and file.stat().st_size == size

    def receive(self, name: str, at: int, piece: bytes, size: int) -> None:
        """Keep a piece of a checkpoint, at this byte of its `size`; the last one makes the file whole."""
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        partial = CHECKPOINTS / f"{name}.partial"
        with open(partial, "r+b" if at else "wb") as file:
            file.seek(at)
            file.write(piece)
        if at + len(piece) == size:
            partial.replace(CHECKPOINTS / name)
