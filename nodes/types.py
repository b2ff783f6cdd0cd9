"""What the pack's nodes share: the STORY type, the category, the inputs of model patches, and a story's warnings."""

import logging

from comfy_api.latest import io, ui
from server import PromptServer

from ..story.script import Story, cast_list

STORY = io.Custom("STORY")
STORY_VECTORS = io.Custom("STORY_VECTORS")
"""What a vision model sees in each picture: an array [pictures, channels], float64."""
STORY_CAST = io.Custom("STORY_CAST")
"""The pictures of a story's characters: a tuple of `Member`."""
STORY_FACE = io.Custom("STORY_FACE")
"""Face embeddings [faces, 512] of one character."""
STORY_PHOTOMAKER = io.Custom("STORY_PHOTOMAKER")
"""A cast's image tokens and what fuses them with words: `Pictures`."""
CATEGORY = "OneStory"


def reach_inputs(
    blocks: str, where: str = "Where in the model:", active: str = "is on", end: str = ""
) -> list[io.Input]:
    """Where in the model and when in the sampling a model patch is active."""
    percent = {"min": 0.0, "max": 1.0, "step": 0.01, "advanced": True}
    return [
        io.String.Input(
            "blocks",
            default=blocks,
            tooltip=f"{where} all, down, mid, up, late (a U-Net's up; of a transformer the single blocks, else all "
            "after its first third), a block such as output.3 or double.7, a range such as output.3-5, or several "
            "joined by +.",
            advanced=True,
        ),
        io.Float.Input("start_percent", default=0.0, tooltip=f"From where in the sampling it {active}.", **percent),
        io.Float.Input("end_percent", default=1.0, tooltip=f"Up to where in the sampling it {active}.{end}", **percent),
    ]


def seed_input(of: str) -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=f"Seed of the {of}.",
        advanced=True,
    )


def show_story(node: type[io.ComfyNode], story: Story, name: str = "") -> ui.PreviewText | None:
    """Write the story's warnings and who is in which frame under `node`, and log the warnings.

    The node's schema needs the hidden input `unique_id`. Returns the warnings for the node's `ui`, which the queue's
    history keeps. `name` stands before each warning in the log.
    """
    for warning in story.warnings:
        logging.warning("OneStory: %s%s", f"“{name}”: " if name else "", warning)
    show_text(node, "\n".join([*(f"⚠ {warning}" for warning in story.warnings), cast_list(story)]))
    return ui.PreviewText("\n".join(story.warnings)) if story.warnings else None


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Write under `node`, whose schema needs the hidden input `unique_id`, where an editor is connected."""
    # The editor shows a node's preview text only where it knows the node, but progress text everywhere.
    if node.hidden and PromptServer.instance.client_id is not None:
        PromptServer.instance.send_progress_text(text, node.hidden.unique_id, PromptServer.instance.client_id)
