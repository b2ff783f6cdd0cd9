from typing import Literal

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.blocks import parse_blocks
from ..attention.ipca import IPCA
from ..attention.runtime import patch
from .previews import with_previews
from .types import CATEGORY, reach_inputs, seed_input


class OneStoryIPCA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryIPCA",
            display_name="Identity-Preserving Cross-Attention (IPCA)",
            category=CATEGORY,
            description="Let every frame look harder at the words that describe the character (1Prompt1Story). It "
            "finds them in the sampler's conditioning by itself, and can stand anywhere among other model patches.",
            search_aliases=["story", "consistent character", "1prompt1story", "ipca"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any SD1.x, SD2.x, SDXL, SD3, SD3.5 or Flux.1 model, Chroma, Flux.2, Qwen-Image, Z-Image, "
                    "Lumina 2, HunyuanImage or Wan, with LoRAs and other patches.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="0 is off, 1 is the method. Raise it when the character drifts, lower it when frames lose "
                    "their own content.",
                ),
                io.Combo.Input(
                    "variant",
                    options=["released", "paper", "own keys"],
                    default="released",
                    tooltip="“released” strengthens the identity's words only, as the authors' code does; “paper” also "
                    "the end-of-text tokens, and dilutes the frame's own. “own keys”, for models that read T5 or "
                    "UMT5, lets the picture look at the identity encoded without any frame.",
                ),
                io.Float.Input(
                    "dropout",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The share of the strengthening that is dropped at random, for more variety.",
                    advanced=True,
                ),
                *reach_inputs(blocks="all"),
                seed_input("dropout"),
            ],
            outputs=[io.Model.Output(tooltip="For a sampler. It may serve any number of stories.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        strength: float,
        variant: Literal["released", "paper", "own keys"],
        dropout: float,
        blocks: str,
        start_percent: float,
        end_percent: float,
        seed: int,
    ) -> io.NodeOutput:
        ipca = IPCA(strength, variant, dropout, parse_blocks(blocks), start_percent, end_percent, seed)
        return io.NodeOutput(with_previews(patch(model, ipca)))
