"""Draws how alike a story's frames are, as a heat map with the frames' names."""

from collections.abc import Sequence

import numpy as np

from .bidi import is_right_to_left
from .heat import DISTANCE, shade
from .matrix import add_matrix, add_pair, means_of
from .sheet import EDGE, PLAIN_COLOUR, QUIET, WIDTH, Sheet, add_number, add_ramp, paint, shorten
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
    n = len(matrix)
    low, high = steps_of(matrix)
    sheet = Sheet()
    sheet.y -= 34
    means = means_of(n, MOST_FRAMES)
    sheet.heading("Similarity", f"of every frame to every other (cosine){means}: the paler, the more alike")
    left = EDGE + NAMES

    def label(index: int, middle: int) -> None:
        right = add_number(sheet, index, EDGE, middle)
        for line in shorten(sheet.face, names[index], left - right - 24):
            rtl = is_right_to_left(line)
            sheet.write(line, left - 14 if rtl else right + 10, middle + 6, sheet.face, align=1 if rtl else 0)

    def colour(cells: np.ndarray) -> np.ndarray:
        colours = shade(DISTANCE, (high - cells) / (high - low))
        if len(cells) == n:
            colours[np.diag_indices(n)] = PLAIN_COLOUR
        return colours

    square = add_matrix(
        sheet, matrix, range(n), left, MOST_FRAMES, LARGEST_CELL, colour, ".2f", sheet.face, label, pitch=24
    )
    add_summary(sheet, matrix, square.right + 32, square.top)
    sheet.y = max(square.bottom, square.top + 190) + EDGE
    return sheet


def add_summary(sheet: Sheet, matrix: np.ndarray, left: int, top: int) -> None:
    """The mean, the colour scale, and the pair of frames that is most and least alike."""
    low, high = steps_of(matrix)
    sheet.write("mean", left, top + 22, sheet.face, QUIET)
    sheet.write(f"{mean_pairwise(matrix):.4f}", left + 86, top + 22, sheet.large)
    add_ramp(sheet, DISTANCE[::-1], left, top + 48, [f"{low:.2f}", "", f"{high:.2f}"])
    first, second = np.triu_indices(len(matrix), 1)
    values = matrix[first, second]
    for k, (name, at) in enumerate((("most", values.argmax()), ("least", values.argmin()))):
        pair = int(first[at]), int(second[at])
        add_pair(sheet, name, pair, f"{values[at]:.4f}", left, top + 104 + 40 * k, indent=70, gap=14)
