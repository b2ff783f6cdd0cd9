"""Where in a sampler's conditionings the stories are, and where in the batch's text their tokens stand."""

import uuid
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..svr.record import KEY
from .batch import Alone, Chunk, Placement


def place_stories(conds: dict[str, list[dict[str, Any]]], timestep: Tensor) -> dict[Any, Placement]:
    """The guider's conditionings that carry a story and are on at `timestep`, by their uuid.

    Where one list has an area and the other none, ComfyUI puts a copy of the area's entry into the other list, with the
    embedding of that list's own entry: the story belongs to the embedding, and the copy gets a uuid of its own.
    """
    seen: set[Any] = set()
    owners: dict[int, dict[str, Any]] = {}
    for entries in conds.values():
        for n, c in enumerate(entries):
            if c["uuid"] in seen:
                entries[n] = c = {**c, "uuid": uuid.uuid4()}
            seen.add(c["uuid"])
            owners.setdefault(id(c["model_conds"].get("c_crossattn")), c)
    stories = {}
    for _, c in positive(conds):
        owner = owners[id(c["model_conds"].get("c_crossattn"))]
        early = "timestep_start" in c and timestep[0] > c["timestep_start"]
        late = "timestep_end" in c and timestep[0] < c["timestep_end"]
        if KEY in owner and not early and not late:
            record = owner[KEY].record
            own_tokens = owner["cross_attn"].shape[1] // record.interleaved
            stories[c["uuid"]] = Placement(record, own_tokens, alone=owner[KEY].alone)
    return stories


def positive(conds: dict[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The guider's conditionings, without its negative ones: the method is for the positive branch only."""
    return [(name, c) for name, entries in conds.items() if "negative" not in name for c in entries]


def rows_of(placement: Placement, rows: list[int]) -> Placement:
    """What of a placement belongs to these rows."""
    alone = placement.alone if placement.alone is None else placement.alone[rows]
    return placement._replace(record=placement.record.select(rows), alone=alone)


def fitting(
    placement: Placement | None, rows: int, tokens: int, copies: Callable[[int, int], tuple[int, ...]]
) -> Placement | None:
    """The placement in a text of so many tokens, if the batch's rows and tokens are its record's."""
    if placement is None or rows != len(placement.record.rows):
        return None
    found = copies(placement.own_tokens, tokens)
    return placement._replace(copies=found) if found else None


def alone_of(chunks: tuple[Chunk, ...], context: Tensor) -> Alone | None:
    """The rows' identities encoded alone, as the context's rows; None where no row has one."""
    found = [
        (start, stop, placement.alone, placement.record)
        for start, stop, placement in chunks
        if placement is not None and placement.alone is not None
    ]
    if not found:
        return None
    counts = [0] * len(context)
    tokens = context.new_zeros(len(context), max(own.shape[1] for _, _, own, _ in found), context.shape[2])
    for start, stop, own, record in found:
        tokens[start:stop, : own.shape[1]] = own.to(tokens)
        counts[start:stop] = [row.alone for row in record.rows]
    return Alone(tokens, tuple(counts))
