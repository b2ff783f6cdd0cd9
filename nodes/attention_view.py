import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..attention.blocks import parse_blocks
from ..attention.recorder import Recorder, Recording, resize, stretch
from ..attention.runtime import patch
from ..pages.heat import overlay
from .previews import with_previews
from .types import CATEGORY, reach_inputs

STORY_ATTENTION = io.Custom("STORY_ATTENTION")
ALIASES = ["story", "attention map", "heat map", "debug", "daam", "cross-attention"]


class OneStoryAttentionRecorder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryAttentionRecorder",
            display_name="Attention Recorder",
            category=CATEGORY,
            description="Watch, while a sampler draws a story, where the words that describe the character look in "
            "each picture, for Attention View. The pictures stay the same to the last bit.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any SD1.x, SD2.x, SDXL, SD3, SD3.5 or Flux.1 model, Chroma, Flux.2, Qwen-Image, Z-Image, "
                    "Lumina 2, HunyuanImage or Wan. It may stand before or after IPCA and other patches.",
                ),
                *reach_inputs(
                    blocks="output.3-5",
                    where="Where in the model it watches: in a U-Net the blocks of middle size show most clearly what "
                    "is where.",
                    active="watches",
                    end=" The layout is decided before 0.4.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For one sampler, whose positive input comes from Story Prompt."),
                STORY_ATTENTION.Output("attention", display_name="attention", tooltip="For Attention View."),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, blocks: str, start_percent: float, end_percent: float) -> io.NodeOutput:
        recorder = Recorder(Recording(), parse_blocks(blocks), start_percent, end_percent)
        return io.NodeOutput(with_previews(patch(model, recorder)), recorder.recording)


class OneStoryAttentionView(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryAttentionView",
            display_name="Attention View",
            category=CATEGORY,
            description="Show over each frame's picture where the words that describe the character looked while it "
            "was drawn, averaged over the steps: bright where they decided most.",
            search_aliases=ALIASES,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The story's frames, from VAE Decode after the recorded sampler."),
                STORY_ATTENTION.Input("attention", tooltip="From the Attention Recorder that patches its model."),
                io.Combo.Input(
                    "scale",
                    options=["story", "frame"],
                    default="story",
                    tooltip="“story”: one scale for all frames, so that a pale frame is one where the character's "
                    "description counts less. “frame”: each frame's own, to see where it looks most.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How strongly the map covers the picture.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The pictures with their maps, for Story Board or Save Image."),
                io.Mask.Output(tooltip="The maps alone, as masks: 1 where the description counts most."),
            ],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, attention: Recording, scale: str, opacity: float) -> io.NodeOutput:
        maps = attention.maps()
        if len(images) != len(maps):
            raise ValueError(
                f"Attention View has {len(images)} images and a story of {len(maps)} frames: wire `images` from the "
                "VAE Decode of the recorded sampler, after Join Story if the story is split."
            )
        masks = resize(stretch(maps, scale == "story"), *images.shape[1:3]).clamp(0, 1)
        shown = torch.from_numpy(overlay(images[..., :3].to("cpu", torch.float32).numpy(), masks.numpy(), opacity))
        return io.NodeOutput(shown, masks, ui=ui.PreviewImage(shown, cls=cls))
