import logging

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..attention.recorder import Recording
from ..attention.region_masks import region_masks
from ..story.layout import character_of
from ..story.script import Story, listed
from .attention_view import STORY_ATTENTION
from .types import CATEGORY, STORY

PIXELS = 8
"""Of a latent's side, as Stable Diffusion's autoencoders have it."""


class OneStoryRegionMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryRegionMasks",
            display_name="Regions from Attention",
            category=CATEGORY,
            description="Find where a first sampler has put a character, as masks for Story Regions in front of a "
            "second sampler that goes on from there.",
            search_aliases=["story", "mask", "segmentation", "attention map", "region", "consistory"],
            inputs=[
                STORY_ATTENTION.Input("attention", tooltip="From the Attention Recorder that patches its model."),
                STORY.Input("story", tooltip="The story that is drawn."),
                io.Latent.Input(
                    "latent",
                    tooltip="From the recorded sampler, so that the masks are made after it. It comes out as it is.",
                ),
                io.String.Input("character", default="", tooltip="Whose masks. Empty: the story's only character."),
                io.Int.Input(
                    "grow",
                    default=1,
                    min=0,
                    max=16,
                    tooltip="By how many of the map's tokens the masks grow on every side.",
                ),
            ],
            outputs=[
                io.Mask.Output(tooltip="A mask for each frame, for Story Regions or a mask editor."),
                io.Latent.Output(tooltip="The latent, for the second sampler."),
            ],
        )

    @classmethod
    def execute(cls, attention: Recording, story: Story, latent: dict, character: str, grow: int) -> io.NodeOutput:
        name = character_of(story, character, "character").name
        shown = tuple(frame.characters for frame in story.frames)
        maps = attention.character_maps()
        if attention.characters != shown:
            raise ValueError(
                f"Regions from Attention has a story of {len(shown)} frames, and the recorded sampler drew another one "
                f"of {len(attention.characters)}: wire the same story into it and Story Prompt."
            )
        masks, unclear = region_masks(maps, shown, grow)
        if unclear:
            logging.warning(
                "OneStory: the characters don't come apart in frame %s, so that they get no regions there: record more "
                "steps, or paint masks.",
                listed([str(j + 1) for j in unclear], "and", 20),
            )
        if name not in masks:
            raise ValueError(f"No frame of the story shows {name}, so that it has no region: take this node out.")
        return io.NodeOutput(at_picture_size(masks[name], latent["samples"]), latent)


def at_picture_size(masks: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Masks [frames, height, width] as large as the pictures of most latents, to look at and to paint over."""
    height, width = samples.shape[-2:]
    return F.interpolate(masks[:, None], (PIXELS * height, PIXELS * width), mode="bilinear")[:, 0]
