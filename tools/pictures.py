"""Draw the project's pictures with the Story World's checkpoint: thumbnails, the icon, those of docs/ and help pages.

    .host/venv/bin/python tools/pictures.py [NAME ...]

Each is made by a workflow's own graph, with a story and sizes that suit the checkpoint, and its own IP-Adapter. A
workflow's LoRA and ControlNet know another model and are left out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from onestory.tools import demo, host  # noqa: E402
from onestory.tools.canvas import canvas  # noqa: E402
from onestory.tools.client import Client  # noqa: E402
from onestory.tools.comparison import INK, PAPER, compare  # noqa: E402
from onestory.tools.picture_graphs import SIDE, WORKFLOWS, drawn, graph_of  # noqa: E402
from onestory.tools.picture_sheets import HELP, SHEETS, Studio, in_rows  # noqa: E402
from onestory.tools.picture_stories import FILM, STORIES  # noqa: E402

DOCS, HELP_PAGES = ROOT / "docs", ROOT / "web" / "docs"
ICON = DOCS / "icon.png"
ICON_SIDE, ICON_GAP = 400, 10
QUALITY, HELP_QUALITY = 88, 78


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


def banner(studio: Studio) -> Image.Image:
    """The demo's comparison."""
    graph = json.loads(demo.COMPARISON.read_text(encoding="utf-8"))
    story = demo.read_story(demo.WORLD_STORY)
    settings = {**demo.WORLD, "window": demo.window_of(story), "checkpoint": studio.checkpoint}
    found = studio.run(demo.fill_in(graph, story, settings))
    return compare({way: found[f"frame {way}"] for way in demo.WAYS})


def film(studio: Studio) -> Image.Image:
    """A story and four pictures between each two of its frames, in a row."""
    (pictures,) = studio.run(graph_of("Story to Film", FILM, studio.checkpoint)).values()
    return in_rows(pictures, len(pictures))


def icon() -> Image.Image:
    """One fox in four places, as the Story World's own drawing has it."""
    places = [("forest", "day"), ("beach", "sunset"), ("snow", "day"), ("moon", "night")]
    fox = {"species": "fox", "colour": "orange", "neckwear": "scarf", "accent": "blue"}
    half = ICON_SIDE // 2
    side = half - ICON_GAP
    sheet = Image.new("RGB", (ICON_SIDE, ICON_SIDE), PAPER)
    for i, picture in enumerate(drawn(fox, places, 4 * side)):
        sheet.paste(picture.resize((side, side)), (ICON_GAP // 2 + half * (i % 2), ICON_GAP // 2 + half * (i // 2)))
    return sheet


def on_canvas(studio: Studio) -> Image.Image:
    """The first workflow after it has run."""
    return canvas(studio.client.url, WORKFLOWS / "Try It - Story World.json")


MADE = {
    "story": (DOCS / "story.jpg", banner),
    "canvas": (DOCS / "canvas.jpg", on_canvas),
    "film": (DOCS / "film.png", film),
    **{name: (DOCS / f"{name}.jpg", sheet) for name, sheet in SHEETS.items()},
    **{name: (HELP_PAGES / f"{name}.jpg", sheet) for name, sheet in HELP.items()},
}
"""What a server draws beside the thumbnails: the file of each, and how it is made."""


def main(names: Sequence[str]) -> None:
    names = list(names or (*STORIES, *MADE, ICON.stem))
    if ICON.stem in names:
        names.remove(ICON.stem)
        icon().save(ICON, optimize=True)
        print(ICON.relative_to(ROOT))
    if not names:
        return
    this = host.set_up()
    checkpoint = host.world_checkpoint(this)
    host.world_adapter(this)
    with (
        host.run_folder() as folder,
        host.running(this, folder, checkpoint.parent, log=host.HOST / "comfyui.log") as url,
    ):
        studio = Studio(Client(url), checkpoint.name)
        for name in names:
            if name in MADE:
                path, make = MADE[name]
                picture = make(studio)
            else:
                picture, path = thumbnail(studio.boards(name, STORIES[name])), WORKFLOWS / f"{name}.jpg"
            picture.save(path, quality=HELP_QUALITY if path.parent == HELP_PAGES else QUALITY, optimize=True)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(MADE)}, {ICON.stem}, or a workflow: {', '.join(STORIES)}",
    )
    main(parser.parse_args().names)
