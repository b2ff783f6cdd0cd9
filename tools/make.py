"""Draw every story of a file by one workflow: frames, boards, and a page that shows them all.

A story is drawn once for each seed. What is in --out is not drawn again, so the run may be interrupted and run again,
and more stories and seeds can be added to it later. Several servers share the stories, or with --ray the machines and
GPUs of a Ray cluster.
"""

import argparse
import copy
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..story.files import StoryText
from . import host
from .client import Client, Workflow, clients_of, saved_files
from .demo import WORKFLOW, check_server, fill_in, read_all_stories, serving, size, slug, whole
from .environment import provide
from .failure import Failure
from .pool import Maker, Server
from .results import RESULT, digest, is_kept, keep_settings, write_json

DIGESTS = {"workflow": "another workflow"}
SEEDS = ("seed", "noise_seed")
SCRIPT, LOADER = "OneStoryScript", "OneStoryLoad"
PAGE = "index.html"
SHOWN = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "The workflow is a shipped one by its name, or a file that ComfyUI's “Export (API)” wrote; it has one Story\n"
        "Script or Load Story, and saves what is to be kept. docs/story-files.md describes story files."
    )
    parser.add_argument("stories", metavar="FILE", type=Path, help="the stories")
    parser.add_argument(
        "--workflow", metavar="NAME|FILE", default=WORKFLOW.stem, help=f"what draws them (default: {WORKFLOW.stem})"
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        action="append",
        help="a running ComfyUI with the pack; may be given several times (default: one is started)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        help="start a ComfyUI on each GPU of the Ray cluster at this address, such as auto or ray://host:10001; "
        "without one on this machine's, or its CPU",
    )
    parser.add_argument("--actors", metavar="N", type=whole(1, 10000), help="with --ray, so many ComfyUIs")
    parser.add_argument(
        "--cpus", metavar="N", type=whole(1, 1024), help="with --ray, draw on CPUs, each ComfyUI on N cores"
    )
    parser.add_argument("--comfyui", metavar="PATH", help="start the ComfyUI in this folder (default: COMFYUI_PATH)")
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="another checkpoint than the workflow's; without --server also a file"
    )
    parser.add_argument("--seeds", metavar="N", nargs="+", type=whole(0, 2**64 - 1), help="default: the workflow's own")
    parser.add_argument("--steps", metavar="N", type=whole(1, 10000), help="sampling steps (default: the workflow's)")
    parser.add_argument("--size", metavar="WxH", type=size, help="of a frame in pixels (default: the workflow's)")
    parser.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="other values than the workflow's, by a node's type or number, such as OneStoryIPCA.strength=1.5",
    )
    parser.add_argument("--limit", metavar="N", type=whole(1, 10**6), help="only the file's first N stories")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where it is all kept (default: a folder in out/)")


@dataclass(frozen=True, eq=False)
class Drawing:
    """One story with one seed, None for the workflow's own; `folder` gets what the workflow saves, and a result."""

    story: StoryText
    seed: int | None
    folder: Path
    workflow: Workflow = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.story.title

    @property
    def what(self) -> str:
        return "the workflow's seed" if self.seed is None else f"seed {self.seed}"

    @property
    def made(self) -> bool:
        """Raises `Failure` where another text has been drawn."""
        return is_kept(self.folder, self.story, f"“{self.title}”", "--out")

    def graph(self) -> Workflow:
        return with_seed(with_story(self.workflow, self.story), self.seed)

    def keep(self, server: Server, outputs: dict[str, dict[str, Any]], seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files = []
        for name, saved in named_files(self.workflow, outputs):
            (self.folder / name).write_bytes(server.download(saved))
            files.append(name)
        result = {"seconds": round(seconds, 2), "server": server.url, "text": digest(self.story), "files": files}
        write_json(self.folder / RESULT, result)


def run(args: argparse.Namespace) -> int:
    """Draw what is missing, and write the page. Returns 1 when a story could not be drawn."""
    check_arguments(args)
    stories = read_all_stories(args.stories)[: args.limit]
    workflow, name = read_workflow(args.workflow)
    given = {key: vars(args)[key] for key in ("checkpoint", "steps", "size") if vars(args)[key] is not None}
    out = args.out or host.ROOT / "out" / f"{slug(args.stories.stem)}_{slug(name)}"
    settings = {
        "workflow": digest(workflow),
        **{key: value if key != "size" else "{}x{}".format(*value) for key, value in given.items()},
        "set": sorted(args.set) or None,
    }
    with_values(workflow, args.set)
    keep_settings(out, settings, DIGESTS)
    groups = drawings(out, stories, args.seeds or [None])
    errors: dict[Drawing, str] = {}
    try:
        missing = sum(not drawing.made for group in groups for drawing in group)
        if missing:
            with studio(args, workflow, given, missing) as place:
                groups = [[replace(drawing, workflow=place.workflow) for drawing in group] for group in groups]
                tasks = [[drawing] for group in groups for drawing in group] if args.ray else groups
                errors = Maker(place.servers, tasks, place.check, "drawings", started=not args.ray).run()
    finally:
        page = write_page(out, f"{args.stories.name} by {name}", groups, errors)
    for drawing, why in errors.items():
        host.say(f"Not drawn, {drawing.what}: {why}")
    if errors:
        host.say(f"{len(errors)} of {sum(map(len, groups))} drawings are missing, and tried again in the next run.")
    print(page)
    return 1 if errors else 0


class Studio(NamedTuple):
    """Servers that draw a workflow, which has what was given for it, or what suits a checkpoint that is ours.

    `check` raises `Failure` for a server that can't draw it.
    """

    servers: Sequence[Any]
    workflow: Workflow
    check: Callable[[Any], None]


@contextmanager
def studio(args: argparse.Namespace, workflow: Workflow, given: dict[str, Any], drawings: int) -> Iterator[Studio]:
    """The servers for so many drawings, as the arguments say."""
    if args.ray:
        with ray_engine(args.ray).actors(args, drawings) as (actors, defaults):
            check = partial(check_actor, name=defaults["checkpoint"])
            yield Studio(actors, fitted(workflow, defaults, given, args.set), check)
    elif args.server:
        ready = with_values(fill_in(workflow, None, given), args.set)
        servers = clients_of(args.server)
        for server in servers:
            check_server(server, ready, False)
        yield Studio(servers, ready, partial(check_server, workflow=ready, ours=False))
    else:
        with serving(argparse.Namespace(**{**vars(args), "server": None})) as place:
            ready = fitted(workflow, place.defaults, given, args.set)
            yield Studio([Client(place.url)], ready, partial(check_server, workflow=ready, ours=True))


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `Failure` unless the arguments name one place to draw in."""
    if args.server and args.comfyui:
        raise Failure("--server and --comfyui exclude each other: name the running ComfyUIs, or the one to start.")
    if args.server and args.ray:
        raise Failure("--server and --ray exclude each other: name the running ComfyUIs, or let Ray start some.")
    for name in ("actors", "cpus"):
        if vars(args)[name] and not args.ray:
            raise Failure(f"--{name} is for --ray: add that, or leave --{name} out.")


def fitted(workflow: Workflow, defaults: dict[str, Any], given: dict[str, Any], changes: Sequence[str]) -> Workflow:
    """The workflow with a checkpoint of ours, what was given, and what suits the checkpoint elsewhere."""
    suits = {key: value for key, value in defaults.items() if key != "seed"}
    return with_values(fill_in(workflow, None, suits | given | {"checkpoint": defaults["checkpoint"]}), changes)


def ray_engine(address: str) -> ModuleType:
    """The module cluster.py, once the tools' environment has Ray. Raises `Failure` when it can't be installed."""
    name = "ray-client" if address.startswith("ray://") else "ray"
    wanted = host.TOOLS / f"requirements-{name}.txt"
    provide(host.HOST / "venv", name, host.digest(wanted), "Installing Ray (80 MB) ...", wanted)
    importlib.invalidate_caches()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address == "local":
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: it listens on the loopback address only
    elif (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as a `ray start` beside that file does
    return importlib.import_module(".cluster", __package__)


def check_actor(actor: Any, name: str) -> None:
    """Raise `Failure` unless the actor is ready, with the checkpoint under the name that the workflow has."""
    found = actor.ready()["checkpoint"]
    if found != name:
        raise Failure(
            f"{actor.url} has the checkpoint as {found}, others as {name}: put it in one place on all machines."
        )


def read_workflow(name: str) -> tuple[Workflow, str]:
    """A shipped workflow or one of a file in ComfyUI's API format, and its name. Raises `Failure` for anything else."""
    shipped = WORKFLOW.parent / f"{name}.json"
    path = shipped if shipped.is_file() else Path(name)
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in WORKFLOW.parent.glob("*.json")))
        raise Failure(f"--workflow {name} is no file and no shipped workflow: those are {known}.") from None
    except (OSError, ValueError) as error:
        raise Failure(f"The workflow {path} cannot be read: {error}.") from None
    if not isinstance(workflow, dict) or not all(isinstance(n, dict) and "class_type" in n for n in workflow.values()):
        raise Failure(f"{path} is no workflow in the API format: write it by “Export (API)” in ComfyUI's menu.")
    tellers = [key for key, node in workflow.items() if node["class_type"] in (SCRIPT, LOADER)]
    if len(tellers) != 1:
        raise Failure(
            f"{path} has {len(tellers)} nodes that give a story: it needs one Story Script or Load Story, whose place "
            "each story takes."
        )
    if not any("filename_prefix" in node["inputs"] for node in workflow.values()):
        raise Failure(f"{path} saves nothing: put a Save Image behind what is to be kept.")
    return workflow, path.stem


def with_story(workflow: Workflow, story: StoryText) -> Workflow:
    """The workflow with the story in its Story Script, which also takes the place of a Load Story."""
    workflow = copy.deepcopy(workflow)
    [(key, teller)] = [(k, n) for k, n in workflow.items() if n["class_type"] in (SCRIPT, LOADER)]
    if teller["class_type"] == LOADER:
        workflow[key] = {"class_type": SCRIPT, "inputs": {}}
        for node in workflow.values():
            for name, value in node["inputs"].items():
                if value in ([key, 1], [key, 2]):  # its title, and how many stories the file has
                    node["inputs"][name] = story.title if value[1] == 1 else 1
    return fill_in(workflow, story, {})


def with_seed(workflow: Workflow, seed: int | None) -> Workflow:
    """The workflow with every sampler's seed set, there or in the node that it comes from."""
    workflow = copy.deepcopy(workflow)
    if seed is None:
        return workflow
    for node in workflow.values():
        if "Sampler" not in node["class_type"] and "Noise" not in node["class_type"]:
            continue
        for name in SEEDS:
            inputs, given = node["inputs"], name
            if isinstance(inputs.get(name), list):
                inputs = workflow[inputs[name][0]]["inputs"]
                given = next((key for key in ("value", *SEEDS) if isinstance(inputs.get(key), int)), "")
            if isinstance(inputs.get(given), int):
                inputs[given] = seed
    return workflow


def with_values(workflow: Workflow, changes: Sequence[str]) -> Workflow:
    """The workflow with "NODE.INPUT=VALUE" set, by a node's type or id. Raises `Failure` for what it doesn't have."""
    workflow = copy.deepcopy(workflow)
    for change in changes:
        name, _, text = change.partition("=")
        kind, _, given = name.rpartition(".")
        found = [node["inputs"] for key, node in workflow.items() if kind in (key, node["class_type"])]
        found = [inputs for inputs in found if given in inputs and not isinstance(inputs[given], list)]
        if not found:
            known = sorted(
                f"{node['class_type']}.{key}"
                for node in workflow.values()
                for key, value in node["inputs"].items()
                if not isinstance(value, list)
            )
            raise Failure(f"--set {change}: the workflow has no {name or 'such input'}. It has {', '.join(known)}.")
        for inputs in found:
            inputs[given] = converted(text, inputs[given], change)
    return workflow


def converted(text: str, old: Any, change: str) -> Any:
    """A value of the kind of the old one."""
    if isinstance(old, str):
        return text
    try:
        value = json.loads(text.lower() if isinstance(old, bool) else text)
    except ValueError:
        value = None
    kinds = bool if isinstance(old, bool) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(old, bool):
        raise Failure(f"--set {change}: the workflow has {json.dumps(old)} there, and “{text}” is nothing of the kind.")
    return value


def drawings(out: Path, stories: Sequence[StoryText], seeds: Sequence[int | None]) -> list[list[Drawing]]:
    """All that is to be drawn, a group for each story."""
    return [
        [Drawing(story, seed, out / f"{i:03}_{slug(story.title)}" / seed_name(seed)) for seed in dict.fromkeys(seeds)]
        for i, story in enumerate(stories)
    ]


def seed_name(seed: int | None) -> str:
    return "seed" if seed is None else f"seed-{seed}"


def named_files(workflow: Workflow, outputs: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """What a workflow has saved, under short names: the last part of its prefix and a number."""
    found: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for key, node in workflow.items():
        stem = slug(str(node["inputs"].get("filename_prefix", node["class_type"])).rpartition("/")[2]) or key
        for saved in saved_files(outputs.get(key, {})):
            suffix = Path(saved["filename"]).suffix
            same = found.setdefault(f"{stem}{suffix}", [])
            if saved not in [other for _, other in same]:
                same.append((f"{stem}_{len(same) + 1:02}{suffix}", saved))
    return [(name, saved) for same in found.values() for name, saved in same]


def write_page(out: Path, title: str, groups: Sequence[Sequence[Drawing]], errors: dict[Drawing, str]) -> Path:
    """Write the page over everything that is there, with what failed and why; returns its path."""
    stories = [
        {
            "title": group[0].title,
            "identity": group[0].story.identity,
            "drawings": [
                {
                    "what": drawing.what,
                    "error": errors.get(drawing, "" if drawing.made else "Not drawn yet."),
                    "files": files_of(out, drawing),
                }
                for drawing in group
            ],
        }
        for group in groups
    ]
    page = out / PAGE
    text = PAGES.get_template("make.html").render(title=title, stories=stories, shown=SHOWN)
    page.write_text(text, encoding="utf-8")
    return page


def files_of(out: Path, drawing: Drawing) -> list[dict[str, str]]:
    """What a drawing has kept: each file's name and its address from the page; pages before frames."""
    if not drawing.made:
        return []
    names = json.loads((drawing.folder / RESULT).read_text(encoding="utf-8"))["files"]
    place = drawing.folder.relative_to(out).as_posix()
    return [
        {"name": name, "url": quote(f"{place}/{name}")}
        for name in sorted(names, key=lambda name: not re.match("board|page|book", name))
    ]
