"""Sets captions: fonts with fall-backs, line breaking, and the coverage of each line's ink.

Pillow's Raqm layout shapes each run of one font and direction; `bidi` orders the runs of a line.
"""

import logging
import re
import unicodedata
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex
from PIL import Image, ImageDraw, ImageFont, features

from .bidi import class_of, is_right_to_left, joined, levels, mirrored, visual_order

BUNDLED_FONTS = (
    "Nunito-Medium.ttf",
    "DroidSansFallback.ttf",
    "NotoEmoji-Regular.ttf",
    "NotoSansArabic-Regular.ttf",
    "DejaVuSans.ttf",
)
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
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "Nirmala.ttf",
    "LeelawUI.ttf",
    "seguisym.ttf",
    "unifont.otf",
)

OPENING = "([{「『（《〈【〔“‘«"
CLOSING = ")]}」』）》〉】〕”’»、。，．,.!?！？：；:;…—ー々・ぁぃぅぇぉっゃゅょァィゥェォッャュョ،؛؟۔"
# Chinese and Japanese, and emoji: a line may break on either side of each character.
WIDE = re.compile("[⺀-ヿ㐀-䶿一-鿿豈-\ufaff＀-￯\U00020000-\U0003ffff☀-➿\U0001f000-\U0001faff]")
# What stays together, by the kinds of its characters (`kind_of`).
PIECE = re.compile("O*(?:[WK]|[TC]*S+|[TC]+)?[KC]*")
# A character with all that belongs to it; of letters that may join, all of a word, which one font has to set.
UNIT = regex.compile(r"[\p{bc=R}\p{bc=AL}][\p{bc=R}\p{bc=AL}\p{bc=NSM}\u200c\u200d]*|\X")
RIGHT_TO_LEFT = regex.compile(r"[\p{bc=R}\p{bc=AL}\p{bc=AN}]")
EMOJI = regex.compile(r"\p{Extended_Pictographic}|\p{Regional_Indicator}|[0-9#*]\u20e3")
INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
# Of what is invisible, a caption keeps joiners, marks of direction, and the tags that name a region's flag.
DROPPED = regex.compile(
    r"(?![\u200c-\u200f\u061c\U000e0020-\U000e007f])\p{Default_Ignorable_Code_Point}|(?!\t)[\p{Cc}\p{Cs}]"
)
DIRECTION_MARKS = re.compile("[\u200e\u200f\u061c]")


class SetLine(NamedTuple):
    """A line of text with its advance `width` and the pixels that it takes above and below its baseline."""

    text: str
    width: float
    ascent: int
    descent: int
    right_to_left: bool = False


class Run(NamedTuple):
    """Text of one font and direction, as it is handed to Pillow."""

    font: ImageFont.FreeTypeFont
    text: str
    direction: str | None


class Typeface:
    """The bundled fonts at one `size` in pixels, followed by the system's; what none of them has is a □.

    Where Pillow finds no FriBiDi, and therefore has no Raqm, letters are joined by `bidi.joined` instead of the font.
    """

    def __init__(self, size: int):
        self.size = size
        self.raqm = features.check("raqm")
        folder = Path(__file__).parent / "fonts"
        self.fonts = [self.load(str(folder / name)) for name in BUNDLED_FONTS]
        self.untried = list(SYSTEM_FONTS)
        self.plain: dict[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont] = {}
        self.glyphs: dict[tuple[ImageFont.FreeTypeFont, str], bytes] = {}
        self.widths: dict[tuple[str, bool], float] = {}
        self.warned = False

    def load(self, name: str) -> ImageFont.FreeTypeFont:
        engine = ImageFont.Layout.RAQM if self.raqm else ImageFont.Layout.BASIC
        return ImageFont.truetype(name, self.size * FINE, layout_engine=engine)

    def set_text(self, text: str, width: float) -> tuple[SetLine, ...]:
        """Break `text` into lines of at most `width` pixels and of about equal length.

        Each paragraph runs in the direction of its first letter.
        """
        return tuple(
            self.set_line(line, is_right_to_left(paragraph))
            for paragraph in map(clean, text.splitlines())
            for line in self.balance(paragraph, width)
        )

    def set_line(self, text: str, right_to_left: bool | None = None) -> SetLine:
        """`text` as one line; None for the direction of its first letter."""
        if right_to_left is None:
            right_to_left = is_right_to_left(text)
        return SetLine(text, self.width(text, right_to_left), *self.extent(text, right_to_left), right_to_left)

    def balance(self, text: str, width: float) -> list[str]:
        pieces, right_to_left = pieces_of(text), is_right_to_left(text)
        lines = self.wrap(pieces, width, right_to_left)
        narrow, wide = max((self.width(piece, right_to_left) for _, piece in pieces), default=0), width
        while len(lines) > 1 and wide - narrow > self.size / 2:
            middle = (narrow + wide) / 2
            if len(self.wrap(pieces, middle, right_to_left)) == len(lines):
                wide = middle
            else:
                narrow = middle
        return self.wrap(pieces, wide, right_to_left)

    def wrap(self, pieces: list[tuple[str, str]], width: float, right_to_left: bool) -> list[str]:
        def fits(text: str) -> bool:
            return self.width(text, right_to_left) <= width

        lines: list[str] = []
        line = ""
        for space, piece in pieces:
            if line and fits(line + space + piece):
                line += space + piece
                continue
            if line:
                lines.append(line)
            line = ""
            for cluster in [piece] if fits(piece) else clusters(piece):
                if line and not fits(line + cluster):
                    lines.append(line)
                    line = ""
                line += cluster
        return [*lines, line] if line else lines

    def width(self, text: str, right_to_left: bool = False) -> float:
        key = text, right_to_left
        if key not in self.widths:
            runs = self.runs(text, right_to_left)
            self.widths[key] = sum(font.getlength(run, direction=direction) for font, run, direction in runs) / FINE
        return self.widths[key]

    def extent(self, text: str, right_to_left: bool = False) -> tuple[int, int]:
        """Pixels above and below the baseline: the usual ones, or more where tall glyphs need it."""
        boxes = [
            font.getbbox(run, anchor="ls", direction=direction)
            for font, run, direction in self.runs(text, right_to_left)
        ]
        above, below = max((-box[1] for box in boxes), default=0), max((box[3] for box in boxes), default=0)
        return ceil(max(1.02 * self.size, above / FINE)), ceil(max(0.34 * self.size, below / FINE))

    def mask(self, line: SetLine, fraction: float = 0.0) -> np.ndarray:
        """The coverage of `line`, starting half its size from the left edge: [height, width, 1], 0..1.

        `fraction` is how far its start lies after a whole pixel.
        """
        margin = self.size // 2
        width, height = ceil(line.width) + 2 * margin + 1, line.ascent + line.descent
        image = Image.new("L", (width * FINE, height * FINE))
        draw = ImageDraw.Draw(image)
        x = (margin + fraction) * FINE
        for font, run, direction in self.runs(line.text, line.right_to_left):
            draw.text((x, line.ascent * FINE), run, font=font, fill=255, anchor="ls", direction=direction)
            x += font.getlength(run, direction=direction)
        return np.asarray(image.reduce(FINE), np.float32)[..., None] / 255

    def runs(self, text: str, right_to_left: bool = False) -> list[Run]:
        """Split a line into runs of one font and direction, from left to right as they are seen."""
        mixed = right_to_left or RIGHT_TO_LEFT.search(text) is not None
        if mixed:
            self.warn()
        at = levels(text, right_to_left) if mixed else [0] * len(text)
        units = UNIT.findall(text)
        # What stands among right-to-left letters, such as brackets and numbers, is of their font where it has that.
        first = next((unit for unit in units if class_of(unit[0]) in "RA" and not INVISIBLE.match(unit)), "")
        own = self.font_for(first)[0] if first else None
        runs: list[tuple[ImageFont.FreeTypeFont, str, int]] = []
        start = 0
        for unit in units:
            level = at[start]
            start += len(unit)
            kind = class_of(unit[0])
            among = kind == "N" or (kind == "E" and right_to_left) or (kind not in "LRAE" and level % 2)
            before = runs[-1][0] if runs else self.fonts[0]
            wanted = (own if among else None, before if unit == " " and runs else None)
            near = next((font for font in wanted if font and self.has_all(font, unit)), None)
            # A mark of direction alone is an empty run, which keeps numbers on its two sides apart.
            for font, part in [(near, unit)] if near else self.parts_of(unit) or [(before, "")]:
                if runs and runs[-1][0] is font and runs[-1][2] == level:
                    runs[-1] = (font, runs[-1][1] + part, level)
                else:
                    runs.append((font, part, level))
        return [self.drawn(*runs[i]) for i in visual_order([level for _, _, level in runs]) if runs[i][1]]

    def drawn(self, font: ImageFont.FreeTypeFont, text: str, level: int) -> Run:
        if self.raqm:
            return Run(font, text, "rtl" if level % 2 else "ltr")
        shaped = joined(text)
        if all(self.has(font, character) or INVISIBLE.match(character) for character in shaped):
            text = shaped
        text = INVISIBLE.sub("", text)
        if level % 2:
            text = "".join(mirrored(cluster) or cluster for cluster in reversed(clusters(text)))
        return Run(font, text, None)

    def parts_of(self, unit: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """The unit as one font sets it, or in parts where no font has all of it or draws its emoji as one."""
        unit = DIRECTION_MARKS.sub("", unit)
        visible = INVISIBLE.sub("", unit)
        if not visible:
            return []
        font = self.find(visible)
        sequence = len(visible) > 1 and EMOJI.match(visible) is not None
        if font and not (sequence and font.getlength(unit) > 0.9 * sum(map(font.getlength, visible))):
            return [(font, unit)]
        if sequence:
            flag = "\U0001f1e6" <= visible[0] <= "\U0001f1ff"
            members = list(visible) if flag else [member[0] for member in unit.split("\u200d") if member]
        else:
            members = clusters(unit)
        if len(members) > 1:
            return [part for member in members for part in self.parts_of(member)]
        return [self.font_for(members[0])]

    def find(self, text: str) -> ImageFont.FreeTypeFont | None:
        """The first font that has every visible character of `text`."""
        return next((font for font in self.all_fonts() if self.has_all(font, text)), None)

    def has_all(self, font: ImageFont.FreeTypeFont, text: str) -> bool:
        return all(self.has(font, character) or INVISIBLE.match(character) for character in text)

    def font_for(self, cluster: str) -> tuple[ImageFont.FreeTypeFont, str]:
        """The font for a cluster, and what is drawn of it: all, its first character without marks, or a □."""
        for part in (cluster, cluster[0], "□"):
            if font := self.find(part):
                return font, part
        raise AssertionError("the bundled fonts have □")

    def all_fonts(self) -> Iterator[ImageFont.FreeTypeFont]:
        yield from self.fonts
        while self.untried:
            try:
                self.fonts.append(self.load(self.untried.pop(0)))
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

    def warn(self) -> None:
        if not self.raqm and not self.warned:
            self.warned = True
            logging.warning(
                "OneStory sets right-to-left text with plain letter forms, and vowel marks may stand badly, because "
                "Pillow finds no FriBiDi on this computer: install FriBiDi (libfribidi, fribidi.dll) for better ones."
            )


def clean(text: str) -> str:
    """Composed characters with single spaces, without controls, variation selectors and what orders whole texts.

    Joiners, skin tones, and marks of direction stay. "" where nothing would be seen.
    """
    text = DROPPED.sub("", unicodedata.normalize("NFC", text))
    spaced = (" " if c == "\t" or (c != "\u00a0" and unicodedata.category(c) == "Zs") else c for c in text)
    text = re.sub(" +", " ", "".join(spaced)).strip(" ")
    return text if INVISIBLE.sub("", text).strip() else ""


def pieces_of(text: str) -> list[tuple[str, str]]:
    """What a line may break between, each with the space before it: words, Chinese or Japanese characters, emoji."""
    pieces: list[tuple[str, str]] = []
    for word in text.split(" "):
        parts = clusters(word)
        found = PIECE.finditer("".join(map(kind_of, parts)))
        for j, span in enumerate(match.span() for match in found if match[0]):
            pieces.append((" " if j == 0 and pieces else "", "".join(parts[slice(*span)])))
    return pieces


def kind_of(cluster: str) -> str:
    """O for an opening bracket or quote, C for what ends a phrase (K where it is wide), W for a wide character, S for
    a hyphen or slash, T for any other text."""
    first = cluster[0]
    wide = WIDE.match(first)
    if first in OPENING:
        return "O"
    if first in CLOSING:
        return "K" if wide else "C"
    return "W" if wide else "S" if first in "/-" else "T"


def clusters(text: str) -> list[str]:
    """What a reader takes for one character: a letter with its marks, a syllable, an emoji with its parts."""
    return regex.findall(r"\X", text)
