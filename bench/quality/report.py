"""What `bench quality --server` found, as a table, as JSON, and as one self-contained page."""

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...tools.results import as_given
from . import papers

PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


class Measure(NamedTuple):
    """A column: where a board's result has it, its title, and whether more or less is better ("" for neither)."""

    path: tuple[str, ...]
    title: str
    better: str


MEASURES = {
    "clip_t": Measure(("clip", "clip_t"), "CLIP-T", "↑"),
    "clip_i": Measure(("clip_image", "clip_i"), "CLIP-I", "↑"),
    "dreamsim": Measure(("dreamsim", "dreamsim"), "DreamSim", "↓"),
    "scenes": Measure(("clip_image", "scenes"), "scene diversity", "↑"),
    "told_apart": Measure(("clip", "told_apart"), "told apart", "↑"),
    "similarity": Measure(("similarity",), "similarity", "↑"),
    "seconds": Measure(("seconds",), "seconds", ""),
}

NOTES = {
    "clip_t": "CLIP-T: 2.5 times the cosine of each frame with its own prompt behind “A photo depicts”, not below 0.",
    "clip_i": "CLIP-I: cosine of CLIP's image embeddings, mean over all pairs of a story's frames, {pictures}.",
    "dreamsim": "DreamSim: distance, mean over all pairs of a story's frames, {pictures}.",
    "scenes": "scene diversity: 1 less the mean cosine of the frames' backgrounds, characters painted out, over all "
    "pairs of a story's frames. Frames that copy each other have none, however alike the character is.",
    "told_apart": "told apart: the share of frames that are no closer to another prompt of their story than to their "
    "own (R-precision); 1 / frames where the frames copy each other.",
    "similarity": "similarity: mean over all pairs, by Story Metrics on the servers with {vision}; CLIP-I if that is a "
    "CLIP.",
    "seconds": "seconds: what a server took for a board, of which it may have computed parts before.",
}


def notes_of(found: dict[str, Any]) -> list[str]:
    """A sentence on each column, and on what could not be measured."""
    settings, facts = found["settings"], found["measured"]
    masks = facts.get("masks")
    pictures = f"the characters alone on noise, by {masks}" if masks else "whole pictures"
    said = [NOTES[key].format(vision=settings["clip-vision"], pictures=pictures) for key in found["measures"]]
    if facts.get("empty_masks"):
        said.append(f"{facts['empty_masks']} frames have an empty mask, and count in none of these.")
    return [*said, "± is the standard error over stories. Bold is the best mean."]


def facts_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What measured: the names of the CLIP models, where the masks are from, and how many show nothing."""
    facts: dict[str, Any] = {}
    for result in results:
        for kind in ("clip", "clip_image"):
            if name := result.get(kind, {}).get("name"):
                facts[kind] = name
        if source := result.get("clip_image", result.get("dreamsim", {})).get("masks"):
            facts["masks"] = source
    if empty := sum(result.get("clip_image", {}).get("empty_masks", 0) for result in results):
        facts["empty_masks"] = empty
    return facts


def collect(
    settings: dict[str, Any],
    stories: Sequence[dict[str, str]],
    rows: dict[str, str],
    boards: Sequence[tuple[int, str, int, Path]],
    errors: Sequence[tuple[int, str, int, str]],
) -> dict[str, Any]:
    """Everything that the report says, from the boards' folders.

    `stories` have `title`, `identity` and `frames`; `rows` are titles by name; `boards` are (story, row, seed, folder)
    and `errors` (story, row, seed, sentence).
    """
    made: list[dict[str, Any]] = []
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for _, _, _, folder in boards]
    for (story, row, seed, folder), result in zip(boards, results):
        measures = {key: value for key in MEASURES if (value := value_of(result, key)) is not None}
        made.append(
            {
                "story": story,
                "row": row,
                "seed": seed,
                "folder": f"{folder.parent.name}/{folder.name}",
                "measures": measures,
            }
        )
    present = [key for key in MEASURES if any(key in board["measures"] for board in made)]
    return {
        "settings": settings,
        "measures": present,
        "measured": facts_of(results),
        "table": [
            {"row": name, "title": title, **row_of([b for b in made if b["row"] == name], present)}
            for name, title in rows.items()
        ],
        "stories": [{**story, "boards": [b for b in made if b["story"] == i]} for i, story in enumerate(stories)],
        "errors": [{"story": i, "row": row, "seed": seed, "error": text} for i, row, seed, text in errors],
    }


def value_of(result: dict[str, Any], key: str) -> float | None:
    """A measure of one board: the mean where the result has one for each frame; None where it has none."""
    value: Any = result
    for step in MEASURES[key].path:
        value = value.get(step) if isinstance(value, dict) else None
    return fmean(value) if isinstance(value, list) else value


def row_of(boards: Sequence[dict[str, Any]], present: Sequence[str]) -> dict[str, Any]:
    """A row's means over stories of the means over seeds, with standard errors (None for a single story)."""
    values = {}
    for key in present:
        by_story: dict[int, list[float]] = {}
        for board in boards:
            if key in board["measures"]:
                by_story.setdefault(board["story"], []).append(board["measures"][key])
        means = [fmean(each) for each in by_story.values()]
        if means:
            error = stdev(means) / len(means) ** 0.5 if len(means) > 1 else None
            values[key] = {"mean": fmean(means), "error": error, "stories": len(means)}
    return {"boards": len(boards), "values": values}


def best_of(found: dict[str, Any]) -> dict[str, str]:
    """For each measure that has a better side, the name of the best row."""
    best = {}
    for key in found["measures"]:
        rows = [row for row in found["table"] if key in row["values"]]
        if MEASURES[key].better and len(rows) > 1:
            sign = 1 if MEASURES[key].better == "↑" else -1
            best[key] = max(rows, key=lambda row: sign * row["values"][key]["mean"])["row"]
    return best


def cells(found: dict[str, Any]) -> list[list[str]]:
    """The table's lines, the head first."""
    head = ["", "boards", *(f"{MEASURES[key].title} {MEASURES[key].better}".strip() for key in found["measures"])]
    lines = [head]
    for row in found["table"]:
        line = [row["title"], str(row["boards"])]
        for key in found["measures"]:
            value = row["values"].get(key)
            line.append("–" if value is None else amount(value["mean"], value["error"], key))
        lines.append(line)
    return lines


def amount(mean: float, error: float | None, key: str) -> str:
    digits = 1 if key == "seconds" else 4
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def table(found: dict[str, Any]) -> str:
    """The table in Markdown."""
    head, *lines = cells(found)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def write(out: Path, found: dict[str, Any]) -> list[Path]:
    """Write `results.json` and `report.html` into the results' folder; returns their paths."""
    data, page = out / "results.json", out / "report.html"
    data.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with page.open("w", encoding="utf-8") as file:
        for part in page_parts(out, found):
            file.write(part)
    return [page, data]


def page_parts(out: Path, found: dict[str, Any]) -> Iterator[str]:
    """The page, piece by piece: a large benchmark's boards need not fit memory at once."""
    settings, best = found["settings"], best_of(found)
    head, *lines = cells(found)
    marks = [[False, False, *(best.get(key) == row["row"] for key in found["measures"])] for row in found["table"]]
    titles = {row["row"]: row["title"] for row in found["table"]}

    def caption_of(board: dict[str, Any]) -> str:
        values = (f", {MEASURES[key].title} {amount(value, None, key)}" for key, value in board["measures"].items())
        return f"{titles[board['row']]}, seed {board['seed']}{''.join(values)}"

    def picture_of(board: dict[str, Any]) -> str:
        return base64.b64encode((out / board["folder"] / "board.webp").read_bytes()).decode()

    return PAGES.get_template("report.html").generate(
        title=f"{settings['stories']} with {settings['checkpoint']}",
        facts=", ".join(f"{name} {as_given(value)}" for name, value in settings.items() if value is not None),
        head=head,
        lines=[[*zip(line, bold)] for line, bold in zip(lines, marks)],
        notes=notes_of(found),
        figures=[
            {**each, "picture": base64.b64encode((out / each["file"]).read_bytes()).decode()}
            for each in found["figures"]
        ],
        papers=papers.lines(found),
        differences=papers.differences(found),
        errors=found["errors"],
        stories=found["stories"],
        caption_of=caption_of,
        picture_of=picture_of,
    )
