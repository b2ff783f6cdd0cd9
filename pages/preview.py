"""Lays the frames that are still being drawn out as one small picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .board import PAPER, Box, pleasing_columns, region
from .contact_sheet import PLAIN, badge
from .lettering import Typeface

GAP = 2
NUMBERED = 64
"""A number is put into frames at least this wide and high, in pixels."""


def draw_preview(frames: Sequence[Image.Image], size: int) -> Image.Image:
    """The frames in reading order, numbered where there is room, on a grid at most `size` pixels wide and high.

    The grid has as many columns as Story Board's. All frames are as large as the first.
    """
    width, height = frames[0].size
    columns = min(len(frames), pleasing_columns(len(frames), width / height, len(frames)))
    rows = -(-len(frames) // columns)
    scale = min((size - GAP * (columns - 1)) / (columns * width), (size - GAP * (rows - 1)) / (rows * height))
    wide, high = max(1, int(width * scale)), max(1, int(height * scale))
    page = np.empty((rows * (high + GAP) - GAP, columns * (wide + GAP) - GAP, 3), np.float32)
    page[:] = PAPER
    for number, frame in enumerate(frames):
        left, top = number % columns * (wide + GAP), number // columns * (high + GAP)
        place = Box(left, top, left + wide, top + high)
        region(page, place)[:] = np.asarray(frame.convert("RGB").resize((wide, high)), np.float32) / 255
        if min(wide, high) >= NUMBERED:
            badge(page, Typeface(12), str(number + 1), place, PLAIN)
    return Image.fromarray((page * 255).round().astype(np.uint8))
