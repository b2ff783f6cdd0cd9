"""The table as a picture: how much a way keeps the character, against how much frames keep their prompts."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIZE = 1000, 620
FIELD = 90, 48, 640, 550
INK, FAINT = (40, 36, 32), (220, 214, 202)
COLOURS = ((200, 60, 50), (230, 140, 30), (60, 140, 70), (50, 110, 200), (130, 80, 180), (120, 110, 100))


def plot(found: dict[str, Any], path: Path, x: str = "fidelity", y: str = "agreement") -> None:
    """Write the picture; a row is a point with the 95% intervals of its two measures."""
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(15)
    left, top, right, bottom = FIELD
    ranges = {axis: bounds([row["values"][axis] for row in found["rows"]]) for axis in (x, y)}

    def place(axis: str, value: float) -> float:
        low, high = ranges[axis]
        share = (value - low) / (high - low)
        return left + share * (right - left) if axis == x else bottom - share * (bottom - top)

    for axis in (x, y):
        low, high = ranges[axis]
        for step in range(round(low * 10), round(high * 10) + 1):
            at, label = place(axis, step / 10), f"{step / 10:.1f}"
            line = [(at, top), (at, bottom)] if axis == x else [(left, at), (right, at)]
            pen.line(line, fill=FAINT)
            pen.text((at - 10, bottom + 6) if axis == x else (left - 36, at - 9), label, fill=INK, font=font)
    pen.text((left, bottom + 32), found["columns"][x].rstrip(" ↑↓"), fill=INK, font=font)
    pen.text((left, top - 36), found["columns"][y].rstrip(" ↑↓"), fill=INK, font=font)
    for number, row in enumerate(found["rows"], 1):
        colour = COLOURS[number % len(COLOURS)]
        (mean_x, low_x, high_x), (mean_y, low_y, high_y) = row["values"][x], row["values"][y]
        at_x, at_y = place(x, mean_x), place(y, mean_y)
        pen.line([(place(x, low_x), at_y), (place(x, high_x), at_y)], fill=colour, width=2)
        pen.line([(at_x, place(y, low_y)), (at_x, place(y, high_y))], fill=colour, width=2)
        pen.ellipse((at_x - 9, at_y - 9, at_x + 9, at_y + 9), fill=colour)
        pen.text((at_x, at_y), str(number), fill="white", font=font, anchor="mm")
        pen.text((right + 24, top + 26 * number), f"{number}  {row['title']}", fill=colour, font=font)
    image.save(path)


def bounds(values: list[list[float]]) -> tuple[float, float]:
    """Tenths that hold all intervals."""
    low = min(low for _, low, _ in values)
    high = max(high for _, _, high in values)
    first, last = int(low * 10), int(high * 10 + 0.999)
    return first / 10, max(last, first + 1) / 10
