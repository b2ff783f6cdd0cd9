"""A table as a picture: how much a way keeps the character, against how much its frames differ as they should.

Frames that copy each other are alike, and stand at the left.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

INCHES, DPI = (10, 6.2), 100


def plot(found: dict[str, Any], path: Path, x: str, y: str) -> None:
    """Write the picture; a row is a numbered point with the 95% intervals of its two measures, and a legend's line.

    A row without one of them has no point, and a dash in the legend.
    """
    figure = Figure(INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(found["columns"][x].rstrip(" ↑↓"))
    axes.set_ylabel(found["columns"][y].rstrip(" ↑↓"))
    axes.grid(color="0.87")
    axes.set_axisbelow(True)
    rows = [row for row in found["rows"] if row["values"].get(x) and row["values"].get(y)]
    without = [row for row in found["rows"] if row not in rows]
    for number, row in enumerate(rows, 1):
        (across, low_x, high_x), (up, low_y, high_y) = row["values"][x], row["values"][y]
        axes.errorbar(
            across,
            up,
            xerr=arms(across, low_x, high_x),
            yerr=arms(up, low_y, high_y),
            fmt="o",
            markersize=15,
            color=f"C{number - 1}",
            label=f"{number}  {row['title']}",
        )
        axes.annotate(str(number), (across, up), color="white", ha="center", va="center", zorder=10)
    for row in without:
        axes.errorbar([], [], fmt=" ", label=f"–  {row['title']}")
    if found["rows"]:
        figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


def arms(mean: float, low: float, high: float) -> list[list[float]]:
    """An interval's lengths on both sides of its mean, in the form of matplotlib's error bars."""
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]
