"""Colours for numbers, and heat maps over pictures."""

import numpy as np

from .board import INK

WHITE = np.ones(3, np.float32)


def colours(*codes: str) -> np.ndarray:
    """Web colours such as "#3d4b6b" as [codes, 3], 0..1."""
    return np.array([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in codes], np.float32)


GAIN = colours("#1f4e8c", "#7fa9d4", "#ece8e0", "#eda36d", "#c2410c")
DISTANCE = colours("#f1ece2", "#c9d9c4", "#7fb7ad", "#3c8399", "#264c73", "#1d2447")
GLOW = colours("#000004", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")


def shade(ramp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The colours of `values`, 0..1, on a ramp of equally spaced colours: [..., 3]."""
    at = np.clip(values, 0, 1) * (len(ramp) - 1)
    low = np.minimum(at.astype(int), len(ramp) - 2)
    part = (at - low)[..., None].astype(np.float32)
    return ramp[low] * (1 - part) + ramp[low + 1] * part


def readable_on(colour: np.ndarray) -> np.ndarray:
    """Ink, or white on dark colours."""
    return WHITE if np.dot(colour, (0.299, 0.587, 0.114)) < 0.5 else INK


def overlay(images: np.ndarray, maps: np.ndarray, opacity: float) -> np.ndarray:
    """`images` [frames, height, width, 3], paled, with `maps` [frames, height, width], 0..1, glowing over them."""
    grey = images @ np.array((0.299, 0.587, 0.114), np.float32)
    dim = images + opacity * (0.7 * grey[..., None] - images)
    alpha = opacity * np.sqrt(maps)[..., None]
    return (dim + alpha * (shade(GLOW, maps) - dim)).clip(0, 1)
