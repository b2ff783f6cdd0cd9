from typing import Any

import torch
from comfy_api.latest import io, ui

from ..pages.prompt_sheet import draw_story
from ..svr.encoders import name_of
from ..svr.measures import distances, ends_of, lines_of, parts_of
from ..svr.record import KEY
from .types import CATEGORY


class OneStoryInspect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryInspect",
            display_name="Inspect Story",
            category=CATEGORY,
            description="See what a story's conditioning holds: every token in the colour of its part (identity, "
            "each frame, end), how strongly each frame's row expresses or suppresses it, and how far the frames' "
            "embeddings lie apart. It changes nothing and costs no sampling time.",
            search_aliases=["story", "debug", "tokens", "prompt viewer", "1prompt1story", "heat map"],
            is_output_node=True,
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="From Story Prompt, SVR or Naive Reweighting, or any node after them. Strengths are "
                    "against what the text encoder gave in Story Prompt, so no second wire is needed. Of several "
                    "combined conditionings, the first with a story is shown.",
                )
            ],
            outputs=[io.Image.Output(tooltip="One picture, 1280 pixels wide; it grows downward with the story.")],
        )

    @classmethod
    def execute(cls, conditioning: list[list[Any]]) -> io.NodeOutput:
        found = next(((embeds, options) for embeds, options in conditioning if KEY in options), None)
        if found is None:
            raise ValueError(
                "Inspect Story found no story in its conditioning: wire the input `conditioning` from Story Prompt, "
                "SVR or Naive Reweighting."
            )
        embeds, options = found
        record, norms = options[KEY].record, options[KEY].norms
        record.check(embeds, "Inspect Story")
        encoders = [name_of(encoder.name) for encoder in record.encoders]
        lines = lines_of(embeds, record, norms)
        page = draw_story(parts_of(record), encoders, lines, distances(embeds).numpy(), ends_of(record))
        image = torch.from_numpy(page)[None]
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))
