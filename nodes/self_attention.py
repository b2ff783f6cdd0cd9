from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.blocks import parse_blocks
from ..attention.runtime import patch
from ..attention.self_attention import SelfAttention
from .previews import with_previews
from .types import CATEGORY, reach_inputs, seed_input


class OneStorySelfAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStorySelfAttention",
            display_name="Consistent Self-Attention",
            category=CATEGORY,
            description="Let the frames of a batch look at each other while they are drawn, so that they show the same "
            "character (StoryDiffusion). Works with Story Prompt and with any other batch of pictures.",
            search_aliases=[
                "story",
                "consistent character",
                "same character",
                "same face",
                "storydiffusion",
                "consistent self-attention",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any SD1.x, SD2.x, SDXL, SD3, SD3.5 or Flux.1 model, Chroma, Flux.2, Qwen-Image, Z-Image, "
                    "Lumina 2, HunyuanImage or Wan, with LoRAs and other patches.",
                ),
                io.Combo.Input(
                    "variant",
                    options=["anchors", "tiles"],
                    default="anchors",
                    tooltip="“anchors”: the first frames of each character look at each other, and all later ones at "
                    "them (the authors' code; long stories may be split into runs). “tiles”: every frame looks at its "
                    "neighbours (the paper).",
                ),
                io.Int.Input(
                    "anchors",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="With “anchors”: how many of each character's first frames all its frames look at.",
                ),
                io.Int.Input(
                    "tile",
                    default=4,
                    min=2,
                    max=64,
                    tooltip="With “tiles”: how many neighbouring frames look at each other.",
                    advanced=True,
                ),
                io.Float.Input(
                    "sampling_rate",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The share of another frame's tokens that a frame sees. Raise it when the character "
                    "drifts; lower it when poses become alike, or to save time. 0 is off.",
                ),
                *reach_inputs(blocks="late"),
                io.Combo.Input(
                    "probability",
                    options=["released", "always"],
                    default="released",
                    tooltip="“released”: never in the first step of the model's noise schedule, in 70% of the layers "
                    "before 40% of it, in 90% after, as the authors' code does. “always”: in every layer and step.",
                    advanced=True,
                ),
                seed_input("sampled tokens"),
                io.Combo.Input(
                    "share",
                    options=["everything", "the character"],
                    default="everything",
                    optional=True,
                    tooltip="“everything”: from all over another frame, its background too. “the character”: only from "
                    "inside the characters that both frames show, found by Story Regions or else by the model's own "
                    "attention (ConsiStory). Needs Story Prompt.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For a sampler. It may serve any number of stories.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, blocks: str, **parameters: Any) -> io.NodeOutput:
        attention = SelfAttention(blocks=parse_blocks(blocks), **parameters)
        return io.NodeOutput(with_previews(patch(model, attention)))
