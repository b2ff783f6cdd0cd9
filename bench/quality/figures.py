"""The report's figures: the plane of likeness and diversity, and the two maps."""

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...tools import host
from ...tools.environment import TOOLS, digest, provide
from ...tools.failure import Failure
from . import plane
from .jobs import Job
from .maps import SHOWN, Points, draw
from .measures import FEATURES, TEXTS
from .report import MEASURES

SIGMAS = 1.96
"""Standard errors on each side of a mean that hold 95% of a normal distribution."""
LIKE = ("clip_i", "similarity")
VARIED = ("scenes", "told_apart")


def figures(out: Path, found: dict[str, Any], jobs: Sequence[Job]) -> list[dict[str, str]]:
    """Draw what there is to draw into the results' folder; each has a `title`, the `file`'s name and a `text`."""
    drawn = [*plane_of(out, found)]
    titles = [story["title"] for story in found["stories"]]
    prompts, frames = prompt_points(out, jobs), frame_points(found, jobs)
    if not prompts and not frames:
        return drawn
    if reason := without_scikit_learn():
        host.say(f"The maps are left out: {reason}")
        return drawn
    colours = "a colour is a story" + (f", of the first {SHOWN}" if len(titles) > SHOWN else "")
    if prompts and draw(prompts, titles, out / "prompts.png"):
        text = (
            f"Each frame prompt as CLIP's text model reads it, by t-SNE; {colours}. The paper finds that a story's "
            "frame prompts come together in one prompt: whether they do here, the cosine in a story says."
        )
        drawn.append({"title": "Frame prompts, each alone and in one prompt", "file": "prompts.png", "text": text})
    if frames and draw(frames, titles, out / "frames.png"):
        removed = ", backgrounds removed" if found["measured"].get("masks") else ", whole pictures"
        text = f"Each frame as the vision model sees it{removed}, by t-SNE over all ways at once; {colours}."
        drawn.append({"title": "Frames, by story and way", "file": "frames.png", "text": text})
    return drawn


def plane_of(out: Path, found: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The plane of how alike a story's frames are and how much their scenes differ, by the best measures there are."""
    y, x = (next((key for key in keys if key in found["measures"]), "") for keys in (LIKE, VARIED))
    if not (x and y):
        return
    rows = [{"title": row["title"], "values": intervals(row["values"])} for row in found["table"]]
    columns = {x: f"{MEASURES[x].title}, more is more varied", y: f"{MEASURES[y].title}, more is more alike"}
    plane.plot({"columns": columns, "rows": rows}, out / "plane.png", x, y)
    text = (
        "Frames that copy each other are alike too: they stand high, and at the left. A good way is high and at the "
        "right. Bars are 95% intervals over stories."
    )
    yield {"title": "Likeness and diversity", "file": "plane.png", "text": text}


def intervals(values: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Each measure's mean and its 95% interval; the mean alone for a single story."""
    found = {}
    for key, value in values.items():
        arm = SIGMAS * (value["error"] or 0.0)
        found[key] = (value["mean"], value["mean"] - arm, value["mean"] + arm)
    return found


def prompt_points(out: Path, jobs: Sequence[Job]) -> list[Points]:
    folders = {job.story: job.folder.parent for job in jobs}
    read = {story: np.load(folder / TEXTS) for story, folder in folders.items() if (folder / TEXTS).is_file()}
    if not read:
        return []
    stories = np.concatenate([np.full(each.shape[1], story) for story, each in read.items()])
    names = ("each alone", "in one prompt")
    return [Points(name, np.concatenate([each[n] for each in read.values()]), stories) for n, name in enumerate(names)]


def frame_points(found: dict[str, Any], jobs: Sequence[Job]) -> list[Points]:
    """The frames of every way's first seed."""
    panels = []
    for row in found["table"]:
        own: dict[int, Job] = {}
        for job in jobs:
            if job.row == row["row"] and (job.folder / FEATURES).is_file():
                own.setdefault(job.story, job)
        read = {story: np.load(job.folder / FEATURES) for story, job in own.items()}
        read = {story: vectors for story, vectors in read.items() if len(vectors)}
        if read:
            stories = np.concatenate([np.full(len(each), story) for story, each in read.items()])
            panels.append(Points(row["title"], np.concatenate([*read.values()]), stories))
    return panels


def without_scikit_learn() -> str:
    """Install what t-SNE needs, where it is not; "" or the reason why it is not there."""
    if importlib.util.find_spec("sklearn"):
        return ""
    wanted = TOOLS / "requirements-dev.txt"
    try:
        provide(host.HOST / "venv", "dev", digest(wanted), "Installing what the maps need ...", wanted)
    except Failure as failure:
        return str(failure)
    importlib.invalidate_caches()
    return ""
