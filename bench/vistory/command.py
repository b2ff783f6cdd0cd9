"""Draw the stories of ViStoryBench with their cast, for its scorer, and measure what needs no network.

DATASET is a download of https://huggingface.co/datasets/ViStoryBench/ViStoryBench: folders 01 to 80, each with a
story.json and pictures of the characters. Pictures go where the benchmark's own bench_run.py looks for them:
OUT/METHOD/MODE/LANGUAGE/RUN/ID/shots/shot_INDEX.png. What is there is not drawn again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...tools import host
from ...tools.client import Client, clients_of
from ...tools.demo import WORKFLOW, check_server, fill_in, size, slug, whole
from ...tools.failure import Failure
from ...tools.make import read_workflow, with_values
from ...tools.pool import Maker
from ...tools.results import digest, keep_settings, write_json
from ..quality.measures import Plan, carry_out, has_model, prompts_of, python_with
from .dataset import LANGUAGES, LITE, TEXTS, read_dataset, story_text
from .drawing import Drawing, takes_cast, upload_cast, with_image_characters

SCRIPT = Path(__file__).with_name("score.py")
SCORES = "scores.json"
DIGESTS = {"workflow": "another workflow or other values of it"}
COLUMNS = {
    "clip_t": "CLIP-T ↑",
    "cross": "cross similarity ↑",
    "self": "self similarity ↑",
    "on_stage": "on-stage count ↑",
    "copy_paste": "copy-paste ↓",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="the benchmark's stories")
    parser.add_argument(
        "--server",
        metavar="URL",
        action="append",
        required=True,
        help="a running ComfyUI with the pack; may be given several times",
    )
    parser.add_argument(
        "--workflow",
        metavar="NAME|FILE",
        default=WORKFLOW.stem,
        help=f"what draws a story: a shipped workflow, or one in API format (default: {WORKFLOW.stem})",
    )
    parser.add_argument("--checkpoint", metavar="NAME", help="another checkpoint than the workflow's")
    parser.add_argument(
        "--adapter",
        metavar="NAME",
        help="an IP-Adapter file of the servers, for Image Characters to take the cast",
    )
    parser.add_argument("--clip-vision", metavar="NAME", help="the vision model of the servers that --adapter needs")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--lite", action="store_true", help=f"only the {len(LITE)} stories of ViStoryBench-Lite")
    some.add_argument("--stories", metavar="ID", nargs="+", default=[], help="only these, such as 01 08")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of the texts (default: en)")
    parser.add_argument(
        "--texts",
        choices=TEXTS,
        nargs="+",
        default=["script"],
        help=f"what a shot's prompt has, of {', '.join(TEXTS)} (default: script)",
    )
    parser.add_argument(
        "--words",
        metavar="N",
        type=whole(1, 1000),
        help="at most so many words of each description and prompt, for text encoders that read 77 tokens",
    )
    parser.add_argument("--seed", metavar="N", type=whole(0, 2**64 - 1), default=42, help="default: 42")
    parser.add_argument("--steps", metavar="N", type=whole(1, 10000), help="sampling steps (default: the workflow's)")
    parser.add_argument("--size", metavar="WxH", type=size, help="of a shot in pixels (default: the workflow's)")
    parser.add_argument(
        "--set", metavar="NODE.INPUT=VALUE", nargs="+", action="extend", default=[], help="other values of the workflow"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the benchmark's outputs folder (default: in out/)")
    parser.add_argument("--method", metavar="NAME", default="onestory", help="default: onestory")
    parser.add_argument("--mode", metavar="NAME", help="default: the workflow's name")
    parser.add_argument(
        "--run",
        metavar="TIME",
        dest="timestamp",
        type=timestamp,
        help="the run's name, as 20260131_235959 (default: the newest one that is there, else now)",
    )
    parser.add_argument("--clip", metavar="DIR", type=Path, help="a CLIP model's folder; the benchmark's is ViT-L/14")
    parser.add_argument(
        "--detector", metavar="DIR", type=Path, help="a Grounding DINO's folder, which finds the characters"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="where this machine measures (default: cuda if it can)"
    )


def timestamp(text: str) -> str:
    try:
        time.strptime(text, "%Y%m%d_%H%M%S")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no time such as 20260131_235959.") from None
    return text


def run(args: argparse.Namespace) -> int:
    """Draw what is missing, and measure it. Returns 1 when a story could not be drawn."""
    check_models(args)
    stories = read_dataset(args.dataset, args.language, LITE if args.lite else args.stories)
    workflow, name = read_workflow(args.workflow)
    if args.adapter:
        workflow = with_image_characters(workflow, args.adapter, args.clip_vision)
    given = {key: vars(args)[key] for key in ("checkpoint", "steps", "size") if vars(args)[key] is not None}
    ready = with_values(fill_in(workflow, None, given), args.set)
    texts = {story.id: story_text(story, args.texts, args.words) for story in stories}
    place = args.out or host.ROOT / "out" / "vistory"
    place = place / args.method / (args.mode or slug(name)) / args.language
    out = place / (args.timestamp or newest(place) or time.strftime("%Y%m%d_%H%M%S"))
    settings = {"workflow": digest(ready), "seed": args.seed, "texts": " ".join(args.texts), "words": args.words}
    if not takes_cast(ready):
        host.say("The characters' pictures are not used: the workflow takes no cast. --adapter adds Image Characters.")
    servers = clients_of(args.server)

    def check(server: Client) -> None:
        check_server(server, ready, False)
        if takes_cast(ready):
            upload_cast(server, stories)

    for server in servers:
        check(server)
    keep_settings(out, settings, DIGESTS)
    drawings = [Drawing(story, texts[story.id], args.seed, out / story.id / "shots", ready) for story in stories]
    errors = Maker(servers, [[drawing] for drawing in drawings], check, "stories").run()
    failed = [*errors.values(), *(problem for drawing in drawings for problem in drawing.problems)]
    for why in failed:
        host.say(f"Not drawn: {why}")
    done = [drawing for drawing in drawings if drawing.made]
    if done:
        measure(args, out, done)
    print(out)
    return 1 if failed else 0


def check_models(args: argparse.Namespace) -> None:
    for option, folder, download in (
        ("--clip", args.clip, "openai/clip-vit-large-patch14"),
        ("--detector", args.detector, "IDEA-Research/grounding-dino-tiny"),
    ):
        if folder and not has_model(folder):
            raise Failure(
                f"There is no model in {folder}: name a folder with its config.json and weights by {option}, such as a "
                f"download of https://huggingface.co/{download}."
            )
    if args.detector and not args.clip:
        raise Failure("--detector finds the characters and --clip compares them: name a CLIP model's folder too.")


def newest(place: Path) -> str:
    """The last run's name, or "" where none is there."""
    return max((path.name for path in place.glob("[0-9]*_[0-9]*") if path.is_dir()), default="")


def measure(args: argparse.Namespace, out: Path, drawings: Sequence[Drawing]) -> None:
    """Measure what this machine can, and say in a line what it can't; prints a table."""
    scores = read_scores(out)
    plans = []
    python = python_with("torch", "transformers", "PIL", "scipy") if args.clip else None
    if not args.clip:
        host.say("Nothing is measured here: --clip names no CLIP model.")
    elif not python:
        host.say("Nothing is measured here: neither this Python nor ComfyUI's has torch and transformers.")
    else:
        plans.append(plan(out, scores, "clip", args.clip, drawings))
        if args.detector:
            plans.append(plan(out, scores, "cast", args.clip, drawings, args.detector))
        else:
            host.say("Only CLIP-T is measured: --detector names no Grounding DINO, which finds the characters.")
        carry_out(python, args.device, plans, SCRIPT)
    if scores:
        print(table(scores))


def read_scores(out: Path) -> dict[str, dict[str, Any]]:
    file = out / SCORES
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def plan(
    out: Path,
    scores: dict[str, dict[str, Any]],
    kind: str,
    clip: Path,
    drawings: Sequence[Drawing],
    detector: Path | None = None,
) -> Plan:
    """Measure the stories that have no `kind` by these models yet; each goes into `scores` and their file."""
    by = {"model": str(clip.resolve())} | ({"detector": str(detector.resolve())} if detector else {})
    wanted = [d for d in drawings if not by.items() <= scores.get(d.story.id, {}).get(kind, {}).items()]
    tasks = [task_of(drawing) | ({"detector": by["detector"]} if detector else {}) for drawing in wanted]

    def keep(number: int, found: dict[str, Any]) -> None:
        scores.setdefault(wanted[number].story.id, {})[kind] = {**by, **found}
        write_json(out / SCORES, scores)

    return Plan(kind, clip, tasks, keep)


def task_of(drawing: Drawing) -> dict[str, Any]:
    story = drawing.story
    files = [str(drawing.file(shot.number)) for shot in story.shots]
    return {
        "frames": files,
        "masks": None,
        "prompts": prompts_of(drawing.text)[1],
        "shots": [{"file": file, "stage": [*shot.characters]} for file, shot in zip(files, story.shots)],
        "pictures": {each.key: [*map(str, each.pictures)] for each in story.characters if each.pictures},
    }


def values_of(score: dict[str, Any]) -> dict[str, float]:
    """A story's measures, by the table's columns."""
    found = {**score.get("cast", {})}
    if "clip" in score:
        found["clip_t"] = fmean(score["clip"]["clip_t"])
    return {name: found[name] for name in COLUMNS if found.get(name) is not None}


def table(scores: dict[str, dict[str, Any]]) -> str:
    """The means over stories, in Markdown."""
    stories = [values_of(score) for score in scores.values()]
    names = [name for name in COLUMNS if any(name in each for each in stories)]
    means = [fmean(each[name] for each in stories if name in each) for name in names]
    head = ["stories", *(COLUMNS[name] for name in names)]
    line = [str(len(stories)), *(f"{mean:.4f}" for mean in means)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), line))
