"""Draws the takes of a story side by side, numbered, to choose from."""

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np

from .board import INK, PAPER, Box, fill, region
from .heat import colours, readable_on
from .ink import write
from .lettering import SetLine, Typeface

CHOSEN, PLAIN = colours("#c2410c", "#d6d1c7")
QUIET = INK + 0.4 * (PAPER - INK)
WIDTH = 1600
LARGEST, SMALLEST = 300, 96
"""A picture's longer side in pixels."""
EDGE, GAP = 28, 16
LABEL = 52
BORDER = 5
CAPTION_LINES = 2


def draw_contact_sheet(
    images: np.ndarray, captions: Sequence[str], picks: Sequence[int], suggested: Sequence[int] | None = None
) -> np.ndarray:
    """Draw `images` [takes, frames, height, width, 3 or 4], 0..1: a column for each frame, a row for each take.

    `picks` are the frames' chosen takes and `suggested` the proposed ones, both from 0. Columns that don't fit side by
    side go on below. Returns [height, width, 3], float32.
    """
    takes, frames, height, width = images.shape[:4]
    face = Typeface(17)
    columns = columns_of(frames, takes, width / height)
    side = min(LARGEST, (WIDTH - 2 * EDGE - LABEL - (columns - 1) * GAP) / columns * max(1.0, height / width))
    scale = max(SMALLEST, side) / max(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    step = max(wide, SMALLEST) + GAP
    heads = [heading(face, number, caption, step - GAP) for number, caption in enumerate(captions, 1)]
    bands = [range(first, min(frames, first + columns)) for first in range(0, frames, columns)]
    tops, y = [], EDGE
    for band in bands:
        top = y + max(sum(line.ascent + line.descent for line in heads[frame]) for frame in band) + 8
        tops.append(top)
        y = top + takes * (high + GAP) - GAP + EDGE
    sheet = np.empty((y, 2 * EDGE + LABEL + columns * step - GAP, 3), np.float32)
    sheet[:] = PAPER
    for band, top in zip(bands, tops):
        for column, frame in enumerate(band):
            left = EDGE + LABEL + column * step
            write_heading(sheet, face, heads[frame], left, top - 8)
            for take in range(takes):
                place = Box(left, top + take * (high + GAP), left + wide, top + take * (high + GAP) + high)
                border = BORDER if take == picks[frame] else 1
                around = Box(place.left - border, place.top - border, place.right + border, place.bottom + border)
                region(sheet, around)[:] = CHOSEN if take == picks[frame] else INK
                region(sheet, place)[:] = fill(images[take, frame], place)
                marks = f"{take + 1}★" if suggested and suggested[frame] == take else str(take + 1)
                badge(sheet, face, marks, place, CHOSEN if take == picks[frame] else PLAIN)
        for take in range(takes):
            middle = top + take * (high + GAP) + high // 2
            write(sheet, face, face.set_line(str(take + 1)), EDGE, middle + 6, QUIET)
    return sheet


def columns_of(frames: int, takes: int, aspect: float) -> int:
    """How many frames stand side by side: all that fit, in bands of about equal length."""
    most = max(1, int((WIDTH - 2 * EDGE - LABEL + GAP) // (sqrt(LARGEST * SMALLEST) * min(1.0, aspect) + GAP)))
    return ceil(frames / ceil(frames / most))


def heading(face: Typeface, number: int, caption: str, width: int) -> tuple[SetLine, ...]:
    """A column's number and the first lines of its caption."""
    lines = face.set_text(caption, width)
    if len(lines) > CAPTION_LINES:
        lines = lines[:CAPTION_LINES]
        text = lines[-1].text.rstrip()
        while text and face.width(text + "…", lines[-1].right_to_left) > width:
            text = text[:-1].rstrip()
        lines = (*lines[:-1], face.set_line(text + "…", lines[-1].right_to_left))
    return (face.set_line(str(number)), *lines)


def write_heading(sheet: np.ndarray, face: Typeface, lines: Sequence[SetLine], left: int, bottom: int) -> None:
    y = bottom - sum(line.ascent + line.descent for line in lines)
    for i, line in enumerate(lines):
        write(sheet, face, line, left, y + line.ascent, QUIET if i else INK)
        y += line.ascent + line.descent


def badge(sheet: np.ndarray, face: Typeface, text: str, picture: Box, colour: np.ndarray) -> None:
    """A small sign in the picture's upper left corner."""
    line = face.set_line(text)
    right = min(picture.right, picture.left + ceil(line.width) + 14)
    region(sheet, Box(picture.left, picture.top, right, picture.top + line.ascent + line.descent + 4))[:] = colour
    write(sheet, face, line, picture.left + 7, picture.top + line.ascent + 2, readable_on(colour))
