"""What the pack's nodes share: the STORY type, the category, and the inputs of model patches."""

from comfy_api.latest import io

STORY = io.Custom("STORY")
CATEGORY = "OneStory"


def reach_inputs(
    blocks: str, where: str = "Where in the U-Net:", active: str = "is on", end: str = ""
) -> list[io.Input]:
    """Where in the U-Net and when in the sampling a model patch is active."""
    percent = {"min": 0.0, "max": 1.0, "step": 0.01, "advanced": True}
    return [
        io.String.Input(
            "blocks",
            default=blocks,
            tooltip=f"{where} all, down, mid, up, a block such as output.3, a range such as output.3-5, or several "
            "joined by +.",
            advanced=True,
        ),
        io.Float.Input("start_percent", default=0.0, tooltip=f"From where in the sampling it {active}.", **percent),
        io.Float.Input("end_percent", default=1.0, tooltip=f"Up to where in the sampling it {active}.{end}", **percent),
    ]


def seed_input(of: str) -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=f"Seed of the {of}.",
        advanced=True,
    )
