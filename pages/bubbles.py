"""Speech bubbles: where they stand in a picture, and drawing them."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, hypot
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .board import INK, Box, depth_of
from .ink import blend, write
from .lettering import FINE, SetLine, Typeface

WHITE = np.ones(3, np.float32)
WIDTHS = (0.45, 0.6, 0.75, 0.92)
"""How wide the text of a bubble may be, in widths of the picture: the first one that leaves enough of it to see."""
ENOUGH, MOST = 0.4, 0.6
"""The part of a picture's height that bubbles should take, and may take."""

Point = tuple[float, float]


class Bubble(NamedTuple):
    """A bubble in pixels of the page: its body, its text, each line with the left end of its baseline, and its tail's
    tip."""

    body: Box
    lines: tuple[tuple[float, int, SetLine], ...]
    tip: Point


def set_bubbles(
    face: Typeface, texts: Sequence[str], room: Box, points: Sequence[Point | None]
) -> tuple[Bubble, ...] | None:
    """Bubbles for `texts`, in reading order from the upper edge of `room` down; None where they don't fit.

    `points` are where the speakers are on the page, None where that is not known: a tail points there, else down. A
    bubble that would hide a speaker moves to the lower edge with all others.
    """
    tail = round(0.9 * face.size)
    for part in (ENOUGH, MOST):
        for width in WIDTHS:
            rows = set_rows(face, texts, room, width)
            if rows and sum(row[0].height for row in rows) + face.size * len(rows) + tail <= part * height_of(room):
                at_top, at_bottom = (place(face, rows, room, points, below) for below in (False, True))
                return at_bottom if hides(at_top, points) and not hides(at_bottom, points) else at_top
    return None


class Body(NamedTuple):
    """A bubble before it has a place: its text, and its size, where the height is that of its row."""

    lines: tuple[SetLine, ...]
    width: int
    own_height: int
    height: int = 0


def set_rows(face: Typeface, texts: Sequence[str], room: Box, width: float) -> list[list[Body]]:
    """The bodies in rows that fit side by side; none where one is wider than the room."""
    margin, padding = edge_of(face), padding_of(face)
    most = width_of(room) - 2 * margin
    inner = min(width * width_of(room), most - 2 * padding)
    if inner < 3 * face.size:
        return []
    rows: list[list[Body]] = []
    for text in texts:
        lines = face.set_text(text, inner)
        wide = ceil(max(line.width for line in lines)) + 2 * padding
        body = Body(lines, wide, depth_of(lines) + padding)
        if rows and sum(other.width + margin for other in rows[-1]) + wide <= most:
            rows[-1].append(body)
        else:
            rows.append([body])
    return [[body._replace(height=max(other.own_height for other in row)) for body in row] for row in rows]


def place(
    face: Typeface, rows: list[list[Body]], room: Box, points: Sequence[Point | None], below: bool
) -> tuple[Bubble, ...]:
    """The rows from the upper edge down, or all of them at the lower edge."""
    margin = edge_of(face)
    right_to_left = rows[0][0].lines[0].right_to_left
    total = sum(row[0].height + margin for row in rows)
    y = room.bottom - total if below else room.top + margin
    bubbles: list[Bubble] = []
    for number, row in enumerate(rows):
        target = points[len(bubbles)] if len(row) == 1 else None
        for left, body in zip(lefts(row, room, margin, number, right_to_left, target), row):
            box = Box(left, y, left + body.width, y + body.own_height)
            bubbles.append(Bubble(box, lines_in(face, body, box), tip(face, box, room, points[len(bubbles)], below)))
        y += row[0].height + margin
    return tuple(bubbles)


def lefts(row: list[Body], room: Box, margin: int, number: int, right_to_left: bool, target: Point | None) -> list[int]:
    """Where the bodies of a row begin: spread over the width, or one of them by its speaker or on alternate sides."""
    start, end = room.left + margin, room.right - margin
    if target:
        return [round(min(max(target[0] - row[0].width / 2, start), end - row[0].width))]
    order = row[::-1] if right_to_left else row
    free = end - start - sum(body.width for body in row)
    if len(row) == 1:
        return [start if (number % 2 == 0) != right_to_left else start + free]
    at, places = start, []
    for body in order:
        places.append(at)
        at += body.width + free // (len(row) - 1)
    return places[::-1] if right_to_left else places


def lines_in(face: Typeface, body: Body, box: Box) -> tuple[tuple[float, int, SetLine], ...]:
    lines, y = [], box.top + padding_of(face) // 2
    for line in body.lines:
        lines.append(((box.left + box.right - line.width) / 2, y + line.ascent, line))
        y += line.ascent + line.descent
    return tuple(lines)


def tip(face: Typeface, box: Box, room: Box, point: Point | None, below: bool) -> Point:
    """Where the tail ends: towards `point` and well before it, else straight away from the edge that the bubble is
    at. Within `room`, on the open side of the bubble."""
    size, sign = face.size, -1 if below else 1
    start = (box.left + box.right) / 2, float(box.top if below else box.bottom)
    dx, dy = (point[0] - start[0], point[1] - start[1]) if point else (0.0, sign * 1.5 * size)
    if sign * dy < 0.9 * size:
        dy = sign * 0.9 * size
    length = hypot(dx, dy)
    shown = min(0.6 * length, 3.5 * size) if point else 0.9 * size
    x, y = start[0] + dx * shown / length, start[1] + dy * shown / length
    if sign * (y - start[1]) < 0.7 * size:
        y = start[1] + sign * 0.7 * size
    return min(max(x, room.left + 2), room.right - 2), min(max(y, room.top + 2), room.bottom - 2)


def hides(bubbles: Sequence[Bubble], points: Sequence[Point | None]) -> bool:
    return any(
        point and body.left <= point[0] < body.right and body.top <= point[1] < body.bottom
        for body, _, _ in bubbles
        for point in points
    )


def draw_bubbles(page: np.ndarray, face: Typeface, bubbles: Sequence[Bubble]) -> None:
    """Draw the bubbles on a page; a tail goes under the bubbles that it would cross."""
    below = bool(bubbles) and bubbles[0].tip[1] < bubbles[0].body.top
    for bubble in reversed(bubbles) if below else bubbles:
        border = max(2, round(face.size / 11))
        left, top, outer, inner = shapes(face, bubble, border)
        blend(page, left, top, outer, INK)
        blend(page, left, top, inner, WHITE)
    for bubble in bubbles:
        for x, baseline, line in bubble.lines:
            write(page, face, line, x, baseline, INK)


def shapes(face: Typeface, bubble: Bubble, border: int) -> tuple[int, int, np.ndarray, np.ndarray]:
    """The left and top of the bubble with its border, and the coverage of both and of the bubble alone."""
    body, tip_ = bubble.body, bubble.tip
    left, right = min(body.left, int(tip_[0])) - border - 1, max(body.right, ceil(tip_[0])) + border + 1
    top, bottom = min(body.top, int(tip_[1])) - border - 1, max(body.bottom, ceil(tip_[1])) + border + 1
    half = min(0.45 * face.size, (body.right - body.left) / 6)
    radius = min(1.1 * face.size, (body.bottom - body.top) / 2)
    middle = (body.left + body.right) / 2
    base = min(max(tip_[0], middle - 0.25 * (body.right - body.left)), middle + 0.25 * (body.right - body.left))
    root = body.top + radius / 2 if tip_[1] < body.top else body.bottom - radius / 2
    tail = [(base - half, root), tip_, (base + half, root)]
    masks = []
    for grown in (border, 0):
        image = Image.new("L", ((right - left) * FINE, (bottom - top) * FINE))
        pen = ImageDraw.Draw(image)

        def at(x: float, y: float) -> Point:
            return (x - left) * FINE, (y - top) * FINE

        low, high = at(body.left - grown, body.top - grown), at(body.right + grown, body.bottom + grown)
        pen.rounded_rectangle((*low, high[0] - 1, high[1] - 1), (radius + grown) * FINE, fill=255)
        pen.polygon([at(*corner) for corner in tail], fill=255)
        if grown:
            for one, other in pairwise(tail):
                pen.line([at(*one), at(*other)], fill=255, width=2 * grown * FINE)
            (x, y), wide = at(*tip_), grown * FINE
            pen.ellipse((x - wide, y - wide, x + wide, y + wide), fill=255)
        masks.append(np.asarray(image.reduce(FINE), np.float32) / 255)
    return left, top, masks[0], masks[1]


def edge_of(face: Typeface) -> int:
    """The space between a bubble, the next one, and the edge of its room."""
    return max(4, round(0.5 * face.size))


def padding_of(face: Typeface) -> int:
    return round(0.7 * face.size)


def width_of(box: Box) -> int:
    return box.right - box.left


def height_of(box: Box) -> int:
    return box.bottom - box.top
