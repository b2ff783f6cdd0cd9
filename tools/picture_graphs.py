"""The shipped workflows' graphs as the Story World draws them: without other models, with its own adapter and cast."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ..story.files import StoryText
from ..story.script import parse_script
from ..world.drawing.attributes import VALUES, draw
from ..world.drawing.render import render
from . import demo, host
from .client import Client, Workflow
from .picture_stories import Look, Picture

WORKFLOWS = host.ROOT / "workflows"
BOARD, FRAME = "OneStory/board", "OneStory/frame"
"""What Save Image nodes call pages and frames."""
SIDE = 512
STEPS = 12
GUIDANCE = 4.5
PLAIN = {"pattern": "plain", "headwear": "none", "neckwear": "none", "eyes": "round", "accent": "red"}
PLAIN |= {"activity": "standing", "company": "alone"}
OTHERS_MODELS = {
    "LoraLoader": {0: "model", 1: "clip"},
    "ControlNetApplyAdvanced": {0: "positive", 1: "negative"},
}
"""Nodes that need a model made for another checkpoint, and which input each output takes the place of."""
LOADERS = {"UNETLoader": 0, "DualCLIPLoader": 1, "VAELoader": 2}
"""Nodes that load a part of a model, and Load Checkpoint's output in its place."""
BESIDE_THEM = ("ControlNetLoader", "LoadImage", "Canny")
ADAPTER, ENCODER = (Path(name).name for name in host.WORLD_ADAPTER_FILES)


def graph_of(name: str, picture: Picture, checkpoint: str, kind: str = BOARD) -> Workflow:
    """The workflow's graph up to its pages, or its frames, for the Story World, without what needs other models."""
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    story = StoryText(name, picture.identity, picture.frames)
    graph = in_one_file(shown(graph, kind))
    settings = {**demo.WORLD, "checkpoint": checkpoint, "seed": picture.seed, "steps": STEPS}
    graph = demo.fill_in(graph, story, settings)
    others = {"OneStoryPrompt": {"window": window(picture)}, "OneStoryBoard": {"page_width": 2 * SIDE, **picture.board}}
    for node_kind, inputs in {**others, **picture.others}.items():
        demo.set_inputs(graph, node_kind, inputs)
    set_cast(graph, picture)
    left_out = {node["class_type"] for node in graph.values()} & OTHERS_MODELS.keys()
    for node_kind in left_out:
        graph = without(graph, node_kind, OTHERS_MODELS[node_kind])
    unused = BESIDE_THEM if left_out else ()
    return {key: node for key, node in graph.items() if node["class_type"] not in unused}


def window(picture: Picture) -> int:
    """One frame fewer than the most that show the same characters, so that each of them stands first in its prompt."""
    shown_by = Counter(frame.identity for frame in parse_script(picture.identity, picture.frames).frames)
    return max(1, max(shown_by.values()) - 1)


def without(graph: Workflow, kind: str, passed: dict[int, str]) -> Workflow:
    """The graph without the nodes of a kind; `passed` says which input takes the place of each of its outputs."""
    around: dict[tuple[str, int], Any] = {}
    for key, node in graph.items():
        if node["class_type"] == kind:
            around |= {(key, slot): node["inputs"][name] for slot, name in passed.items()}
    for node in graph.values():
        for name, value in node["inputs"].items():
            while isinstance(value, list) and tuple(value) in around:
                value = node["inputs"][name] = around[tuple(value)]
    return {key: node for key, node in graph.items() if node["class_type"] != kind}


def shown(graph: Workflow, kind: str) -> Workflow:
    """The part of the graph that its pages come from, or its frames; or else the pictures of its film."""
    savers = [key for key, node in graph.items() if node["class_type"] == "SaveImage"]
    return part(graph, [key for key in savers if graph[key]["inputs"]["filename_prefix"].startswith(kind)] or savers)


def part(graph: Workflow, wanted: Sequence[str]) -> Workflow:
    """The nodes that these need, themselves included."""
    left, needed = list(wanted), set()
    while left:
        key = left.pop()
        if key not in needed:
            needed.add(key)
            left += [value[0] for value in graph[key]["inputs"].values() if isinstance(value, list)]
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


def set_cast(graph: Workflow, picture: Picture) -> None:
    """Give Image Characters the Story World's own adapter, and each character the picture that `upload` puts there."""
    demo.set_inputs(graph, "OneStoryImageAdapter", {"adapter": ADAPTER, "scale": 1.0})
    demo.set_inputs(graph, "CLIPVisionLoader", {"clip_name": ENCODER})
    for inputs in [node["inputs"] for node in graph.values() if node["class_type"] == "OneStoryCast"]:
        name = inputs["character"]
        if name in picture.cast:
            graph[inputs["images"][0]]["inputs"]["image"] = file_of(name, picture.cast[name])


def upload(client: Client, picture: Picture) -> None:
    """Put the pictures that a graph loads into the server's folder of inputs."""
    client.upload("example.png", masked_picture())
    for name, look in picture.cast.items():
        client.upload(file_of(name, look), png(portrait(look)))


def file_of(character: str, look: Look) -> str:
    """A name of its own for each look: a server keeps what it has under a name."""
    return f"{character}, {' '.join(look.values())}.png"


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def masked_picture() -> bytes:
    """A picture whose middle is masked, in the place of ComfyUI's example."""
    picture = Image.new("RGBA", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 60), fill=(0, 0, 0, 0))
    return png(picture)


def portrait(look: Look) -> Image.Image:
    """A character in a meadow by day."""
    return drawn(look, [("meadow", "day")], SIDE)[0]


def drawn(look: Look, places: Sequence[tuple[str, str]], side: int) -> list[Image.Image]:
    """A character in scenes and times of day, as the Story World's own drawing has it, in the middle of each."""
    found = draw(len(places), torch.Generator().manual_seed(0))
    for name, value in {**PLAIN, **look}.items():
        found[name][:] = VALUES[name].index(value)
    for name, values in zip(("scene", "time"), zip(*places)):
        found[name][:] = torch.tensor([VALUES[name].index(value) for value in values])
    for name, place in {"x": 0.0, "y": 0.0, "sway": 0.0, "size": 1.0}.items():
        found[name][:] = place
    pictures = (render(found, side).movedim(1, -1) * 255).round().to(torch.uint8)
    return [Image.fromarray(pixels.numpy()) for pixels in pictures]
