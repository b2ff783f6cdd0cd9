from collections.abc import Callable
from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..svr.encoders import name_of
from ..svr.record import KEY, Record
from ..svr.reweight import EotMode, Variant, naive_reweight, singular_value_reweight
from .types import CATEGORY

ALIASES = ["story", "1prompt1story", "reweight"]


class OneStoryNaiveReweight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryNaiveReweight",
            display_name="Naive Reweighting",
            category=CATEGORY,
            description="The papers' baseline for SVR: multiply each frame's own tokens up and the other frames' down.",
            search_aliases=ALIASES,
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="From Story Prompt."),
                io.Float.Input(
                    "express",
                    default=2.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor for the tokens of the frame that a row draws.",
                ),
                io.Float.Input(
                    "suppress",
                    default=0.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor for the tokens of the other frames.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For a sampler's positive input.")],
        )

    @classmethod
    def execute(cls, conditioning: list[list[Any]], express: float, suppress: float) -> io.NodeOutput:
        return io.NodeOutput(
            reweight_stories(
                conditioning, "Naive Reweighting", lambda e, record: naive_reweight(e, record, express, suppress)
            )
        )


class OneStorySVR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStorySVR",
            display_name="Singular-Value Reweighting (SVR)",
            category=CATEGORY,
            description="Make each row of a consolidated prompt draw its own frame: express its frame prompt and "
            "suppress the others by reweighting singular values (1Prompt1Story).",
            search_aliases=ALIASES,
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="From Story Prompt in “one prompt” mode."),
                io.Combo.Input(
                    "variant",
                    options=[*get_args(Variant)],
                    default="released",
                    tooltip="“released”: suppress the other frames, then express, as the authors' code does. "
                    "“paper”: express first, which keeps more of the end-of-text tokens.",
                ),
                io.Float.Input(
                    "express_alpha",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="How strongly the frame's own prompt grows with its singular values. Raise it a little "
                    "when a frame ignores its prompt.",
                ),
                io.Float.Input(
                    "express_beta",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor on the frame's own prompt.",
                    advanced=True,
                ),
                io.Float.Input(
                    "suppress_alpha",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="How strongly the other frames' prompts shrink with their singular values. Lower it when "
                    "the character drifts between frames.",
                ),
                io.Float.Input(
                    "suppress_beta",
                    default=0.05,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Factor on the other frames' prompts. Raise it when the character drifts, lower it when "
                    "frames bleed into each other.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "eot",
                    options=[*get_args(EotMode)],
                    default="reweight",
                    tooltip="The end-of-text tokens hold the whole prompt's meaning: reweight them with every frame, "
                    "or only scale them by 0.9 each time (as the authors' benchmark does).",
                    advanced=True,
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For a sampler's positive input.")],
        )

    @classmethod
    def execute(cls, conditioning: list[list[Any]], **parameters: Any) -> io.NodeOutput:
        return io.NodeOutput(
            reweight_stories(
                conditioning, "SVR", lambda embeds, record: singular_value_reweight(embeds, record, **parameters)
            )
        )


def reweight_stories(
    conditioning: list[list[Any]], node: str, reweight: Callable[[Tensor, Record], Tensor]
) -> list[list[Any]]:
    """The conditioning with `reweight` applied to every entry that carries a story; at least one has to."""
    if not any(KEY in options for _, options in conditioning):
        raise ValueError(f"{node} found no story in its conditioning: wire the input `conditioning` from Story Prompt.")
    for embeds, options in conditioning:
        if KEY in options:
            check(embeds, options[KEY].record, node)
    return [
        reweighted(embeds, options, reweight) if KEY in options else [embeds, options]
        for embeds, options in conditioning
    ]


def reweighted(embeds: Tensor, options: dict[str, Any], reweight: Callable[[Tensor, Record], Tensor]) -> list[Any]:
    """An entry with `reweight` applied to its words; pictures are put into them afterwards."""
    attached = options[KEY]
    embeds, attached = attached.fused(reweight(attached.unfused(embeds), attached.record))
    return [embeds, {**options, KEY: attached}]


def check(embeds: Tensor, record: Record, node: str) -> None:
    record.check(embeds, node)
    bad = record.find_not_finite(embeds)
    if bad is not None:
        row, encoder = bad
        raise ValueError(
            f"Frame {row.frame + 1}'s embedding of {name_of(encoder.name)} was not finite (NaN or infinity) before "
            f"{node}: look for the node between Story Prompt and {node} that makes it so, and take it out."
        )
