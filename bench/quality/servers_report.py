"""What `bench quality --server` found, as a table, as JSON, and as one self-contained page. Standard library only."""

import base64
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A column: where a board's result has it, its title, and whether more or less is better ("" for neither)."""

    path: tuple[str, ...]
    title: str
    better: str


MEASURES = {
    "clip_t": Measure(("clip", "clip_t"), "CLIP-T", "↑"),
    "clip_i": Measure(("clip", "clip_i"), "CLIP-I", "↑"),
    "dreamsim": Measure(("dreamsim", "dreamsim"), "DreamSim", "↓"),
    "similarity": Measure(("similarity",), "similarity", "↑"),
    "seconds": Measure(("seconds",), "seconds", ""),
}

NOTES = {
    "clip_t": "CLIP-T: 2.5 times the cosine of each frame with its own prompt behind “A photo depicts”, not below 0.",
    "clip_i": "CLIP-I: cosine of CLIP's image embeddings, mean over all pairs of a story's frames, whole pictures.",
    "dreamsim": "DreamSim: distance, mean over all pairs of a story's frames, whole pictures.",
    "similarity": "similarity: mean over all pairs, by Story Metrics on the servers with {}; CLIP-I if that is a CLIP.",
    "seconds": "seconds: what a server took for a board, of which it may have computed parts before.",
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #26221f; background: #fbf9f5; margin: 2rem auto; max-width: 1660px;
  padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem 1rem .3rem 0; text-align: left; border-bottom: 1px solid #ddd6ca;
  font-variant-numeric: tabular-nums }
.best { font-weight: 700 }
figure { margin: .6rem 0 1.2rem }
figcaption, .quiet { color: #776f66; font-size: 14px }
img { max-width: 100%; display: block }
h2 { margin-top: 2.5rem }
"""


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
    made = []
    for story, row, seed, folder in boards:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        made.append(
            {
                "story": story,
                "row": row,
                "seed": seed,
                "folder": f"{folder.parent.name}/{folder.name}",
                "measures": {key: value for key in MEASURES if (value := value_of(result, key)) is not None},
            }
        )
    present = [key for key in MEASURES if any(key in board["measures"] for board in made)]
    return {
        "settings": settings,
        "measures": present,
        "table": [
            {"row": name, "title": title, **row_of([b for b in made if b["row"] == name], present)}
            for name, title in rows.items()
        ],
        "stories": [{**story, "boards": [b for b in made if b["story"] == i]} for i, story in enumerate(stories)],
        "errors": [{"story": i, "row": row, "seed": seed, "error": text} for i, row, seed, text in errors],
    }


def as_given(value: Any) -> str:
    """A setting's value as text, in the form of its option."""
    return " ".join(f"{name}={each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


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
    settings = found["settings"]
    title = f"{settings['stories']} with {settings['checkpoint']}"
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    yield f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
    facts = ", ".join(f"{name} {as_given(value)}" for name, value in settings.items() if value is not None)
    yield f'<p class="quiet">{html.escape(facts)}</p>'
    yield table_html(found)
    notes = [NOTES[key].format(settings["clip-vision"]) for key in found["measures"]]
    notes.append("± is the standard error over stories. Bold is the best mean.")
    yield f'<p class="quiet">{"<br>".join(map(html.escape, notes))}</p>'
    if found["errors"]:
        lines = "".join(f"<li>{html.escape(each['error'])} ({each['row']})</li>" for each in found["errors"])
        yield f"<h2>Not made</h2><ul>{lines}</ul>"
    titles = {row["row"]: row["title"] for row in found["table"]}
    for story in found["stories"]:
        identity = "<br>".join(map(html.escape, story["identity"].splitlines()))
        yield f"<h2>{html.escape(story['title'])}</h2><p>{identity}</p>"
        yield f"<ol>{''.join(f'<li>{html.escape(line)}</li>' for line in story['frames'].splitlines())}</ol>"
        for board in story["boards"]:
            yield figure(out, board, titles[board["row"]])


def table_html(found: dict[str, Any]) -> str:
    best = best_of(found)
    head, *lines = cells(found)
    rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    for row, line in zip(found["table"], lines):
        marks = ["", "", *("best" if best.get(key) == row["row"] else "" for key in found["measures"])]
        rows.append("".join(f'<td class="{mark}">{html.escape(cell)}</td>' for mark, cell in zip(marks, line)))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def figure(out: Path, board: dict[str, Any], title: str) -> str:
    """A board with its way, seed and measures."""
    measures = "".join(f", {MEASURES[key].title} {amount(v, None, key)}" for key, v in board["measures"].items())
    data = base64.b64encode((out / board["folder"] / "board.webp").read_bytes()).decode()
    caption = html.escape(f"{title}, seed {board['seed']}{measures}")
    picture = f'<img loading="lazy" alt="{caption}" src="data:image/webp;base64,{data}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
