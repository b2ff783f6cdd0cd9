"""Draws how alike a story's frames are, as a heat map with the frames' names."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from .heat import DISTANCE, readable_on, shade
from .inspect import EDGE, PLAIN_COLOUR, QUIET, WIDTH, Sheet, add_number, add_ramp, paint, shorten
from .similarity import mean_pairwise, steps_of

NAMES = 320
SIDE = 290
LARGEST_CELL = 84
MOST_FRAMES = WIDTH - 2 * EDGE - NAMES - SIDE


def draw_similarity(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draw similarities [frames, frames] of frames called `names`, "" for none: [height, WIDTH, 3], 0..1.

    Raises `ValueError` for more than `MOST_FRAMES` frames.
    """
    return paint(lay_out(matrix, names))


def lay_out(matrix: np.ndarray, names: Sequence[str]) -> Sheet:
    n = len(matrix)
    if n > MOST_FRAMES:
        raise ValueError(f"The heat map has room for {MOST_FRAMES} frames and these are {n}: compare fewer at a time.")
    sheet = Sheet()
    sheet.y -= 34
    sheet.heading("Similarity", "of every frame to every other (cosine): the paler, the more alike")
    cell = min(LARGEST_CELL, MOST_FRAMES // n)
    left, top = EDGE + NAMES, sheet.y + 20
    add_names(sheet, names, left, top, cell)
    add_cells(sheet, matrix, left, top, cell)
    add_summary(sheet, matrix, left + n * cell + 32, top)
    sheet.y = top + max(n * cell, 190) + EDGE
    return sheet


def add_names(sheet: Sheet, names: Sequence[str], left: int, top: int, cell: int) -> None:
    """Frames' numbers above the columns; numbers and names beside the rows, as many as can be read."""
    every = ceil(24 / cell)
    for i in range(0, len(names), every):
        middle = i * cell + cell // 2
        sheet.write(str(i + 1), left + middle, top - 10, sheet.small, QUIET, 0.5)
        right = add_number(sheet, i, EDGE, top + middle)
        for line in shorten(sheet.face, names[i], left - right - 24):
            sheet.write(line, right + 10, top + middle + 6, sheet.face)


def add_cells(sheet: Sheet, matrix: np.ndarray, left: int, top: int, cell: int) -> None:
    """A square for each pair of frames, with its number where there is room; a frame's pair with itself stays plain."""
    low, high = steps_of(matrix)
    shown = shade(DISTANCE, (high - matrix) / (high - low))
    gap = 2 if cell >= 24 else min(1, cell - 1)
    numbers = cell >= 48
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            x, y = left + j * cell, top + i * cell
            colour = PLAIN_COLOUR if i == j else shown[i, j]
            sheet.fill(x, y, x + cell - gap, y + cell - gap, colour, 4 if numbers else 0)
            if numbers and i != j:
                ink = readable_on(colour)
                sheet.write(f"{value:.2f}", x + (cell - gap) / 2, y + cell // 2 + 5, sheet.face, ink, 0.5)


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
