"""A story's frames with pictures between them, drawn by the same model in the same batch: a film's worth of rows."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..attention.between import InBetweens
from ..attention.blocks import parse_blocks
from ..attention.rows import Cut, wrong_batch
from ..attention.runtime import patch
from ..story.runs import parse_cuts
from ..svr.record import KEY, Attached, Between, Record
from .between_images import NONE, between_images, check_images
from .film import NEIGHBOURS, SAME
from .image_adapter import adapter_files
from .previews import with_previews
from .runs import check_negative_needed
from .types import CATEGORY, reach_inputs


class OneStoryInBetweens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryInBetweens",
            display_name="Story In-Betweens",
            category=CATEGORY,
            description="Draw pictures between a story's frames with the same model, so that each frame turns into the "
            "next: a film without a video model. The frames themselves stay as they are.",
            search_aliases=["story", "film", "video", "morph", "interpolate", "in-between", "tween", "transition"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="Any model that Consistent Self-Attention takes, before or after other patches."
                ),
                io.Conditioning.Input("conditioning", tooltip="The whole story, from Story Prompt or SVR."),
                io.Latent.Input("latent", tooltip="The whole story, from Story Latent."),
                io.Int.Input(
                    "count",
                    default=7,
                    min=1,
                    max=240,
                    tooltip="How many pictures are drawn between two frames. Story Runs draws them a few at a time.",
                ),
                io.Combo.Input(
                    "pairs",
                    options=[NEIGHBOURS, SAME],
                    default=NEIGHBOURS,
                    tooltip="“all neighbours”: between every frame and the next. “same characters”: only where both "
                    "show the same characters, and a cut elsewhere.",
                ),
                *reach_inputs(blocks="all"),
                io.String.Input(
                    "cuts",
                    default="",
                    optional=True,
                    tooltip="The frames after which there is a cut as well, such as 2, 5, where the place changes.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Needed when the conditionings have something for each frame, such as a ControlNet with a "
                    "picture for each: apply it before this node and wire both.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The story's frames as they were drawn before, for `adapter`: the pictures between look at "
                    "both of theirs as well.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=[NONE, *adapter_files()],
                    default=NONE,
                    optional=True,
                    tooltip="An IP-Adapter file in ComfyUI's folder models/ipadapter that looks at `images`: base, "
                    "plus or full-face, of the model's family.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="What looks at `images` for `adapter`, from Load CLIP Vision.",
                ),
                io.Float.Input(
                    "scale",
                    default=0.7,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much `images` count: 0 is off, 1 is as the adapter was trained.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For a sampler, or for Story Runs."),
                io.Conditioning.Output(tooltip="A row for each picture, for a sampler's positive input."),
                io.Latent.Output(tooltip="A row for each picture, for a sampler's latent image."),
                io.Conditioning.Output(
                    "negative_out",
                    display_name="negative",
                    tooltip="For a sampler's negative input. Only of use when the input `negative` is wired.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: list[list[Any]],
        latent: dict[str, Any],
        count: int,
        pairs: str,
        blocks: str,
        start_percent: float,
        end_percent: float,
        cuts: str = "",
        negative: list[list[Any]] | None = None,
        images: Tensor | None = None,
        adapter: str = NONE,
        clip_vision: ClipVisionModel | None = None,
        scale: float = 0.7,
    ) -> io.NodeOutput:
        record = record_of(conditioning)
        check_frames(record, len(latent["samples"]))
        check_images(images, adapter, record.frames)
        if negative is None:
            check_negative_needed(conditioning)
        starts = starts_of(record, pairs, cuts)
        rows = list(film_rows(len(record.rows), starts, count))
        reach = parse_blocks(blocks), start_percent, end_percent
        model = patch(model, InBetweens(*reach))
        if images is not None:
            model = patch(model, between_images(model, images, adapter, scale, reach, clip_vision))
        return io.NodeOutput(
            with_previews(model),
            [stretched_entry(entry, rows) for entry in conditioning],
            stretched_latent(latent, rows),
            [stretched_entry(entry, rows) for entry in negative or []],
        )


class FilmRow(NamedTuple):
    """One picture of the film: at the `share` of the way from the story's frame `start` to its frame `end`."""

    start: int
    end: int
    share: float

    @property
    def nearest(self) -> int:
        return self.start if self.share < 0.5 else self.end


def film_rows(frames: int, starts: Sequence[int], count: int) -> Iterator[FilmRow]:
    """All pictures in order: each frame, and `count` after those of `starts`."""
    for j in range(frames):
        yield FilmRow(j, j, 0.0)
        if j in starts:
            yield from (FilmRow(j, j + 1, n / (count + 1)) for n in range(1, count + 1))


def record_of(conditioning: list[list[Any]]) -> Record:
    """The story's record. Raises `ValueError` where there is none."""
    record = next((options[KEY].record for _, options in conditioning if KEY in options), None)
    if record is None:
        raise ValueError(
            "Story In-Betweens has a conditioning without a story: wire it from Story Prompt or SVR, without a node "
            "in between that makes a new one."
        )
    return record


def check_frames(record: Record, latents: int) -> None:
    """Raise `ValueError` unless the record is a whole story's, of two frames or more, with a latent for each."""
    if record.between or [row.frame for row in record.rows] != list(range(record.frames)):
        raise ValueError(
            "Story In-Betweens has a part of a story, or one that has in-betweens already: wire the whole story from "
            "Story Prompt or SVR, and draw it a few frames at a time with Story Runs, not Split Story."
        )
    if record.frames < 2:
        raise ValueError("Story In-Betweens has a story of 1 frame: there is nothing between, so write another one.")
    if latents != record.frames:
        raise ValueError(wrong_batch(latents, record.frames))


def starts_of(record: Record, pairs: str, cuts: str) -> list[int]:
    """The frames that turn into the next. Raises `ValueError` where none does."""
    cut = parse_cuts(cuts, record.frames)
    if pairs == SAME:
        cut |= {j for j in range(record.frames - 1) if record.characters[j] != record.characters[j + 1]}
    starts = [j for j in range(record.frames - 1) if j not in cut]
    if not starts:
        raise ValueError(
            f"Story In-Betweens has a cut after every frame: choose “{NEIGHBOURS}” in `pairs`, or write fewer `cuts`."
        )
    return starts


def stretched_entry(entry: list[Any], rows: Sequence[FilmRow]) -> list[Any]:
    """A conditioning entry with a row for each of the film's pictures.

    Text and pooled text lie on the line between those of the two frames; all else is the nearest frame's.
    """
    embeds, options = entry
    frames = max(row.end for row in rows) + 1
    near, stretched = Cut(tuple(row.nearest for row in rows), frames).entry(embeds, options)
    if len(embeds) == frames:
        near = between_rows(embeds, rows)
    pooled = options.get("pooled_output")
    if pooled is not None and len(pooled) == frames:
        stretched["pooled_output"] = between_rows(pooled, rows)
    if KEY in options:
        stretched[KEY] = stretched_record(options[KEY], rows)
    return [near, stretched]


def between_rows(values: Tensor, rows: Sequence[FilmRow]) -> Tensor:
    """`values` [frames, ...] for each of the film's pictures, linearly mixed; a frame's own stays bit for bit."""
    start, end = (values[[row[side] for row in rows]] for side in (0, 1))
    share = torch.tensor([row.share for row in rows], device=values.device, dtype=values.dtype)
    return torch.lerp(start, end, share.view(-1, *[1] * (values.ndim - 1)))


def stretched_record(attached: Attached, rows: Sequence[FilmRow]) -> Attached:
    """The map of a film's rows. Its in-betweens are frames after the story's, and have their nearest frame's spans."""
    selected = attached.select([row.nearest for row in rows])
    record = attached.record
    numbers = iter(range(record.frames, record.frames + len(rows)))
    named = []
    for row, own in zip(rows, selected.record.rows):
        if row.start != row.end:
            number = next(numbers)
            window = tuple(number if frame == own.frame else frame for frame in own.window)
            own = own._replace(frame=number, window=window)
        named.append(own)
    between = tuple(Between(*row) for row in rows if row.start != row.end)
    characters = (*record.characters, *[()] * len(between))
    record = record._replace(rows=tuple(named), characters=characters, between=between)
    return selected._replace(record=record)


def stretched_latent(latent: dict[str, Any], rows: Sequence[FilmRow]) -> dict[str, Any]:
    """A latent for each of the film's pictures. The sampler gives in-betweens noise between that of their frames."""
    near = [row.nearest for row in rows]
    frames = len(latent["samples"])
    ids = latent.get("batch_index") or range(frames)
    out = {**latent, "samples": between_rows(latent["samples"], rows), "batch_index": [ids[j] for j in near]}
    if "noise_mask" in latent:
        mask = latent["noise_mask"].reshape(-1, 1, *latent["noise_mask"].shape[-2:])
        out["noise_mask"] = between_rows(mask, rows) if len(mask) == frames else mask
    return out
