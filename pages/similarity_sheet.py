"""Draws how alike a story's frames are, as a heat map with the frames' names."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from .bidi import is_right_to_left
from .heat import DISTANCE, shade
from .inspect import (
    EDGE,
    NUMBERED,
    PLAIN_COLOUR,
    QUIET,
    WIDTH,
    Sheet,
    add_cells,
    add_number,
    add_ramp,
    add_values,
    paint,
    pool,
    shorten,
)
from .similarity import mean_pairwise, steps_of

NAMES = 320
SIDE = 290
LARGEST_CELL = 84
MOST_FRAMES = WIDTH - 2 * EDGE - NAMES - SIDE
"""The heat map's width in pixels: more frames than this share its squares."""


def draw_similarity(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draw similarities [frames, frames] of frames called `names`, "" for none: [height, WIDTH, 3], 0..1."""
    return paint(lay_out(matrix, names))


def lay_out(matrix: np.ndarray, names: Sequence[str]) -> Sheet:
    cells, shared = pool(matrix, MOST_FRAMES)
    n, cell = len(cells), min(LARGEST_CELL, MOST_FRAMES // len(cells))
    sheet = Sheet()
    sheet.y -= 34
    means = "" if shared == 1 else f", means of {shared} × {shared} pairs"
    sheet.heading("Similarity", f"of every frame to every other (cosine){means}: the paler, the more alike")
    left, top = EDGE + NAMES, sheet.y + 20
    add_names(sheet, names, left, top, cell, shared)
    low, high = steps_of(matrix)
    colours = shade(DISTANCE, (high - cells) / (high - low))
    if shared == 1:
        colours[np.diag_indices(n)] = PLAIN_COLOUR
    add_cells(sheet, left, top, cell, colours)
    if cell >= NUMBERED:
        add_values(sheet, left, top, cell, cells, ".2f", colours, sheet.face)
    add_summary(sheet, matrix, left + n * cell + 32, top)
    sheet.y = top + max(n * cell, 190) + EDGE
    return sheet


def add_names(sheet: Sheet, names: Sequence[str], left: int, top: int, cell: int, shared: int) -> None:
    """Frames' numbers above the columns; numbers and names beside the rows, as many as can be read.

    Each square stands for `shared` frames, and shows the name of the first.
    """
    every = ceil(max(24, sheet.small.width(str(len(names))) + 6) / cell)
    for i in range(0, ceil(len(names) / shared), every):
        middle = i * cell + cell // 2
        sheet.write(str(i * shared + 1), left + middle, top - 10, sheet.small, QUIET, 0.5)
        right = add_number(sheet, i * shared, EDGE, top + middle)
        for line in shorten(sheet.face, names[i * shared], left - right - 24):
            start, end = right + 10, left - 14
            rtl = is_right_to_left(line)
            sheet.write(line, end if rtl else start, top + middle + 6, sheet.face, align=1 if rtl else 0)


def add_summary(sheet: Sheet, matrix: np.ndarray, left: int, top: int) -> None:
    """The mean, the colour scale, and the pair of frames that is most and least alike."""
    low, high = steps_of(matrix)
    sheet.write("mean", left, top + 22, sheet.face, QUIET)
    sheet.write(f"{mean_pairwise(matrix):.4f}", left + 86, top + 22, sheet.large)
    add_ramp(sheet, DISTANCE[::-1], left, top + 48, [f"{low:.2f}", "", f"{high:.2f}"])
    pairs = [index.tolist() for index in np.triu_indices(len(matrix), 1)]
    values = matrix[tuple(pairs)]
    for k, (name, at) in enumerate((("most", values.argmax()), ("least", values.argmin()))):
        y = top + 104 + 40 * k
        sheet.write(name, left, y + 5, sheet.face, QUIET)
        right = left + 70
        for frame in (pairs[0][at], pairs[1][at]):
            right = add_number(sheet, frame, right, y) + 6
        sheet.write(f"{values[at]:.4f}", right + 8, y + 5, sheet.face)
