"""Speech bubbles and titles on boards: what is said, that every word of it is on the page, and where tails point."""

import re
from itertools import combinations, product

import numpy as np
import pytest
import torch
from onestory.nodes.board import OneStoryBoard, middle
from onestory.pages.board import INK, LAYOUTS, PAPER, draw_board
from onestory.pages.book import draw_page, draw_pages, lay_out_page, on_page
from onestory.pages.lettering import clean
from onestory.story.script import parse_script
from onestory.story.speech import Speech, split_speech
from test_board import ink, overlap, within

NAMES = ["Mia", "Otto", "小红", "مريم", "Old man"]
LONG = "A very long speech that goes on and on, since nobody stops her. " * 4
CAPTIONS = [
    "Mia: “Hello!”",
    "Mia: “Do robots like soup?” Otto: “I like the word.”",
    "小红：「真美啊！我从来没有见过这么漂亮的灯笼，它发出温暖的光芒，照亮了整个森林。」 她笑了。",
    "مريم: «الثعلب يقرأ كتابا كبيرا جدا عن المصباح والغابة المظلمة» Mia: “Yes 🦊❤️ 👩‍🚀!”",
    f"Mia: “{LONG}”",
    f"They meet. Old man: „{LONG * 4}“",
    "Otto: “Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft!” Long silence.",
    "Mia: “A.” Otto: “B!” Mia: “C?” Otto: “…” Mia: “Well then,\noff we go!” They leave.",
    "No speech.",
    "",
]


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "caption, rest, said",
    [
        ('Mia: "Hello!"', "", [("Mia", "Hello!")]),
        ("mia : ”Hej!”", "", [("Mia", "Hej!")]),
        ("Mia: “Hi!” Otto: „Hallo.“ They meet.", "They meet.", [("Mia", "Hi!"), ("Otto", "Hallo.")]),
        ("They meet. Mia: «Salut»\nMia: »Tag«", "They meet.", [("Mia", "Salut"), ("Mia", "Tag")]),
        ("小红：「你好！」小红：“嗨！”她笑了。", "她笑了。", [("小红", "你好！"), ("小红", "嗨！")]),
        ("Old man: “Mia: no”", "", [("Old man", "Mia: no")]),
        ("Mia: “one\ntwo” Three.", "Three.", [("Mia", "one\ntwo")]),
    ],
)
def test_what_a_character_says_is_taken_out_of_the_caption(caption, rest, said):
    assert split_speech(caption, NAMES) == (rest, tuple(Speech(*one) for one in said))


@pytest.mark.parametrize(
    "caption",
    ["“Out!”", "Version two: “brakes”", "He said: “no”", "Mia: hello", "Mia: “”", "The sign: “closed”", "Mia “Hi”"]
    + ["To Mia: “Hi”", "Mia: “Hello", ""],
)
def test_any_other_caption_stays_as_it_is(caption):
    assert split_speech(caption, NAMES) == (caption, ())


def test_in_a_story_without_names_any_one_word_is_a_name():
    assert split_speech("Fox: “Hello!” It runs.", [""]) == ("It runs.", (Speech("Fox", "Hello!"),))
    assert split_speech("He said: “no”", [""]) == ("He said: “no”", ())
    assert split_speech("Fox: “Hello!”", ["Mia"]) == ("Fox: “Hello!”", ())


# --- on the page ------------------------------------------------------------------------------------------------------


def letters(texts) -> str:
    return "".join(sorted(re.sub(r"\s", "", "".join(clean(line) for text in texts for line in text.splitlines()))))


def check(captions, points, width, height, **board):
    """Every word is on the page, in a bubble or a caption, on paper of its own, and no pixel of it is covered."""
    images = np.full((len(captions), height, width, 3), 0.5, np.float32)
    page, bubbles = lay_out_page(captions, NAMES, points, width, height, board)
    _, drawn = draw_page(images, captions, NAMES, points, board)
    assert drawn.shape == (page.height, page.width, 3)
    assert set(bubbles) <= {j for j, caption in enumerate(captions) if split_speech(caption, NAMES)[1]}
    for j, (panel, caption) in enumerate(zip(page.panels, captions, strict=True)):
        own = bubbles.get(j, ())
        rest, said = split_speech(caption, NAMES)
        set_ = [line.text for _, _, line in panel.lines] + [line.text for b in own for _, _, line in b.lines]
        assert letters(set_) == letters([rest, *(speech.text for speech in said)] if own else [caption])
        assert [letters(line.text for _, _, line in b.lines) for b in own] == [letters([s.text]) for s in said if own]
        for body, lines, tip in own:
            assert within(body, panel.picture)
            assert not panel.inside or not overlap(body, panel.caption)
            assert all(within(ink(page, *line), body) for line in lines)
            left, top, right, bottom = panel.picture
            assert left <= tip[0] <= right and top <= tip[1] <= bottom
            assert tip[1] < body.top or tip[1] >= body.bottom
        assert not any(overlap(one.body, other.body) for one, other in combinations(own, 2))
        for x, baseline, line in (line for b in own for line in b.lines):
            left, top, right, bottom = ink(page, x, baseline, line)
            mask = page.face.mask(line, x % 1)[..., 0]
            at = int(x) - page.face.size // 2, baseline - line.ascent
            solid = mask[top - at[1] : bottom - at[1], left - at[0] : right - at[0], None]
            shown = drawn[top:bottom, left:right]
            assert np.abs(shown - (1 + (INK - 1) * solid)).max() < 0.02, "white paper, and its ink on it"
    return page, bubbles


@pytest.mark.parametrize(
    "size, known", [((512, 512), True), ((256, 384), False), ((768, 256), True), ((64, 64), True), ((16, 16), False)]
)
@pytest.mark.parametrize("layout, position", [*zip(LAYOUTS, ["below", "inside"] * 2)])
def test_no_word_is_cut_covered_or_lost(layout, position, size, known):
    points = [(0.1 * j, 0.9 - 0.1 * j) if known else None for j in range(len(CAPTIONS))]
    check(CAPTIONS, points, *size, layout=layout, caption_position=position)


def test_bubbles_are_used_where_there_is_room():
    _, bubbles = check(CAPTIONS, [None] * 10, 512, 512)
    assert sorted(bubbles) == [0, 1, 2, 3, 4, 6, 7]  # frame 5's would hide the picture
    _, bubbles = check(CAPTIONS, [None] * 10, 512, 512, page_width=1200)
    assert set(bubbles) >= {0, 1, 2, 3}


def test_bubbles_stand_at_the_upper_edge_in_reading_order():
    page, bubbles = check(CAPTIONS, [None] * 10, 512, 512)
    for j, own in bubbles.items():
        assert own[0].body.top - page.panels[j].picture.top < page.face.size
        assert all(b.tip[1] > b.body.bottom for b in own)
        for one, other in zip(own, own[1:]):
            below = other.body.top >= one.body.bottom
            beside = other.body.left >= one.body.right if j != 3 else other.body.right <= one.body.left
            assert below or beside


@pytest.mark.parametrize("point", [*product((0.1, 0.5, 0.9), (0.05, 0.4, 0.9))])
def test_a_tail_points_to_its_speaker_whom_no_bubble_hides(point):
    page, bubbles = check(["Mia: “Hello, how are you?”"], [point], 512, 512)
    ((body, _, tip),) = bubbles[0]
    x, y = on_page(page.panels[0].picture, point, 512, 512)
    assert not (body.left <= x < body.right and body.top <= y < body.bottom)
    start = np.array([(body.left + body.right) / 2, body.bottom if tip[1] > body.bottom else body.top])
    tail, wanted = np.array(tip) - start, np.array([x, y]) - start
    assert np.dot(tail, wanted) > 0.9 * np.linalg.norm(tail) * np.linalg.norm(wanted)
    assert np.linalg.norm(tail) < np.linalg.norm(wanted)


def test_a_comic_panel_crops_the_speakers_place_as_it_crops_the_picture():
    """A bright dot where the speaker is: the point that the tail gets is where the dot is on the page."""
    images = np.zeros((5, 96, 160, 3), np.float32)
    points = [(0.3 + 0.1 * j, 0.5) for j in range(5)]
    for image, (x, y) in zip(images, points):
        image[round(y * 96) - 3 : round(y * 96) + 3, round(x * 160) - 3 : round(x * 160) + 3] = 1
    page, _ = lay_out_page([""] * 5, NAMES, points, 160, 96, {"layout": "comic page", "page_width": 900})
    board = draw_board(images, [""] * 5, "comic page", page_width=900)
    for panel, point in zip(page.panels, points):
        left, top, right, bottom = panel.picture
        rows, columns = np.nonzero(board[top:bottom, left:right, 0] > 0.5)
        x, y = on_page(panel.picture, point, 160, 96)
        assert abs(columns.mean() + 0.5 + left - x) < 2 and abs(rows.mean() + 0.5 + top - y) < 2


def test_without_speech_a_page_is_the_board_that_it_always_was():
    images = np.random.default_rng(0).random((4, 64, 96, 3), np.float32)
    captions = ["One.", "“Two!”", "", "Fox – “four”"]
    (page,) = draw_pages(images, captions, NAMES, [None] * 4)
    assert np.array_equal(page, draw_board(images, captions))
    spoken = ["Mia: “One.”", "", "", ""]
    (page,) = draw_pages(images, spoken, None, [None] * 4)
    assert np.array_equal(page, draw_board(images, spoken))


@pytest.mark.parametrize("title", ["Counting", "小狐狸的故事 الثعلب 🦊", "A title of many words " * 12, "W" * 200])
@pytest.mark.parametrize("size", [(512, 512), (16, 16), (40, 700)])
def test_a_title_stands_over_the_board_whole(title, size):
    images = np.full((2, *size[::-1], 3), 0.5, np.float32)
    (plain,) = draw_pages(images, ["", ""], NAMES, [None] * 2)
    (page,) = draw_pages(images, ["", ""], NAMES, [None] * 2, title)
    band = page[: len(page) - len(plain)]
    assert np.array_equal(page[len(band) :], plain)
    inked = np.abs(band - PAPER).max(-1) > 0.1
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    assert rows[0] > 0 and rows[-1] < len(band) - 1
    assert columns[0] > 0 and columns[-1] < band.shape[1] - 1
    assert abs(columns[0] - (band.shape[1] - 1 - columns[-1])) < 0.1 * band.shape[1]


# --- the node ---------------------------------------------------------------------------------------------------------


def board(story, images, **more):
    return OneStoryBoard.execute(images, story, 0, True, **more).result[0]


def test_pages_hold_their_frames_in_order_and_the_title_is_on_the_first():
    story = parse_script("a fox", "\n".join(f"runs # Caption {j}." for j in range(7)))
    images = torch.rand(7, 64, 64, 3)
    pages = board(story, images, frames_per_page=3, title="Fox")
    assert len(pages) == 3 and all(page.shape[0] == 1 for page in pages)
    for number, page in enumerate(pages):
        part = slice(3 * number, 3 * number + 3)
        wanted = draw_board(images[part].numpy(), [f"Caption {j}." for j in range(7)[part]])
        assert np.array_equal(page[0, -wanted.shape[0] :].numpy(), wanted)
        assert (page.shape[1] > wanted.shape[0]) == (number == 0)


def test_bubbles_may_be_off_and_own_captions_may_speak():
    story = parse_script("[Mia] a girl", "runs # Mia: “Hello!”\n[Mia] sits # Sits.")
    images = torch.full((2, 256, 256, 3), 0.5)
    (plain,) = board(story, images, bubbles=False)
    assert np.array_equal(plain[0].numpy(), draw_board(images.numpy(), ["Mia: “Hello!”", "Sits."]))
    (spoken,) = board(story, images)
    assert spoken.shape == board(story, images, own_captions="#")[0].shape and spoken.max() == 1.0
    (other,) = board(story, images, own_captions="# Mia: “Bye!”")
    assert other.shape == spoken.shape and not torch.equal(other, spoken)


def test_speaker_masks_are_the_places_of_the_speakers():
    masks = torch.zeros(2, 40, 80)
    masks[0, 10:20, 60:70] = 1
    masks[0, :, :] += 0.2
    assert middle(masks[0]) == pytest.approx((65 / 80, 15 / 40)) and middle(masks[1]) is None
    story = parse_script("[Mia] a girl", "runs # Mia: “Hi!”\nsits # Mia: “Hi!”")
    images = torch.full((2, 256, 256, 3), 0.5)
    (pointed,), (down,) = board(story, images, speaker_masks=masks), board(story, images)
    changed = (pointed != down).any(-1)[0]
    assert changed[:, : pointed.shape[2] // 2].any() and not changed[:, pointed.shape[2] // 2 :].any()
    with pytest.raises(ValueError, match="has 3 speaker_masks and 2 images: give one for each image, or one for all"):
        board(story, images, speaker_masks=torch.zeros(3, 8, 8))
