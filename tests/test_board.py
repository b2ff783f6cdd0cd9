import re
from itertools import combinations

import numpy as np
import pytest
import torch
from onestory.story.board import INK, LAYOUTS, PAPER, Box, Page, draw_board, lay_out, match_captions
from onestory.story.lettering import Typeface, clean
from onestory.story.script import parse_script

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
    images = np.broadcast_to(INK, (11, 80, 120, 3))
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
        (page,) = OneStoryBoard.execute(torch.rand(count, 64, 64, 3, dtype=dtype), story, 0, True).result
        assert page.dtype == torch.float32 and page.shape[0] == 1 and page.shape[3] == 3
        assert page.min() >= 0 and page.max() <= 1
    (plain,) = OneStoryBoard.execute(torch.rand(2, 64, 64, 3), story, 0, False).result
    (words,) = OneStoryBoard.execute(torch.rand(2, 64, 64, 3), story, 0, True).result
    assert words.shape[1] > plain.shape[1]


def test_the_same_board_twice_is_the_same():
    images = np.random.default_rng(1).random((3, 64, 64, 3), np.float32)
    assert np.array_equal(draw_board(images, captions(3)), draw_board(images, captions(3)))
