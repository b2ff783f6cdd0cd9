from collections.abc import Mapping

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..attention.blocks import parse_blocks
from ..attention.regions import Layout, Region, Regions, at_size
from ..attention.runtime import patch
from ..pages.layout_sheet import SIDE, draw_layout
from ..story.layout import character_of, parse_layout
from ..story.script import Story
from .types import CATEGORY, STORY, reach_inputs


class OneStoryRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryRegions",
            display_name="Story Regions",
            category=CATEGORY,
            description="Say where in the pictures each character is: outside of its region, the words that describe "
            "it count less or not at all. Works best with Story Prompt's `identity` at “each alone”.",
            search_aliases=["story", "regional prompt", "layout", "mask", "two characters", "attention couple", "area"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any SD1.x, SD2.x, SDXL, SD3, SD3.5 or Flux.1 model, Chroma, Flux.2, Qwen-Image, Z-Image, "
                    "Lumina 2, HunyuanImage or Wan. Several Story Regions in a row add up, such as one for each mask.",
                ),
                STORY.Input("story", tooltip="The story that Story Prompt encodes."),
                io.String.Input(
                    "layout",
                    default="",
                    multiline=True,
                    tooltip="One place a line: Mia: left, Otto: right half, Ada: bottom right. Or left, top, right and "
                    "bottom as shares, and for some frames alone, as Mia＠3: 0.1 0.2 0.5 1.0",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of its weight a character's words lose outside its region: 0 is off, 1 is all.",
                ),
                io.Float.Input(
                    "end_of_text",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the end-of-text tokens lose inside regions, since they have read everybody's "
                    "words.",
                    advanced=True,
                ),
                *reach_inputs(blocks="all"),
                io.String.Input(
                    "character",
                    default="",
                    tooltip="Whose region the mask is. Empty: the story's only character.",
                    advanced=True,
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The region of `character`: one mask for all frames, or one for each frame. May be soft.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For a sampler whose positive input comes from Story Prompt."),
                io.Image.Output(display_name="regions", tooltip="A picture of each frame's regions."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        story: Story,
        layout: str,
        strength: float,
        end_of_text: float,
        blocks: str,
        start_percent: float,
        end_percent: float,
        character: str,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        regions: dict[str, Mapping[int, Region]] = dict(parse_layout(layout, story))
        if mask is not None:
            name = character_of(story, character, "character").name
            if name in regions:
                raise ValueError(
                    f"Story Regions has a mask for {name or 'the character'} and a place in `layout`: take one of the "
                    "two out."
                )
            regions[name] = masks_of(mask, name, story)
        method = Regions(
            regions, len(story.frames), strength, end_of_text, parse_blocks(blocks), start_percent, end_percent
        )
        shown = preview(regions, story)
        return io.NodeOutput(patch(model, method), shown, ui=ui.PreviewImage(shown, cls=cls))


def masks_of(mask: torch.Tensor, name: str, story: Story) -> dict[int, Region]:
    """The mask [masks, height, width] of each frame that shows the character. Raises `ValueError`."""
    frames = len(story.frames)
    masks = mask.reshape(-1, *mask.shape[-2:])
    if len(masks) not in (1, frames):
        raise ValueError(
            f"Story Regions has {len(masks)} masks and a story of {frames} frames: wire one, or one for each frame."
        )
    own = masks.to("cpu", torch.float32)
    return {j: own[j % len(own)] for j, frame in enumerate(story.frames) if name in frame.characters}


def preview(layout: Layout, story: Story) -> torch.Tensor:
    """A picture of each frame's regions, [frames, 256, 256, 3]."""
    frames: list[dict[str, np.ndarray]] = [
        {name: at_size(regions[j], SIDE, SIDE).numpy() for name, regions in layout.items() if j in regions}
        for j in range(len(story.frames))
    ]
    return torch.from_numpy(draw_layout(frames, [c.name for c in story.characters]))
