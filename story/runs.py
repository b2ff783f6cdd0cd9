"""Long stories in runs that a small GPU can hold."""

from typing import NamedTuple


class Run(NamedTuple):
    """One run: the frames that its rows draw. It travels in a LATENT's dict under the key "onestory"."""

    frames: tuple[int, ...]
    total: int


def split_runs(sources: list[list[int]], frames_per_run: int) -> list[Run]:
    """Runs that together draw every frame, each with all frames that its frames look at, directly or not.

    `sources` are for each frame the frames it looks at. A frame that a run draws as somebody's source needs no run of
    its own, so a run has at most `frames_per_run` frames and their sources.
    """
    runs: list[Run] = []
    drawn: set[int] = set()
    while len(drawn) < len(sources):
        batch = set([j for j in range(len(sources)) if j not in drawn][:frames_per_run])
        while missing := {s for j in batch for s in sources[j]} - batch:
            batch |= missing
        runs.append(Run(tuple(sorted(batch)), len(sources)))
        drawn |= batch
    return runs
