from typing import Any

import torch
from comfy_api.latest import io

from ..attention.gathers import anchor_sources
from ..attention.rows import STRETCHED, Cut, entries, wrong_batch
from ..story.runs import Run, parse_frames, split_runs
from ..svr.record import KEY, Record
from .latent import parse_numbers
from .types import CATEGORY


class OneStorySplit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStorySplit",
            display_name="Split Story",
            category=CATEGORY,
            description="Turn a long story into runs that a small GPU can hold, or take out the frames to be drawn "
            "again. The sampler draws the runs one after the other, and Join Story puts the frames back in order: the "
            "pictures equal those of one large batch.",
            search_aliases=["story", "batch", "low vram", "list", "redraw", "re-roll", "inpaint", "one frame"],
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
                io.String.Input(
                    "frames",
                    optional=True,
                    default="",
                    tooltip="The frames to draw, such as 3 or 2, 5-7; empty for all. Join Story takes the others from "
                    "its input `earlier`. With a noise mask in the latent, only what it marks in these frames is drawn "
                    "again, beside the others as they are.",
                ),
                io.String.Input(
                    "noise_ids",
                    optional=True,
                    default="",
                    tooltip="The noise of `frames`: one number for all of them, or one for each. Empty keeps the "
                    "latent's own. Another number is another picture.",
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
        frames: str = "",
        noise_ids: str = "",
    ) -> io.NodeOutput:
        total = latent["samples"].shape[0]
        record = next((options[KEY].record for _, options in conditioning if KEY in options), None)
        if record:
            check_whole(record, total)
        check_latent(latent)
        if negative is None:
            check_negative_needed(conditioning)
        wanted = parse_frames(frames, total)
        latent = {**latent, "batch_index": with_noise_ids(latent, wanted, noise_ids)}
        if "noise_mask" in latent and len(wanted) < total:
            latent["noise_mask"] = mask_only(latent["noise_mask"], wanted, total)
        characters = record.characters if record else (("",),) * total
        runs = split_runs(anchor_sources(characters, anchors), frames_per_run, wanted)
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
            description="Put the frames of a split story back in order, and redrawn frames into their place.",
            search_aliases=["story", "batch", "low vram", "list", "redraw", "re-roll"],
            is_input_list=True,
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's output for the runs of Split Story."),
                io.Latent.Input(
                    "earlier",
                    optional=True,
                    tooltip="The whole story as it was drawn before, for the frames that Split Story was not asked to "
                    "draw again.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    is_output_list=True,
                    tooltip="One batch with every frame once, in the story's order; one for each take of the story.",
                )
            ],
        )

    @classmethod
    def execute(cls, latent: list[dict[str, Any]], earlier: list[dict[str, Any]] | None = None) -> io.NodeOutput:
        for part in latent:
            check_run_latent(part)
        total = latent[0][KEY].total
        if any(part[KEY].total != total for part in latent):
            others = next(part[KEY].total for part in latent if part[KEY].total != total)
            raise ValueError(
                f"Join Story has runs of a story of {total} frames and of one of {others}: wire all runs of one Split "
                "Story."
            )
        takes = split_takes(latent)
        if earlier is None:
            return io.NodeOutput([join_runs(runs, total) for runs in takes])
        if len(earlier) not in (1, len(takes)):
            raise ValueError(
                f"Join Story has {len(earlier)} earlier latents for {len(takes)} "
                f"{'take' if len(takes) == 1 else 'takes'} of the story: wire one, or one for each take."
            )
        befores = earlier * len(takes) if len(earlier) == 1 else earlier
        return io.NodeOutput([put_into(before, runs, total) for before, runs in zip(befores, takes)])


def split_takes(runs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs of several takes of one story, which come one after the other, take by take."""
    takes: list[list[dict[str, Any]]] = []
    seen: set[int] = set()
    for run in runs:
        if not takes or seen & set(run[KEY].taken):
            takes.append([])
            seen = set()
        takes[-1].append(run)
        seen |= set(run[KEY].taken)
    return takes


def rows_of(runs: list[dict[str, Any]]) -> dict[int, tuple[dict[str, Any], int]]:
    """For each frame that the story takes from these runs, the latent that has it and its row there."""
    return {frame: (part, part[KEY].frames.index(frame)) for part in runs for frame in part[KEY].taken}


def join_runs(runs: list[dict[str, Any]], total: int) -> dict[str, Any]:
    """One latent batch with every frame of the story, from the runs that drew it. Raises `ValueError`."""
    rows = rows_of(runs)
    missing = sorted(set(range(total)) - set(rows))
    if missing:
        raise ValueError(
            f"Join Story lacks frame {missing[0] + 1} of {total}: wire all runs of one Split Story, and where that "
            "draws some `frames` again, the whole story's latent into `earlier`."
        )
    order = [rows[frame] for frame in sorted(rows)]
    joined = {key: value for key, value in runs[0].items() if key not in (KEY, "batch_index", "noise_mask")}
    joined["samples"] = torch.stack([part["samples"][i] for part, i in order])
    if all("batch_index" in part for part in runs):
        joined["batch_index"] = [part["batch_index"][i] for part, i in order]
    if all("noise_mask" in part for part in runs):
        masks = [mask_rows(part["noise_mask"]) for part, _ in order]
        joined["noise_mask"] = torch.stack([mask[i % len(mask)] for mask, (_, i) in zip(masks, order)])
    return joined


def put_into(earlier: dict[str, Any], runs: list[dict[str, Any]], total: int) -> dict[str, Any]:
    """The whole story's latent `earlier` with the frames that these runs drew again. Raises `ValueError`."""
    samples, drawn = earlier["samples"], runs[0]["samples"]
    if KEY in earlier or len(samples) != total:
        raise ValueError(
            f"Join Story's `earlier` has {len(samples)} {'frame' if len(samples) == 1 else 'frames'} and the story "
            f"{total}: wire the latent of the whole story, from its sampler or Join Story."
        )
    if samples.shape[1:] != drawn.shape[1:]:
        raise ValueError(
            f"Join Story's `earlier` has latents of {shape_of(samples)} and the redrawn frames of {shape_of(drawn)}: "
            "draw them at the same size, with the same model."
        )
    joined = {**earlier, "samples": samples.clone()}
    ids = earlier.get("batch_index")
    if ids is not None:
        joined["batch_index"] = ids = [*ids]
    for frame, (part, row) in rows_of(runs).items():
        joined["samples"][frame] = part["samples"][row]
        if ids is not None and "batch_index" in part:
            ids[frame] = part["batch_index"][row]
    return joined


def shape_of(samples: torch.Tensor) -> str:
    return " x ".join(map(str, samples.shape[1:]))


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
    ids = latent["batch_index"]
    selected = {**latent, "samples": latent["samples"][rows], "batch_index": [ids[j] for j in rows], KEY: run}
    if "noise_mask" in latent:
        selected["noise_mask"] = cut.repeated(mask_rows(latent["noise_mask"]))
    return selected


def with_noise_ids(latent: dict[str, Any], wanted: tuple[int, ...], text: str) -> list[int]:
    """The noise numbers of a whole story's frames, those of the `wanted` ones as in `text`. Raises `ValueError`."""
    ids = [*(latent.get("batch_index") or range(len(latent["samples"])))]
    numbers = parse_numbers(text)
    if len(numbers) == 1:
        numbers = numbers * len(wanted)
    if numbers and len(numbers) != len(wanted):
        raise ValueError(
            f"noise_ids has {len(numbers)} numbers for {len(wanted)} frames: write one number for all of them, one for "
            "each, or none."
        )
    for frame, number in zip(wanted, numbers):
        ids[frame] = number
    return ids


def mask_only(mask: torch.Tensor, wanted: tuple[int, ...], total: int) -> torch.Tensor:
    """A noise mask [total, height, width] that keeps all of the other frames as they are."""
    mask = mask_rows(mask)
    only = torch.zeros(total, *mask.shape[1:], dtype=mask.dtype, device=mask.device)
    for frame in wanted:
        only[frame] = mask[frame % len(mask)]
    return only


def mask_rows(mask: torch.Tensor) -> torch.Tensor:
    """A noise mask of any shape that ComfyUI takes, as [masks, height, width]."""
    return mask.reshape(-1, *mask.shape[-2:])


def select_entry(entry: list[Any], cut: Cut) -> list[Any]:
    """A conditioning entry for the frames of one run."""
    embeds, options = cut.entry(*entry)
    if KEY in options:
        options[KEY] = options[KEY].select(list(cut.rows))
    return [embeds, options]
