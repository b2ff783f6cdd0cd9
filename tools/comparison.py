"""The frames of one story drawn in several ways, a row for each way under its name, as one picture.

    python comparison.py FILE --row NAME FRAME ... --row NAME FRAME ...

The workflow in the first frame's metadata goes into the picture's, so that ComfyUI's editor opens it from there too.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

sys.path.append(str(Path(__file__).resolve().parents[1]))

from onestory.pages.board import draw_board  # noqa: E402

INK, PAPER = (40, 36, 32), (250, 248, 243)
FRAME_WIDTH = 320
LONGEST_ROW = 10


def compare(ways: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Frames of equal size, by the names of the ways that they were drawn in, as one picture."""
    rows = {name: row(frames) for name, frames in ways.items()}
    sheet = Image.new(
        "RGB", (next(iter(rows.values())).width, sum(picture.height + 40 for picture in rows.values())), PAPER
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    top = 0
    for name, picture in rows.items():
        pen.text((16, top + 20), name, fill=INK, font=font, anchor="lm")
        sheet.paste(picture, (0, top + 40))
        top += picture.height + 40
    return sheet


def row(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames side by side, without captions; after so many of them a new line begins."""
    pixels = np.stack([np.asarray(frame.convert("RGB"), np.float32) / 255 for frame in frames])
    columns = min(len(frames), LONGEST_ROW)
    board = draw_board(pixels, [""] * len(frames), "grid", columns, page_width=columns * FRAME_WIDTH)
    return Image.fromarray((board * 255).round().astype(np.uint8))


def main(file: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write the picture of these rows, each a name and its frames' files, at `file`."""
    ways = {name: [Image.open(path) for path in paths] for name, *paths in rows}
    metadata = PngInfo()
    for key, text in next(iter(ways.values()))[0].info.items():
        if key in ("prompt", "workflow"):
            metadata.add_text(key, text)
    compare(ways).save(file, pnginfo=metadata)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--row", dest="rows", metavar=("NAME", "FRAME"), nargs="+", action="append", required=True)
    args = parser.parse_args()
    main(args.file, args.rows)
