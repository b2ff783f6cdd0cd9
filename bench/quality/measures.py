"""Measures the pictures that are made, each model in a Python that has what it needs."""

import importlib.util
import json
import re
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ...story.files import StoryText
from ...story.script import parse_script
from ...tools import host
from ...tools.failure import Failure
from ...tools.results import RESULT, write_json
from .jobs import Job, json_of

SCRIPT = Path(__file__).with_name("vision.py")


def measure(args: Namespace, stories: Sequence[StoryText], jobs: Sequence[Job]) -> None:
    """Add to the results what this machine can measure, and say in a line what it can't."""
    if args.clip is None:
        host.say("CLIP-T is left out: --clip names no CLIP model.")
    elif python := python_with("torch", "transformers", "PIL"):
        add_measures(python, "clip", args.clip, args.device, stories, jobs)
    else:
        host.say("CLIP-T is left out: neither this Python nor ComfyUI's has torch and transformers.")
    if python := python_with("torch", "dreamsim"):
        add_measures(python, "dreamsim", args.dreamsim, args.device, stories, jobs)
    else:
        host.say("DreamSim is left out: its package is not installed.")
    if not args.clip_vision:
        host.say("The servers measured nothing: --clip-vision names no vision model of theirs.")


def has_model(folder: Path) -> bool:
    """Whether a folder looks like one that transformers' save_pretrained wrote."""
    weights = (path for kind in ("safetensors", "bin") for path in folder.glob(f"*.{kind}"))
    return (folder / "config.json").is_file() and any(weights)


def python_with(*modules: str) -> Path | None:
    """This Python, or the one of our own or the user's ComfyUI, whichever has these modules."""
    if all(importlib.util.find_spec(module) for module in modules):
        return Path(sys.executable)
    probe = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {modules})))"
    for python in (host.started_by(), host.venv_python(host.HOST / "venv"), *users_python()):
        if python.exists() and subprocess.run([python, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0:
            return python
    return None


def users_python() -> list[Path]:
    try:
        this = host.find()
    except Failure:
        return []
    return [this.python] if this else []


def add_measures(
    python: Path, kind: str, model: Path, device: str | None, stories: Sequence[StoryText], jobs: Sequence[Job]
) -> None:
    """Measure the jobs that have no `kind` ("clip", "dreamsim") by this model yet, in a Python that can.

    Each job's measures go into its result as they come, with the model's folder. Raises `Failure` with the reason that
    the measuring process gave, except for weights that are not there: that measure is then left out with a line.
    """
    name = str(model.resolve())
    wanted = [job for job in jobs if json_of(job).get(kind, {}).get("model") != name]
    if not wanted:
        return
    tasks = []
    for job in wanted:
        text = stories[job.story]
        frames = parse_script(text.identity, text.frames).frames
        prompts = [re.sub(r"\s+", " ", f"{frame.identity} {frame.prompt}").strip() for frame in frames]
        tasks.append({"frames": [str(path) for path in sorted(job.folder.glob("frame_*.png"))], "prompts": prompts})
    command: list[str | Path] = [python, SCRIPT, kind, model, *([device] if device else [])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
        reader.start()
        try:
            process.stdin.write(json.dumps(tasks))
            process.stdin.close()
        except BrokenPipeError:
            pass  # its reason comes below
        for number, (job, line) in enumerate(zip(wanted, process.stdout), 1):
            write_json(job.folder / RESULT, json_of(job) | {kind: {"model": name, **json.loads(line)}})
            host.show(f"Measuring with {kind}: {number}/{len(wanted)}")
        process.wait()
        reader.join()
    host.show("")
    if process.returncode:
        reason = (errors or ["it gave no reason"])[-1].strip()
        if kind == "dreamsim":
            host.say(f"DreamSim is left out: {reason}")
        else:
            raise Failure(f"The pictures could not be measured with {model}: {reason}")
