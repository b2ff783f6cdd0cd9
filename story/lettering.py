"""Sets captions: fonts with fall-backs, line breaking, and the coverage of each line's ink."""

import re
import unicodedata
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BUNDLED_FONTS = ("Nunito-Medium.ttf", "DroidSansFallback.ttf", "NotoEmoji-Regular.ttf", "DejaVuSans.ttf")
# Letters are drawn this much larger and reduced: Pillow moves them to whole pixels, which spaces small text badly.
FINE = 4
# By the file names that Linux, macOS and Windows give them; Pillow knows the folders.
SYSTEM_FONTS = (
    "NotoSans-Regular.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "Hiragino Sans GB.ttc",
    "wqy-microhei.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "Nirmala.ttf",
    "LeelawUI.ttf",
    "seguisym.ttf",
    "unifont.otf",
)

OPENING = r"(\[{「『（《〈【〔“‘«"
CLOSING = r")\]}」』）》〉】〕”’»、。，．,.!?！？：；:;…—ー々・ぁぃぅぇぉっゃゅょァィゥェォッャュョ"
# Chinese and Japanese, and emoji: a line may break on either side of each character.
WIDE = "⺀-ヿ㐀-䶿一-鿿豈-﫿＀-￯\U00020000-\U0003ffff☀-➿\U0001f000-\U0001faff"
PIECE = re.compile(
    rf"[{OPENING}]*(?:[{WIDE}]|[^{WIDE}{OPENING}/-]*[/-]+|[^{WIDE}{OPENING}/-]+)?[{CLOSING}\u0300-\u036f\u3099\u309a]*"
)
MODIFIERS = re.compile("[\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0000-\U000e01ef]")


class SetLine(NamedTuple):
    """A line of text with its advance `width` and the pixels that it takes above and below its baseline."""

    text: str
    width: float
    ascent: int
    descent: int


class Typeface:
    """The bundled fonts at one `size` in pixels, with the system's behind them; what none of them has is a □."""

    def __init__(self, size: int):
        self.size = size
        folder = Path(__file__).parent / "fonts"
        self.fonts = [ImageFont.truetype(str(folder / name), size * FINE) for name in BUNDLED_FONTS]
        self.untried = list(SYSTEM_FONTS)
        self.plain: dict[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont] = {}
        self.glyphs: dict[tuple[ImageFont.FreeTypeFont, str], bytes] = {}
        self.widths: dict[str, float] = {}

    def set_text(self, text: str, width: float) -> tuple[SetLine, ...]:
        """Break `text` into lines of at most `width` pixels and of about equal length."""
        return tuple(
            SetLine(line, self.width(line), *self.extent(line))
            for paragraph in text.splitlines()
            for line in self.balance(clean(paragraph), width)
        )

    def balance(self, text: str, width: float) -> list[str]:
        pieces = pieces_of(text)
        lines = self.wrap(pieces, width)
        narrow, wide = max((self.width(piece) for _, piece in pieces), default=0), width
        while len(lines) > 1 and wide - narrow > self.size / 2:
            middle = (narrow + wide) / 2
            if len(self.wrap(pieces, middle)) == len(lines):
                wide = middle
            else:
                narrow = middle
        return self.wrap(pieces, wide)

    def wrap(self, pieces: list[tuple[str, str]], width: float) -> list[str]:
        lines: list[str] = []
        line = ""
        for space, piece in pieces:
            if line and self.width(line + space + piece) <= width:
                line += space + piece
                continue
            if line:
                lines.append(line)
            line = ""
            for cluster in [piece] if self.width(piece) <= width else clusters(piece):
                if line and self.width(line + cluster) > width:
                    lines.append(line)
                    line = ""
                line += cluster
        return [*lines, line] if line else lines

    def width(self, text: str) -> float:
        if text not in self.widths:
            self.widths[text] = sum(font.getlength(run) for font, run in self.runs(text)) / FINE
        return self.widths[text]

    def extent(self, text: str) -> tuple[int, int]:
        """Pixels above and below the baseline: the usual ones, or more where tall glyphs need it."""
        boxes = [font.getbbox(run, anchor="ls") for font, run in self.runs(text)]
        above, below = max(-box[1] for box in boxes) / FINE, max(box[3] for box in boxes) / FINE
        return ceil(max(1.02 * self.size, above)), ceil(max(0.34 * self.size, below))

    def mask(self, line: SetLine, fraction: float = 0.0) -> np.ndarray:
        """The coverage of `line`, starting half its size from the left edge: [height, width, 1], 0..1.

        `fraction` is how far its start lies behind a whole pixel.
        """
        margin = self.size // 2
        width, height = ceil(line.width) + 2 * margin + 1, line.ascent + line.descent
        image = Image.new("L", (width * FINE, height * FINE))
        draw = ImageDraw.Draw(image)
        x = (margin + fraction) * FINE
        for font, run in self.runs(line.text):
            draw.text((x, line.ascent * FINE), run, font=font, fill=255, anchor="ls")
            x += font.getlength(run)
        return np.asarray(image.reduce(FINE), np.float32)[..., None] / 255

    def runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """Split `text` into runs of one font each."""
        runs: list[tuple[ImageFont.FreeTypeFont, str]] = []
        for cluster in clusters(text):
            spaced = cluster == " " and runs and self.has(runs[-1][0], " ")
            font, cluster = (runs[-1][0], " ") if spaced else self.font_for(cluster)
            if runs and runs[-1][0] is font:
                runs[-1] = (font, runs[-1][1] + cluster)
            else:
                runs.append((font, cluster))
        return runs

    def font_for(self, cluster: str) -> tuple[ImageFont.FreeTypeFont, str]:
        for part in (cluster, cluster[0], "□"):
            for font in self.all_fonts():
                if all(self.has(font, character) for character in part):
                    return font, part
        raise AssertionError("the bundled fonts have □")

    def all_fonts(self) -> Iterator[ImageFont.FreeTypeFont]:
        yield from self.fonts
        while self.untried:
            try:
                self.fonts.append(ImageFont.truetype(self.untried.pop(0), self.size * FINE))
            except OSError:
                continue
            yield self.fonts[-1]

    def has(self, font: ImageFont.FreeTypeFont, character: str) -> bool:
        # Pillow doesn't tell which characters a font has, but draws an absent one like this noncharacter.
        return self.glyph(font, character) != self.glyph(font, "\U0010ffff")

    def glyph(self, font: ImageFont.FreeTypeFont, character: str) -> bytes:
        """A character's pixels without shaping, which would add a circle to a lone combining mark."""
        if font not in self.plain:
            self.plain[font] = font.font_variant(size=16, layout_engine=ImageFont.Layout.BASIC)
        if (font, character) not in self.glyphs:
            mask = self.plain[font].getmask(character)
            self.glyphs[font, character] = bytes(mask.size) + bytes(mask)
        return self.glyphs[font, character]


def clean(text: str) -> str:
    """Composed characters with single spaces, without controls, joiners and emoji modifiers."""
    text = MODIFIERS.sub("", unicodedata.normalize("NFC", text))
    kept = (c if c in "\t\u00a0" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "" for c in text)
    spaced = (" " if c == "\t" or (c != "\u00a0" and unicodedata.category(c) == "Zs") else c for c in kept if c)
    return re.sub(" +", " ", "".join(spaced)).strip(" ")


def pieces_of(text: str) -> list[tuple[str, str]]:
    """What a line may break between, each with the space before it: words, Chinese or Japanese characters."""
    pieces: list[tuple[str, str]] = []
    for word in text.split(" "):
        for j, piece in enumerate(filter(None, PIECE.findall(word))):
            pieces.append((" " if j == 0 and pieces else "", piece))
    return pieces


def clusters(text: str) -> list[str]:
    """Characters, each with the combining marks that follow it."""
    found: list[str] = []
    for character in text:
        if found and unicodedata.category(character) in ("Mn", "Mc", "Me"):
            found[-1] += character
        else:
            found.append(character)
    return found
