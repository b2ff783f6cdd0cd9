"""Draws a number for every pair of frames as a square of squares, and the pairs that stand out."""

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from .board import PAPER, Box
from .heat import readable_on
from .lettering import Typeface
from .sheet import QUIET, Sheet, add_number

NUMBERED = 48
"""From this many pixels on, a pair's square has room for its number."""


def add_matrix(
    sheet: Sheet,
    matrix: np.ndarray,
    frames: Sequence[int],
    left: int,
    most: int,
    largest: int,
    colour: Callable[[np.ndarray], np.ndarray],
    form: str,
    face: Typeface,
    label: Callable[[int, int], None],
    pitch: int,
) -> Box:
    """Draw `matrix` [frames, frames] with its left end at `left`, in `most` pixels at most; returns where it stands.

    A pair has a square of up to `largest` pixels in the `colour` of its number ([rows, rows] to [rows, rows, 3]), and
    the number itself, written as `form` says, where there is room. The numbers of `frames` stand above the columns;
    `label(index, middle)` writes what stands beside the row of a frame. Labels are `pitch` pixels or more apart.
    """
    cells, shared = pool(matrix, most)
    cell = min(largest, most // len(cells))
    top = sheet.y + 20
    every = ceil(max(pitch, sheet.small.width(str(max(frames) + 1)) + 6) / cell)
    for i in range(0, len(cells), every):
        middle = i * cell + cell // 2
        sheet.write(str(frames[i * shared] + 1), left + middle, top - 10, sheet.small, QUIET, 0.5)
        label(i * shared, top + middle)
    colours = colour(cells)
    add_cells(sheet, left, top, cell, colours)
    if cell >= NUMBERED:
        add_values(sheet, left, top, cell, cells, form, colours, face)
    return Box(left, top, left + len(cells) * cell, top + len(cells) * cell)


def add_pair(
    sheet: Sheet, name: str, pair: Sequence[int], value: str, left: int, middle: int, indent: int, gap: int
) -> None:
    """A line of its `name`, the chips of two frames `indent` pixels after its start, and their `value`."""
    sheet.write(name, left, middle + 5, sheet.face, QUIET)
    first = add_number(sheet, pair[0], left + indent, middle)
    second = add_number(sheet, pair[1], first + 6, middle)
    sheet.write(value, second + gap, middle + 5, sheet.face)


def means_of(frames: int, most: int) -> str:
    """What a heading says of a matrix that `pool` makes smaller."""
    shared = ceil(frames / most)
    return "" if shared == 1 else f", means of {shared} × {shared} pairs"


def pool(matrix: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """The means of square blocks of a [frames, frames], so that `most` rows at most are left, and a block's frames.

    A frame's pair with itself does not count, unless a block has no other.
    """
    shared = ceil(len(matrix) / most)
    if shared == 1:
        return matrix, 1
    starts = range(0, len(matrix), shared)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(values, starts, 0), starts, 1)

    others = 1.0 - np.eye(len(matrix))
    counts = sums(others)
    return np.where(counts > 0, sums(matrix * others) / counts.clip(1), matrix[0, 0]), shared


def add_cells(sheet: Sheet, left: int, top: int, cell: int, colours: np.ndarray) -> None:
    """A square of `cell` pixels for each of `colours` [rows, columns, 3]."""
    gap = 2 if cell >= 24 else min(1, cell - 1)
    if cell >= NUMBERED:
        for (i, j), _ in np.ndenumerate(colours[..., 0]):
            x, y = left + j * cell, top + i * cell
            sheet.fill(x, y, x + cell - gap, y + cell - gap, colours[i, j], 4)
        return
    picture = colours.repeat(cell, 0).repeat(cell, 1)
    inside = np.arange(len(picture)) % cell < cell - gap
    sheet.paste(left, top, np.where((inside[:, None] & inside)[..., None], picture, PAPER))


def add_values(
    sheet: Sheet, left: int, top: int, cell: int, values: np.ndarray, form: str, colours: np.ndarray, face: Typeface
) -> None:
    """The numbers of all pairs of different frames in the squares of `add_cells`, written as `form` says."""
    for (i, j), value in np.ndenumerate(values):
        if i != j:
            ink = readable_on(colours[i, j])
            sheet.write(
                f"{value:{form}}", left + j * cell + cell / 2 - 1, top + i * cell + cell // 2 + 4, face, ink, 0.5
            )
