"""Make a story's frames and board with ComfyUI, and save them as PNG.

Without --checkpoint the Story World's small checkpoint draws a story of its little cartoon world, once from one prompt
and once from separate prompts, to compare. With --checkpoint, any Stable Diffusion 1.x, 2.x or SDXL checkpoint draws.
Every picture opens the workflow that drew it when you drop it on the editor's canvas.
"""

import argparse
import copy
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..story.files import StoryText, read_stories, read_story_file
from ..story.script import parse_script
from . import host
from .client import Client, Workflow, images
from .comparison import compare
from .failure import Failure

WORKFLOWS = host.ROOT / "workflows"
WORKFLOW = WORKFLOWS / "api" / "One Prompt One Story.json"
COMPARISON = WORKFLOWS / "api" / "Story vs Separate Prompts.json"
WAYS = ("separate prompts", "one prompt")
WORLD_STORY = host.ROOT / "world" / "story.txt"

# What suits the Story World's checkpoint, which knows no words but its own (world/drawing/captions.py).
WORLD: dict[str, Any] = {"size": (128, 128), "steps": 20, "seed": 5, "negative": "", "page_width": 1280}

WINDOW = 4
"""Story Prompt's for the Story World: below the number of frames, each stands first in a prompt of its own."""

LOG = host.HOST / "comfyui.log"

# The width of the text tokens that a checkpoint's U-Net takes, and the size of the pictures it was trained on.
TRAINED_SIZES = {768: 512, 1024: 768, 2048: 1024, 1280: 1024}
SAMPLERS = ("KSampler", "KSamplerAdvanced")
AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")
"""Values of the widget that the editor puts after a seed's."""
CROSS_ATTENTION = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "A story file (.txt) is the identity, an empty line, then one frame a line:\n\n"
        "  A watercolor painting of a young red fox with a blue scarf\n\n"
        "  reading a book under an oak tree\n"
        "  sailing a small wooden boat # At sea!\n\n"
        "“ # ” starts a caption. .json and .yaml files are described in docs/story-files.md."
    )
    parser.add_argument("--story", metavar="FILE", type=Path, help="the story to make (default: the workflow's own)")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="the checkpoint: a file, or its name among ComfyUI's checkpoints or in .host/models/checkpoints;"
        " with --server, its name on that server",
    )
    parser.add_argument("--server", metavar="URL", help="use this running ComfyUI, which needs the pack installed")
    parser.add_argument("--comfyui", metavar="PATH", help="use the ComfyUI in this folder (default: COMFYUI_PATH)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to save (default: a new folder in out/)")
    parser.add_argument(
        "--steps", metavar="N", type=whole(1, 10000), help="sampling steps (default: 30; Story World: 20)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=whole(0, 2**64 - 1), help="seed (default: the workflow's own; Story World: 5)"
    )
    parser.add_argument(
        "--size",
        metavar="WxH",
        type=size,
        help="size of a frame in pixels (default: what the checkpoint was trained on, 512x512 for SD1.5 and 1024x1024"
        " for SDXL, 128x128 for the Story World's; 1024x1024 with --server)",
    )


def whole(low: int, high: int):
    """A whole number within bounds, for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return number


def size(text: str) -> tuple[int, int]:
    """WxH in pixels, for argparse."""
    match = re.fullmatch(r"(\d{2,5})[xX×](\d{2,5})", text)
    if not match or any(int(side) % 8 or not 64 <= int(side) <= 16384 for side in match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write WxH, multiples of 8 from 64, such as 768x512")
    return int(match[1]), int(match[2])


def run(args: argparse.Namespace) -> int:
    if args.server and args.comfyui:
        raise Failure("--server and --comfyui exclude each other: name the running ComfyUI, or the one to start.")
    world = is_world(args)
    source = COMPARISON if world else WORKFLOW
    workflow = json.loads(source.read_text(encoding="utf-8"))
    story = read_story(args.story or WORLD_STORY) if args.story or world else None
    given = {name: vars(args)[name] for name in ("size", "seed", "steps") if vars(args)[name] is not None}
    folder = args.out or free_path(host.ROOT / "out" / slug(story.title if story else WORKFLOW.stem))
    with new_folder(folder), serving(args) as place:
        kept = {"window": window_of(story)} if world and story else {}
        workflow = fill_in(workflow, story, {**place.defaults, **kept, **given})
        client = Client(place.url)
        check_server(client, workflow, args.server is None)
        device = client.get("/system_stats")["devices"][0]["name"].partition(" : ")[0]
        host.say(f"{summary(story.title if story else source.stem, workflow)} on {device}, into {folder}.")
        editor = editor_workflow(WORKFLOWS / source.name, workflow)
        found = pictures(client, workflow, client.run(workflow, ProgressBar(workflow), editor))
        paths = save(folder, found)
        if world and place.comfyui:
            rows = {way: [path for kind, path in paths if kind == f"frame {way}"] for way in WAYS}
            paths.append(("comparison", save_comparison(folder, rows)))
    host.say(next_step(place, device == "cpu"))
    print(*(path for _, path in paths), sep="\n")
    return 0


def window_of(story: StoryText) -> int:
    """`WINDOW`, or less for a short story; all frames in one prompt (0) where there are only two."""
    frames = len(story.frames.splitlines())
    return min(WINDOW, frames - 1) if frames > 2 else 0


def is_world(args: argparse.Namespace) -> bool:
    """Whether the Story World's checkpoint makes the pictures, on a ComfyUI that we start."""
    return not args.server and (not args.checkpoint or Path(args.checkpoint).name == host.WORLD_CHECKPOINT)


def read_story(path: Path) -> StoryText:
    try:
        return read_story_file(path)
    except ValueError as error:
        raise Failure(str(error)) from None


def read_all_stories(path: Path) -> tuple[StoryText, ...]:
    """All stories of a file. Raises `Failure` with the reader's sentence."""
    try:
        return read_stories(path)
    except ValueError as error:
        raise Failure(str(error)) from None


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """A folder for the results, made before the work; one that is new and stays empty goes again."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"The results cannot be saved in {folder}: {error.strerror}.") from None
    try:
        yield
    finally:
        if new:
            with suppress(OSError):
                folder.rmdir()


class Place(NamedTuple):
    """A server that has the checkpoint, and the settings that suit both.

    ComfyUI, the checkpoint's file, and the folder that ComfyUI writes into, where it is ours to know.
    """

    url: str
    defaults: dict[str, Any]
    comfyui: host.Host | None = None
    checkpoint: Path | None = None
    folder: Path | None = None


class NoCheckpoint(Failure):
    """A checkpoint is in none of the places where it is looked for."""


@contextmanager
def serving(args: argparse.Namespace, **how: Any) -> Iterator[Place]:
    """A running server with the checkpoint; one that is started runs so, by `host.running`'s arguments."""
    if args.server:
        yield Place(args.server, {"checkpoint": args.checkpoint} if args.checkpoint else {})
        return
    this = host.find(args.comfyui)
    checkpoint = find_checkpoint(args.checkpoint, this) if args.checkpoint else None
    this = this or host.set_up()
    if not checkpoint:
        host.say("No --checkpoint: the Story World's is used, which draws one little cartoon world.")
        checkpoint = host.world_checkpoint(this)
    side = trained_size(checkpoint)
    defaults: dict = {"size": (side, side)} if side else {}
    if is_world(args):
        defaults = WORLD
    with host.run_folder() as folder:
        name = listed_name(checkpoint, this)
        models = None if name else models_folder(checkpoint, folder / "checkpoints")
        with host.running(this, folder, models, **{"log": LOG, **how}) as url:
            yield Place(url, {"checkpoint": name or checkpoint.name, **defaults}, this, checkpoint, folder)


def find_checkpoint(name: str, this: host.Host | None) -> Path:
    """The checkpoint's file: a path, or a name among the checkpoints of the user's ComfyUI or in `.host`."""
    folders = [*([this.comfyui] if this else []), host.HOST / "ComfyUI", host.HOST]
    named = [folder / "models" / "checkpoints" / name for folder in folders]
    paths = dict.fromkeys([Path(os.path.abspath(Path(name).expanduser())), *named])
    for path in paths:
        if path.is_file():
            return path
    raise NoCheckpoint(
        f"There is no checkpoint {' or '.join(map(str, paths))}: give another path, or put it in one of these places."
    )


def listed_name(checkpoint: Path, this: host.Host) -> str | None:
    """The checkpoint's name in the editor of this ComfyUI, if it lies in its folder of checkpoints."""
    folder = host.checkpoint_folder(this)
    return str(checkpoint.relative_to(folder)) if checkpoint.is_relative_to(folder) else None


def models_folder(checkpoint: Path, folder: Path) -> Path:
    """A folder that shows the server this one checkpoint; its own folder where links aren't allowed."""
    folder.mkdir()
    try:
        (folder / checkpoint.name).symlink_to(checkpoint)
    except OSError:
        return checkpoint.parent
    return folder


def trained_size(checkpoint: Path) -> int | None:
    """The side of the pictures that a checkpoint was trained on, by its header; None when that doesn't tell."""
    try:
        with safetensors.safe_open(checkpoint, "numpy") as file:
            name = next(filter(CROSS_ATTENTION.fullmatch, file.keys()), None)
            return TRAINED_SIZES.get(file.get_slice(name).get_shape()[1]) if name else None
    except safetensors.SafetensorError:
        return None


def fill_in(workflow: Workflow, story: StoryText | None, settings: dict) -> Workflow:
    """The workflow with a story and settings in it; what is not given or comes by a wire stays as it is."""
    workflow = copy.deepcopy(workflow)
    width, height = settings.get("size", (None, None))
    wanted = {
        "OneStoryScript": {"identity": story and story.identity, "frames": story and story.frames},
        "CheckpointLoaderSimple": {"ckpt_name": settings.get("checkpoint")},
        "OneStoryPrompt": {"window": settings.get("window")},
        "OneStoryLatent": {"width": width, "height": height},
        "CLIPTextEncode": {"text": settings.get("negative")},
        "OneStoryBoard": {"page_width": settings.get("page_width")},
    }
    for node in workflow.values():
        for name, value in wanted.get(node["class_type"], {}).items():
            if value is not None and not isinstance(node["inputs"].get(name), list):
                node["inputs"][name] = value
    if settings.get("steps") is not None:
        set_steps(workflow, settings["steps"])
    if settings.get("seed") is not None:
        for node in workflow.values():
            if node["class_type"] in SAMPLERS:
                holder, name = seed_of(workflow, node["inputs"])
                holder[name] = settings["seed"]
    return workflow


def set_inputs(workflow: Workflow, kind: str, inputs: dict[str, Any]) -> None:
    """Give every node of a kind these inputs."""
    for node in workflow.values():
        if node["class_type"] == kind:
            node["inputs"].update(inputs)


def set_steps(workflow: Workflow, steps: int) -> None:
    """Give every sampler so many steps; one that does a part of them does the same part, of one step at least."""
    for node in workflow.values():
        inputs = node["inputs"]
        if "steps" in inputs:
            for name in {"start_at_step", "end_at_step"} & inputs.keys():
                if 0 < inputs[name] < inputs["steps"]:
                    inputs[name] = max(1, round(inputs[name] / inputs["steps"] * steps))
            inputs["steps"] = steps


def seed_of(workflow: Workflow, sampler: dict) -> tuple[dict, str]:
    """The inputs that hold a sampler's seed and its name there: its own, or those of a node wired to it."""
    name = "seed" if "seed" in sampler else "noise_seed"
    if isinstance(sampler[name], list):
        holder = workflow[sampler[name][0]]["inputs"]
        return holder, "seed" if "seed" in holder else "value"
    return sampler, name


def editor_workflow(path: Path, workflow: Workflow) -> dict:
    """The editor's file of a shipped workflow with the values that are in its API twin `workflow`."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        values, position = node.get("widgets_values", []), 0
        for name in (slot["widget"]["name"] for slot in node["inputs"] if "widget" in slot):
            value = workflow[str(node["id"])]["inputs"].get(name, values[position])
            while isinstance(value, list):  # wired: the widget shows what the other node gives
                source = workflow[value[0]]["inputs"]
                given = ("value", "seed") if name == "seed" else ("value",)
                value = next((source[key] for key in given if key in source), values[position])
            values[position] = value
            position += 1
            if position < len(values) and values[position] in AFTER_GENERATE:
                position += 1
    return graph


def check_server(client: Client, workflow: Workflow, ours: bool) -> None:
    """Raise unless the server, one that we started if `ours`, has the pack and the checkpoint."""
    if client.choices("OneStoryIPCA", "variant") is None:
        if ours:
            raise Failure(f"ComfyUI could not load the pack: {LOG} says why.")
        raise Failure(f"The ComfyUI at {client.url} does not have the OneStory pack: install it there and restart it.")
    known = client.choices("CheckpointLoaderSimple", "ckpt_name") or []
    for node in workflow.values():
        name = node["inputs"].get("ckpt_name")
        if name is not None and name not in known:
            some = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
            raise Failure(
                f"{client.url} has no checkpoint {name}: name one with --checkpoint. It has {some or 'none'}."
            )


def summary(title: str, workflow: Workflow) -> str:
    """What is about to be drawn."""
    found = {node["class_type"]: node["inputs"] for node in workflow.values()}
    sampler, latent, script = found["KSampler"], found["OneStoryLatent"], found["OneStoryScript"]
    modes = [node["inputs"]["mode"] for node in workflow.values() if node["class_type"] == "OneStoryPrompt"]
    frames = len(parse_script(script["identity"], script["frames"]).frames)
    holder, name = seed_of(workflow, sampler)
    return (
        f"Drawing “{title}”: {frames} frame{'s' if frames > 1 else ''} of {latent['width']}x{latent['height']} pixels,"
        f" from {' and from '.join(modes)}, steps {sampler['steps']}, seed {holder[name]}, with"
        f" {found['CheckpointLoaderSimple']['ckpt_name']}"
    )


class ProgressBar:
    """Draws a server's messages about one workflow: the node at work, how far it is, and how long the rest will take.

    The time is that of the samplers' remaining steps, from those that were taken since the first of its sampler, which
    also loads the model. It is said once as a line of its own. `clock` gives seconds.
    """

    def __init__(self, workflow: Workflow, clock: Callable[[], float] = time.monotonic):
        self.titles = {key: node.get("_meta", {}).get("title", node["class_type"]) for key, node in workflow.items()}
        self.left = {key: part_of(node["inputs"]) for key, node in workflow.items() if node["class_type"] in SAMPLERS}
        self.clock = clock
        self.first: dict[str, tuple[float, int]] = {}
        self.told = False

    def __call__(self, kind: str, data: dict) -> None:
        if kind == "executing":
            host.show(f"{self.titles.get(data['node'], '')} ..." if data["node"] else "")
        elif kind == "progress" and data["max"]:
            rest = self.rest(data)
            if rest and not self.told:
                host.show("")
                host.say(f"About {duration(rest)} to go.")
                self.told = True
            more = f", about {duration(rest)} to go" if rest else ""
            host.show(self.titles.get(data["node"], ""), data["value"], data["max"], more)

    def rest(self, data: dict) -> float | None:
        """The seconds that the samplers will go on for, where a sampler's progress tells."""
        node, value = data["node"], data["value"]
        if node not in self.left or not value:
            return None
        self.left[node] = data["max"] - value
        now = self.clock()
        began, before = self.first.setdefault(node, (now, value))
        return (now - began) / (value - before) * sum(self.left.values()) if value > before else None


def part_of(sampler: dict) -> int:
    """How many of its steps a sampler takes."""
    return min(sampler.get("end_at_step", sampler["steps"]), sampler["steps"]) - sampler.get("start_at_step", 0)


def duration(seconds: float) -> str:
    """A length of time in the words of an estimate."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def pictures(client: Client, workflow: Workflow, outputs: dict) -> dict[str, list[bytes]]:
    """What the Save Image nodes wrote, by their prefix after "OneStory/": "frame", "board", "frame one prompt"."""
    found = {}
    for key, node in workflow.items():
        folder, _, kind = node["inputs"].get("filename_prefix", "").partition("/")
        if folder == "OneStory":
            found[kind] = [client.download(image) for image in images(outputs, [key])]
    return found


def save(folder: Path, found: dict[str, list[bytes]]) -> list[tuple[str, Path]]:
    """Write the pictures into `folder`, under names that nothing has there yet.

    Returns the kind and the path of each, frames first.
    """
    paths = []
    for kind in sorted(found, key=lambda kind: kind.startswith("board")):
        digits = max(2, len(str(len(found[kind]))))
        for i, data in enumerate(found[kind], 1):
            number = f"_{i:0{digits}}" if kind.startswith("frame") else ""
            path = free_path(folder / f"{kind.replace(' ', '_')}{number}.png")
            path.write_bytes(data)
            paths.append((kind, path))
    return paths


def save_comparison(folder: Path, rows: Mapping[str, Sequence[Path]]) -> Path:
    """Draw the frames of each way as a row under its name, with the first frame's workflow in it."""
    path = free_path(folder / "comparison.png")
    ways = {name: [Image.open(frame) for frame in frames] for name, frames in rows.items()}
    metadata = PngInfo()
    for key, text in next(iter(ways.values()))[0].info.items():
        if key in ("prompt", "workflow"):
            metadata.add_text(key, text)
    compare(ways).save(path, pnginfo=metadata)
    return path


def next_step(place: Place, cpu: bool) -> str:
    """How to go on from the pictures in ComfyUI's editor."""
    drop = "drop one of these pictures on its canvas: that opens the workflow that drew it."
    if not place.comfyui:
        return f"To go on in the editor, open {place.url} and {drop}"
    if host.is_own(place.comfyui):
        command = [str(place.comfyui.python), str(place.comfyui.comfyui / "main.py"), *(["--cpu"] if cpu else [])]
        start = subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)
        return f"To go on in the editor, run {start}\nthen open http://127.0.0.1:8188 and {drop}"
    first = ""
    if place.checkpoint and not listed_name(place.checkpoint, place.comfyui):
        first = f"copy {place.checkpoint} to {host.checkpoint_folder(place.comfyui)}, "
    return f"To go on in the editor, {first}start your ComfyUI and {drop}"


def free_path(path: Path) -> Path:
    """`path`, or the first of name-2, name-3, ... that nothing has yet."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def slug(title: str) -> str:
    """A title as a folder's name."""
    return re.sub(r"[^\w-]+", "_", title).strip("_")[:60] or "story"
