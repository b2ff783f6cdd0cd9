"""Run every story of a file in several ways through ComfyUI servers, and measure what came out.

The ways, each with the same seeds and the same noise for all frames: separate prompts (the usual way), the
consolidated prompt alone, naive reweighting, SVR (released), SVR with IPCA, and these with consistent self-attention.

Each server makes a whole story in all its ways, then takes the next one; one that fails is tried again after a pause.
What is in --out is not made again, so the run may be interrupted and run again; more stories, seeds and rows can be
added to it later.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..bench.quality import servers_report as report
from ..bench.quality.servers_graphs import ROWS, TEMPLATE, USUAL, settable, story_graph
from ..story.files import StoryText, read_stories
from ..story.script import parse_script
from . import host
from .client import Client, WorkflowError, images
from .demo import check_server, fill_in, size, slug, whole
from .failure import Failure

MEASURE = host.ROOT / "bench" / "quality" / "servers_measure.py"
SETTINGS = "settings.json"
DIGESTS = {"texts": "other story texts", "workflow": "another shipped workflow", "weights": "another Story World asset"}
RESULT = "result.json"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0

EPILOG = """\
CLIP-T and CLIP-I are measured on this machine with the model in --clip, a folder as transformers' save_pretrained
writes it. 1Prompt1Story's authors say of their table that they used CLIP ViT-B/32, 2.5 times the cosine, “A photo
depicts” before each prompt, the mean over all pairs of frames for CLIP-I and DreamSim, and pictures whose background
they had replaced by noise for these two. Here the whole picture counts: compare the rows with each other, and only
CLIP-T's figures with theirs. Nothing is downloaded, so models have to be there.
"""


class Job(NamedTuple):
    """One story made in one way with one seed; `folder` gets its frames, board and result."""

    story: int
    row: str
    seed: int
    folder: Path

    @property
    def made(self) -> bool:
        return (self.folder / RESULT).is_file()


@dataclass
class Outage:
    """A server makes nothing since then (`time.monotonic`), and is tried again after a pause (seconds)."""

    since: float
    pause: float
    told: bool = False


class Stopped(Exception):
    """The run is over, so this server's workflow is taken off."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "--server", metavar="URL", action="append", help="a running ComfyUI with the pack; may be given several times"
    )
    parser.add_argument("--checkpoint", metavar="NAME", help="the checkpoint's name on the servers")
    parser.add_argument("--stories", metavar="FILE", type=Path, help="the stories: see docs/story-files.md")
    parser.add_argument("--rows", metavar="ROW", nargs="+", choices=ROWS, help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--seeds", metavar="N", nargs="+", type=whole(0, 2**64 - 1), help="default: 42; without --server 1 2 3"
    )
    parser.add_argument(
        "--steps", metavar="N", type=whole(1, 10000), help="sampling steps (default: 30; without --server 16)"
    )
    parser.add_argument("--size", metavar="WxH", type=size, default=(1024, 1024), help="of a frame; default: 1024x1024")
    parser.add_argument(
        "--eot",
        choices=("reweight", "scale"),
        default="reweight",
        help="SVR's way with the end-of-text tokens; the authors' own benchmark has “scale” (default: reweight)",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        help="the U-Net computes in this (default: ComfyUI's choice; on CPUs without --server, the faster one)",
    )
    parser.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        type=change,
        nargs="+",
        action="extend",
        help="other values than the nodes' defaults in all rows, such as OneStorySVR.express_alpha=0.012",
    )
    parser.add_argument("--limit", metavar="N", type=whole(1, 10**6), help="only the file's first N stories")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where results are kept (default: a folder in out/)")
    parser.add_argument(
        "--clip-vision",
        metavar="NAME",
        help="a CLIP or DINOv2 model of the servers (ViT-L or larger), by which they measure how alike the frames are",
    )
    parser.add_argument("--clip", metavar="DIR", type=Path, help="a CLIP model's folder, for CLIP-T and CLIP-I")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="where this machine measures (default: cuda if it can)"
    )
    parser.add_argument(
        "--dreamsim",
        metavar="DIR",
        type=Path,
        default=Path("models"),
        help="where the dreamsim package has its weights (default: models, as the package's own)",
    )


def change(text: str) -> tuple[str, Any]:
    """The input of a node and its value, from "NODE.INPUT=VALUE"."""
    name, _, given = text.partition("=")
    known = settable()
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name} is not to be set: choose one of {', '.join(known)}.")
    if isinstance(known[name], str):
        return name, given
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{name} is a number, and “{given}” is none.")
    return name, int(value) if value.is_integer() else value


def run(args: argparse.Namespace) -> int:
    """Make what is missing, measure it, and write the report. Returns 1 when a story could not be made."""
    for name in ("server", "checkpoint", "stories"):
        if not vars(args)[name]:
            raise Failure(f"--{name} is missing: bench quality --help says what it needs.")
    if args.clip and not has_model(args.clip):
        raise Failure(f"There is no CLIP model in {args.clip}: name a folder with its config.json and weights.")
    stories = read(args.stories)
    rows, seeds = args.rows or USUAL, args.seeds or [42]
    settings = settings_of(
        args, args.checkpoint, args.stories.name, args.size, args.steps or 30, args.clip_vision, stories
    )
    servers = [Client(url) for url in dict.fromkeys(Client(url).url for url in args.server)]
    for server in servers:
        check(server, settings)
    out = args.out or host.ROOT / "out" / f"quality_{args.stories.stem}_{slug(Path(args.checkpoint).stem)}"
    keep_settings(out, settings)
    jobs = jobs_of(out, stories[: args.limit], rows, seeds)
    maker = Maker(servers, stories, jobs, settings)
    errors = maker.run()
    done = [job for job in jobs if job.made]
    if not done:
        raise Failure(next(iter(errors.values())))
    measure(args, stories, done)
    found = report.collect(
        without_digests(settings),
        [story._asdict() for story in stories[: args.limit]],
        {name: row.title for name, row in ROWS.items() if name in rows},
        [(job.story, job.row, job.seed, job.folder) for job in done],
        [(job.story, job.row, job.seed, error) for job, error in errors.items()],
    )
    paths = report.write(out, found)
    print(report.table(found), *paths, sep="\n")
    if errors:
        one = next(iter(errors.values()))
        host.say(f"{len(errors)} of {len(jobs)} boards could not be made, and are tried again in the next run: {one}")
    return 1 if errors else 0


def read(path: Path) -> tuple[StoryText, ...]:
    """All stories of a file. Raises `Failure` with the reader's sentence."""
    try:
        return read_stories(path)
    except ValueError as error:
        raise Failure(str(error)) from None


def settings_of(
    args: argparse.Namespace,
    checkpoint: str,
    source: str,
    size: tuple[int, int],
    steps: int,
    clip_vision: str | None,
    stories: Sequence[StoryText],
) -> dict[str, Any]:
    """What has to be equal for results to stand in one table, by the names of the options."""
    return {
        "checkpoint": checkpoint,
        "stories": source,
        "size": "{}x{}".format(*size),
        "steps": steps,
        "eot": args.eot,
        "dtype": args.dtype,
        "set": dict(sorted(args.set)) if args.set else None,
        "clip-vision": clip_vision,
        "texts": hashlib.sha256(json.dumps(stories).encode()).hexdigest(),
        "workflow": host.digest(TEMPLATE),
    }


def without_digests(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a report shows."""
    return {name: value for name, value in settings.items() if name not in DIGESTS}


def keep_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into the results' folder, or raise `Failure` when it holds results of other ones."""
    file = out / SETTINGS
    try:
        if not file.is_file() or not any(out.glob(f"*/*/{RESULT}")):
            out.mkdir(parents=True, exist_ok=True)
            write_json(file, settings)
        kept = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"The results cannot be kept in {out}: {error.strerror}.") from None
    except ValueError:
        raise Failure(f"{file} cannot be read: choose another --out.") from None
    for name, value in settings.items():
        if kept.get(name) != value:
            was = DIGESTS.get(name) or f"--{name} {report.as_given(kept.get(name))}, not {report.as_given(value)}"
            raise Failure(f"{out} holds results of {was}: choose another --out, or the same settings.")


def jobs_of(out: Path, stories: Sequence[StoryText], rows: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Everything to be made, story after story."""
    return [
        Job(i, row, seed, out / f"{i:03}_{slug(story.title)}" / f"{row}-{seed}")
        for i, story in enumerate(stories)
        for seed in dict.fromkeys(seeds)
        for row in ROWS
        if row in rows
    ]


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
        graph = story_graph(story, ROWS[job.row], job.seed, self.settings)
        try:
            outputs = server.run(graph, progress)
        except WorkflowError as error:
            self.errors[job] = f"{story.title}: {error}"
            self.tried += 1
            return
        seconds = time.monotonic() - started
        job.folder.mkdir(parents=True, exist_ok=True)
        try:
            for number, image in enumerate(images(outputs, ["frames"]), 1):
                (job.folder / f"frame_{number:02}.png").write_bytes(server.download(image))
            (board,) = images(outputs, ["board picture"])
            (job.folder / "board.webp").write_bytes(server.download({**board, "preview": "webp;85"}))
        except urllib.error.HTTPError as error:
            raise Failure(f"{server.url} does not give its pictures: {error}.") from None
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


def write_json(file: Path, data: Any) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


# What is measured on this machine


def measure(args: argparse.Namespace, stories: Sequence[StoryText], jobs: Sequence[Job]) -> None:
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
    for python in (host.venv_python(host.HOST / "venv"), *users_python()):
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
    command: list[str | Path] = [python, MEASURE, kind, model, *([device] if device else [])]
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


def json_of(job: Job) -> dict[str, Any]:
    return json.loads((job.folder / RESULT).read_text(encoding="utf-8"))
