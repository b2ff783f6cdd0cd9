"""A story in passes: the sampler has all frames in one batch, the model sees a few of them at a time, in every step.

A wrapper around ComfyUI's evaluation of conditionings does it, not a context handler: there is one slot for a handler,
which Context Windows uses, and its windows leave ControlNets' hints as they are. Guiders that evaluate the model more
than once a step (perturbed attention) come through the wrapper each time.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..story.script import numbered
from ..svr.record import KEY
from .batch import Cast, Kept, Turn
from .method import Method
from .rows import Cut

FRAMES_AT_A_TIME = "onestory_frames_at_a_time"
"""The key in `transformer_options` of the most frames that the model sees in one pass."""


def plan(looks: Sequence[set[int]], most: int) -> list[tuple[int, ...]]:
    """The rows of each pass, where row i looks at the rows `looks[i]`.

    Rows that look at each other share a pass, and none is before a row that it looks at. Raises `ValueError` where so
    many look at each other that they don't fit.
    """
    reach = [reached_from(row, looks) for row in range(len(looks))]
    groups = {
        tuple(sorted(other for other in reach[row] if row in reach[other])): reach[row] for row in range(len(looks))
    }
    passes: list[list[int]] = []
    pass_of: dict[int, int] = {}
    # What a group looks at reaches less than it does itself.
    for group, reached in sorted(groups.items(), key=lambda item: (len(item[1]), item[0])):
        if len(group) > most:
            raise ValueError(
                f"Story Runs draws {most} {'frame' if most == 1 else 'frames'} at a time, and "
                f"{numbered(group).lower()} look at each other, so that they have to be drawn together: set "
                f"`frames_at_a_time` to {len(group)}, or give Consistent Self-Attention fewer `anchors` and the "
                "variant “anchors”."
            )
        earliest = max((pass_of[row] for row in reached if row not in group), default=0)
        at = next((n for n in range(earliest, len(passes)) if len(passes[n]) + len(group) <= most), len(passes))
        if at == len(passes):
            passes.append([])
        passes[at] += group
        pass_of |= dict.fromkeys(group, at)
    return [tuple(sorted(rows)) for rows in passes]


def reached_from(row: int, looks: Sequence[set[int]]) -> set[int]:
    found, new = {row}, {row}
    while new:
        new = {other for each in new for other in looks[each]} - found
        found |= new
    return found


class Passes:
    """The passes of one sampling. Plans and cuts are kept until its end: copies of ControlNets hold prepared hints."""

    def __init__(self, most: int):
        self.most = most
        self.plans: dict[Any, tuple[Cut, ...]] = {}
        self.cuts: dict[Any, Cut] = {}

    def of(self, rows: int, casts: Iterable[Cast], methods: tuple[Method, ...]) -> tuple[Cut, ...]:
        """How a batch of so many rows is cut; nothing where it is drawn in one pass. Raises `ValueError` as `plan`."""
        key = rows, frozenset(casts), methods
        if key not in self.plans:
            looks: list[set[int]] = [set() for _ in range(rows)]
            # In a context window, a story's rows are others than the batch's.
            for cast in (cast for cast in key[1] if len(cast.frames) == rows):
                row_of = {frame: row for row, frame in enumerate(cast.frames)}
                for method in methods:
                    sources = method.sources(cast)
                    for frame, row in row_of.items():
                        looks[row] |= {row_of[s] for s in sources[frame] if s in row_of}
            planned = plan(looks, self.most) if rows > self.most else []
            self.plans[key] = tuple(self.cuts.setdefault((own, rows), Cut(own, rows)) for own in planned)
        return self.plans[key]


def calc_cond_batch(
    executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """The model's answer to each list of conditionings, [rows, ...], evaluated for a few rows at a time.

    `ad_params` is where packs that know AnimateDiff's sliding contexts look which rows of theirs are drawn.
    """
    options = model_options["transformer_options"]
    step = options.get(KEY)
    passes = getattr(step, "passes", ())
    if not passes or len(x) != len(step.frames):
        return in_turns(executor, model, conds, x, timestep, model_options)
    kept: Kept = {}
    parts = []
    for cut in passes:
        comfy.model_management.throw_exception_if_processing_interrupted()
        ad_params = {"sub_idxs": list(cut.rows), "full_length": cut.total, "context_length": len(cut.rows)}
        own = {**options, KEY: step.part(cut, kept), "ad_params": ad_params}
        mine = [None if each is None else [cut.prepared(entry) for entry in each] for each in conds]
        given = {**model_options, "transformer_options": own}
        parts.append(in_turns(executor, model, mine, x[list(cut.rows)], cut.repeated(timestep), given))
    order = torch.tensor([row for cut in passes for row in cut.rows]).argsort().to(x.device)
    return [torch.cat(outs)[order] for outs in zip(*parts)]


def in_turns(
    executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """The answer to each list of conditionings, those with stories first where a method needs that.

    ComfyUI takes as many conditionings into one pass as fit the memory, the negative ones first.
    """
    options = model_options["transformer_options"]
    step = options.get(KEY)
    stories = getattr(step, "stories", {})
    told = [n for n, each in enumerate(conds) if any(c.get("uuid") in stories for c in each or ())]
    others = [n for n in range(len(conds)) if n not in told]
    needed = any(method.stories_first for method in getattr(step, "methods", ()))
    if not needed or not told or not any(conds[n] for n in others):
        return executor(model, conds, x, timestep, model_options)
    left: dict[Any, Any] = {}
    outs: dict[int, Tensor] = {}
    for first, own in ((True, told), (False, others)):
        mine = [each if n in own else None for n, each in enumerate(conds)]
        given = {**model_options, "transformer_options": {**options, KEY: step._replace(turn=Turn(first, left))}}
        answers = executor(model, mine, x, timestep, given)
        outs |= {n: answers[n] for n in own}
    return [outs[n] for n in range(len(conds))]


def prepare_sampling(executor: Any, model: Any, noise_shape: Sequence[int], *args: Any, **kwargs: Any) -> Any:
    """Let the host make room for the frames of one pass, not for the whole story."""
    most = model.model_options["transformer_options"][FRAMES_AT_A_TIME]
    return executor(model, [min(noise_shape[0], most), *noise_shape[1:]], *args, **kwargs)
