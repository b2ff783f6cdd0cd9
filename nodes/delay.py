from typing import Any

from comfy_api.latest import io

from ..svr.record import KEY
from .types import CATEGORY

Conditioning = list[list[Any]]

APART = 1e-5
"""How far the first part ends before the second begins: ComfyUI mixes both in a step that stands at their ends."""


class OneStoryDelay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryDelay",
            display_name="Story Delay",
            category=CATEGORY,
            description="One conditioning for the first part of the sampling and another one after it: plain words for "
            "the layout, say, then the characters' full descriptions.",
            search_aliases=["story", "delayed conditioning", "start merge step", "timestep range", "prompt schedule"],
            inputs=[
                io.Conditioning.Input("before", tooltip="For the beginning, from Story Prompt or SVR."),
                io.Conditioning.Input(
                    "after", tooltip="For what follows: the same frames, such as with the full identity."
                ),
                io.Float.Input(
                    "percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Up to where in the sampling `before` is used. 0: only `after`, 1: only `before`.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="Both in one, for a sampler's positive input.")],
        )

    @classmethod
    def execute(cls, before: Conditioning, after: Conditioning, percent: float) -> io.NodeOutput:
        check_alike(before, after)
        return io.NodeOutput(one_after_the_other(before, after, percent))


def one_after_the_other(before: Conditioning, after: Conditioning, percent: float) -> Conditioning:
    """`before` up to a share of the sampling and `after` from there on."""
    return within(before, 0.0, percent - APART if percent < 1 else 1.0) + within(after, percent, 1.0)


def within(conditioning: Conditioning, start: float, end: float) -> Conditioning:
    """The entries, each in the part of its own range that lies between two shares of the sampling."""
    kept = []
    for embeds, options in conditioning:
        first = max(start, options.get("start_percent", 0.0))
        last = min(end, options.get("end_percent", 1.0))
        if first < last:
            kept.append([embeds, {**options, "start_percent": first, "end_percent": last}])
    return kept


def check_alike(before: Conditioning, after: Conditioning) -> None:
    """Raise `ValueError` unless both draw the same frames, row by row."""
    frames = [
        next(([row.frame for row in o[KEY].record.rows] for _, o in conditioning if KEY in o), None)
        for conditioning in (before, after)
    ]
    rows = [max((len(embeds) for embeds, _ in conditioning), default=0) for conditioning in (before, after)]
    if rows[0] != rows[1] or (None not in frames and frames[0] != frames[1]):
        raise ValueError(
            f"Story Delay has {rows[0]} frames in `before` and {rows[1]} in `after`, or not the same ones: wire both "
            "from stories with the same frames, and split both alike."
        )
