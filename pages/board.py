"""Draws a story's frames and captions as one page: a grid, a strip, a comic page or four-panel strips."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from math import ceil, log
from typing import NamedTuple

import numpy as np
from PIL import Image

from .lettering import SetLine, Typeface

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


class Plan(NamedTuple):
    """How a layout arranges a story; lengths are in widths of a frame.

    `blocks` are how many frames stand together in each column of a band, `across` how many of them side by side, about
    `height` high; `space` lies between frames, `between` between blocks. `columns` is how many blocks stand side by
    side where the layout decides that, else 0. Without a page width, a frame is at least `readable` pixels wide.
    Panels are `cropped` to rows of a comic page and `bordered`, and a short last band is `centred` on the page.
    """

    blocks: list[int]
    height: float
    space: float
    between: float
    across: int = 1
    columns: int = 0
    readable: int = 256
    cropped: bool = False
    bordered: bool = False
    centred: bool = False

    @property
    def margin(self) -> float:
        return 1.6 * self.space

    @property
    def width(self) -> float:
        return self.across + (self.across - 1) * self.space

    def page_width(self, columns: int) -> float:
        return columns * self.width + (columns - 1) * self.between + 2 * self.margin


class Sizes(NamedTuple):
    """A plan in pixels: the page's width and that of its blocks, a picture's size, the room around, and the letters.

    `spare` is what a picture leaves free of its block's width.
    """

    page_width: int
    across: int
    picture_height: int
    spare: int
    gap: int
    between: int
    edge: int
    border: int
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
    tall = min(4.0, height / width)
    plan = PLANS[layout](len(captions), tall, gutter / 100 * min(1.0, tall))
    columns = columns_of(plan, columns, page_width)
    sizes = in_pixels(plan, columns, width, height, page_width)
    texts = iter(captions)
    blocks = [
        [set_row(shares, round(part * sizes.across), texts, sizes, caption_position) for shares, part in shapes]
        for shapes in block_shapes(plan, sizes, width / height)
    ]
    panels: list[Panel] = []
    top = sizes.edge
    for first in range(0, len(blocks), columns):
        band = blocks[first : first + columns]
        band = stretch(band, sizes.gap) if plan.cropped else level(band)
        shown = len(band) if plan.centred else columns
        left = (sizes.page_width - shown * sizes.across - (shown - 1) * sizes.between) // 2
        ends = []
        for rows in band:
            ends.append(place_block(rows, left, top, sizes, panels))
            left += sizes.across + sizes.between
        top = max(ends) + sizes.between
    return Page(sizes.page_width, top - sizes.between + sizes.edge, sizes.border, tuple(panels), sizes.face)


def grid(count: int, tall: float, space: float) -> Plan:
    """Each frame by itself, `tall` widths high."""
    return Plan([1] * count, tall + 0.2, space, space, centred=True)


def strip(count: int, tall: float, space: float) -> Plan:
    """All frames side by side."""
    return Plan([1] * count, tall + 0.2, space, space, columns=count)


def comic_page(count: int, tall: float, space: float) -> Plan:
    """Pages of about as many panels each, in rows of one to three."""
    pages = ceil(count / PANELS_PER_PAGE)
    blocks = [count // pages + (i < count % pages) for i in range(pages)]
    return Plan(blocks, 2.9, space, 3 * space, across=2, readable=448, cropped=True, bordered=True)


def four_panel(count: int, tall: float, space: float) -> Plan:
    """Columns of four frames, one below the other."""
    blocks = [min(4, count - i) for i in range(0, count, 4)]
    return Plan(blocks, blocks[0] * (tall + 0.2), space, 2.5 * space, bordered=True)


PLANS: dict[str, Callable[[int, float, float], Plan]] = {
    "grid": grid,
    "strip": strip,
    "comic page": comic_page,
    "four-panel": four_panel,
}
LAYOUTS = tuple(PLANS)


def columns_of(plan: Plan, columns: int, page_width: int) -> int:
    """How many blocks stand side by side: as the layout or the user says, else so that the page looks well."""
    columns = plan.columns or columns
    if not columns:
        counts = range(1, len(plan.blocks) + 1)
        roomy = [c for c in counts if not page_width or page_width >= 160 * plan.page_width(c)]
        columns = pleasing_columns(len(plan.blocks), plan.width / plan.height, max(roomy, default=1))
    return min(columns, len(plan.blocks))


def in_pixels(plan: Plan, columns: int, width: int, height: int, page_width: int) -> Sizes:
    """A plan for frames of `width` x `height` pixels on a page of `page_width`, 0 for what the frames need.

    Raises `ValueError` where the page is too narrow.
    """
    enlarge = max(1, min(ceil(plan.readable / width), 1024 // height))
    frame = page_width / plan.page_width(columns) if page_width else max(plan.readable, enlarge * width)
    if frame < SMALLEST_FRAME:
        raise ValueError(
            f"A page {page_width} pixels wide is too narrow for this board: set page_width to "
            f"{ceil(SMALLEST_FRAME * plan.page_width(columns))} or more, or to 0 for frames at their own size, "
            "or put fewer columns side by side."
        )
    border = max(2, round(frame / 200)) if plan.bordered else 0
    gap, between, edge = (max(border, round(frame * part)) for part in (plan.space, plan.between, plan.margin))
    if page_width:
        across = (page_width - 2 * edge - (columns - 1) * between) // columns
        picture_width = max(1, min(across, round(4 * across * width / height)))
        picture_height = max(1, round(picture_width * height / width))
    else:
        across = int(plan.across * frame) + (plan.across - 1) * gap
        picture_width, picture_height = enlarge * width, enlarge * height
        page_width = columns * across + (columns - 1) * between + 2 * edge
    spare = 0 if plan.cropped else across - picture_width
    face = Typeface(max(SMALLEST_TEXT, round(frame * min(1.0, 1.6 * min(4.0, height / width)) / 26)))
    return Sizes(page_width, across, picture_height, spare, gap, between, edge, border, face)


def block_shapes(plan: Plan, sizes: Sizes, aspect: float) -> Iterator[list[tuple[tuple[float, ...], float]]]:
    """For each block its rows: the panels' shares of the width, and the pictures' height in widths of the block."""
    page_height = 1.4
    for number, size in enumerate(plan.blocks):
        if not plan.cropped:
            yield [((1.0,), sizes.picture_height / sizes.across)] * size
            continue
        rows = comic_rows(size, max(0.25, aspect), number, page_height)
        page_height = sum(part for _, part in rows)
        yield rows


def place_block(rows: list[Row], left: int, top: int, sizes: Sizes, panels: list[Panel]) -> int:
    """Add the panels of a block, whose upper left corner is given, to `panels`; returns its lower end."""
    before = sizes.spare // 2
    after = sizes.spare - before
    for row in rows:
        bottom = top + row.height
        for cell in row.cells:
            picture = Box(left + cell.left + before, top, left + cell.right - after, bottom)
            room = Box(left + cell.left, bottom, left + cell.right, bottom + row.depth)
            panels.append(place(sizes.face, cell, picture, room))
        top = bottom + row.depth + sizes.gap
    return top - sizes.gap


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
    shares: tuple[float, ...], height: int, captions: Iterator[str], sizes: Sizes, caption_position: str
) -> Row:
    """Set the next of `captions` for panels that divide a block's width by `shares`, with pictures of one `height`."""
    face, gap = sizes.face, sizes.gap
    inset = round(0.5 * face.size)
    cells = []
    room = sizes.across - gap * (len(shares) - 1)
    for j in range(len(shares)):
        left, right = (round(room * sum(shares[:k])) + gap * j for k in (j, j + 1))
        caption = next(captions)
        inner = right - left - sizes.spare - 4 * inset
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
