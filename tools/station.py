"""Draw what comes as lines of JSON with a ComfyUI that is started for it: the other end of ray_actor.py.

Each line in is a workflow, each line out an answer (`ray_actor.Station`); the first one says that it can begin. When
the input ends, however that comes, the ComfyUI ends too.
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from . import host
from .client import Client, Workflow, WorkflowError, saved_files
from .demo import NoCheckpoint, find_checkpoint, serving, whole
from .failure import Failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--comfyui", metavar="PATH")
    parser.add_argument("--checkpoint", metavar="FILE|NAME")
    parser.add_argument("--cpus", metavar="N", type=whole(1, 1024), help="draw on so many of the CPU's cores")
    parser.set_defaults(server=None)


def run(args: argparse.Namespace) -> int:
    """Draw until the input ends. Returns 1 when nothing more can be drawn, which the last answer says."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed
    workflows: queue.SimpleQueue[Workflow] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(workflows,), daemon=True).start()
    how = {"cpu": True, "threads": args.cpus} if args.cpus else {}
    failed = "failure"
    try:
        args.checkpoint = args.checkpoint and str(nearest(args.checkpoint, args.comfyui))
        with serving(args, private=True, log=None, **how) as place:
            assert place.folder
            client = Client(place.url)
            if client.choices("OneStoryIPCA", "variant") is None:
                log = (place.folder / "comfyui.log").read_text("utf-8", "replace")
                raise Failure(f"ComfyUI could not load the pack. Its log ends with:\n{host.tail(log)}")
            tell(answers, {"defaults": place.defaults})
            while True:
                workflow = workflows.get()
                failed = "lost"
                try:
                    outputs = client.run(workflow)
                except WorkflowError as error:
                    tell(answers, {"refused": str(error)})
                    continue
                files = [file for output in outputs.values() for file in saved_files(output)]
                for file in files:
                    file["path"] = str(place.folder / "output" / file.get("subfolder", "") / file["filename"])
                unique = list({file["path"]: file for file in files}.values())
                tell(answers, {"outputs": outputs, "files": unique})
    except NoCheckpoint as error:
        tell(answers, {"missing": str(error)})
    except Failure as error:
        tell(answers, {failed: str(error)})
    return 1


def listen(workflows: "queue.SimpleQueue[Workflow]") -> None:
    """Pass on the workflows; at the end of the input end the command, wherever it is."""
    for line in sys.stdin:
        workflows.put(json.loads(line))
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def tell(answers: TextIO, answer: dict) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def nearest(checkpoint: str, comfyui: str | None) -> Path:
    """The checkpoint's file on this machine: where it is said to be, else one of its name."""
    this = host.find(comfyui)
    try:
        return find_checkpoint(checkpoint, this)
    except NoCheckpoint:
        return find_checkpoint(Path(checkpoint).name, this)
