import comfy.model_management
import torch
from comfy_api.latest import io

from ..story.script import Story
from .types import CATEGORY, STORY

HIGHEST_ID = 9999


class OneStoryLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryLatent",
            display_name="Story Latent",
            category=CATEGORY,
            description="Empty latent images, one for each frame of a story, that start from the same noise or not.",
            search_aliases=["story", "empty latent", "consistent character"],
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
            ],
            outputs=[io.Latent.Output(tooltip="For a sampler's latent image.")],
        )

    @classmethod
    def execute(cls, story: Story, width: int, height: int, noise: str, noise_ids: str = "") -> io.NodeOutput:
        frames = len(story.frames)
        if noise_ids.strip():
            ids = parse_noise_ids(noise_ids, frames)
        else:
            ids = [0] * frames if noise == "same" else list(range(frames))
        samples = torch.zeros([frames, 4, height // 8, width // 8], device=comfy.model_management.intermediate_device())
        return io.NodeOutput({"samples": samples, "downscale_ratio_spacial": 8, "batch_index": ids})


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
