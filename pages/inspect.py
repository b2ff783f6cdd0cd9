"""Draws what a story's prompt embedding holds: its tokens by part, the strength of each, how far frames differ."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, log2
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..story.parts import EOT, IDENTITY, SOT, Line, Part
from .board import INK, PAPER, Box, region
from .heat import DISTANCE, GAIN, colours, readable_on, shade
from .lettering import SetLine, Typeface, clean, clusters

WIDTH = 1280
EDGE = 40
LABEL = 124
STRONGEST = 8.0
"""The gain at which colours end, on either side."""
MOST_LISTED = 800
"""Of a longer story the first frames are listed: at 94 pixels a frame the picture takes 1.2 GB then."""

STRIP = WIDTH - 2 * EDGE - LABEL - 226
SQUARE = WIDTH - 2 * EDGE - LABEL - 330
"""The widths of a frame's strip of tokens and of the square of distances, in pixels."""

FRAME_COLOURS = colours("#f3b5a5", "#f4d488", "#bddb9b", "#9ad6cb", "#a8c8f0", "#cab8ed", "#f0b4d2", "#d8c5a6")
IDENTITY_COLOUR, PLAIN_COLOUR, FAINT_COLOUR = colours("#3d4b6b", "#d6d1c7", "#e7e3db")
QUIET = INK + 0.4 * (PAPER - INK)
SMOOTH = 2
NUMBERED = 48
"""From this many pixels on, a pair's square has room for its number."""


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


def draw_story(parts: list[Part], encoders: Sequence[str], lines: list[Line], distances: np.ndarray) -> np.ndarray:
    """Draw a story's embedding; `distances` [rows, rows] are between `lines`. Returns [height, WIDTH, 3], 0..1."""
    return paint(lay_out(parts, encoders, lines, distances))


def lay_out(parts: list[Part], encoders: Sequence[str], lines: list[Line], distances: np.ndarray) -> Sheet:
    sheet = Sheet()
    sheet.y -= 34
    rows, tokens = len(lines), max(map(len, lines[0].roles))
    listed = f" · the first {MOST_LISTED} are listed" if rows > MOST_LISTED else ""
    counts = f"{rows} {'frame' if rows == 1 else 'frames'}{listed} · {tokens} tokens"
    sheet.heading("Prompt", f"{counts} · {', '.join(encoders)}")
    add_tokens(sheet, parts[:MOST_LISTED], lines)
    shared = ceil(tokens / STRIP)
    of = "each token" if shared == 1 else f"{shared} tokens together"
    sheet.heading("Strength", f"of {of}, against what the text encoder gave")
    add_strengths(sheet, encoders, lines[:MOST_LISTED], shared)
    if rows > 1:
        means = "" if rows <= SQUARE else f", means of {ceil(rows / SQUARE)} × {ceil(rows / SQUARE)} pairs"
        sheet.heading("Distance", f"between the frames' embeddings (cosine){means}: the paler, the more alike")
        add_distances(sheet, [line.frame for line in lines], distances)
    sheet.y += EDGE
    return sheet


def add_tokens(sheet: Sheet, parts: list[Part], lines: list[Line]) -> None:
    """Every part as a row of chips, a token each, in the part's colour."""
    several = len({part.characters for part in parts}) > 1
    padding = [sum(role == EOT for role in line.roles[0]) for line in lines]
    add_chips(sheet, "Start", ["SOT"], PLAIN_COLOUR)
    for part in parts:
        name = f"Frame {part.role + 1}"
        if part.role == IDENTITY:
            name = " & ".join(filter(None, part.characters)) if several else "Identity"
        add_chips(sheet, name, part.tokens, colour_of(part.role))
    least, most = min(padding) - 1, max(padding) - 1
    add_chips(sheet, "End", ["EOT", f"padding ×{least if least == most else f'{least}–{most}'}"], PLAIN_COLOUR)


def add_chips(sheet: Sheet, name: str, tokens: Sequence[str], colour: np.ndarray) -> None:
    """Chips side by side, in as many rows as they need; the tokens of one word touch."""
    face, pad, height = sheet.face, 7, 28
    for line in shorten(face, name, LABEL - 14):
        sheet.write(line, EDGE, sheet.y + 20, face, QUIET)
    left = EDGE + LABEL
    for j, token in enumerate(tokens):
        text = clean(token) or "·"
        right = left + ceil(face.set_line(text).width) + 2 * pad
        if right > WIDTH - EDGE and left > EDGE + LABEL:
            sheet.y += height + 4
            left, right = EDGE + LABEL, EDGE + LABEL + right - left
        sheet.fill(left, sheet.y, right, sheet.y + height, colour, 6)
        sheet.write(text, left + pad, sheet.y + 20, face, readable_on(colour))
        left = right + (1 if j + 1 < len(tokens) and not token.endswith(" ") else 5)
    sheet.y += height + 8


def shorten(face: Typeface, text: str, width: float) -> list[str]:
    """`text` in a list, or its beginning and an ellipsis where it is wider than `width`; nothing for no text."""
    text = clean(text)
    if face.set_line(text).width > width:
        kept = clusters(text)
        while kept and face.set_line("".join(kept) + "…").width > width:
            kept.pop()
        text = "".join(kept) + "…"
    return [text] if text else []


def add_strengths(sheet: Sheet, encoders: Sequence[str], lines: list[Line], shared: int = 1) -> None:
    """For each frame a strip of its row's tokens for every encoder: a band in the parts' colours, gains below it.

    Of more tokens than pixels, `shared` stand together: the colour of the first, and their mean gain.
    Beside it stands the mean gain of the frame's own prompt, of the other frames' prompts and of the EOT set.
    """
    face, small = sheet.face, sheet.small
    columns = [(WIDTH - EDGE - 160, "own"), (WIDTH - EDGE - 80, "others"), (WIDTH - EDGE, "end")]
    left = EDGE + LABEL
    pitch = STRIP // ceil(max(map(len, lines[0].roles)) / shared)
    add_ramp(sheet, GAIN, left, sheet.y - 4, [f"÷{STRONGEST:g}", "as it was", f"×{STRONGEST:g}"])
    for right, name in columns:
        sheet.write(name, right, sheet.y + 10, small, QUIET, 1)
    sheet.y += 26
    for line in lines:
        top = sheet.y
        for name, roles, gain in zip(encoders, line.roles, line.gains):
            middle = sheet.y + 17
            if len(encoders) > 1:
                sheet.write(name, left - 12, middle, small, QUIET, 1)
            drawn = gain
            if shared > 1:
                drawn = np.array([geometric_mean(gain[j : j + shared]) for j in range(0, len(gain), shared)])
            for j, (role, shown) in enumerate(zip(roles[::shared], shade(GAIN, position(drawn)))):
                x = left + j * pitch
                sheet.fill(x, sheet.y, x + pitch, sheet.y + 5, colour_of(role))
                sheet.fill(x, sheet.y + 6, x + pitch - min(1, pitch - 1), sheet.y + 22, shown)
            for (right, _), value in zip(columns, mean_gains(line.frame, roles, gain)):
                sheet.write(value, right, middle, face, INK, 1)
            sheet.y += 26
        add_number(sheet, line.frame, EDGE, (top + sheet.y - 4) // 2)
        sheet.y += 6


def mean_gains(frame: int, roles: Sequence[int], gain: np.ndarray) -> tuple[str, ...]:
    """The geometric mean of the gain of `frame`'s own tokens, of the other frames' and of the EOT set, as text."""
    at = np.array(roles)
    groups = (at == frame, (at >= 0) & (at != frame), at == EOT)
    return tuple(as_factor(geometric_mean(gain[group])) if group.any() else "–" for group in groups)


def geometric_mean(gain: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(gain).mean()))


def as_factor(gain: float) -> str:
    """×1.97, ÷20 for 0.05, ≈0 for less than a thousandth."""
    if gain < 1e-3:
        return "≈0"
    sign, factor = ("×", gain) if gain > 0.995 else ("÷", 1 / gain)
    return f"{sign}{factor:.2f}" if factor < 9.995 else f"{sign}{factor:.0f}"


def position(gain: np.ndarray) -> np.ndarray:
    """Where gains lie on the colour ramp: 0 for ÷STRONGEST or less, 0.5 for 1, 1 for ×STRONGEST or more."""
    with np.errstate(divide="ignore"):
        return (0.5 + np.log2(gain) / (2 * log2(STRONGEST))).clip(0, 1)


def add_distances(sheet: Sheet, frames: list[int], distances: np.ndarray) -> None:
    """A square for each pair of frames, with its number where there is room; the nearest and farthest pair beside."""
    cells, shared = pool(distances, SQUARE)
    n, cell = len(cells), min(64, SQUARE // len(cells))
    largest = max(distances.max(), 1e-9)
    digits = 2 if largest >= 0.1 else 3 if largest >= 0.01 else 4
    face = sheet.small
    left, every = EDGE + LABEL, ceil(max(22, face.width(str(max(frames) + 1)) + 6) / cell)
    for i, frame in enumerate(frames[::shared]):
        if i % every == 0:
            middle = left + i * cell + cell // 2
            sheet.write(str(frame + 1), middle, sheet.y + 10, face, QUIET, 0.5)
            sheet.write(str(frame + 1), left - 10, sheet.y + 20 + i * cell + cell // 2 + 5, face, QUIET, 1)
    sheet.y += 20
    add_cells(sheet, left, sheet.y, cell, shade(DISTANCE, cells / largest))
    if cell >= NUMBERED:
        add_values(sheet, left, sheet.y, cell, cells, f".{digits}f", shade(DISTANCE, cells / largest), face)
    right = left + n * cell + 32
    add_ramp(sheet, DISTANCE, right, sheet.y, ["0", "", f"{distances.max():.{digits}f}"])
    if len(frames) > 2:
        pairs = distances[np.triu_indices(len(frames), 1)]
        for k, (name, at) in enumerate((("nearest", pairs.argmin()), ("farthest", pairs.argmax()))):
            i, j = (index[at] for index in np.triu_indices(len(frames), 1))
            y = sheet.y + 62 + 34 * k
            sheet.write(name, right, y + 5, sheet.face, QUIET)
            x = add_number(sheet, frames[i], right + 86, y)
            x = add_number(sheet, frames[j], x + 6, y)
            sheet.write(f"{pairs[at]:.{digits}f}", x + 12, y + 5, sheet.face)
    sheet.y += max(n * cell, 128 if len(frames) > 2 else 0)


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
