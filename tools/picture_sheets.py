"""Pictures that show what the nodes do: the sheets of docs/ and those of the help pages, drawn by the Story World."""

import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from . import demo
from .client import Client, Workflow
from .comparison import INK, PAPER, compare
from .picture_graphs import FRAME, graph_of, part, portrait, upload, without
from .picture_stories import BOOK, BY_PICTURE, COMIC, IPCA, OPEN, SHEET, SPREAD, STEP, TWO, Picture

HELP_WIDTH = 640
"""How wide the editor's help panel shows a picture at most."""
GAP, LINE = 10, 36
"""Between the pictures of a sheet, and for a line of text above them, in pixels."""
STRENGTHS = 61
"""Where the strengths end in Inspect Story's sheet of four frames, in percent of its height."""
ONE_STORY = "One Prompt One Story"


class Studio(NamedTuple):
    """A running server with the Story World's checkpoint, and its adapter."""

    client: Client
    checkpoint: str

    def run(self, graph: Workflow) -> dict[str, list[Image.Image]]:
        """What the graph saves, by the names that it is saved under, after "OneStory/"."""
        outputs = self.client.run(graph, demo.ProgressBar(graph))
        found = demo.pictures(self.client, graph, outputs)
        return {kind: [Image.open(io.BytesIO(data)).convert("RGB") for data in each] for kind, each in found.items()}

    def boards(self, name: str, picture: Picture) -> dict[str, Image.Image]:
        """The first pages of a workflow's boards, by what they are called after "board"; or its film's pictures."""
        upload(self.client, picture)
        found = self.run(graph_of(name, picture, self.checkpoint))
        pages = {kind.removeprefix("board").strip(): each for kind, each in found.items() if kind.startswith("board")}
        return {kind: first for kind, (first, *_) in pages.items()} or {"": in_rows(next(iter(found.values())))}

    def frames(self, name: str, picture: Picture, change: Callable[[Workflow], Workflow] | None = None) -> list:
        """A workflow's frames, after a change of its graph."""
        upload(self.client, picture)
        graph = graph_of(name, picture, self.checkpoint, FRAME)
        return self.run(change(graph) if change else graph)["frame"]


Sheet = Callable[[Studio], Image.Image]


def in_rows(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Pictures of one size next to and below each other."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), PAPER)
    for n, picture in enumerate(pictures):
        sheet.paste(picture, (n % columns * width, n // columns * height))
    return sheet


@cache
def characters(studio: Studio) -> Image.Image:
    """Rows of a given picture in a border and the frames of a story that were drawn with it."""
    rows = []
    for picture in BY_PICTURE:
        (look,) = picture.cast.values()
        rows.append([portrait(look), *studio.frames("A Character from a Picture", picture)])
    side = (SHEET - GAP) // len(rows[0]) - GAP
    sheet = Image.new("RGB", (SHEET, LINE + len(rows) * (side + GAP)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for column, text in enumerate(("the picture", "drawn with it")):
        pen.text((GAP + column * (side + GAP), LINE // 2), text, fill=INK, font=font, anchor="lm")
    for y, row in enumerate(rows):
        for x, each in enumerate(row):
            left, top = GAP + x * (side + GAP), LINE + y * (side + GAP)
            sheet.paste(each.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        pen.rectangle(
            (GAP - 4, LINE + y * (side + GAP) - 4, GAP + side + 3, LINE + y * (side + GAP) + side + 3), None, INK, 4
        )
    return sheet


def comic(studio: Studio) -> Image.Image:
    """A comic page with a title and speech bubbles."""
    return studio.boards("Comic Book", COMIC)[""]


def inspect(studio: Studio) -> Image.Image:
    """What Inspect Story shows of a story after SVR."""
    picture = inspected(studio)
    return picture.resize((SHEET, SHEET * picture.height // picture.width), Image.Resampling.LANCZOS)


@cache
def inspected(studio: Studio) -> Image.Image:
    """Inspect Story's sheet as it comes, 1280 pixels wide."""
    graph = graph_of(ONE_STORY, OPEN, studio.checkpoint, FRAME)
    graph["inspect"] = node("OneStoryInspect", conditioning=[key_of(graph, "OneStorySVR"), 0])
    graph["save"] = saving("inspect")
    return studio.run(part(graph, ["save"]))["inspect"][0]


@cache
def two(studio: Studio) -> Image.Image:
    """Two characters in each frame, without Story Regions and with it."""
    labels = "without regions", "with Story Regions"
    return without_and_with(studio, "Two Characters, Each in Place", TWO, ("OneStoryRegions", "model"), labels)


def reweighted(studio: Studio) -> Image.Image:
    """One prompt for all frames, without SVR and with it."""
    labels = "one prompt", "one prompt, with SVR"
    return without_and_with(studio, ONE_STORY, OPEN, ("OneStorySVR", "conditioning"), labels)


def identity_preserved(studio: Studio) -> Image.Image:
    """A story without IPCA and with it."""
    return without_and_with(studio, ONE_STORY, IPCA, ("OneStoryIPCA", "model"), ("without IPCA", "with IPCA"))


def self_attention(studio: Studio) -> Image.Image:
    """A story from separate prompts and different noise, without Consistent Self-Attention and with it."""
    labels = "separate prompts", "separate prompts, with Consistent Self-Attention"
    return without_and_with(studio, "Comic Page", SPREAD, ("OneStorySelfAttention", "model"), labels)


def without_and_with(
    studio: Studio, workflow: str, picture: Picture, node: tuple[str, str], labels: tuple[str, str]
) -> Image.Image:
    """A workflow's frames without the nodes of a kind, whose first output was their named input before, and with."""
    kind, passed = node
    before = studio.frames(workflow, picture, lambda graph: without(graph, kind, {0: passed}))
    return compare(dict(zip(labels, (before, studio.frames(workflow, picture)), strict=True)))


def attention(studio: Studio) -> Image.Image:
    """A story's frames, and where they look at the words of its character."""
    graph = graph_of(ONE_STORY, OPEN, studio.checkpoint, FRAME)
    sampler = graph[key_of(graph, "KSampler")]["inputs"]
    where = {"blocks": "output.3-5", "start_percent": 0.0, "end_percent": 1.0}
    graph["recorder"] = node("OneStoryAttentionRecorder", model=sampler["model"], **where)
    sampler["model"] = ["recorder", 0]
    frames, recording = [key_of(graph, "VAEDecode"), 0], ["recorder", 1]
    graph["view"] = node("OneStoryAttentionView", images=frames, attention=recording, scale="story", opacity=0.7)
    graph["save view"] = saving("view")
    found = studio.run(graph)
    return compare({"the frames": found["frame"], "where the fox's words counted": found["view"]})


def in_betweens(studio: Studio) -> Image.Image:
    """Two frames and the pictures between them."""
    (pictures,) = studio.run(graph_of("Story to Film", STEP, studio.checkpoint)).values()
    return in_rows(pictures, len(pictures))


def prompt(studio: Studio) -> Image.Image:
    """The part of Inspect Story's sheet that shows the prompt and each token's strength."""
    sheet = inspected(studio)
    return sheet.crop((0, 0, sheet.width, STRENGTHS * sheet.height // 100))


def board(studio: Studio) -> Image.Image:
    """A page with a title and speech bubbles, of three frames."""
    return studio.boards("Comic Book", BOOK)[""]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def saving(key: str) -> dict[str, Any]:
    return node("SaveImage", images=[key, 0], filename_prefix=f"OneStory/{key}")


def key_of(graph: Workflow, kind: str) -> str:
    """The one node of a kind."""
    (key,) = (key for key, each in graph.items() if each["class_type"] == kind)
    return key


def narrow(sheet: Sheet) -> Sheet:
    """The sheet no wider than the help panel."""

    def drawn(studio: Studio) -> Image.Image:
        picture = sheet(studio).copy()
        picture.thumbnail((HELP_WIDTH, 2 * HELP_WIDTH), Image.Resampling.LANCZOS)
        return picture

    return drawn


SHEETS: dict[str, Sheet] = {"characters": characters, "comic": comic, "inspect": inspect, "two": two}
"""The pictures of docs/, by their names."""
HELP: dict[str, Sheet] = {
    "OneStorySVR": reweighted,
    "OneStoryIPCA": identity_preserved,
    "OneStorySelfAttention": self_attention,
    "OneStoryRegions": two,
    "OneStoryImageAdapter": characters,
    "OneStoryBoard": board,
    "OneStoryInspect": prompt,
    "OneStoryAttentionView": attention,
    "OneStoryInBetweens": in_betweens,
}
"""The pictures of help pages, by their nodes."""
HELP = {name: narrow(sheet) for name, sheet in HELP.items()}
