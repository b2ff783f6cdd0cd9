"""Draw the README's picture and the workflows' thumbnails with the Story World's checkpoint.

    .host/venv/bin/python demo/pictures.py [NAME ...]

Each thumbnail is made by the workflow's own graph, with a story and sizes that suit the checkpoint. Its LoRA and its
ControlNet know another model and are left out.
"""

import argparse
import io
import json
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.modules["onestory"] = types.ModuleType("onestory")
sys.modules["onestory"].__path__ = [str(ROOT)]

from onestory.story.files import StoryText  # noqa: E402
from onestory.tools import demo, host  # noqa: E402
from onestory.tools.client import Client, Workflow, images  # noqa: E402

WORKFLOWS = ROOT / "workflows"
BANNER = ROOT / "docs" / "story.jpg"
SIDE = 512
INK, PAPER = (40, 36, 32), (250, 248, 243)
OTHERS_MODELS = {"LoraLoader": {0: "model", 1: "clip"}, "ControlNetApplyAdvanced": {0: "positive", 1: "negative"}}
"""Nodes that need a model made for another checkpoint, and which input each output takes the place of."""
BESIDE_THEM = ("ControlNetLoader", "LoadImage", "Canny")


class Picture(NamedTuple):
    """A thumbnail: the story, its seed, and what differs from the workflow's settings, by node kind and input."""

    identity: str
    frames: str
    seed: int = 1
    board: dict = {}


STORIES = {
    "One Prompt One Story": Picture(
        "an orange fox with a scarf",
        "in the forest # Once upon a time\nin the city # in the city\non the beach # by the sea\n"
        "in the library # it read a book",
        seed=4,
    ),
    "Story vs Separate Prompts": Picture(
        "a fox with a scarf",
        "in the forest\nin the city\non the moon",
        seed=5,
        board={"columns": 1, "captions": False},
    ),
    "Comic Page": Picture(
        "a blue cat with a crown",
        "in a meadow # “Out!”\nholding a balloon in the mountains # Up…\nin the desert # …and on.\n"
        "eating an ice cream on the beach # “At last.”\nin the city # So big.\nin a bedroom at night # Home.",
        seed=8,
    ),
    "Two Characters": Picture(
        "[Ruby] a red fox with a scarf\n[Olga] a purple owl with a crown",
        "[Ruby] in the forest\n[Olga] in the forest at night\n[Ruby] reading a book in the library\n"
        "[Olga] carrying a lantern in the snow",
    ),
    "Long Story in Runs": Picture(
        "a striped green frog with a top hat",
        "in a meadow\nin the forest\nin the city\non the beach\non the moon\nin the desert\n"
        "in the mountains\nin the snow\non a farm",
    ),
    "Self-Attention with LoRA and ControlNet": Picture(
        "a pink rabbit with a scarf",
        "in a meadow\nreading a book in the library\non the beach at sunset\ncarrying a lantern on the moon",
        seed=3,
    ),
}


def graph_of(name: str, picture: Picture, checkpoint: str) -> Workflow:
    """The workflow's graph for the Story World, without what needs other models."""
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    story = StoryText(name, picture.identity, picture.frames)
    graph = demo.fill_in(graph, story, {**demo.WORLD, "checkpoint": checkpoint, "seed": picture.seed})
    around = {}
    for key, node in graph.items():
        for slot, instead in OTHERS_MODELS.get(node["class_type"], {}).items():
            around[key, slot] = node["inputs"][instead]
    for node in graph.values():
        for key, value in node["inputs"].items():
            while isinstance(value, list) and tuple(value) in around:
                value = node["inputs"][key] = around[tuple(value)]
    demo.set_inputs(graph, "OneStoryBoard", {"page_width": 2 * SIDE, **picture.board})
    unused = (*OTHERS_MODELS, *BESIDE_THEM)
    return {key: node for key, node in graph.items() if node["class_type"] not in unused}


def boards(client: Client, graph: Workflow) -> dict[str, Image.Image]:
    """The pictures of the graph's boards, by what they are called behind "OneStory/board"."""
    outputs = client.run(graph, demo.ProgressBar(graph))
    found = {}
    for key, node in graph.items():
        _, marker, kind = node["inputs"].get("filename_prefix", "").partition("OneStory/board")
        if marker:
            (image,) = images(outputs, [key])
            found[kind.strip()] = Image.open(io.BytesIO(client.download(image))).convert("RGB")
    return found


def thumbnail(found: dict[str, Image.Image]) -> Image.Image:
    """One board as a square, or two next to each other under their names."""
    if "separate prompts" not in found:
        board = next(iter(found.values()))
        return ImageOps.pad(board, (SIDE, SIDE), color=board.getpixel((0, 0)))  # type: ignore[arg-type]
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for column, kind in enumerate(("one prompt", "separate prompts")):
        part = ImageOps.pad(found[kind], (SIDE // 2 - 8, SIDE - 40), color=PAPER)
        sheet.paste(part, (column * SIDE // 2 + 4, 36))
        pen.text(((column + 0.5) * SIDE / 2, 18), kind, fill=INK, font=font, anchor="mm")
    return sheet


def banner(found: dict[str, Image.Image]) -> Image.Image:
    """The demo's two boards, one below the other under their names."""
    kinds = ("separate prompts", "one prompt")
    width = max(board.width for board in found.values())
    sheet = Image.new("RGB", (width, sum(found[kind].height + 40 for kind in kinds)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    top = 0
    for kind in kinds:
        pen.text((16, top + 20), kind, fill=INK, font=font, anchor="lm")
        sheet.paste(found[kind], (0, top + 40))
        top += found[kind].height + 40
    return sheet


def main(names: Sequence[str]) -> None:
    this = host.set_up()
    checkpoint = host.world_checkpoint(this)
    with (
        tempfile.TemporaryDirectory(dir=host.HOST, prefix="run-", ignore_cleanup_errors=True) as folder,
        host.running(this, Path(folder), checkpoint.parent, log=host.HOST / "comfyui.log") as url,
    ):
        client = Client(url)
        for name in names or (*STORIES, BANNER.stem):
            if name == BANNER.stem:
                story = demo.read_story(demo.WORLD_STORY)
                graph = json.loads(demo.COMPARISON.read_text(encoding="utf-8"))
                graph = demo.fill_in(graph, story, {**demo.WORLD, "checkpoint": checkpoint.name})
                board = {"page_width": 1600, "layout": "strip", "captions": False}
                demo.set_inputs(graph, "OneStoryBoard", board)
                picture, path = banner(boards(client, graph)), BANNER
            else:
                graph = graph_of(name, STORIES[name], checkpoint.name)
                picture, path = thumbnail(boards(client, graph)), WORKFLOWS / f"{name}.jpg"
            picture.save(path, quality=88)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{BANNER.stem}, or a workflow: {', '.join(STORIES)}")
    main(parser.parse_args().names)
