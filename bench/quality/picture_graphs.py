"""What stories of a character from a picture have in their graphs: what words say of it, picture and adapter."""

from pathlib import Path
from typing import Any

from ...story.files import StoryText
from ...tools.demo import slug
from ...tools.host import WORLD_ADAPTER_FILES
from ...world.drawing.attributes import VALUES
from ...world.drawing.captions import ANYBODY, with_article
from .pair_graphs import node

ADAPTER, ENCODER = (Path(name).name for name in WORLD_ADAPTER_FILES)
IMAGE_CHARACTERS = {
    "scale": 0.7,
    "fit": "pad",
    "pictures": "all",
    "version": "auto",
    "lora_strength": 1.0,
    "blocks": "all",
    "start_percent": 0.0,
    "end_percent": 1.0,
}
"""The node's defaults."""


def said(identity: str, says: str) -> str:
    """What the identity prompt says of the character: its "species" alone, or "nothing"."""
    species = [word for word in identity.split() if word in VALUES["species"]]
    return with_article(" ".join(species)) if species and says == "species" else ANYBODY


def picture_name(story: StoryText) -> str:
    """A picture's name in the servers' folder of inputs."""
    return f"{slug(story.title)}.png"


def add_picture(graph: dict[str, dict[str, Any]], story: StoryText, model: str, script: str, scale: float) -> str:
    """Add Image Characters after the node `model`, with the story's picture; returns the node that the sampler gets."""
    graph["picture"] = node("LoadImage", image=picture_name(story))
    graph["cast"] = node("OneStoryCast", story=[script, 0], images=["picture", 0], character="")
    graph["encoder"] = node("CLIPVisionLoader", clip_name=ENCODER)
    graph["adapter"] = node(
        "OneStoryImageAdapter",
        model=[model, 0],
        cast=["cast", 0],
        clip_vision=["encoder", 0],
        adapter=ADAPTER,
        **{**IMAGE_CHARACTERS, "scale": scale},
    )
    return "adapter"
