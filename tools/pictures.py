"""Draw the README's picture, the workflows' thumbnails with the Story World's checkpoint, and the pack's icon.

    .host/venv/bin/python tools/pictures.py [NAME ...]

Each thumbnail is made by the workflow's own graph, with a story and sizes that suit the checkpoint. Its LoRA, its
ControlNet and its IP-Adapter know another model and are left out.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from onestory.story.files import StoryText  # noqa: E402
from onestory.tools import demo, host  # noqa: E402
from onestory.tools.client import Client, Workflow, images  # noqa: E402
from onestory.tools.comparison import INK, PAPER, compare  # noqa: E402
from onestory.world.drawing.attributes import VALUES, draw  # noqa: E402
from onestory.world.drawing.render import render  # noqa: E402

WORKFLOWS = ROOT / "workflows"
BOARD = "OneStory/board"
BANNER = ROOT / "docs" / "story.jpg"
ICON = ROOT / "docs" / "icon.png"
FILM = ROOT / "docs" / "film.png"
SIDE = 512
GUIDANCE = 4.5
ICON_SIDE, ICON_GAP = 400, 10
OTHERS_MODELS = {
    "LoraLoader": {0: "model", 1: "clip"},
    "ControlNetApplyAdvanced": {0: "positive", 1: "negative"},
    "OneStoryImageAdapter": {0: "model"},
}
"""Nodes that need a model made for another checkpoint, and which input each output takes the place of."""
LOADERS = {"UNETLoader": 0, "DualCLIPLoader": 1, "VAELoader": 2}
"""Nodes that load a part of a model, and Load Checkpoint's output in its place."""
BESIDE_THEM = ("ControlNetLoader", "LoadImage", "Canny", "OneStoryCast", "CLIPVisionLoader")


class Picture(NamedTuple):
    """A thumbnail: the story, its seed, and what differs from the workflow's settings, by node kind."""

    identity: str
    frames: str
    seed: int = 1
    board: dict = {}
    others: dict[str, dict] = {}


STORIES = {
    "Try It - Story World": Picture(
        "an orange fox with a scarf",
        "in the forest # Once upon a time …\nin the city # … in the big city …\non the beach # … it came to the sea …\n"
        "in the library # … read all about it …\non the moon # The end.",
        seed=5,
    ),
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
    "Two Characters, Each in Place": Picture(
        "[Pip] a red fox with a scarf\n[Odile] a purple owl with a crown",
        "[Pip] and [Odile] in the forest\n[Pip] in the snow\n[Odile] reading a book in the library\n"
        "[Pip] and [Odile] on the beach",
    ),
    "Two Characters, Found and Kept": Picture(
        "[Pip] a red fox with a scarf\n[Odile] a purple owl with a crown",
        "[Pip] and [Odile] in the forest\n[Pip] in the snow\n[Pip] and [Odile] on the beach\n"
        "[Pip] and [Odile] in the city",
    ),
    "A Character from a Picture": Picture(
        "[Pip] a blue cat with a crown",
        "[Pip] in a meadow # Good morning.\n[Pip] in the desert # Hot.\n[Pip] in the city # So many people.\n"
        "[Pip] in the mountains # Better.",
        seed=8,
    ),
    "Two Characters from Two Pictures, Each in Place": Picture(
        "[Pip] a red fox with a scarf\n[Odile] a purple owl with a crown",
        "[Pip] and [Odile] in the forest\n[Pip] in the snow\n[Odile] reading a book in the library\n"
        "[Pip] and [Odile] on the beach",
    ),
    "Long Story in Runs": Picture(
        "a striped green frog with a top hat",
        "in a meadow\nin the forest\nin the city\non the beach\non the moon\nin the desert\n"
        "in the mountains\nin the snow\non a farm",
    ),
    "Long Story in One Sampler": Picture(
        "a red robot with a scarf",
        "in a meadow # Out…\nin the city # …and on.\nin the forest # Deep.\nin the mountains # High.\n"
        "in the snow # Cold.\nin the desert # Hot.\non the beach # Oh!\non a farm # Mooh.\non the moon # “Hello?”",
        seed=3,
    ),
    "Self-Attention with LoRA and ControlNet": Picture(
        "a pink rabbit with a scarf",
        "in a meadow\nreading a book in the library\non the beach at sunset\ncarrying a lantern on the moon",
        seed=3,
    ),
    "Redraw a Frame": Picture(
        "a green frog with a crown",
        "in a meadow\non the beach # by the sea\nholding a balloon in the snow # Brr!\nin a bedroom at night # Home.",
        seed=2,
    ),
    "Inpaint a Frame": Picture(
        "an orange cat with a top hat",
        "in the city\nreading a book in the library\nin the desert # Hot.\non a farm",
        seed=6,
    ),
    "Takes": Picture(
        "a blue bear with a scarf",
        "in the forest\nin the mountains # Up…\non the moon # …and up.\nin a bedroom at night # Good night.",
        seed=7,
    ),
    "Finish at Twice the Size": Picture(
        "a purple rabbit with a crown",
        "in a meadow\nin the snow\non the beach at sunset\nin the city",
        seed=9,
    ),
    "Comic Book": Picture(
        "[Ruby] a red fox with a scarf\n[Olga] a purple owl with a crown",
        "[Ruby] in the forest # Ruby: “Hello? Anyone here?”\n[Olga] in the forest at night # Olga: “Hoo.”\n"
        "[Ruby] reading a book in the library # Ruby: “Owls say hoo.” Page one.\n"
        "[Olga] carrying a lantern in the snow # Olga: “Hoo knows?”",
        seed=1,
        board={"title": "The Fox and the Owl"},
    ),
    "Flux": Picture(
        "a red fox with a scarf",
        "in the forest # Good morning.\nin the city # Hello?\nreading a book in the library # Hm.\n"
        "on the beach # Ah.\nin the snow # Brr!",
        seed=4,
    ),
    "Stable Diffusion 3.5": Picture(
        "a blue owl with a top hat",
        "in the snow # Brr.\nreading a book in the library # Aha!\nholding a balloon in the mountains # Up…\n"
        "on the beach at sunset # …and down.\nin a bedroom at night # Home.",
        seed=2,
    ),
}


PLACES = (
    "an orange fox with a scarf",
    "in the forest # In the forest,\nin the city # in the city,\n"
    "on the beach # by the sea,\nin the snow at night # and home.",
)
STORIES["Story to Film"] = Picture(*PLACES, seed=4, others={"OneStoryInBetweens": {"count": 4}})
STORIES["Story to Film with Wan"] = Picture(*PLACES, seed=4, board={"columns": 2})
STORIES["Story with an Edit Model"] = Picture(
    "[Nell] a blue cat with a top hat\n[Bruno] a red fox with a scarf",
    "[Nell] in the city # Nell: “Rain again.”\n[Bruno] in the forest # Bruno has a view on weather.\n"
    "[Nell] on the beach # Nell: “At last.”\n[Bruno] in the snow # Bruno: “Better.”",
    seed=2,
    board={"columns": 2},
    others={
        "OneStoryFrames": {"template": "{identity} {frame}", "same_seed": True},
        "EmptySD3LatentImage": {"width": 128, "height": 128},
        "ImageScaleToTotalPixels": {"megapixels": 0.02},
    },
)


FILM_STORY = Picture(
    "an orange fox with a scarf",
    "in the forest\nin the city\non the beach",
    seed=4,
    others={"OneStoryInBetweens": {"count": 4}, "KSampler": {"steps": 12}},
)


def graph_of(name: str, picture: Picture, checkpoint: str) -> Workflow:
    """The workflow's graph for the Story World, without what needs other models."""
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    story = StoryText(name, picture.identity, picture.frames)
    graph = in_one_file(shown(graph))
    graph = demo.fill_in(graph, story, {**demo.WORLD, "checkpoint": checkpoint, "seed": picture.seed})
    around = {}
    for key, node in graph.items():
        for slot, instead in OTHERS_MODELS.get(node["class_type"], {}).items():
            around[key, slot] = node["inputs"][instead]
    for node in graph.values():
        for key, value in node["inputs"].items():
            while isinstance(value, list) and tuple(value) in around:
                value = node["inputs"][key] = around[tuple(value)]
    for kind, inputs in {"OneStoryBoard": {"page_width": 2 * SIDE, **picture.board}, **picture.others}.items():
        demo.set_inputs(graph, kind, inputs)
    unused = (*OTHERS_MODELS, *BESIDE_THEM) if around else ()
    return {key: node for key, node in graph.items() if node["class_type"] not in unused}


def shown(graph: Workflow) -> Workflow:
    """The part of the graph that its boards come from, or else the pictures of its film."""
    savers = [key for key, node in graph.items() if node["class_type"] == "SaveImage"]
    wanted = [key for key in savers if graph[key]["inputs"]["filename_prefix"].startswith(BOARD)] or savers
    needed: set[str] = set()
    while wanted:
        key = wanted.pop()
        if key not in needed:
            needed.add(key)
            wanted += [value[0] for value in graph[key]["inputs"].values() if isinstance(value, list)]
    return {key: node for key, node in graph.items() if key in needed}


def in_one_file(graph: Workflow) -> Workflow:
    """The graph with Load Checkpoint for the nodes that load a model's parts, and guided as it has to be."""
    parts = {key: LOADERS[node["class_type"]] for key, node in graph.items() if node["class_type"] in LOADERS}
    if not parts:
        return graph
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in parts:
                node["inputs"][name] = ["checkpoint", parts[value[0]]]
    demo.set_inputs(graph, "KSampler", {"cfg": GUIDANCE})
    empty = {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["checkpoint", 1]}}
    graph = {key: empty if node["class_type"] == "ConditioningZeroOut" else node for key, node in graph.items()}
    rest = {key: node for key, node in graph.items() if key not in parts}
    return {"checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {}}, **rest}


def boards(client: Client, graph: Workflow) -> dict[str, Image.Image]:
    """The first pages of the graph's boards, by what they are called after "OneStory/board"; or its film's pictures."""
    outputs = client.run(graph, demo.ProgressBar(graph))
    found = {}
    for key, node in graph.items():
        _, marker, kind = node["inputs"].get("filename_prefix", "").partition(BOARD)
        if marker:
            image, *_ = images(outputs, [key])
            found[kind.strip()] = Image.open(io.BytesIO(client.download(image))).convert("RGB")
    return found or {"": in_rows(film_pictures(client, outputs))}


def film_pictures(client: Client, outputs: dict[str, dict]) -> list[Image.Image]:
    """All that a graph saved."""
    return [Image.open(io.BytesIO(client.download(each))).convert("RGB") for each in images(outputs, list(outputs))]


def in_rows(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Pictures of one size next to and below each other."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), PAPER)
    for n, picture in enumerate(pictures):
        sheet.paste(picture, (n % columns * width, n // columns * height))
    return sheet


def masked_picture() -> bytes:
    """A picture whose middle is masked, in the place of ComfyUI's example."""
    picture = Image.new("RGBA", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 60), fill=(0, 0, 0, 0))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


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


def banner(client: Client, checkpoint: str) -> Image.Image:
    """The demo's comparison."""
    graph = json.loads(demo.COMPARISON.read_text(encoding="utf-8"))
    story = demo.read_story(demo.WORLD_STORY)
    graph = demo.fill_in(graph, story, {**demo.WORLD, "window": demo.window_of(story), "checkpoint": checkpoint})
    found = demo.pictures(client, graph, client.run(graph, demo.ProgressBar(graph)))
    return compare({way: [Image.open(io.BytesIO(data)) for data in found[f"frame {way}"]] for way in demo.WAYS})


def film(client: Client, checkpoint: str) -> Image.Image:
    """A story and four pictures between each two of its frames, in a row."""
    graph = graph_of("Story to Film", FILM_STORY, checkpoint)
    pictures = film_pictures(client, client.run(graph, demo.ProgressBar(graph)))
    return in_rows(pictures, len(pictures))


def icon() -> Image.Image:
    """One fox in four places, as the Story World's own drawing has it."""
    places = (("forest", "day"), ("beach", "sunset"), ("snow", "day"), ("moon", "night"))
    fox = {"species": "fox", "colour": "orange", "pattern": "plain", "headwear": "none", "neckwear": "scarf"}
    fox |= {"eyes": "round", "accent": "blue", "activity": "standing", "company": "alone"}
    shown = draw(len(places), torch.Generator().manual_seed(0))
    for name, value in fox.items():
        shown[name][:] = VALUES[name].index(value)
    for i, (scene, time) in enumerate(places):
        shown["scene"][i], shown["time"][i] = VALUES["scene"].index(scene), VALUES["time"].index(time)
    for name, place in {"x": 0.0, "y": 0.0, "sway": 0.0, "size": 1.0}.items():
        shown[name][:] = place
    half = ICON_SIDE // 2
    side = half - ICON_GAP
    sheet = Image.new("RGB", (ICON_SIDE, ICON_SIDE), PAPER)
    for i, pixels in enumerate(render(shown, 4 * side).movedim(1, -1)):
        panel = Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).resize((side, side))
        sheet.paste(panel, (ICON_GAP // 2 + half * (i % 2), ICON_GAP // 2 + half * (i // 2)))
    return sheet


def main(names: Sequence[str]) -> None:
    names = list(names or (*STORIES, BANNER.stem, FILM.stem, ICON.stem))
    if ICON.stem in names:
        names.remove(ICON.stem)
        icon().save(ICON, optimize=True)
        print(ICON.relative_to(ROOT))
    if not names:
        return
    this = host.set_up()
    checkpoint = host.world_checkpoint(this)
    with (
        host.run_folder() as folder,
        host.running(this, folder, checkpoint.parent, log=host.HOST / "comfyui.log") as url,
    ):
        client = Client(url)
        client.upload("example.png", masked_picture())
        for name in names:
            if name == BANNER.stem:
                picture, path = banner(client, checkpoint.name), BANNER
            elif name == FILM.stem:
                picture, path = film(client, checkpoint.name), FILM
            else:
                graph = graph_of(name, STORIES[name], checkpoint.name)
                picture, path = thumbnail(boards(client, graph)), WORKFLOWS / f"{name}.jpg"
            picture.save(path, quality=88)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{BANNER.stem}, {FILM.stem}, {ICON.stem}, or a workflow: {', '.join(STORIES)}",
    )
    main(parser.parse_args().names)
