from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.runtime import patch_runs
from .previews import with_previews
from .types import CATEGORY


class OneStoryRuns(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryRuns",
            display_name="Story Runs",
            category=CATEGORY,
            description="Draw a long story with one sampler and little memory: the sampler has all frames in one "
            "batch, and the model sees a few of them at a time, in every step. The pictures equal those of one batch.",
            search_aliases=["story", "batch", "low vram", "out of memory", "long story", "runs"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any model, before or after IPCA, Consistent Self-Attention, LoRAs and other patches.",
                ),
                io.Int.Input(
                    "frames_at_a_time",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="The most frames that the model sees at once. Lower it when memory runs out. Frames that "
                    "look at each other, such as the anchors of Consistent Self-Attention, are drawn together.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For a sampler. It may serve any number of stories.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, frames_at_a_time: int) -> io.NodeOutput:
        return io.NodeOutput(with_previews(patch_runs(model, frames_at_a_time)))
