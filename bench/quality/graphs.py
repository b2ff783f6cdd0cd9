"""The ways to make a story that `bench quality` compares, as workflows."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ...story.files import StoryText
from ...tools.demo import fill_in, set_inputs
from .pair_graphs import add_regions, draw_in_two, node, with_sides
from .picture_graphs import add_picture, said

TEMPLATE = Path(__file__).resolve().parents[2] / "workflows" / "api" / "One Prompt One Story.json"
BOARD_WIDTH, FRAME_WIDTH = 1600, 320
"""Pixels of a board at most, and of a frame in it at most."""

NAIVE = {"express": 2.0, "suppress": 0.5}
SELF_ATTENTION = {
    "variant": "anchors",
    "anchors": 4,
    "tile": 4,
    "sampling_rate": 0.5,
    "blocks": "late",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "probability": "released",
    "seed": 0,
    "share": "everything",
}


class Row(NamedTuple):
    """One way: how the prompt is made, what reweights it ("", "naive" or SVR's variant), and the model's patches.

    `ipca` is its strength, 0 for none; `self_attention` its variant, "" for none. `identity` is Story Prompt's.

    For stories of two characters: whether words say their sides, where their regions come from ("" for none, "text",
    "masks" or "attention"), and Story Regions' `strength`. For stories with a picture: what the words say of the
    character ("all", its "species" or "nothing"), and Image Characters' `scale`, 0 for none.
    """

    title: str
    mode: str = "one prompt"
    reweight: str = ""
    ipca: float = 0.0
    self_attention: str = ""
    noise: str = "same"
    identity: str = "together"
    sides: bool = False
    regions: str = ""
    strength: float = 1.0
    says: str = "all"
    scale: float = 0.0


SEPARATE = "separate prompts"
ROWS = {
    "different": Row("separate prompts, different noise", SEPARATE, noise="different"),
    "separate": Row("separate prompts", SEPARATE),
    "consolidated": Row("consolidated prompt only"),
    "naive": Row("naive reweighting", reweight="naive"),
    "svr": Row("SVR (released)", reweight="released"),
    "svr-paper": Row("SVR (paper)", reweight="paper"),
    "ipca-half": Row("SVR + IPCA 0.5", reweight="released", ipca=0.5),
    "ipca": Row("SVR + IPCA", reweight="released", ipca=1.0),
    "ipca-double": Row("SVR + IPCA 2", reweight="released", ipca=2.0),
    "anchors": Row("separate prompts + self-attention", SEPARATE, self_attention="anchors"),
    "tiles": Row("separate prompts + self-attention (tiles)", SEPARATE, self_attention="tiles"),
    "all": Row("SVR + IPCA + self-attention", reweight="released", ipca=1.0, self_attention="anchors"),
}
PAIR_ROWS = {
    "plain": Row("no regions", SEPARATE),
    "sides": Row("no regions, sides in words", SEPARATE, sides=True),
    "alone": Row("no regions, own words", SEPARATE, identity="each alone"),
    "regions": Row("regions", SEPARATE, regions="text"),
    "regions-half": Row("regions 0.5, own words", SEPARATE, identity="each alone", regions="text", strength=0.5),
    "regions-alone": Row("regions, own words", SEPARATE, identity="each alone", regions="text"),
    "masks": Row("masks, own words", SEPARATE, identity="each alone", regions="masks"),
    "attention": Row("regions from attention, own words", SEPARATE, identity="each alone", regions="attention"),
}
"""The ways to draw stories of two characters, each at its side."""
PICTURE_ROWS = {
    "nothing": Row("words that say nothing of it", SEPARATE, says="nothing"),
    "picture": Row("the picture", SEPARATE, says="nothing", scale=1.0),
    "species": Row("its species in words", SEPARATE, says="species"),
    "species-picture": Row("its species in words, and the picture", SEPARATE, says="species", scale=1.0),
    "words": Row("all of it in words", SEPARATE),
}
"""The ways to draw stories of a character that a picture shows."""
KINDS = {"stories": ROWS, "pairs": PAIR_ROWS, "pictures": PICTURE_ROWS}
"""The Story World's kinds of stories, and the ways to make them."""
ALL_ROWS = ROWS | PAIR_ROWS | PICTURE_ROWS
USUAL = ("separate", "consolidated", "naive", "svr", "ipca", "all")
"""The rows that are made unless others are asked for."""

SETTABLE = (
    "OneStoryPrompt",
    "OneStoryNaiveReweight",
    "OneStorySVR",
    "OneStoryIPCA",
    "OneStorySelfAttention",
    "OneStoryRegions",
    "OneStoryRegionMasks",
    "OneStoryImageAdapter",
    "KSampler",
)
DECIDED = (
    "mode",
    "identity",
    "variant",
    "strength",
    "eot",
    "seed",
    "steps",
    "denoise",
    "layout",
    "character",
    "adapter",
)
"""Inputs of these that the rows or options of their own decide."""


def story_graph(story: StoryText, row: Row, seed: int, settings: dict[str, Any]) -> dict[str, dict]:
    """The shipped workflow, changed to make `story` in the way of `row`.

    `settings` are `checkpoint`, `negative` where it is not the workflow's, `size` as "WxH", `steps`, `eot`, `dtype` of
    the U-Net's computations or None, `clip-vision`, a vision model's name or None, and `set`, which has values for
    `settable` inputs. Its output nodes are "frames" and "board picture", previews of the frames and of the board as a
    strip, and with a vision model "metrics".
    """
    width, height = map(int, settings["size"].split("x"))
    filled = fill_in(
        json.loads(TEMPLATE.read_text(encoding="utf-8")),
        story,
        {
            "checkpoint": settings["checkpoint"],
            "negative": settings.get("negative"),
            "seed": seed,
            "steps": settings["steps"],
            "size": (width, height),
        },
    )
    ids = {node["class_type"]: key for key, node in filled.items() if node["class_type"] != "SaveImage"}
    graph = {key: node for key, node in filled.items() if node["class_type"] != "SaveImage"}

    def inputs(kind: str) -> dict[str, Any]:
        return graph[ids[kind]]["inputs"]

    prompt, svr, ipca = (ids[kind] for kind in ("OneStoryPrompt", "OneStorySVR", "OneStoryIPCA"))
    inputs("OneStoryPrompt").update(mode=row.mode, identity=row.identity)
    if row.sides:
        inputs("OneStoryScript")["identity"] = with_sides(story.identity)
    if row.says != "all":
        inputs("OneStoryScript")["identity"] = said(story.identity, row.says)
    inputs("OneStoryLatent")["noise"] = row.noise
    inputs("OneStoryIPCA")["strength"] = row.ipca
    if row.reweight in ("released", "paper"):
        inputs("OneStorySVR").update(variant=row.reweight, eot=settings["eot"])
    if row.reweight == "naive":
        graph["naive"] = node("OneStoryNaiveReweight", conditioning=[prompt, 0], **NAIVE)
    inputs("KSampler")["positive"] = [{"": prompt, "naive": "naive"}.get(row.reweight, svr), 0]
    model = ids["CheckpointLoaderSimple"]
    if settings["dtype"]:
        graph["dtype"] = node("ModelComputeDtype", model=[model, 0], dtype=settings["dtype"])
        model = "dtype"
    if row.ipca:
        inputs("OneStoryIPCA")["model"] = [model, 0]
        model = ipca
    if row.self_attention:
        graph["self-attention"] = node(
            "OneStorySelfAttention", model=[model, 0], **{**SELF_ATTENTION, "variant": row.self_attention}
        )
        model = "self-attention"
    if row.regions:
        model = add_regions(graph, row, model, ids, (width, height), settings["steps"])
    if row.scale:
        model = add_picture(graph, story, model, ids["OneStoryScript"], row.scale)
    inputs("KSampler")["model"] = [model, 0]
    frames = len(story.frames.splitlines())
    inputs("OneStoryBoard").update(layout="strip", page_width=min(BOARD_WIDTH, FRAME_WIDTH * frames))
    pictures = [ids["VAEDecode"], 0]
    graph["frames"] = node("PreviewImage", images=pictures)
    graph["board picture"] = node("PreviewImage", images=[ids["OneStoryBoard"], 0])
    if settings["clip-vision"]:
        graph["vision"] = node("CLIPVisionLoader", clip_name=settings["clip-vision"])
        graph["metrics"] = node("OneStoryMetrics", images=pictures, clip_vision=["vision", 0])
    for key, unused in ((svr, row.reweight in ("", "naive")), (ipca, not row.ipca)):
        if unused:
            del graph[key]
    for change, value in (settings.get("set") or {}).items():
        kind, _, name = change.partition(".")
        set_inputs(graph, kind, {name: value})
    if row.regions == "attention":
        draw_in_two(graph, ids["KSampler"], settings["steps"])
    return graph


def settable() -> dict[str, Any]:
    """The inputs that may differ from the rows' values, as "Node.input", and these values."""
    settings = {"checkpoint": "", "size": "64x64", "steps": 1, "eot": "reweight", "dtype": None, "clip-vision": None}
    graphs = [story_graph(StoryText("", "", ""), row, 0, settings) for row in ALL_ROWS.values()]
    return {
        f"{kind}.{name}": value
        for kind in SETTABLE
        for graph in graphs
        for each in graph.values()
        if each["class_type"] == kind
        for name, value in each["inputs"].items()
        if not isinstance(value, list) and name not in DECIDED
    }
