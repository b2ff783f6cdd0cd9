"""A sheet of shapes, words and small pictures, drawn from the top down: what Inspect Story and Story Metrics show."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..story.parts import EOT, IDENTITY, SOT
from .board import INK, PAPER, Box, region
from .heat import colours, readable_on, shade
from .lettering import SetLine, Typeface, clean, clusters

WIDTH = 1280
EDGE = 40

FRAME_COLOURS = colours("#f3b5a5", "#f4d488", "#bddb9b", "#9ad6cb", "#a8c8f0", "#cab8ed", "#f0b4d2", "#d8c5a6")
IDENTITY_COLOUR, PLAIN_COLOUR, FAINT_COLOUR = colours("#3d4b6b", "#d6d1c7", "#e7e3db")
QUIET = INK + 0.4 * (PAPER - INK)
SMOOTH = 2


class Shape(NamedTuple):
    """A filled rectangle, its corners rounded by `radius`."""

    box: Box
    colour: np.ndarray
    radius: int = 0


class Word(NamedTuple):
    """A text with the left end of its baseline."""

    text: SetLine
    x: float
    baseline: int
    colour: np.ndarray
    face: Typeface


class Sheet:
    """What is drawn, from the top down: `y` is where the next thing goes."""

    def __init__(self) -> None:
        self.y = EDGE
        self.shapes: list[Shape] = []
        self.words: list[Word] = []
        self.pictures: list[tuple[int, int, np.ndarray]] = []
        self.large, self.face, self.small = Typeface(27), Typeface(18), Typeface(14)

    def fill(self, left: int, top: int, right: int, bottom: int, colour: np.ndarray, radius: int = 0) -> None:
        self.shapes.append(Shape(Box(left, top, right, bottom), colour, radius))

    def paste(self, left: int, top: int, picture: np.ndarray) -> None:
        """Lay `picture` [height, width, 3] onto the sheet."""
        self.pictures.append((left, top, picture))

    def write(
        self, text: str, x: float, baseline: int, face: Typeface, colour: np.ndarray = INK, align: float = 0
    ) -> float:
        """Write `text` with its left end (`align` 0), middle (0.5) or right end (1) at `x`; returns its width."""
        line = face.set_line(text)
        self.words.append(Word(line, x - align * line.width, baseline, colour, face))
        return line.width

    def heading(self, text: str, note: str) -> None:
        self.y += 34
        width = self.write(text, EDGE, self.y + 22, self.large)
        self.write(note, EDGE + width + 16, self.y + 22, self.small, QUIET)
        self.y += 42


def shorten(face: Typeface, text: str, width: float) -> list[str]:
    """`text` in a list, or its beginning and an ellipsis where it is wider than `width`; nothing for no text."""
    text = clean(text)
    if face.set_line(text).width > width:
        kept = clusters(text)
        while kept and face.set_line("".join(kept) + "…").width > width:
            kept.pop()
        text = "".join(kept) + "…"
    return [text] if text else []


def add_number(sheet: Sheet, frame: int, left: int, middle: int) -> int:
    """A chip with a frame's number in its colour; returns its right end."""
    text, colour = str(frame + 1), colour_of(frame)
    right = left + max(34, ceil(sheet.face.width(text)) + 16)
    sheet.fill(left, middle - 12, right, middle + 12, colour, 6)
    sheet.write(text, (left + right) / 2, middle + 6, sheet.face, readable_on(colour), 0.5)
    return right


def add_ramp(sheet: Sheet, ramp: np.ndarray, left: int, top: int, ends: Sequence[str]) -> None:
    """The colours of `ramp` from left to right, with texts at its left end, middle and right end."""
    width, first = 180, sheet.small.width(ends[0])
    x = left + ceil(first) + 8
    for j, colour in enumerate(shade(ramp, np.linspace(0, 1, width // 2))):
        sheet.fill(x + 2 * j, top, x + 2 * j + 2, top + 16, colour)
    sheet.write(ends[0], left, top + 13, sheet.small, QUIET)
    if ends[1]:
        sheet.write(ends[1], x + width / 2, top + 13, sheet.small, INK, 0.5)
    sheet.write(ends[2], x + width + 8, top + 13, sheet.small, QUIET)


def colour_of(role: int) -> np.ndarray:
    if role >= 0:
        return FRAME_COLOURS[role % len(FRAME_COLOURS)]
    return {IDENTITY: IDENTITY_COLOUR, SOT: PLAIN_COLOUR, EOT: FAINT_COLOUR}[role]


def paint(sheet: Sheet) -> np.ndarray:
    page = np.empty((sheet.y, WIDTH, 3), np.float32)
    page[:] = as_shown(PAPER)
    for box, colour, radius in sheet.shapes:
        under = region(page, box)
        if radius:
            under += (as_shown(colour) - under) * rounded(box.right - box.left, box.bottom - box.top, radius)
        else:
            under[:] = as_shown(colour)
    for left, top, picture in sheet.pictures:
        page[top : top + picture.shape[0], left : left + picture.shape[1]] = as_shown(picture)
    for text, x, baseline, colour, face in sheet.words:
        mask = face.mask(text, x % 1)
        left, top = int(x) - face.size // 2, baseline - text.ascent
        under = region(page, Box(left, top, left + mask.shape[1], top + mask.shape[0]))
        under += (np.asarray(colour, np.float32) - under) * mask[: under.shape[0], : under.shape[1]]
    return page


def as_shown(colour: np.ndarray) -> np.ndarray:
    """Colours on the steps of a picture with 8 bits a channel."""
    return (np.asarray(colour, np.float32) * 255).round() / 255


@lru_cache(256)
def rounded(width: int, height: int, radius: int) -> np.ndarray:
    """The coverage of a rectangle with rounded corners: [height, width, 1], 0..1."""
    image = Image.new("L", (width * SMOOTH, height * SMOOTH))
    # Pillow counts the last pixel in.
    corners = (0, 0, width * SMOOTH - 1, height * SMOOTH - 1)
    ImageDraw.Draw(image).rounded_rectangle(corners, radius * SMOOTH, 255)
    return np.asarray(image.reduce(SMOOTH), np.float32)[..., None] / 255
