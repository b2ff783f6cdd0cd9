"""Measures the pictures that are made, each model in a Python that has what it needs."""

import importlib.util
import json
import re
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...story.files import StoryText
from ...story.script import parse_script
from ...tools import host
from ...tools.failure import Failure
from ...tools.results import RESULT, write_json
from .jobs import Job, json_of
from .masks import Masks, frames_of

SCRIPT = Path(__file__).with_name("vision.py")
KEYS = {"clip": "told_apart", "clip_image": "clip_i", "features": "frames"}
"""What a kind's result has, where that is not its name."""
CLIP = "https://huggingface.co/openai/clip-vit-base-patch32"
DREAMSIM = "https://github.com/ssundaram21/dreamsim"
FEATURES = "features.npy"
"""The vectors of a board's frames [frames, channels], in its folder."""
TEXTS, TEXTS_BY = "texts.npy", "texts.json"
"""In a story's folder: the vectors of its frame prompts [alone or together, frames, channels], and the model's name."""


class Plan(NamedTuple):
    """What is to be measured in one go: vision.py's kind, its model, and what `keep` gets for each task as it comes."""

    kind: str
    model: Path
    tasks: list[dict[str, Any]]
    keep: Callable[[int, dict[str, Any]], None]


def measure(args: Namespace, stories: Sequence[StoryText], jobs: Sequence[Job], masks: Masks | None = None) -> None:
    """Add to the results what this machine can measure, and say in a line what it can't."""
    python = python_with("torch", "transformers", "PIL")
    looks = args.clip_image or args.clip
    features = args.dinov2 or looks
    if not args.clip:
        host.say(f"CLIP-T is left out: --clip names no CLIP model, such as a download of {CLIP}.")
    if features and not python:
        host.say("CLIP-T and CLIP-I are left out: neither this Python nor ComfyUI's has torch and transformers.")
    if looks and not masks:
        host.say("CLIP-I counts whole pictures: neither --remover nor --masks says where the characters are.")
    plans = []
    if python and args.clip:
        plans += [plan("clip", args.clip, stories, jobs), plan_texts(args.clip, stories, jobs)]
    if python and looks:
        plans.append(plan("clip_image", looks, stories, jobs, masks))
    if python and features:
        plans.append(plan("features", features, stories, jobs, masks))
    if python:
        carry_out(python, args.device, plans)
    if scorer := python_with("torch", "dreamsim"):
        try:
            carry_out(scorer, args.device, [plan("dreamsim", args.dreamsim, stories, jobs, masks)])
        except Unmeasured as error:
            host.say(f"DreamSim is left out: {error.reason}")
    else:
        host.say(f"DreamSim is left out: its package, dreamsim of pip, is not installed; {DREAMSIM} has the weights.")
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


def plan(kind: str, model: Path, stories: Sequence[StoryText], jobs: Sequence[Job], masks: Masks | None = None) -> Plan:
    """Measure the jobs that have no `kind` by this model and these masks yet; it goes into each one's result."""
    by = {"model": str(model.resolve())} | ({"masks": masks.source} if masks else {})
    wanted = [job for job in jobs if not measured(json_of(job).get(kind), by, kind)]
    tasks = [
        {
            "frames": [*map(str, frames_of(job))],
            "masks": masks.of(job) if masks else None,
            "prompts": prompts_of(stories[job.story])[1],
            "file": str(job.folder / FEATURES),
        }
        for job in wanted
    ]

    def keep(number: int, found: dict[str, Any]) -> None:
        job = wanted[number]
        write_json(job.folder / RESULT, json_of(job) | {kind: {**by, **found}})

    return Plan(kind, model, tasks, keep)


def measured(found: dict[str, Any] | None, by: dict[str, str], kind: str) -> bool:
    """Whether a result has what `kind` measures now, by this model and these masks."""
    if not found or {name: found[name] for name in ("model", "masks") if name in found} != by:
        return False
    return KEYS.get(kind, kind) in found


def plan_texts(model: Path, stories: Sequence[StoryText], jobs: Sequence[Job]) -> Plan:
    """Write the vectors of every story's frame prompts into its folder, where this model's are not there yet."""
    tasks: list[dict[str, Any]] = []
    for story, folder in {job.story: job.folder.parent for job in jobs}.items():
        read_by = folder / TEXTS_BY
        if not read_by.is_file() or json.loads(read_by.read_text(encoding="utf-8"))["model"] != str(model.resolve()):
            identity, _, frames = prompts_of(stories[story])
            (folder / TEXTS).unlink(missing_ok=True)
            tasks.append({"identity": identity, "prompts": frames, "file": str(folder / TEXTS)})

    def keep(number: int, found: dict[str, Any]) -> None:
        file = Path(tasks[number]["file"]).with_name(TEXTS_BY)
        write_json(file, {"model": str(model.resolve()), **found})

    return Plan("texts", model, tasks, keep)


def prompts_of(text: StoryText) -> tuple[str, list[str], list[str]]:
    """A story's identity prompt, that of the first frame; each frame's whole prompt; and each frame prompt alone."""
    frames = parse_script(text.identity, text.frames).frames
    whole = [one_line(f"{frame.identity} {frame.prompt}") for frame in frames]
    return one_line(frames[0].identity), whole, [one_line(frame.prompt) for frame in frames]


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


class Unmeasured(Failure):
    """A measuring process failed for a `reason`, which it gave."""

    def __init__(self, model: Path, reason: str):
        super().__init__(f"The pictures could not be measured with {model}: {reason}")
        self.reason = reason


def carry_out(python: Path, device: str | None, plans: Sequence[Plan], script: Path | None = None) -> None:
    """Do what is planned in one process of a Python that can. Raises `Unmeasured`; what came before is kept."""
    plans = [plan for plan in plans if plan.tasks]
    if not plans:
        return
    given = [{"kind": plan.kind, "model": str(plan.model), "tasks": plan.tasks} for plan in plans]
    command: list[str | Path] = [python, script or SCRIPT, *([device] if device else [])]
    left = [(plan, number) for plan in plans for number in range(len(plan.tasks))]
    total = len(left)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
        reader.start()
        try:
            process.stdin.write(json.dumps(given))
            process.stdin.close()
        except BrokenPipeError:
            pass  # its reason comes below
        for line in process.stdout:
            plan, number = left.pop(0)
            plan.keep(number, json.loads(line))
            host.show(f"Measuring with {plan.kind}: {total - len(left)}/{total}")
        process.wait()
        reader.join()
    host.show("")
    if process.returncode:
        raise Unmeasured((left or [(plans[-1], 0)])[0][0].model, (errors or ["it gave no reason"])[-1].strip())
