"""The Story World's stories, and the table of what their frames show. Runs in ComfyUI's Python.

python world_table.py stories COUNT       prints the stories' texts as JSON
python world_table.py pairs COUNT         the same of the stories of two characters
python world_table.py pictures COUNT      the same of the stories of a character that a picture shows
python world_table.py draw COUNT FOLDER   draws these pictures
python world_table.py fastest             prints the number format that computes fastest on this CPU: bf16 or fp32
python world_table.py measure < TASK      measures the boards that `run.py bench quality` made
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2]))

from onestory.bench.quality.picture_graphs import picture_name  # noqa: E402
from onestory.bench.quality.world_measures import frechet, interval, measures, pair_measures, picture_measures  # noqa: E402
from onestory.bench.quality.world_probe import held_out, read, trained  # noqa: E402
from onestory.bench.quality.world_stories import (  # noqa: E402
    PairStory,
    PictureStory,
    WorldStory,
    pair_stories,
    picture_stories,
    world_stories,
)
from onestory.world.drawing.attributes import draw  # noqa: E402
from onestory.world.drawing.render import render  # noqa: E402
from onestory.world.train import precision  # noqa: E402

COLUMNS = {
    "fidelity": "frame fidelity ↑",
    "scene": "scenes ↑",
    "leak": "other frames' ↓",
    "prompt": "identity as asked ↑",
    "agreement": "identity agreement ↑",
    "apart": "of it in two scenes ↑",
    "open": "of it left open ↑",
    "held": "held ↑",
    "readable": "readable ↑",
}
PAIR_COLUMNS = {
    "place": "as said, at its side ↑",
    "swapped": "at the other's side ↓",
    "whichever": "as said, whichever side ↑",
    "species": "species at its side ↑",
    "two": "two different ↑",
    "scene": "scenes ↑",
    "readable": "readable ↑",
}
PICTURE_COLUMNS = {
    "species": "the picture's species ↑",
    "colour": "its colour ↑",
    "pattern": "its pattern ↑",
    "looks": "all of its looks ↑",
    "scene": "scenes ↑",
    "readable": "readable ↑",
}
ENOUGH = 0.97


class Kind(NamedTuple):
    """A kind of stories: how they are made and measured, and the table's columns."""

    stories: Callable[[int], list[Any]]
    measures: Callable[[Any, dict[str, torch.Tensor]], dict[str, float | None]]
    columns: dict[str, str]


KINDS = {
    "stories": Kind(world_stories, measures, COLUMNS),
    "pairs": Kind(pair_stories, pair_measures, PAIR_COLUMNS),
    "pictures": Kind(picture_stories, picture_measures, PICTURE_COLUMNS),
}


def pictures(folder: Path) -> torch.Tensor:
    """A board's frames as float32 [frames, 3, height, width] from 0 to 1."""
    frames = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("frame_*.png"))]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


def table_of(
    task: dict[str, Any],
    stories: list[WorldStory | PairStory | PictureStory],
    probe: torch.nn.Module,
    real: torch.Tensor,
) -> Iterator[dict[str, Any]]:
    """For each row its measures: mean and interval over stories of the means over seeds, and the Frechet distance."""
    measure_of = KINDS[task["kind"]].measures
    for row, title in task["rows"].items():
        by_story: dict[int, list[dict[str, float | None]]] = {}
        features = []
        for story, name, folder in task["boards"]:
            if name == row:
                some, found = read(probe, pictures(Path(folder)))  # type: ignore[arg-type]
                features.append(some)
                by_story.setdefault(story, []).append(measure_of(stories[story], found))
        if not by_story:
            continue
        values = {
            key: interval(means) if (means := [*means_of(key, by_story)]) else None
            for key in next(iter(by_story.values()))[0]
        }
        seen = torch.cat(features)
        yield {
            "row": row,
            "title": title,
            "stories": len(by_story),
            "pictures": len(seen),
            "values": values,
            "frechet": frechet(seen, real) if len(seen) > 1 else None,
        }


def means_of(key: str, by_story: dict[int, list[dict[str, float | None]]]) -> Iterator[float]:
    """A measure's mean over each story's boards, of those that have it."""
    for boards in by_story.values():
        if values := [value for board in boards if (value := board[key]) is not None]:
            yield fmean(values)


def markdown(found: dict[str, Any]) -> str:
    """The table, with the half width of the 95% intervals."""
    columns = found["columns"]
    head = ["", *columns.values(), "Frechet ↓"]
    lines = [head, ["---"] * len(head)]
    for row in found["rows"]:
        cells = [
            f"{value[0]:.3f} ± {(value[2] - value[1]) / 2:.3f}" if value else "–"
            for value in map(row["values"].get, columns)
        ]
        lines.append([row["title"], *cells, "–" if row["frechet"] is None else f"{row['frechet']:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure() -> None:
    task = json.load(sys.stdin)
    kind = KINDS[task["kind"]]
    probe = trained(Path(task["folder"]))
    count = task["held_out"]
    accuracy, real = held_out(probe, count)
    found: dict[str, Any] = {
        "settings": task["settings"],
        "probe": accuracy,
        "pictures": count,
        "columns": kind.columns,
    }
    print(f"The probe on {count} rendered pictures that it never saw, share right:", file=sys.stderr)
    print(", ".join(f"{name} {share:.3f}" for name, share in accuracy.items()), file=sys.stderr)
    poor = [name for name, share in accuracy.items() if share < ENOUGH]
    if poor:
        print(f"Below {ENOUGH}: {', '.join(poor)}. Don't trust its reading of these.", file=sys.stderr)
    found["rows"] = list(table_of(task, kind.stories(task["count"]), probe, real))
    out = Path(task["out"])
    (out / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(found) + "\n", encoding="utf-8")
    print(markdown(found))


def stories(count: str, kind: str = "stories") -> None:
    print(json.dumps([story.text for story in KINDS[kind].stories(int(count))]))


def pairs(count: str) -> None:
    stories(count, "pairs")


def pictures_of_stories(count: str) -> None:
    stories(count, "pictures")


def draw_pictures(count: str, folder: str) -> None:
    """The characters of the stories, alone, as the stories' pictures."""
    some = picture_stories(int(count))
    attributes = draw(len(some), torch.Generator().manual_seed(0))
    attributes |= {"company": torch.zeros(len(some), dtype=torch.long)}
    attributes |= {name: torch.tensor([story.picture[name] for story in some]) for name in some[0].picture}
    for story, picture in zip(some, render(attributes), strict=True):
        pixels = (picture.movedim(0, -1) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(Path(folder) / picture_name(story.text))


def fastest() -> None:
    print({torch.bfloat16: "bf16", torch.float32: "fp32"}[precision.fastest("cpu")])


COMMANDS: dict[str, Callable[..., None]] = {
    "stories": stories,
    "pairs": pairs,
    "pictures": pictures_of_stories,
    "draw": draw_pictures,
    "fastest": fastest,
    "measure": measure,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
