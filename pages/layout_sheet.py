"""Draws where a story's characters are to stand: a small picture for each frame."""

from collections.abc import Mapping, Sequence

import numpy as np

from .board import INK, PAPER
from .heat import colours
from .ink import write
from .lettering import Typeface

COLOURS = colours("#c2410c", "#1d4ed8", "#15803d", "#a21caf", "#b45309", "#0e7490")
SIDE = 256


def draw_layout(frames: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]) -> np.ndarray:
    """Each of `frames` as a picture, [frames, 256, 256, 3], float32: its characters' regions in their colours.

    A frame has a mask [256, 256], 0..1, by name; the colours are by the place of a name among `names`.
    """
    face = Typeface(20)
    pictures = np.empty((len(frames), SIDE, SIDE, 3), np.float32)
    pictures[:] = PAPER
    for number, (picture, regions) in enumerate(zip(pictures, frames), 1):
        for name, mask in regions.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            picture += 0.6 * mask[..., None] * (colour - picture)
        for name, mask in regions.items():
            rows, columns = np.nonzero(mask > 0.5 * mask.max(initial=1e-6))
            line = face.set_line(name)
            if len(rows):
                left = int(columns.mean() - line.width / 2)
                write(picture, face, line, max(4, left), int(rows.mean()) + 7, INK)
        write(picture, face, face.set_line(str(number)), 8, 24, INK)
    return pictures
