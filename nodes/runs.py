from typing import Any

import torch
from comfy_api.latest import io

from ..attention.gathers import anchor_sources
from ..attention.rows import STRETCHED, Cut, entries, wrong_batch
from ..story.runs import Run, split_runs
from ..svr.record import KEY, Record
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
                    tooltip="Needed when the conditionings have something for each frame, such as a ControlNet with a "
                    "picture for each: apply it before this node and wire both.",
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
        record = next((options[KEY].record for _, options in conditioning if KEY in options), None)
        if record:
            check_whole(record, frames)
        check_latent(latent)
        if negative is None:
            check_negative_needed(conditioning)
        characters = record.characters if record else (("",),) * frames
        runs = split_runs(anchor_sources(characters, anchors), frames_per_run)
        cuts = [Cut(run.frames, run.total) for run in runs]
        return io.NodeOutput(
            [[select_entry(entry, cut) for entry in conditioning] for cut in cuts],
            [select_latent(latent, run, cut) for run, cut in zip(runs, cuts)],
            [[select_entry(entry, cut) for entry in negative or []] for cut in cuts],
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
        for part in latent:
            check_run_latent(part)
        total = latent[0][KEY].total
        if any(part[KEY].total != total for part in latent):
            others = next(part[KEY].total for part in latent if part[KEY].total != total)
            raise ValueError(
                f"Join Story has runs of a story of {total} frames and of one of {others}: wire all runs of one Split "
                "Story."
            )
        rows = {frame: (part, i) for part in reversed(latent) for i, frame in enumerate(part[KEY].frames)}
        missing = sorted(set(range(total)) - set(rows))
        if missing:
            raise ValueError(f"Join Story lacks frame {missing[0] + 1} of {total}: wire all runs of one Split Story.")
        order = [rows[frame] for frame in sorted(rows)]
        joined = {key: value for key, value in latent[0].items() if key not in (KEY, "batch_index", "noise_mask")}
        joined["samples"] = torch.stack([part["samples"][i] for part, i in order])
        if all("batch_index" in part for part in latent):
            joined["batch_index"] = [part["batch_index"][i] for part, i in order]
        if all("noise_mask" in part for part in latent):
            masks = [mask_rows(part["noise_mask"]) for part, _ in order]
            joined["noise_mask"] = torch.stack([mask[i % len(mask)] for mask, (_, i) in zip(masks, order)])
        return io.NodeOutput(joined)


def check_latent(latent: dict[str, Any]) -> None:
    """Raise `ValueError` unless a latent batch is a whole story's."""
    frames = latent["samples"].shape[0]
    if KEY in latent:
        raise ValueError(
            "The latent is a run of a story that has been split already: wire `latent` from Story Latent, or from Join "
            "Story to split it again."
        )
    ids = latent.get("batch_index")
    if ids is not None and len(ids) != frames:
        raise ValueError(
            f"The latent batch has {frames} frames and {len(ids)} noise numbers (its batch_index): wire `latent` from "
            "Story Latent, whose `noise_ids` has one for each frame."
        )


def check_whole(record: Record, frames: int) -> None:
    """Raise `ValueError` unless the record is a whole story's of so many frames, in order."""
    rows = [row.frame for row in record.rows]
    if rows != list(range(record.frames)):
        names = ", ".join(str(frame + 1) for frame in rows)
        raise ValueError(
            f"The conditioning has frames {names} of a story of {record.frames}: Split Story takes the whole story, so "
            "wire it from Story Prompt or SVR."
        )
    if len(rows) != frames:
        raise ValueError(wrong_batch(frames, len(rows)))


def check_negative_needed(conditioning: list[list[Any]]) -> None:
    """What the positive conditioning has for each frame mostly stands in the negative one too. Raises `ValueError`."""
    for _, options in conditioning:
        shared = {name: options[name] for name in STRETCHED if name in options}
        if "control" in options and not options.get("control_apply_to_uncond", False):
            shared["control"] = options["control"]
        for what, count in entries(shared):
            raise ValueError(
                f"The conditioning has {what} with {count} entries, for frames, and `negative` is not wired: wire the "
                "negative conditioning through Split Story too, so that both are cut to the same frames."
            )


def check_run_latent(part: dict[str, Any]) -> None:
    """Raise `ValueError` unless a latent is a whole run of a story."""
    if KEY not in part:
        raise ValueError("Join Story found a latent that is not a run of a story: wire Split Story in front of it.")
    run, rows = part[KEY], part["samples"].shape[0]
    if len(run.frames) != rows:
        names = ", ".join(str(frame + 1) for frame in run.frames)
        raise ValueError(
            f"Join Story has {rows} {'picture' if rows == 1 else 'pictures'} for the run of frames {names}: take out "
            "the node between Split Story and Join Story that picks, repeats or adds pictures."
        )


def select_latent(latent: dict[str, Any], run: Run, cut: Cut) -> dict[str, Any]:
    rows = list(run.frames)
    ids = latent.get("batch_index") or range(run.total)
    selected = {**latent, "samples": latent["samples"][rows], "batch_index": [ids[j] for j in rows], KEY: run}
    if "noise_mask" in latent:
        selected["noise_mask"] = cut.repeated(mask_rows(latent["noise_mask"]))
    return selected


def mask_rows(mask: torch.Tensor) -> torch.Tensor:
    """A noise mask of any shape that ComfyUI takes, as [masks, height, width]."""
    return mask.reshape(-1, *mask.shape[-2:])


def select_entry(entry: list[Any], cut: Cut) -> list[Any]:
    """A conditioning entry for the frames of one run."""
    embeds, options = cut.entry(*entry)
    if KEY in options:
        options[KEY] = options[KEY].select(list(cut.rows))
    return [embeds, options]
