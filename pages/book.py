"""A story on pages: boards with speech bubbles and a title, and files that hold the pages."""

import io
import zipfile
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from ..story.speech import Speech, split_speech
from .board import INK, PAPER, Box, Page, Panel, lay_out, paint
from .bubbles import Bubble, Point, draw_bubbles, set_bubbles
from .ink import write
from .lettering import Typeface, clean

JPEG_QUALITY = 95


def draw_pages(
    images: np.ndarray,
    captions: Sequence[str],
    names: Sequence[str] | None,
    points: Sequence[Point | None],
    title: str = "",
    frames_per_page: int = 0,
    **board: Any,
) -> list[np.ndarray]:
    """Draw `images` [frames, height, width, 3 or 4], 0..1, with their captions as pages of so many frames, 0 for one.

    What the characters called `names` say in a caption stands in bubbles; None leaves it in the caption. `points` are
    where each frame's speaker is, in parts of the picture's width and height. `title` stands over the first page, and
    `board` are `lay_out`'s further arguments. Returns pages [height, width, 3], float32.
    """
    step = frames_per_page or len(images)
    pages = []
    for first in range(0, len(images), step):
        part = slice(first, first + step)
        page, drawn = draw_page(images[part], captions[part], names, points[part], board)
        pages.append(drawn if first else with_title(drawn, page, title))
    return pages


def draw_page(
    images: np.ndarray,
    captions: Sequence[str],
    names: Sequence[str] | None,
    points: Sequence[Point | None],
    board: dict[str, Any],
) -> tuple[Page, np.ndarray]:
    """One page, laid out and drawn."""
    page, bubbles = lay_out_page(captions, names, points, images.shape[2], images.shape[1], board)
    drawn = paint(images, page)
    for own in bubbles.values():
        draw_bubbles(drawn, page.face, own)
    return page, drawn


def lay_out_page(
    captions: Sequence[str],
    names: Sequence[str] | None,
    points: Sequence[Point | None],
    width: int,
    height: int,
    board: dict[str, Any],
) -> tuple[Page, dict[int, tuple[Bubble, ...]]]:
    """A page for frames of `width` x `height` pixels, and the bubbles of each frame that has some.

    A frame with no room for its bubbles has its whole caption as it is written.
    """
    spoken = [(caption, ()) if names is None else split_speech(caption, names) for caption in captions]
    speaking = {j for j, (_, said) in enumerate(spoken) if said}
    while True:
        texts = [spoken[j][0] if j in speaking else caption for j, caption in enumerate(captions)]
        page = lay_out(texts, width, height, **board)
        found = {j: bubbles_in(page, page.panels[j], spoken[j][1], points[j], width, height) for j in sorted(speaking)}
        crowded = {j for j, bubbles in found.items() if not bubbles}
        if not crowded:
            return page, {j: bubbles for j, bubbles in found.items() if bubbles}
        speaking -= crowded


def bubbles_in(
    page: Page, panel: Panel, said: Sequence[Speech], point: Point | None, width: int, height: int
) -> tuple[Bubble, ...] | None:
    """The bubbles of a panel that shows a frame of `width` x `height` pixels. A point is that of one speaker."""
    room = panel.picture._replace(bottom=panel.caption.top) if panel.inside else panel.picture
    at = None
    if point and len({speech.name for speech in said}) == 1:
        at = on_page(panel.picture, point, width, height)
    return set_bubbles(page.face, [speech.text for speech in said], room, [at] * len(said))


def on_page(picture: Box, point: Point, width: int, height: int) -> Point:
    """Where a point of a frame is on the page, which may show its upper middle only (`board.fill`)."""
    wide, high = picture.right - picture.left, picture.bottom - picture.top
    scale = max(wide / width, high / height)
    left, top = max(0.0, width - wide / scale) / 2, max(0.0, height - high / scale) / 3
    return picture.left + (point[0] * width - left) * scale, picture.top + (point[1] * height - top) * scale


def with_title(drawn: np.ndarray, page: Page, title: str) -> np.ndarray:
    """The page with a title over it."""
    face = Typeface(round(1.9 * page.face.size))
    edge = min(panel.picture.left for panel in page.panels) - page.border
    lines = face.set_text(title, max(page.width - 2 * edge, 4 * face.size))
    if not lines:
        return drawn
    above = max(edge, face.size // 2)
    band = np.empty((above + sum(line.ascent + line.descent for line in lines), page.width, 3), np.float32)
    band[:] = PAPER
    y = above
    for line in lines:
        write(band, face, line, (page.width - line.width) / 2, y + line.ascent, INK)
        y += line.ascent + line.descent
    return np.concatenate([band, drawn])


def as_pdf(pages: Sequence[np.ndarray], title: str, resolution: int) -> bytes:
    """The pages [height, width, 3], 0..1, as a PDF; `resolution` is in pixels per inch."""
    first, *others = map(as_image, pages)
    file = io.BytesIO()
    first.save(
        file,
        "PDF",
        save_all=True,
        append_images=others,
        resolution=resolution,
        title=clean(title),
        quality=JPEG_QUALITY,
        subsampling=0,
    )
    return file.getvalue()


def as_cbz(pages: Sequence[np.ndarray], title: str) -> bytes:
    """The pages [height, width, 3], 0..1, as a comic book archive: PNG files in reading order, and ComicInfo.xml."""
    file = io.BytesIO()
    digits = max(3, len(str(len(pages))))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number, page in enumerate(pages, 1):
            picture = io.BytesIO()
            as_image(page).save(picture, "PNG")
            archive.writestr(f"page_{number:0{digits}}.png", picture.getvalue())
        archive.writestr("ComicInfo.xml", comic_info(title, len(pages)))
    return file.getvalue()


def comic_info(title: str, pages: int) -> str:
    """What a comic reader shows of a book, in the ComicInfo format (github.com/anansi-project/comicinfo)."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f"<ComicInfo>\n  <Title>{escape(clean(title))}</Title>\n  <PageCount>{pages}</PageCount>\n</ComicInfo>\n"
    )


def as_image(page: np.ndarray) -> Image.Image:
    if page.shape[2] == 4:
        page = page[..., :3] * page[..., 3:] + PAPER * (1 - page[..., 3:])
    return Image.fromarray((page.clip(0, 1) * 255).round().astype(np.uint8))
