"""Draws what a story's prompt embedding holds: its tokens by part, the strength of each, how far frames differ."""

from collections.abc import Sequence
from math import ceil, log2

import numpy as np

from ..story.parts import EOT, IDENTITY, SOT, Line, Part
from .board import INK
from .heat import DISTANCE, GAIN, readable_on, shade
from .lettering import clean
from .matrix import add_matrix, add_pair, means_of
from .sheet import EDGE, PLAIN_COLOUR, QUIET, WIDTH, Sheet, add_number, add_ramp, colour_of, paint, shorten

LABEL = 124
STRONGEST = 8.0
"""The gain at which colours end, on either side."""
MOST_LISTED = 800
"""Of a longer story the first frames are listed: at 94 pixels a frame the picture takes 1.2 GB then."""

ENDS = {SOT: "Start", EOT: "End"}

STRIP = WIDTH - 2 * EDGE - LABEL - 226
SQUARE = WIDTH - 2 * EDGE - LABEL - 330
"""The widths of a frame's strip of tokens and of the square of distances, in pixels."""


def draw_story(
    parts: list[Part], encoders: Sequence[str], lines: list[Line], distances: np.ndarray, ends: Sequence[Part] = ()
) -> np.ndarray:
    """Draw a story's embedding; `distances` [rows, rows] are between `lines`. Returns [height, WIDTH, 3], 0..1.

    `ends` are what stands before and after the prompts' texts.
    """
    return paint(lay_out(parts, encoders, lines, distances, ends))


def lay_out(
    parts: list[Part], encoders: Sequence[str], lines: list[Line], distances: np.ndarray, ends: Sequence[Part] = ()
) -> Sheet:
    sheet = Sheet()
    sheet.y -= 34
    rows, tokens = len(lines), max(map(len, lines[0].roles))
    listed = f" · the first {MOST_LISTED} are listed" if rows > MOST_LISTED else ""
    counts = f"{rows} {'frame' if rows == 1 else 'frames'}{listed} · {tokens} tokens"
    sheet.heading("Prompt", f"{counts} · {', '.join(encoders)}")
    start, end = ([part for part in ends if part.role == role] for role in (SOT, EOT))
    add_tokens(sheet, [*start, *parts[:MOST_LISTED], *end])
    shared = ceil(tokens / STRIP)
    of = "each token" if shared == 1 else f"{shared} tokens together"
    sheet.heading("Strength", f"of {of}, against what the text encoder gave")
    add_strengths(sheet, encoders, lines[:MOST_LISTED], shared)
    if rows > 1:
        means = means_of(rows, SQUARE)
        sheet.heading("Distance", f"between the frames' embeddings (cosine){means}: the paler, the more alike")
        add_distances(sheet, [line.frame for line in lines], distances)
    sheet.y += EDGE
    return sheet


def add_tokens(sheet: Sheet, parts: list[Part]) -> None:
    """Every part as a row of chips, a token each, in the part's colour."""
    several = len({part.characters for part in parts if part.role not in ENDS}) > 1
    for part in parts:
        name = ENDS.get(part.role, f"Frame {part.role + 1}")
        if part.role == IDENTITY:
            name = " & ".join(filter(None, part.characters)) if several else "Identity"
        add_chips(sheet, name, part.tokens, PLAIN_COLOUR if part.role in ENDS else colour_of(part.role))


def add_chips(sheet: Sheet, name: str, tokens: Sequence[str], colour: np.ndarray) -> None:
    """Chips side by side, in as many rows as they need; the tokens of one word touch."""
    face, pad, height = sheet.face, 7, 28
    for line in shorten(face, name, LABEL - 14):
        sheet.write(line, EDGE, sheet.y + 20, face, QUIET)
    left = EDGE + LABEL
    for j, token in enumerate(tokens):
        text = clean(token.replace("\n", "↵")) or "·"
        right = left + ceil(face.set_line(text).width) + 2 * pad
        if right > WIDTH - EDGE and left > EDGE + LABEL:
            sheet.y += height + 4
            left, right = EDGE + LABEL, EDGE + LABEL + right - left
        sheet.fill(left, sheet.y, right, sheet.y + height, colour, 6)
        sheet.write(text, left + pad, sheet.y + 20, face, readable_on(colour))
        left = right + (1 if j + 1 < len(tokens) and not token.endswith(" ") else 5)
    sheet.y += height + 8


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
    """×1.97, ÷20 for 0.05, ~0 for less than a thousandth."""
    if gain < 1e-3:
        return "~0"
    sign, factor = ("×", gain) if gain > 0.995 else ("÷", 1 / gain)
    return f"{sign}{factor:.2f}" if factor < 9.995 else f"{sign}{factor:.0f}"


def position(gain: np.ndarray) -> np.ndarray:
    """Where gains lie on the colour ramp: 0 for ÷STRONGEST or less, 0.5 for 1, 1 for ×STRONGEST or more."""
    with np.errstate(divide="ignore"):
        return (0.5 + np.log2(gain) / (2 * log2(STRONGEST))).clip(0, 1)


def add_distances(sheet: Sheet, frames: list[int], distances: np.ndarray) -> None:
    """A square for each pair of frames, with its number where there is room; the nearest and farthest pair beside."""
    largest = max(distances.max(), 1e-9)
    form = f".{2 if largest >= 0.1 else 3 if largest >= 0.01 else 4}f"
    left = EDGE + LABEL

    def label(index: int, middle: int) -> None:
        sheet.write(str(frames[index] + 1), left - 10, middle + 5, sheet.small, QUIET, 1)

    def colour(cells: np.ndarray) -> np.ndarray:
        return shade(DISTANCE, cells / largest)

    square = add_matrix(sheet, distances, frames, left, SQUARE, 64, colour, form, sheet.small, label, pitch=22)
    right, top = square.right + 32, square.top
    add_ramp(sheet, DISTANCE, right, top, ["0", "", f"{distances.max():{form}}"])
    if len(frames) > 2:
        first, second = np.triu_indices(len(frames), 1)
        pairs = distances[first, second]
        for k, (name, at) in enumerate((("nearest", pairs.argmin()), ("farthest", pairs.argmax()))):
            pair = frames[first[at]], frames[second[at]]
            add_pair(sheet, name, pair, f"{pairs[at]:{form}}", right, top + 62 + 34 * k, indent=86, gap=12)
    sheet.y = max(square.bottom, top + 128 if len(frames) > 2 else 0)
