"""Puts set lines and shapes on a page [height, width, 3]."""

import numpy as np

from .board import Box, region
from .lettering import SetLine, Typeface


def write(page: np.ndarray, face: Typeface, line: SetLine, x: float, baseline: int, colour: np.ndarray) -> None:
    """Draw `line` with the left end of its baseline at `x`; what would lie outside of the page is left out."""
    left, top = int(np.floor(x)) - face.size // 2, baseline - line.ascent
    blend(page, left, top, face.mask(line, x % 1)[..., 0], colour)


def blend(page: np.ndarray, left: int, top: int, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay `colour` on the page where `mask` [height, width], 0..1, covers it."""
    box = Box(left, top, left + mask.shape[1], top + mask.shape[0])
    height, width = page.shape[:2]
    seen = Box(max(0, box.left), max(0, box.top), min(width, box.right), min(height, box.bottom))
    if seen.right <= seen.left or seen.bottom <= seen.top:
        return
    under = region(page, seen)
    part = mask[seen.top - top : seen.bottom - top, seen.left - left : seen.right - left, None]
    under += (colour - under) * part
