import logging
import os
import random
import re
import subprocess
import sys
from itertools import combinations
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from onestory.pages import bidi, lettering
from onestory.pages.board import INK, LAYOUTS, PAPER, Box, Page, draw_board, lay_out, match_captions
from onestory.pages.lettering import FINE, Typeface, clean, clusters
from onestory.story.captions import replace_captions
from onestory.story.script import parse_script
from PIL import Image, ImageDraw, ImageFont, features

CAPTIONS = [
    "A young red fox finds a lantern in the snow.",
    "He follows its light across the frozen river, one careful paw at a time, while the wind hums an old tune that "
    "only badgers know, and the stars come out one by one.",
    "",
    "“Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft!”",
    "小狐狸在雪地里发现了一盏灯笼，它发出温暖的光芒，照亮了整个森林。「真美啊！」他说。",
    "きつねは、雪の中で小さなランタンを見つけました。とてもあたたかい光です。",
    "Tea 🍯 and honey ❤️ by the fire 👩‍🚀👍🏽 1️⃣ 🇩🇪",
    "여우는 눈 속에서 등불을 찾았습니다. Жила-была лиса. Где é̄́ lto",
    "العربية \ue000 हिन्दी \U0010fffd Ω\u0000\ud800",
    "First line.\nSecond line.",
    "   ",
    "الفصل 12: الثعلب (كبير) Mia 🦊 中文\nשלום, Mia!",
    "می\u200cخواهم 👨\u200d👩\u200d👧 Ωμέγα ۱۲/۵",
]
COUNTS = [*range(1, 14), 40, 100]


def captions(count: int) -> list[str]:
    return [CAPTIONS[j % len(CAPTIONS)] for j in range(count)]


def overlap(a: Box, b: Box) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def within(a: Box, b: Box) -> bool:
    return a.left >= b.left and a.top >= b.top and a.right <= b.right and a.bottom <= b.bottom


def ink(page: Page, x: float, baseline: int, line) -> Box:
    """The box of the line's inked pixels on the page, which are not cut at the edge of its mask."""
    mask = page.face.mask(line, x % 1)[..., 0]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert columns[0] > 0 and columns[-1] < mask.shape[1] - 1
    left, top = int(x) - page.face.size // 2, baseline - line.ascent
    return Box(left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)


def check(page: Page, texts: list[str]) -> None:
    sheet = Box(0, 0, page.width, page.height)
    assert len(page.panels) == len(texts)
    for panel, text in zip(page.panels, texts):
        b = page.border
        left, top, right, bottom = panel.picture
        assert within(Box(left - b, top - b, right + b, bottom + b), sheet)
        assert within(panel.caption, panel.picture if panel.inside else sheet)
        assert panel.inside or not overlap(panel.caption, panel.picture)
        boxes = [ink(page, *line) for line in panel.lines]
        assert all(within(box, panel.caption) for box in boxes)
        assert not any(overlap(one, other) for one, other in combinations(boxes, 2))
        said = "".join(line.text for _, _, line in panel.lines)
        assert re.sub(r"\s", "", said) == "".join(re.sub(r"\s", "", clean(line)) for line in text.splitlines())
    pictures = [panel.picture for panel in page.panels]
    rooms = [panel.caption for panel in page.panels if panel.lines and not panel.inside]
    assert not any(overlap(one, other) for one, other in combinations(pictures + rooms, 2))


@pytest.mark.parametrize("position", ["below", "inside"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", COUNTS)
def test_every_word_is_set_within_its_own_room(count, layout, position):
    check(lay_out(captions(count), 96, 64, layout, caption_position=position), captions(count))


@pytest.mark.parametrize(
    "size", [(64, 64), (1024, 1024), (832, 1216), (2048, 64), (64, 2048), (8, 8), (1, 700), (700, 1)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page_width, gutter", [(0, 0), (2000, 30)])
def test_any_aspect_and_gutter(size, layout, page_width, gutter):
    for position in ("below", "inside"):
        page = lay_out(captions(9), *size, layout, 0, position, gutter, page_width)
        check(page, captions(9))
        assert page.width == page_width or not page_width


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("layout, width", [("grid", 512), ("comic page", 1001), ("four-panel", 1920)])
def test_the_page_is_as_wide_as_asked(count, layout, width):
    page = lay_out(captions(count), 96, 72, layout, page_width=width)
    check(page, captions(count))
    assert page.width == width


def test_a_page_too_narrow_names_the_width_that_would_do():
    with pytest.raises(ValueError, match="512 pixels wide is too narrow") as error:
        lay_out([""] * 40, 64, 64, "strip", page_width=512)
    enough = int(re.search(r"set page_width to (\d+)", str(error.value))[1])
    check(lay_out([""] * 40, 64, 64, "strip", page_width=enough), [""] * 40)


@pytest.mark.parametrize(
    "width, height, factor", [(320, 256, 1), (256, 300, 1), (64, 64, 4), (1100, 90, 1), (40, 900, 1)]
)
@pytest.mark.parametrize("layout", ["grid", "strip", "four-panel"])
def test_every_pixel_of_every_frame_is_on_the_page(width, height, factor, layout):
    images = np.random.default_rng(0).random((5, height, width, 3), np.float32)
    board = draw_board(images, captions(5), layout)
    for image, panel in zip(images, lay_out(captions(5), width, height, layout).panels):
        left, top, right, bottom = panel.picture
        assert np.array_equal(board[top:bottom, left:right], np.kron(image, np.ones((factor, factor, 1), np.float32)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_inked_outside_pictures_borders_and_captions(layout):
    images = np.broadcast_to(INK, (len(CAPTIONS), 80, 120, 3))
    page = lay_out(CAPTIONS, 120, 80, layout)
    board = draw_board(images, CAPTIONS, layout)
    assert board.shape == (page.height, page.width, 3) and board.dtype == np.float32
    for panel in page.panels:
        left, top, right, bottom = panel.picture
        b = page.border
        assert np.abs(board[top - b : bottom + b, left - b : right + b] - INK).max() < 1 / 255
        board[top - b : bottom + b, left - b : right + b] = PAPER
        left, top, right, bottom = panel.caption
        assert (board[top:bottom, left:right] == PAPER).all() == (not panel.lines)
        board[top:bottom, left:right] = PAPER
    assert (board == PAPER).all()


def test_comic_panels_show_two_thirds_of_their_frame_or_more():
    for width, height in ((1024, 1024), (832, 1216), (1344, 768)):
        for count in COUNTS:
            for panel in lay_out([""] * count, width, height, "comic page").panels:
                left, top, right, bottom = panel.picture
                aspect = (right - left) / (bottom - top) * height / width
                assert min(aspect, 1 / aspect) > 0.66
        shapes = {(p.picture.right - p.picture.left) for p in lay_out([""] * 8, width, height, "comic page").panels}
        assert len(shapes) > 2


def test_frames_read_row_by_row_and_four_panels_read_downward():
    corners = [(p.picture.top, p.picture.left) for p in lay_out(captions(13), 96, 64).panels]
    assert corners == sorted(corners)
    corners = [(p.picture.left, p.picture.top) for p in lay_out(captions(13), 96, 64, "four-panel").panels]
    assert corners == sorted(corners)
    assert len({left for left, _ in corners}) == 4 and len({top for _, top in corners}) == 4


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 50])
def test_columns_are_as_asked(columns):
    tops = [p.picture.top for p in lay_out(captions(7), 96, 64, columns=columns).panels]
    assert tops.count(tops[0]) == min(columns, 7)


@pytest.mark.parametrize("count, rows", [(1, [1]), (2, [2]), (4, [2, 2]), (6, [3, 3]), (7, [4, 3]), (9, [3, 3, 3])])
def test_automatic_columns(count, rows):
    tops = [p.picture.top for p in lay_out([""] * count, 512, 512).panels]
    assert [tops.count(top) for top in dict.fromkeys(tops)] == rows


def test_captions_of_tiny_frames_are_readable():
    page = lay_out(["a caption of a few words"], 16, 16)
    assert page.face.size >= 15 and len(page.panels[0].lines) == 1


def test_chinese_wraps_without_spaces_and_no_line_begins_with_a_closing_mark():
    for text in (CAPTIONS[4], CAPTIONS[5]):
        for width in range(60, 300, 15):
            lines = Typeface(15).set_text(text, width)
            assert len(lines) > 1 and all(line.width <= width for line in lines)
            assert not any(line.text[0] in "，。、」！" or line.text[-1] == "「" for line in lines)


def test_bundled_fonts_have_what_captions_need():
    face = Typeface(20)
    face.untried = []
    needed = "Aéßğőżñ“”’—…–ЖяĐệ你們爱愛発広きつねキツネー한글！，。「」🦊🍯🏰❤☀"
    for character in needed:
        assert face.font_for(character)[1] == character
    assert face.font_for("\ue000")[1] == "□"


@pytest.mark.parametrize(
    "frames, images, expected",
    [(3, 3, "abc"), (3, 6, "abcabc"), (3, 2, "ab"), (3, 5, "abc  "), (1, 4, "aaaa")],
)
def test_captions_repeat_for_several_takes_and_otherwise_go_as_far_as_they_last(frames, images, expected):
    assert match_captions(list("abc"[:frames]), images) == [c.strip() for c in expected]


def test_transparent_images_lie_on_the_paper():
    images = np.zeros((1, 256, 256, 4), np.float32)
    images[:, 128:, :, 3] = 1
    board = draw_board(images, [""])
    left, top, right, bottom = lay_out([""], 256, 256).panels[0].picture
    assert (board[top : top + 128, left:right] == PAPER).all()
    assert (board[top + 128 : bottom, left:right] == 0).all()


def test_resized_pictures_keep_their_colors():
    images = np.full((2, 100, 150, 3), (0.2, 0.4, 0.6), np.float32)
    for layout in LAYOUTS:
        board = draw_board(images, ["", ""], layout, page_width=1000)
        for panel in lay_out(["", ""], 150, 100, layout, page_width=1000).panels:
            left, top, right, bottom = panel.picture
            assert np.abs(board[top:bottom, left:right] - (0.2, 0.4, 0.6)).max() < 1 / 255


def test_the_node_takes_any_dtype_and_returns_one_image():
    from onestory.nodes.board import OneStoryBoard

    story = parse_script("a fox", "reads # He reads.\nsleeps # He sleeps.")
    for count, dtype in ((1, torch.float32), (2, torch.float16), (3, torch.bfloat16), (4, torch.float64)):
        ((page,),) = OneStoryBoard.execute(torch.rand(count, 64, 64, 3, dtype=dtype), story, 0, True).result
        assert page.dtype == torch.float32 and page.shape[0] == 1 and page.shape[3] == 3
        assert page.min() >= 0 and page.max() <= 1
    ((plain,),) = OneStoryBoard.execute(torch.rand(2, 64, 64, 3), story, 0, False).result
    ((words,),) = OneStoryBoard.execute(torch.rand(2, 64, 64, 3), story, 0, True).result
    assert words.shape[1] > plain.shape[1]


def test_the_same_board_twice_is_the_same():
    images = np.random.default_rng(1).random((3, 64, 64, 3), np.float32)
    assert np.array_equal(draw_board(images, captions(3)), draw_board(images, captions(3)))


# --- right-to-left scripts, joiners and clusters ----------------------------------------------------------------------

needs_raqm = pytest.mark.skipif(not features.check("raqm"), reason="Pillow finds no FriBiDi here")
FONTS = Path(lettering.__file__).parent / "fonts"
ARABIC_FONT = FONTS / "NotoSansArabic-Regular.ttf"
VISUAL = [
    ("الفصل 12: الثعلب", [": الثعلب", "12", "الفصل "]),
    ("الثعلب Mia يقرأ", [" يقرأ", "Mia", "الثعلب "]),
    ("حديقة (كبيرة) جدا", ["حديقة (كبيرة) جدا"]),
    ("Mia يقرأ كتاب!", ["Mia ", "يقرأ كتاب", "!"]),
    ("Mia (الثعلب 12) runs", ["Mia (", "12", "الثعلب ", ") runs"]),
    ("שלום (Mia), 3 ספרים", [" ספרים", "3", " ", "),", "Mia", "(", "שלום "]),
    ("ثعلب 🦊中文 Tea", ["中文", " Tea", "🦊", "ثعلب "]),
]


def reference(text: str, size: int, path: Path = ARABIC_FONT) -> np.ndarray:
    """A whole line in one font as Raqm orders and shapes it by itself, on the same place as `Typeface.mask`."""
    font = ImageFont.truetype(str(path), size * FINE)
    direction = "rtl" if bidi.is_right_to_left(text) else "ltr"
    line = Typeface(size).set_line(text)
    margin = size // 2
    image = Image.new("L", ((ceil(line.width) + 2 * margin + 1) * FINE, (line.ascent + line.descent) * FINE))
    at = (margin * FINE, line.ascent * FINE)
    ImageDraw.Draw(image).text(at, text, font=font, fill=255, anchor="ls", direction=direction)
    return np.asarray(image.reduce(FINE), np.float32)[..., None] / 255


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """How much of the ink stands elsewhere, 0 for none; whole letters in other places are more than a tenth."""
    wide = max(a.shape[1], b.shape[1])
    a, b = (np.pad(x, [(0, 0), (0, wide - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]) for x in (a, b))
    return float(np.abs(a - b).sum() / b.sum())


def blank(count: int = 1) -> torch.Tensor:
    return torch.ones(count, 64, 256, 3)


@needs_raqm
@pytest.mark.parametrize(
    "text", ["الفصل 12: الثعلب", "حديقة (كبيرة) جدا", "می\u200cخواهم، ۱۲ تا!", "وہ کتاب پڑھ رہی ہے۔ (3-4)"]
)
@pytest.mark.parametrize("position", ["below", "inside"])
def test_the_board_shows_a_right_to_left_caption_as_raqm_draws_it(text, position):
    from onestory.nodes.board import OneStoryBoard

    ((page,),) = OneStoryBoard.execute(
        blank(), parse_script("a fox", f"reads # {text}"), 0, True, "grid", position
    ).result
    layout = lay_out([text], 256, 64, caption_position=position)
    [(x, baseline, line)] = layout.panels[0].lines
    size = layout.face.size
    wanted = reference(text, size)
    left, top = int(x) - size // 2, baseline - line.ascent
    drawn = page[0, top : top + wanted.shape[0], left : left + wanted.shape[1]].numpy()
    paper = drawn.max()
    found = np.where(drawn < paper - 0.05, (paper - drawn) / (paper - INK.min()), 0).max(2)
    shifted = [np.roll(wanted[..., 0], step, 1) for step in (0, 1)]
    # The baseline may start between two pixels: what stands between them is the mean of both.
    assert differ(found, (1 - x % 1) * shifted[0] + x % 1 * shifted[1]) < 0.35
    backwards = wanted[:, ::-1, 0]
    assert differ(found, backwards) > 0.8


@needs_raqm
@pytest.mark.parametrize("text, runs", VISUAL)
def test_mixed_lines_read_in_their_order(text, runs):
    """The runs from left to right as they are seen; the letters within each are Raqm's to order."""
    face = Typeface(20)
    face.untried = []
    assert [run.text for run in face.runs(text, bidi.is_right_to_left(text))] == runs


@needs_raqm
def test_any_line_of_one_font_is_as_raqm_draws_it_whole():
    """Random lines of Arabic letters, both kinds of digits, brackets, separators and marks of direction."""
    rng = random.Random(5)
    face, letters = Typeface(20), "ابتثج  س 12 34 ٣٤ ۵۶ (())[]{} +-/.,:%! \u200e\u200e\u200e\u200f"
    face.fonts = [face.load(str(ARABIC_FONT))]
    for _ in range(400):
        text = clean("ا" * rng.randint(0, 1) + "".join(rng.choices(letters, k=rng.randint(3, 14))))
        if not text or re.search(
            "[ا-ي]\u200e+[ا-ي]", text
        ):  # a word broken by a left-to-right mark, which nobody writes
            continue
        line = face.set_line(text)
        direction = "rtl" if line.right_to_left else "ltr"
        whole = face.fonts[0].getlength(text, direction=direction) / FINE
        assert line.width == pytest.approx(whole, abs=1), text
        assert differ(face.mask(line), reference(text, 20)) < 0.1, text


@needs_raqm
def test_a_joiner_keeps_letters_apart_as_the_font_draws_it():
    face = Typeface(30)
    apart, together = (face.mask(face.set_line(clean(text))) for text in ("می\u200cخواهم", "میخواهم"))
    assert apart.shape != together.shape or differ(apart, together) > 0.1
    assert differ(apart, reference("می\u200cخواهم", 30)) < 1e-6


@needs_raqm
@pytest.mark.parametrize(
    "sequence",
    ["👨\u200d👩\u200d👧", "👩🏽\u200d🚀", "👍🏽", "1\ufe0f\u20e3", "🇩🇪", "👩\u200d❤\ufe0f\u200d👨", "🏴\u200d☠\ufe0f"],
)
def test_a_sequence_of_emoji_is_one_picture(sequence):
    face = Typeface(20)
    assert face.set_line(clean(sequence)).width == pytest.approx(face.set_line("🦊").width, rel=0.3)
    assert len(face.runs(clean(sequence))) == 1


def test_no_line_begins_within_a_cluster():
    text = "👨\u200d👩\u200d👧👩🏽\u200d🚀🇩🇪🇫🇷 שָׁלוֹם می\u200cخواهم क्षत्रिय กำลังน้ำ e\u0301\u0323a\u0301 1\ufe0f\u20e3"
    whole = clusters(clean(text).replace(" ", ""))
    for width in range(1, 200, 7):
        lines = [line.text.replace(" ", "") for line in Typeface(15).set_text(text, width)]
        assert [cluster for line in lines for cluster in clusters(line)] == whole


def test_a_paragraphs_direction_is_that_of_its_first_letter_on_all_its_lines():
    lines = Typeface(15).set_text("12. الثعلب ABC DEF GHI JKL MNO PQR\nMia الثعلب يقرأ كتابا", 100)
    assert len(lines) > 3
    first_latin = next(j for j, line in enumerate(lines) if line.text.startswith("Mia"))
    assert all(line.right_to_left == (j < first_latin) for j, line in enumerate(lines))


def test_right_to_left_lines_end_at_the_right_edge_of_their_box():
    page = lay_out(
        ["الثعلب يقرأ كتابا كبيرا جدا عن المصباح والغابة المظلمة\nA fox"], 300, 200, caption_position="inside"
    )
    (panel,) = page.panels
    inset = round(0.5 * page.face.size)
    *arabic, latin = panel.lines
    assert panel.inside and len(arabic) > 1
    for x, _, line in arabic:
        assert x + line.width == pytest.approx(panel.caption.right - inset)
    assert latin[0] == panel.caption.left + inset


@pytest.mark.parametrize(
    "text", [text for text, _ in VISUAL] + CAPTIONS[:8] + ["می\u200cخواهم", "👨\u200d👩\u200d👧 x"]
)
def test_a_lines_width_is_that_of_its_ink(text):
    face = Typeface(20)
    for paragraph in clean(text).splitlines():
        line = face.set_line(paragraph)
        columns = np.flatnonzero(face.mask(line)[..., 0].any(0))
        assert columns[0] >= 10 - 3 and columns[-1] <= 10 + line.width + 3
        assert columns[-1] - columns[0] > line.width - 20  # a full stop may stand in a wide square


def test_nothing_invisible_is_drawn_or_takes_room():
    face = Typeface(20)
    for text in ("\u200d", "\u200b\ufeff\u00ad", "\u200e \u200f", "\ufe0f", "\u2067\u2069", ""):
        assert clean(text) == "" and face.set_text(text, 100) == ()
    plain = face.set_line("fox").width
    for text in ("f\u200dox", "\u200efox\u200f", "\ufefffox", "fo\ufe0fx", "f\u00adox"):
        assert face.set_line(clean(text)).width == pytest.approx(plain, abs=0.5)


WITHOUT_FRIBIDI = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from PIL import features
from onestory.pages.board import draw_board
assert not features.check("raqm")
np.save(sys.argv[2], draw_board(np.ones((1, 64, 256, 3), np.float32), [sys.argv[3]]))
"""


@needs_raqm
@pytest.mark.skipif(sys.platform != "linux", reason="hides FriBiDi by LD_LIBRARY_PATH")
@pytest.mark.parametrize("text, warnings", [("الثعلب Mia (12) می\u200cخواهم", 1), ("A fox, 12", 0)])
def test_without_fribidi_captions_look_the_same_and_one_warning_says_so(text, warnings, tmp_path):
    for name in ("libfribidi.so", "libfribidi.so.0", "libfribidi.so.1"):
        (tmp_path / name).write_text("no library")
    root = Path(lettering.__file__).parents[1]
    command = [sys.executable, "-c", WITHOUT_FRIBIDI, str(root), str(tmp_path / "board.npy"), text]
    env = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stderr.count("install FriBiDi") == warnings == len(done.stderr.splitlines())
    board, wanted = np.load(tmp_path / "board.npy"), draw_board(np.ones((1, 64, 256, 3), np.float32), [text])
    assert board.shape == wanted.shape
    # Columns of ink, a little blurred: without Raqm there is no kerning.
    a, b = (np.convolve(1 - page[80:].mean((0, 2)), np.ones(9), "same") for page in (board, wanted))
    assert np.abs(a - b).sum() < 0.15 * np.abs(b - b.min()).sum()


@pytest.mark.parametrize(
    "images, frames, said",
    [(1, 3, "1 image for a story of 3 frames"), (4, 3, "4 images for a story of 3 frames"), (2, 3, "2 images")]
    + [(3, 3, ""), (6, 3, ""), (1, 1, ""), (5, 1, "")],
)
@pytest.mark.parametrize("shown", [True, False])
def test_the_node_says_when_images_and_frames_do_not_match(images, frames, said, shown, caplog):
    from onestory.nodes.board import OneStoryBoard

    story = parse_script("a fox", "\n".join(["reads"] * frames))
    with caplog.at_level(logging.WARNING):
        output = OneStoryBoard.execute(torch.rand(images, 64, 64, 3), story, 0, shown)
    ((page,),) = output.result
    assert page.shape[0] == 1
    warnings = [record.getMessage() for record in caplog.records]
    if said:
        (text,) = output.ui.as_dict()["text"]
        assert said in text and "Story Latent" in text
        assert warnings == [f"OneStory: {text}"]
    else:
        assert output.ui is None and warnings == []


# --- captions of the board's own -------------------------------------------------------------------------------------

THREE = ["One.", "Two.", "Three."]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", THREE),
        (" \n\n", THREE),
        ("Uno.", ["Uno.", "Two.", "Three."]),
        ("\n\u200b\nTres.\n\n\n\n", ["One.", "Two.", "Tres."]),
        ("# Uno.\n#\n＃", ["Uno.", "", ""]),
        ("#1 of all\n\\# hash\na # b", ["#1 of all", "# hash", "a # b"]),
        ("一。\r\n二。\u2028三。", ["一。", "二。", "三。"]),
    ],
)
def test_own_captions_take_the_place_of_the_storys_line_by_line(text, expected):
    assert replace_captions(THREE, text) == expected


@pytest.mark.parametrize(
    "frames, counts", [(3, "4 lines and the story 3 frames"), (1, "4 lines and the story 1 frame:")]
)
def test_more_own_captions_than_frames_are_an_error_that_loses_none(frames, counts):
    with pytest.raises(ValueError, match=counts):
        replace_captions(THREE[:frames], "a\nb\n\nd")


def test_the_node_sets_own_captions_as_it_sets_the_storys():
    from onestory.nodes.board import OneStoryBoard

    images = torch.rand(4, 64, 64, 3)  # two takes
    told, plain = (parse_script("a fox", f"reads # {one}\nsleeps # Two.") for one in ("Uno.", "One."))
    ((wanted,),) = OneStoryBoard.execute(images, told, 0, True).result
    ((own,),) = OneStoryBoard.execute(images, plain, 0, True, own_captions="Uno.").result
    assert torch.equal(own, wanted)
    ((without,),) = OneStoryBoard.execute(images, plain, 0, False, own_captions="Uno.").result
    assert torch.equal(without, OneStoryBoard.execute(images, plain, 0, False).result[0][0])
