"""Long stories in runs that a small GPU can hold, and the frames of a story that are drawn again."""

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

SEPARATORS = re.compile(r"[\s,;、，；]+")
DASHES = re.compile(r"\s*[-‐‑‒–—~〜]\s*")
FRAMES = re.compile(r"(\d+)(?:-(\d+))?")


class Run(NamedTuple):
    """One run: the frames that its rows draw, and those of them that the story takes from it.

    The others are there to be looked at. It travels in a LATENT's dict under the key "onestory".
    """

    frames: tuple[int, ...]
    total: int
    taken: tuple[int, ...]


def split_runs(sources: list[list[int]], frames_per_run: int, wanted: Iterable[int] | None = None) -> list[Run]:
    """Runs that together draw the `wanted` frames (None: all), each with all frames that its frames look at, directly
    or not.

    `sources` are for each frame the frames it looks at. A frame that a run draws as somebody's source needs no run of
    its own, so a run has at most `frames_per_run` frames and their sources. Every wanted frame is taken from one run.
    """
    runs: list[Run] = []
    missing = sorted(range(len(sources)) if wanted is None else set(wanted))
    while missing:
        batch = set(missing[:frames_per_run])
        while more := {s for j in batch for s in sources[j]} - batch:
            batch |= more
        runs.append(Run(tuple(sorted(batch)), len(sources), tuple(j for j in missing if j in batch)))
        missing = [j for j in missing if j not in batch]
    return runs


def parse_frames(text: str, total: int) -> tuple[int, ...]:
    """The frames, from 0, in a text such as "2, 5-7", which counts from 1; all `total` of them for an empty one.

    Raises `ValueError` for what is no such text and for a frame that the story hasn't.
    """
    return tuple(sorted(numbers_in(text, total, "frames", "all"))) or tuple(range(total))


def parse_cuts(text: str, total: int) -> set[int]:
    """The frames, from 0, after which there is a cut; as in `parse_frames`, but none for an empty text."""
    return numbers_in(text, total, "cuts", "none")


def numbers_in(text: str, total: int, name: str, nothing: str) -> set[int]:
    """The frames in the text of the input `name`, where an empty one means `nothing`. Raises `ValueError`."""
    text = DASHES.sub("-", unicodedata.normalize("NFKC", text))
    found: set[int] = set()
    for part in filter(None, SEPARATORS.split(text)):
        match = FRAMES.fullmatch(part)
        if not match:
            raise ValueError(
                f"{name} has “{part}”: write numbers of frames such as 3 or 2, 5-7, or nothing for {nothing}."
            )
        first, last = sorted((int(match[1]), int(match[2] or match[1])))
        if not 1 <= first <= last <= total:
            raise ValueError(
                f"{name} has “{part}”, and the story has {total} {'frame' if total == 1 else 'frames'}: write numbers "
                f"from 1 to {total}, or nothing for {nothing}."
            )
        found.update(range(first - 1, last))
    return found
