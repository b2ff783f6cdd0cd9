from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..story.script import Story
from ..svr.record import KEY
from .types import CATEGORY, STORY

HIGHEST_ID = 9999
BETWEEN_TAKES = 100
"""What a frame's noise number grows by from take to take. ComfyUI draws all noises up to the highest number."""


class OneStoryLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryLatent",
            display_name="Story Latent",
            category=CATEGORY,
            description="Empty latent images, one for each frame of a story, that start from the same noise or not; "
            "for several takes of the story, a list of them.",
            search_aliases=["story", "empty latent", "consistent character", "takes", "variations", "noise ids"],
            inputs=[
                STORY.Input("story", tooltip="From Story Script."),
                io.Int.Input("width", default=1024, min=16, max=16384, step=8, tooltip="Width of a frame in pixels."),
                io.Int.Input("height", default=1024, min=16, max=16384, step=8, tooltip="Height of a frame in pixels."),
                io.Combo.Input(
                    "noise",
                    options=["same", "different"],
                    default="same",
                    tooltip="“same” starts every frame from equal noise, which helps the character stay the same and "
                    "makes compositions alike. It holds in every sampler; samplers with “ancestral” or “sde” in their "
                    "name add noise of their own to each frame.",
                ),
                io.String.Input(
                    "noise_ids",
                    default="",
                    optional=True,
                    tooltip="One number for each frame, such as 0,0,5,0: frames with equal numbers get equal noise, "
                    "so changing one number re-rolls that frame alone. Overrides `noise`.",
                    advanced=True,
                ),
                io.Int.Input(
                    "takes",
                    optional=True,
                    default=1,
                    min=1,
                    max=32,
                    tooltip="How many times the story is drawn, each time from other noise: the sampler draws the "
                    "takes one after the other, and Pick Takes makes one story of the best frames.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Frames to start from, such as enlarged ones from VAE Encode, in the place of empty ones: "
                    "they get the story's noise numbers. `width` and `height` don't count then.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    is_output_list=True, tooltip="For a sampler's latent image; several takes are a list of them."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        story: Story,
        width: int,
        height: int,
        noise: str,
        noise_ids: str = "",
        takes: int = 1,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        frames = len(story.frames)
        if noise_ids.strip():
            ids = parse_noise_ids(noise_ids, frames)
        else:
            ids = [0] * frames if noise == "same" else list(range(frames))
        if latent is None:
            device = comfy.model_management.intermediate_device()
            samples = torch.zeros([frames, 4, height // 8, width // 8], device=device)
            latent = {"samples": samples, "downscale_ratio_spacial": 8}
        else:
            check_whole_latent(latent, frames)
        numbers = [[number + BETWEEN_TAKES * take for number in ids] for take in range(takes)]
        return io.NodeOutput([{**latent, "batch_index": numbers_of_take} for numbers_of_take in numbers])


def check_whole_latent(latent: dict[str, Any], frames: int) -> None:
    """Raise `ValueError` unless the latent has a row for each of the story's frames."""
    rows = len(latent["samples"])
    if KEY in latent or rows != frames:
        raise ValueError(
            f"Story Latent's `latent` has {rows} {'frame' if rows == 1 else 'frames'} and the story {frames}: wire one "
            "batch with all frames of the story, from VAE Encode, Join Story or a sampler."
        )


def parse_noise_ids(text: str, frames: int) -> list[int]:
    """The numbers in "0,0,5,0", one for each frame. Raises `ValueError`."""
    ids = parse_numbers(text)
    if len(ids) != frames:
        raise ValueError(
            f"noise_ids has {len(ids)} numbers and the story {frames} frames: write one number for each frame, "
            "or leave it empty."
        )
    return ids


def parse_numbers(text: str) -> list[int]:
    """The noise numbers in a text such as "0,0,5,0". Raises `ValueError`."""
    parts = text.replace(",", " ").split()
    for part in parts:
        if not (part.isascii() and part.isdecimal() and int(part) <= HIGHEST_ID):
            raise ValueError(f"noise_ids has “{part}”: write whole numbers from 0 to {HIGHEST_ID}, such as 0,0,5,0.")
    return [int(part) for part in parts]
