"""The speed benchmark's results as a table and as JSON. Standard library only."""

import json
from pathlib import Path
from typing import Any

HEAD = ("piece", "ours", "against", "theirs", "ratio", "spread", "goal", "reached")


def read(file: Path) -> dict[str, Any]:
    """{"machine": facts, "rows": [...]} from pytest-benchmark's JSON."""
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = [row for benchmark in found["benchmarks"] for row in benchmark["extra_info"].get("rows", [])]
    return {"machine": found["machine_info"], "rows": rows}


def table(report: dict[str, Any], markdown: bool = False) -> str:
    lines = [HEAD, *(cells(row) for row in report["rows"])]
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(HEAD), *lines[1:]))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def machine(report: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value is not None)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    compared = row["theirs"] is not None
    show = ratio if compared else lambda value: amount(value, row["unit"])
    spread = f"{show(row['low'])} to {show(row['high'])}" if row["low"] != row["high"] else ""
    reached = "" if row["reached"] is None else "yes" if row["reached"] else "no"
    return (
        row["piece"],
        amount(row["ours"], row["unit"]),
        row["against"],
        amount(row["theirs"], row["unit"]) if compared else "",
        ratio(row["ratio"]) if compared else "",
        spread,
        "" if row["goal"] is None else f"≤ {show(row['goal'])}",
        reached,
    )


def ratio(value: float) -> str:
    """0.98, or 1/48 where one is many times the other."""
    return f"1/{1 / value:.0f}" if 0 < value < 0.1 else f"1/{1 / value:.1f}" if 0 < value < 0.5 else f"{value:.3f}"


def amount(value: float, unit: str) -> str:
    """Seconds, bytes or a plain number in a readable unit."""
    for factor, prefix in {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")), "B": ((2**20, "MiB"), (2**10, "KiB"))}.get(
        unit, ()
    ):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:g}"
