from typing import Any

import torch
from comfy_api.latest import io

from ..attention.self_attention import anchor_sources
from ..story.runs import Run, split_runs
from ..svr.record import KEY
from .types import CATEGORY


class OneStorySplit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStorySplit",
            display_name="Split Story",
            category=CATEGORY,
            description="Turn a long story into runs that a small GPU can hold. The sampler draws them one after the "
            "other, and Join Story puts the frames back in order: the pictures equal those of one large batch.",
            search_aliases=["story", "batch", "low vram", "list"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The whole story, from Story Prompt or SVR."),
                io.Latent.Input("latent", tooltip="The whole story, from Story Latent."),
                io.Int.Input(
                    "frames_per_run",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="How many new frames are drawn at a time. Lower it when memory runs out.",
                ),
                io.Int.Input(
                    "anchors",
                    default=4,
                    min=0,
                    max=64,
                    tooltip="The same number as in Consistent Self-Attention, whose anchors are put in front of each "
                    "run. 0 for a story without it.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Only needed when the negative conditioning has something of its own for each frame, such "
                    "as a ControlNet with a picture for each frame.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning_runs",
                    display_name="conditioning",
                    is_output_list=True,
                    tooltip="The runs' conditionings, for a sampler's positive input.",
                ),
                io.Latent.Output(
                    "latent_runs",
                    display_name="latent",
                    is_output_list=True,
                    tooltip="The runs' latents, for a sampler's latent image.",
                ),
                io.Conditioning.Output(
                    "negative_runs",
                    display_name="negative",
                    is_output_list=True,
                    tooltip="The runs' negative conditionings, for a sampler's negative input. Only of use when the "
                    "input `negative` is wired.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning: list[list[Any]],
        latent: dict[str, Any],
        frames_per_run: int,
        anchors: int,
        negative: list[list[Any]] | None = None,
    ) -> io.NodeOutput:
        frames = latent["samples"].shape[0]
        record = next((options[KEY] for _, options in conditioning if KEY in options), None)
        if record and len(record.rows) != frames:
            raise ValueError(
                f"The latent batch has {frames} frames and the story {len(record.rows)}: wire `latent` from Story "
                "Latent with the same story."
            )
        characters = record.characters if record else (("",),) * frames
        runs = split_runs(anchor_sources(characters, anchors), frames_per_run)
        controls: dict[Any, Any] = {}
        return io.NodeOutput(
            [[select_entry(entry, run, (controls, n)) for entry in conditioning] for n, run in enumerate(runs)],
            [select_latent(latent, run) for run in runs],
            [[select_entry(entry, run, (controls, n)) for entry in negative or []] for n, run in enumerate(runs)],
        )


class OneStoryJoin(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryJoin",
            display_name="Join Story",
            category=CATEGORY,
            description="Put the frames of a split story back in order.",
            search_aliases=["story", "batch", "low vram", "list"],
            is_input_list=True,
            inputs=[io.Latent.Input("latent", tooltip="The sampler's output for the runs of Split Story.")],
            outputs=[io.Latent.Output(tooltip="One batch with every frame once, in the story's order.")],
        )

    @classmethod
    def execute(cls, latent: list[dict[str, Any]]) -> io.NodeOutput:
        if not all(KEY in part for part in latent):
            raise ValueError("Join Story found a latent that is not a run of a story: wire Split Story in front of it.")
        rows = {frame: (part, i) for part in reversed(latent) for i, frame in enumerate(part[KEY].frames)}
        missing = sorted(set(range(latent[0][KEY].total)) - set(rows))
        if missing:
            raise ValueError(
                f"Join Story lacks frame {missing[0] + 1} of {latent[0][KEY].total}: wire all runs of one Split Story."
            )
        order = [rows[frame] for frame in sorted(rows)]
        joined = {key: value for key, value in latent[0].items() if key not in (KEY, "noise_mask")}
        joined["samples"] = torch.stack([part["samples"][i] for part, i in order])
        joined["batch_index"] = [part["batch_index"][i] for part, i in order]
        if "noise_mask" in latent[0]:
            joined["noise_mask"] = torch.stack([part["noise_mask"][i] for part, i in order])
        return io.NodeOutput(joined)


def select_latent(latent: dict[str, Any], run: Run) -> dict[str, Any]:
    rows = list(run.frames)
    ids = latent.get("batch_index") or range(run.total)
    selected = {**latent, "samples": latent["samples"][rows], "batch_index": [ids[j] for j in rows], KEY: run}
    if "noise_mask" in latent:
        mask = latent["noise_mask"]
        mask = mask.reshape(-1, *mask.shape[-2:])
        selected["noise_mask"] = mask[[j % len(mask) for j in rows]]
    return selected


def select_entry(entry: list[Any], run: Run, controls: Any) -> list[Any]:
    """A conditioning entry for the frames of one run: whatever has a row for each frame of the story is cut."""
    embeds, options = entry
    options = {key: select_rows(value, run) for key, value in options.items()}
    if KEY in options:
        options[KEY] = options[KEY].select(list(run.frames))
    if "control" in options:
        options["control"] = select_control(options["control"], run, *controls)
    return [select_rows(embeds, run), options]


def select_rows(value: Any, run: Run) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[0] == run.total > 1:
        return value[list(run.frames)]
    return value


def select_control(control: Any, run: Run, made: dict[Any, Any], number: int) -> Any:
    """A copy of a ControlNet with the hints of the run's frames. Positive and negative share it, so that ComfyUI can
    batch them; `made` holds those of this split."""
    if (control, number) not in made:
        copy = control.copy()
        copy.cond_hint_original = select_rows(control.cond_hint_original, run)
        if control.previous_controlnet is not None:
            copy.set_previous_controlnet(select_control(control.previous_controlnet, run, made, number))
        made[control, number] = copy
    return made[control, number]
