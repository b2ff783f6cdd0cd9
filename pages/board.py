"""Draws a story's frames and captions as one page: a grid, a strip, a comic page or four-panel strips."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import ceil, log
from typing import NamedTuple

import numpy as np
from PIL import Image

from .lettering import SetLine, Typeface

LAYOUTS = ("grid", "strip", "comic page", "four-panel")
CAPTION_POSITIONS = ("below", "inside")

PAPER = np.array((0.984, 0.976, 0.961), np.float32)
CAPTION_BOX = np.array((1.0, 0.992, 0.969), np.float32)
INK = np.array((0.149, 0.133, 0.122), np.float32)

SMALLEST_TEXT = 15
SMALLEST_FRAME = 64
PANELS_PER_PAGE = 8


class Box(NamedTuple):
    """Pixels from `left` and `top` up to, not including, `right` and `bottom`."""

    left: int
    top: int
    right: int
    bottom: int


class Panel(NamedTuple):
    """One frame on the page, in pixels.

    `caption` bounds its caption: a filled box within the picture where that is `inside`, else the room below the
    picture. `lines` are its text, each with the left end of its baseline.
    """

    picture: Box
    caption: Box
    inside: bool
    lines: tuple[tuple[float, int, SetLine], ...]


class Page(NamedTuple):
    """A page laid out, in pixels; `panels` are in the order of the frames, `border` is 0 for none."""

    width: int
    height: int
    border: int
    panels: tuple[Panel, ...]
    face: Typeface


class Cell(NamedTuple):
    """A panel's room between `left` and `right` of its block, with its caption set."""

    left: int
    right: int
    lines: tuple[SetLine, ...]
    inside: bool


class Row(NamedTuple):
    """Panels side by side: pictures of one `height`, and `depth` pixels below them for captions."""

    cells: tuple[Cell, ...]
    height: int
    depth: int


def draw_board(
    images: np.ndarray,
    captions: Sequence[str],
    layout: str = "grid",
    columns: int = 0,
    caption_position: str = "below",
    gutter: float = 4.0,
    page_width: int = 0,
) -> np.ndarray:
    """Draw `images` [frames, height, width, 3 or 4], 0..1, as the page that `lay_out` describes.

    Returns [page height, page width, 3], float32. Images drawn at their own size keep every value.
    """
    page = lay_out(captions, images.shape[2], images.shape[1], layout, columns, caption_position, gutter, page_width)
    return paint(images, page)


def paint(images: np.ndarray, page: Page) -> np.ndarray:
    """Draw `images` [frames, height, width, 3 or 4], 0..1, on a page that is laid out."""
    board = np.empty((page.height, page.width, 3), np.float32)
    board[0] = PAPER
    board[1:] = board[0]
    for image, panel in zip(images, page.panels, strict=True):
        outline(board, panel.picture, page.border)
        region(board, panel.picture)[:] = fill(image, panel.picture)
        if panel.inside:
            outline(board, panel.caption, max(1, round(page.face.size / 14)))
            region(board, panel.caption)[:] = CAPTION_BOX
        for x, baseline, line in panel.lines:
            mask = page.face.mask(line, x % 1)
            left, top = int(x) - page.face.size // 2, baseline - line.ascent
            under = region(board, Box(left, top, left + mask.shape[1], top + mask.shape[0]))
            under += (INK - under) * mask[:, : under.shape[1]]
    return board


def match_captions(captions: Sequence[str], count: int) -> list[str]:
    """One caption for each of `count` images: the story's captions again for each take of the whole story, and
    otherwise as far as images and captions go together."""
    if count % len(captions) == 0:
        return [*captions] * (count // len(captions))
    return [*captions[:count], *[""] * (count - len(captions))]


def lay_out(
    captions: Sequence[str],
    width: int,
    height: int,
    layout: str = "grid",
    columns: int = 0,
    caption_position: str = "below",
    gutter: float = 4.0,
    page_width: int = 0,
) -> Page:
    """Lay out one frame of `width` x `height` pixels for each of `captions`, "" for none.

    `columns` is how many frames, comic pages or strips of four stand side by side, 0 for a page of pleasing shape.
    `gutter` is the space between frames in percent of a frame's shorter side. `page_width` is in pixels; with 0,
    frames keep their size, or a whole multiple of it where captions could not be read otherwise. An inside caption
    that would hide more than half of its picture goes below it.
    Raises `ValueError` where the page is too narrow.
    """
    count = len(captions)
    comic, four_panel = layout == "comic page", layout == "four-panel"
    if comic:
        pages = ceil(count / PANELS_PER_PAGE)
        blocks = [count // pages + (i < count % pages) for i in range(pages)]
    elif four_panel:
        blocks = [min(4, count - i) for i in range(0, count, 4)]
    else:
        blocks = [1] * count

    # First in widths of a frame.
    tall = min(4.0, height / width)
    space = gutter / 100 * min(1.0, tall)
    between, margin = space * (3 if comic else 2.5 if four_panel else 1), 1.6 * space
    block = 2 + space if comic else 1.0

    def page_in_frames(columns: int) -> float:
        return columns * block + (columns - 1) * between + 2 * margin

    if layout == "strip":
        columns = count
    elif not columns:
        block_height = 2.9 if comic else blocks[0] * (tall + 0.2)
        roomy = [c for c in range(1, len(blocks) + 1) if not page_width or page_width >= 160 * page_in_frames(c)]
        columns = pleasing_columns(len(blocks), block / block_height, max(roomy, default=1))
    columns = min(columns, len(blocks))

    # Then in pixels.
    readable = 448 if comic else 256
    enlarge = max(1, min(ceil(readable / width), 1024 // height))
    frame = page_width / page_in_frames(columns) if page_width else max(readable, enlarge * width)
    if frame < SMALLEST_FRAME:
        raise ValueError(
            f"A page {page_width} pixels wide is too narrow for this board: set page_width to "
            f"{ceil(SMALLEST_FRAME * page_in_frames(columns))} or more, or to 0 for frames at their own size, "
            "or put fewer columns side by side."
        )
    border = max(2, round(frame / 200)) if comic or four_panel else 0
    gap, between_blocks, edge = (max(border, round(frame * part)) for part in (space, between, margin))
    if page_width:
        across = (page_width - 2 * edge - (columns - 1) * between_blocks) // columns
        picture_width = max(1, min(across, round(4 * across * width / height)))
        picture_height = max(1, round(picture_width * height / width))
    else:
        across = int(2 * frame) + gap if comic else int(frame)
        picture_width, picture_height = enlarge * width, enlarge * height
        page_width = columns * across + (columns - 1) * between_blocks + 2 * edge
    spare = 0 if comic else across - picture_width
    face = Typeface(max(SMALLEST_TEXT, round(frame * min(1.0, 1.6 * tall) / 26)))

    texts = iter(captions)
    page: list[list[Row]] = []
    page_height = 1.4
    for number, size in enumerate(blocks):
        shapes: Sequence[tuple[tuple[float, ...], float]] = [((1.0,), picture_height / across)] * size
        if comic:
            shapes = comic_rows(size, max(0.25, width / height), number, page_height)
            page_height = sum(part for _, part in shapes)
        page.append(
            [
                set_row(face, shares, round(part * across), texts, across, gap, spare, caption_position)
                for shares, part in shapes
            ]
        )

    panels: list[Panel] = []
    top = edge
    for first in range(0, len(page), columns):
        band = page[first : first + columns]
        band = stretch(band, gap) if comic else level(band)
        shown = len(band) if layout == "grid" else columns
        left = (page_width - shown * across - (shown - 1) * between_blocks) // 2
        ends = []
        for rows in band:
            y = top
            for row in rows:
                for cell in row.cells:
                    x, end = left + cell.left + spare // 2, left + cell.right - (spare - spare // 2)
                    room = Box(left + cell.left, y + row.height, left + cell.right, y + row.height + row.depth)
                    panels.append(place(face, cell, Box(x, y, end, y + row.height), room))
                y += row.height + row.depth + gap
            ends.append(y - gap)
            left += across + between_blocks
        top = max(ends) + between_blocks
    return Page(page_width, top - between_blocks + edge, border, tuple(panels), face)


def pleasing_columns(blocks: int, aspect: float, most: int) -> int:
    """How many of `blocks` of one `aspect` (width over height) to set side by side, `most` at most: a page a
    little wider than high, with few empty places in its last row."""

    def badness(columns: int) -> float:
        rows = ceil(blocks / columns)
        return abs(log(columns / rows * aspect / 1.1)) + 0.6 * (rows * columns - blocks) / columns

    return min(range(1, most + 1), key=badness)


def comic_rows(panels: int, aspect: float, page: int, page_height: float) -> list[tuple[tuple[float, ...], float]]:
    """Rows of a comic page for frames of `aspect` (width over height), cropped by a third at most: each panel's
    share of the row's width, and the row's height. Heights are in widths of the page, which comes close to
    `page_height`; the number `page` varies the arrangement."""
    if panels == 1:
        return [((1.0,), 1 / aspect)]
    heights = {1: 1 / min(1.5 * aspect, max(1.8, aspect)), 2: 1 / (2 * aspect), 3: 1 / (3 * aspect)}

    def badness(rows: tuple[int, ...]) -> float:
        alike = sum(a == b for a, b in pairwise(rows))
        off = abs(log(sum(heights[k] for k in rows) / page_height))
        return off + 0.15 * alike + 0.1 * max(0, rows.count(1) - 1)

    counts = range(ceil(panels / 3), panels + 1)
    arrangements = [rows for n in counts for rows in product((1, 2, 3), repeat=n) if sum(rows) == panels]
    arrangements.sort(key=badness)
    good = [rows for rows in arrangements if badness(rows) < badness(arrangements[0]) + 0.1]
    shares = {1: ((1.0,),), 2: ((0.58, 0.42), (0.42, 0.58)), 3: ((0.38, 0.28, 0.34), (0.29, 0.4, 0.31))}
    return [(shares[k][(page + j) % len(shares[k])], heights[k]) for j, k in enumerate(good[page % len(good)])]


def set_row(
    face: Typeface,
    shares: tuple[float, ...],
    height: int,
    captions: Iterator[str],
    across: int,
    gap: int,
    spare: int,
    caption_position: str,
) -> Row:
    """Set the next of `captions` for panels that divide `across` pixels by `shares`, with pictures that leave
    `spare` pixels of a panel's width free."""
    inset = round(0.5 * face.size)
    cells = []
    room = across - gap * (len(shares) - 1)
    for j in range(len(shares)):
        left, right = (round(room * sum(shares[:k])) + gap * j for k in (j, j + 1))
        caption = next(captions)
        inner = right - left - spare - 4 * inset
        lines = face.set_text(caption, inner) if caption_position == "inside" and inner >= 4 * face.size else ()
        inside = bool(lines) and depth_of(lines) + 2 * inset <= height // 2
        cells.append(Cell(left, right, lines if inside else face.set_text(caption, right - left - 2 * inset), inside))
    below = [depth_of(cell.lines) + round(0.9 * face.size) for cell in cells if cell.lines and not cell.inside]
    return Row(tuple(cells), height, max(below, default=0))


def depth_of(lines: Sequence[SetLine]) -> int:
    return sum(line.ascent + line.descent for line in lines)


def level(band: list[list[Row]]) -> list[list[Row]]:
    """Give rows beside each other the same depth, so that the pictures of neighboring blocks stay in line."""
    depths = [max(rows[j].depth for rows in band if j < len(rows)) for j in range(max(map(len, band)))]
    return [[row._replace(depth=depth) for row, depth in zip(rows, depths, strict=False)] for rows in band]


def stretch(band: list[list[Row]], gap: int) -> list[list[Row]]:
    """Heighten pictures, by a fifth at most, so that comic pages beside each other end together."""
    heights = [sum(row.height + row.depth + gap for row in rows) for rows in band]
    stretched = []
    for rows, height in zip(band, heights, strict=True):
        pictures = sum(row.height for row in rows)
        factor = min(0.2, (max(heights) - height) / pictures)
        ends = [round(factor * sum(row.height for row in rows[:j])) for j in range(len(rows) + 1)]
        stretched.append([row._replace(height=row.height + ends[j + 1] - ends[j]) for j, row in enumerate(rows)])
    return stretched


def place(face: Typeface, cell: Cell, picture: Box, below: Box) -> Panel:
    inset = round(0.5 * face.size)
    if cell.inside:
        left, bottom = picture.left + inset, picture.bottom - inset
        width = ceil(max(line.width for line in cell.lines)) + 2 * inset
        caption = Box(left, bottom - depth_of(cell.lines) - inset, left + width, bottom)
        baseline = caption.top + inset // 2
    else:
        caption, baseline = below, below.top + round(0.5 * face.size)
    lines = []
    for line in cell.lines:
        start, end = caption.left + inset, caption.right - inset - line.width
        x = (end if line.right_to_left else start) if cell.inside else (caption.left + caption.right - line.width) / 2
        lines.append((x, baseline + line.ascent, line))
        baseline += line.ascent + line.descent
    return Panel(picture, caption, cell.inside, tuple(lines))


def region(board: np.ndarray, box: Box) -> np.ndarray:
    return board[box.top : box.bottom, box.left : box.right]


def outline(board: np.ndarray, box: Box, border: int) -> None:
    """Ink `border` pixels around `box`, and the box itself."""
    if border:
        region(board, Box(box.left - border, box.top - border, box.right + border, box.bottom + border))[:] = INK


def fill(image: np.ndarray, box: Box) -> np.ndarray:
    """Fill `box` with `image` [height, width, 3 or 4]: whole where the shapes agree, else its upper middle."""
    if image.shape[2] == 4:
        alpha = image[..., 3:]
        image = image[..., :3] * alpha + PAPER * (1 - alpha)
    height, width = image.shape[:2]
    wide, high = box.right - box.left, box.bottom - box.top
    if (wide, high) == (width, height):
        return image
    if wide % width == 0 and wide * height == high * width:
        return image.repeat(wide // width, 1).repeat(wide // width, 0)
    scale = max(wide / width, high / height)
    left, top = max(0.0, width - wide / scale) / 2, max(0.0, height - high / scale) / 3
    source = (left, top, min(width, left + wide / scale), min(height, top + high / scale))
    pixels = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    return np.asarray(pixels.resize((wide, high), Image.Resampling.LANCZOS, source), np.float32) / 255
