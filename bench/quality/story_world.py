"""Make many stories with the Story World's checkpoint in every way, and read what their frames show.

Without --server, on ComfyUIs of its own. What is made is kept, so the run may be interrupted and run again.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...story.files import StoryText
from ...tools import host
from ...tools.client import Client
from ...tools.demo import WORLD
from ...tools.failure import Failure
from ...tools.results import keep_settings
from .boards import make
from .graphs import KINDS
from .jobs import DIGESTS, Job, jobs_of, settings_of, without_digests
from .plane import plot

SCRIPT = Path(__file__).with_name("world_table.py")
STORIES, SEEDS, STEPS = 60, (1, 2, 3), 16
HELD_OUT = 2000
"""Rendered pictures that the probe is tested on."""
AXES = {
    "stories": {"scene": "scenes as asked", "apart": "identity agreement in two scenes"},
    "pairs": {"scene": "scenes as asked", "place": "as said, at its side"},
    "pictures": {"scene": "scenes as asked", "looks": "as in the picture"},
}
"""The picture's measures, across and up: frames that copy each other have few of their scenes, and no two."""
REPORT = "table.md", "results.json", "table.png"


def run(args: argparse.Namespace) -> int:
    """Make what is missing, then measure it. Returns 1 when a story could not be made."""
    this = host.set_up()
    checkpoint = host.world_checkpoint(this)
    weights = [host.WORLD]
    if args.kind == "pictures":
        host.world_adapter(this)
        weights.append(host.WORLD_ADAPTER)
    count = args.limit or STORIES
    kind = args.kind
    stories = world_stories(this, max(count, STORIES), kind)
    ways = KINDS[kind]
    rows = tuple(ways) if args.rows is None else tuple(args.rows)
    seeds = args.seeds or list(SEEDS)
    out = args.out or host.ROOT / "out" / f"quality_story_world{'' if kind == 'stories' else f'_{kind}'}"
    args.dtype = args.dtype or number_format(this, out)
    settings = {
        "weights": " ".join(map(host.digest, weights)),
        **settings_of(
            args, checkpoint.name, "the Story World's", WORLD["size"], args.steps or STEPS, None, stories[:STORIES]
        ),
        "negative": WORLD["negative"],
    }
    keep_settings(out, settings, DIGESTS)
    jobs = jobs_of(out, stories[:count], rows, seeds)
    errors: dict[Job, str] = {}
    missing = {job.story for job in jobs if not job.made}
    if missing:
        with servers(this, checkpoint.parent, len(missing)) as urls:
            clients = [Client(url) for url in urls]
            if kind == "pictures":
                show_pictures(this, clients, stories, out / "pictures")
            errors = make(clients, stories, jobs, settings, patience=0)
    made = [job for job in jobs if job.made]
    if not made:
        raise Failure(next(iter(errors.values())))
    task = {
        "settings": {**without_digests(settings), "seeds": seeds},
        "kind": kind,
        "count": count,
        "rows": {name: ways[name].title for name in rows},
        "boards": [[job.story, job.row, str(job.folder)] for job in made],
        "held_out": HELD_OUT,
        "out": str(out),
        "folder": str(host.HOST / "world-training"),
    }
    done = subprocess.run([this.python, SCRIPT, "measure"], input=json.dumps(task), text=True)
    if done.returncode:
        raise Failure("The pictures could not be measured: see the message above.")
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    plot({"columns": AXES[kind], "rows": rows}, out / "table.png", *AXES[kind])
    host.say("\n".join(str(out / name) for name in REPORT))
    return 1 if errors else 0


def show_pictures(this: host.Host, clients: Iterable[Client], stories: Sequence[StoryText], folder: Path) -> None:
    """Draw each story's character into `folder`, and give the servers the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    draw: list[str | Path] = [this.python, SCRIPT, "draw", str(len(stories)), str(folder)]
    done = subprocess.run(draw, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"The characters could not be drawn:\n{host.tail(done.stderr)}")
    for client in clients:
        for path in sorted(folder.glob("*.png")):
            client.upload(path.name, path.read_bytes())


@contextmanager
def servers(this: host.Host, checkpoints: Path, most: int) -> Iterator[list[str]]:
    """ComfyUIs for at most so many stories at a time: one on a GPU, else two that share the CPU's cores.

    So small a U-Net does not keep all threads of one server busy.
    """
    cores = os.cpu_count() or 1
    count = 1 if cores == 1 or host.has_gpu(this) else min(2, most)
    with ExitStack() as stack:
        urls = []
        for number in range(count):
            folder = stack.enter_context(host.run_folder())
            log = host.HOST / f"comfyui{number or ''}.log"
            threads = cores // count if count > 1 else None
            urls.append(stack.enter_context(host.running(this, folder, checkpoints, log=log, threads=threads)))
        yield urls


def number_format(this: host.Host, out: Path) -> str | None:
    """What the U-Net computes in on a CPU: as the results that are kept in `out`, else what a short timing says."""
    if host.has_gpu(this):
        return None
    if (out / "settings.json").is_file():
        return json.loads((out / "settings.json").read_text(encoding="utf-8"))["dtype"]
    done = subprocess.run([this.python, SCRIPT, "fastest"], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"The number formats could not be timed:\n{host.tail(done.stderr)}")
    return done.stdout.strip()


def world_stories(this: host.Host, count: int, kind: str = "stories") -> list[StoryText]:
    """The first stories of the Story World, or its "pairs", which needs torch and so the host's Python."""
    done = subprocess.run([this.python, SCRIPT, kind, str(count)], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"The stories could not be written:\n{host.tail(done.stderr)}")
    return [StoryText(*story) for story in json.loads(done.stdout)]
