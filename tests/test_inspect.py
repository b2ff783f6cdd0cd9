"""Inspect Story: each token's text, part and gain, the distances between frames, and the picture of them."""

import numpy as np
import pytest
import stories
import torch
from comfy.sd1_clip import SD1Tokenizer
from graphs import positive, split, story
from onestory.nodes.inspect import OneStoryInspect
from onestory.nodes.prompt import OneStoryPrompt
from onestory.nodes.reweight import OneStoryNaiveReweight
from onestory.pages.prompt_sheet import MOST_LISTED, STRONGEST, as_factor, draw_story, lay_out
from onestory.pages.sheet import WIDTH
from onestory.pages.sheet import colour_of as colour
from onestory.story.parts import EOT, IDENTITY, SOT, Line, Part
from onestory.svr.measures import distances, ends_of, gains, lines_of, parts_of, roles, token_texts
from onestory.svr.record import KEY, Attached, Row, Span, Spans, token_norms
from onestory.svr.reweight import naive_reweight
from PIL import Image

FOX = "a young red fox"
FRAMES = ("a red fox reads", "a red fox runs", "the red fox, red")


@pytest.fixture(scope="module")
def prompt(sd):
    """A story whose frames repeat the identity's words, as Story Prompt encodes it."""
    return positive(sd.clip, story(FOX, *FRAMES), svr=False)


@pytest.fixture(scope="module")
def tokenizer():
    return SD1Tokenizer()


def annotated(lengths, **kwargs):
    """A made-up story with texts, its embedding, and its norms."""
    record = stories.record(lengths, **kwargs)
    embeds = stories.embeddings(record)
    texts = [tuple(tuple(f"t{n} " for n in range(record.tokens)) for _ in record.encoders) for _ in record.rows]
    rows = tuple(row._replace(texts=t) for row, t in zip(record.rows, texts))
    return record._replace(rows=rows), embeds, token_norms(embeds, record)


def sheet(record, embeds, norms):
    names = [encoder.name for encoder in record.encoders]
    return lay_out(parts_of(record), names, lines_of(embeds, record, norms), distances(embeds).numpy())


# --- texts and parts --------------------------------------------------------------------------------------------------


def test_parts_are_by_position_where_frames_repeat_the_identitys_words(prompt):
    (_, options), *_ = prompt
    parts = parts_of(options[KEY].record)
    assert [(part.role, "".join(part.tokens).strip()) for part in parts] == [
        (IDENTITY, FOX),
        (0, "a red fox reads"),
        (1, "a red fox runs"),
        (2, "the red fox , red"),
    ]


def test_every_row_keeps_its_texts_when_rows_are_selected(prompt):
    (_, options), *_ = prompt
    record = options[KEY].record.select([2, 0])
    assert [row.texts for row in record.rows] == [options[KEY].record.rows[i].texts for i in (2, 0)]
    assert hash(record) != hash(options[KEY].record)


def test_a_frame_that_only_stands_in_other_rows_windows_is_shown_too(prompt):
    (_, options), *_ = prompt
    assert parts_of(options[KEY].record.select([1])) == parts_of(options[KEY].record)


def test_each_identity_stands_before_its_frames_and_frames_without_one_first(sd):
    cast = story("[Mia] a girl\n[Tom] a boy", "[Mia] reads", "rain", "[Tom] and [Mia] run", "[Mia] sits")
    (_, options), *_ = positive(sd.clip, cast, svr=False)
    assert [(part.role, part.characters) for part in parts_of(options[KEY].record)] == [
        (1, ()),
        (IDENTITY, ("Mia",)),
        (0, ("Mia",)),
        (3, ("Mia",)),
        (IDENTITY, ("Mia", "Tom")),
        (2, ("Mia", "Tom")),
    ]


@pytest.mark.parametrize(
    "text", ["a fox", "在下雪的森林里", "café ünïcödé", "🦊 fox", "it 's 1 9 3 0 !", "🧑‍🚀 kaleidoscopic"]
)
def test_token_texts_put_together_are_the_prompt(tokenizer, text):
    tokens = [t for t, _, word in tokenizer.tokenize_with_weights(text, return_word_ids=True)["l"][0] if word]
    texts = token_texts(tokens, tokenizer.clip_l.inv_vocab)
    assert len(texts) == len(tokens)
    assert "".join(texts).replace(" ", "") == text.replace(" ", "")


def test_an_embeddings_vectors_are_called_so():
    assert token_texts([320, None, 320], {320: "a</w>"}) == ("a ", "‹embedding› ", "a ")


def test_sentencepiece_writes_characters_as_themselves_or_byte_by_byte():
    entries = ["▁ca", "f", "é", "▁", "<0xE7>", "<0x81>", "<0xAB>"]
    texts = token_texts(range(len(entries)), dict(enumerate(entries)))
    assert texts == ("ca", "f", "é ", "", "", "", "火")


def test_clips_ends_are_called_by_the_papers_names(prompt):
    (_, options), *_ = prompt
    record = options[KEY].record
    padding = record.tokens - record.rows[0].spans[0].eot.start - 1
    assert ends_of(record) == [Part(SOT, ("SOT",), ()), Part(EOT, ("EOT", f"padding ×{padding}"), ())]


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        (("</s>", "<pad>", "<pad>"), ("</s>", "padding ×2")),  # T5
        (("</s>", "<pad>"), ("</s>", "padding ×1")),
        (("</s>",), ("</s>",)),
        (("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"),) * 2,  # Qwen
        (("<|im_end|>", "\n", "<pad>", "<pad>", "<pad>"), ("<|im_end|>", "\n", "padding ×3")),
        ((), None),  # Gemma has nothing after the text
    ],
)
def test_other_encoders_ends_are_their_tokens_and_count_the_padding(end, shown):
    record = stories.record([2, 2], identity=3, tokens=9)
    rows = []
    for row in record.rows:
        spans = Spans(Span(1, 4), row.spans[0].frames, Span(8, 8 + len(end)))
        texts = ("<bos>", *(f"t{n} " for n in range(7)), *end)
        rows.append(row._replace(spans=(spans,), texts=(texts,)))
    [start, *after] = ends_of(record._replace(rows=tuple(rows)))
    assert start == Part(SOT, ("<bos>",), ())
    assert after == ([] if shown is None else [Part(EOT, shown, ())])


def test_start_and_end_stand_around_the_parts():
    line = Line(0, ((SOT, 0, EOT),), np.ones((1, 3)))
    ends = [Part(SOT, ("<bos>",), ()), Part(EOT, ("<|im_end|>", "\n"), ())]
    page = lay_out([Part(0, ("fox",), ("",))], ["Qwen2.5-VL"], [line], np.zeros((1, 1)), ends)
    texts = [word.text.text for word in page.words][2:9]
    assert texts == ["Start", "<bos>", "Frame 1", "fox", "End", "<|im_end|>", "↵"]


def test_roles_name_every_token():
    spans = Spans(Span(1, 3), (Span(3, 4), Span(4, 6)), Span(6, 8))
    assert roles(Row(5, (5, 0), (spans,)), 0, 8) == (SOT, IDENTITY, IDENTITY, 5, 0, 0, EOT, EOT)


# --- gains and distances ----------------------------------------------------------------------------------------------


def test_what_the_text_encoder_gave_has_gain_1(prompt):
    (embeds, options), *_ = prompt
    assert torch.equal(gains(embeds, *options[KEY][:2]), torch.ones(3, 1, 77, dtype=torch.float64))


@pytest.mark.parametrize("encoders", [stories.SD15, stories.SDXL])
def test_naive_reweighting_shows_its_own_factors(encoders):
    record, embeds, norms = annotated([3, 1, 4], encoders=encoders, longer=(0, 1))
    for row, line in zip(record.rows, lines_of(naive_reweight(embeds, record, 2.0, 0.5), record, norms)):
        for e, (shown, gain) in enumerate(zip(line.roles, line.gains)):
            assert shown == roles(row, e, record.tokens)
            want = [2.0 if role == row.frame else 0.5 if role >= 0 else 1.0 for role in shown]
            np.testing.assert_allclose(gain, want, rtol=1e-6)


def test_an_encoders_gain_is_of_its_own_channels_and_tokens_behind_the_record_have_none():
    record, embeds, norms = annotated([2, 2], encoders=stories.SDXL)
    louder = torch.cat([embeds, embeds[:, :5]], dim=1)
    louder[:, :, 768:] *= 3
    got = gains(louder, record, norms)
    torch.testing.assert_close(got[:, 0], torch.ones(2, 77, dtype=torch.float64))
    torch.testing.assert_close(got[:, 1], torch.full((2, 77), 3.0, dtype=torch.float64))


def test_distances_of_known_embeddings():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [5.0, 0.0]])[:, None, :]
    want = torch.tensor([[0, 1, 2, 0], [1, 0, 1, 1], [2, 1, 0, 2], [0, 1, 2, 0]], dtype=torch.float64)
    torch.testing.assert_close(distances(x), want)


@pytest.mark.parametrize(
    "gain, text",
    [(1.0, "×1.00"), (0.999, "×1.00"), (1.974, "×1.97"), (0.05, "÷20"), (0.5, "÷2.00"), (12.4, "×12"), (0.0, "~0")],
)
def test_gains_read_as_factors(gain, text):
    assert as_factor(gain) == text


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames, window", [(1, 1), (2, 2), (12, 12), (40, 5)])
@pytest.mark.parametrize("encoders", [stories.SD15, stories.SDXL])
def test_every_frame_is_on_the_page_and_nothing_beyond_its_edges(frames, window, encoders):
    record, embeds, norms = annotated([1 + n % 4 for n in range(frames)], width=window, encoders=encoders)
    page = sheet(record, naive_reweight(embeds, record), norms)
    texts = [word.text.text for word in page.words]
    for n in range(frames):
        assert f"Frame {n + 1}" in texts and str(n + 1) in texts
    assert all(0 <= b.left < b.right <= WIDTH and 0 <= b.top < b.bottom <= page.y for b, _, _ in page.shapes)
    assert all(0 <= w.x <= w.x + w.text.width <= WIDTH and w.baseline + w.text.descent <= page.y for w in page.words)
    assert all(left + p.shape[1] <= WIDTH and top + p.shape[0] <= page.y for left, top, p in page.pictures)
    assert ("Distance" in texts) == (frames > 1)
    assert any("means of 2 × 2 pairs" in text for text in texts) == (frames > 746)


def test_thousands_of_frames_are_one_picture_of_bounded_height():
    sheets = []
    for frames in (MOST_LISTED, 3000):
        parts = [Part(n, ("a ",), ("",)) for n in range(frames)]
        lines = [Line(n, ((SOT, n, EOT),), np.ones((1, 3))) for n in range(frames)]
        sheets.append(lay_out(parts, ["CLIP-L"], lines, np.zeros((frames, frames))))
    assert sheets[0].y == pytest.approx(sheets[1].y, abs=200)
    texts = [word.text.text for word in sheets[1].words]
    assert any("3000 frames · the first 800 are listed" in text for text in texts)
    assert "Frame 800" in texts and "Frame 801" not in texts and "2801" in texts


@pytest.mark.parametrize("tokens, columns", [(393, 393), (394, 394), (462, 462), (850, 850), (924, 462), (4000, 800)])
def test_prompts_of_very_many_tokens_share_columns(tokens, columns):
    line = Line(0, ((SOT, *[0] * (tokens - 2), EOT),) * 3, np.full((3, tokens), 2.0))
    page = lay_out([], ["A", "B", "C"], [line], np.zeros((1, 1)))
    bands = [box for box, _, _ in page.shapes if box.bottom - box.top == 5]
    assert len(bands) == 3 * columns and all(box.right <= WIDTH - 200 for box in bands)
    assert any("tokens together" in word.text.text for word in page.words) == (columns < tokens)
    assert draw_story([], ["A", "B", "C"], [line], np.zeros((1, 1))).shape == (page.y, WIDTH, 3)


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("frames", [374, 747])
def test_the_node_draws_very_long_stories(frames):
    record, embeds, norms = annotated([1] * frames, width=1)
    (image,) = OneStoryInspect.execute([[embeds, {KEY: Attached(record, norms)}]]).result
    assert image.shape[0] == 1 and image.shape[2:] == (WIDTH, 3)
    assert image.min() >= 0 and image.max() <= 1 and image[:, -746:].std() > 0.01


def test_chips_and_bands_have_their_parts_colour():
    record, embeds, norms = annotated([3, 2], identity=4)
    page = sheet(record, embeds, norms)

    def shapes(height, role):
        found = [box for box, c, _ in page.shapes if box.bottom - box.top == height and np.array_equal(c, colour(role))]
        return len(found)

    chip, band = 28, 5
    for role, tokens in ((IDENTITY, 4), (0, 3), (1, 2)):
        assert shapes(chip, role) == tokens
        assert shapes(band, role) == 2 * tokens, "once for each of the two rows"
    assert len({tuple(colour(role)) for role in (SOT, IDENTITY, EOT, 0, 1, 2, 3, 4, 5, 6, 7)}) == 11


def test_expressed_tokens_are_warm_suppressed_ones_cold_and_others_grey():
    gain = np.array([[1.0, 1.0, STRONGEST, 100 * STRONGEST, 1 / STRONGEST, 0.0, 1.0]])
    line = Line(0, ((SOT, IDENTITY, 0, 0, 1, 1, EOT),), gain)
    page = draw_story([Part(0, ("a ",), ("",))], ["CLIP-L"], [line], np.zeros((1, 1)))
    cells = [s for s in lay_out([], ["CLIP-L"], [line], np.zeros((1, 1))).shapes if s.box.bottom - s.box.top == 16][-7:]
    assert page.shape[1] == WIDTH
    reds, blues = ([float(c.colour[n]) for c in cells] for n in (0, 2))
    assert reds[2] == reds[3] > 2 * blues[2] and blues[4] == blues[5] > 2 * reds[4]
    assert abs(reds[0] - blues[0]) < 0.1


def test_long_prompts_wrap():
    tokens = tuple(f"{'word' * 3}{n} " for n in range(70))
    one, many = (
        lay_out([Part(0, t, ("",))], ["CLIP-L"], [Line(0, ((0,),), np.ones((1, 1)))], np.zeros((1, 1)))
        for t in (tokens[:1], tokens)
    )
    assert many.y > one.y + 200
    assert all(word.x + word.text.width <= WIDTH for word in many.words)


def test_the_node_draws_the_story_and_shows_it(sd, prompt, temporary):
    conditioning = OneStoryNaiveReweight.execute(prompt, 2.0, 0.5).result[0]
    plain = [[torch.zeros(1, 77, 768), {}]]
    output = OneStoryInspect.execute(plain + conditioning)
    image = output.result[0]
    assert image.dtype == torch.float32 and image.shape[0] == 1 and image.shape[2:] == (WIDTH, 3)
    assert image.min() >= 0 and image.max() <= 1
    (shown,) = output.ui.as_dict()["images"]
    assert Image.open(temporary / shown["filename"]).size == (WIDTH, image.shape[1])


@pytest.mark.usefixtures("temporary")
def test_it_changes_nothing(prompt):
    (embeds, options), *_ = prompt
    before, keys = embeds.clone(), dict(options)
    OneStoryInspect.execute(prompt)
    assert torch.equal(before, embeds) and list(options) == list(keys) and options[KEY] is keys[KEY]


@pytest.mark.usefixtures("temporary")
def test_a_run_of_a_split_story_shows_its_frames(prompt):
    for conditioning, _, _ in split(prompt, {"samples": torch.zeros(3, 4, 8, 8)}, 1, 1):
        [(embeds, options)] = conditioning
        record, norms = options[KEY].record, options[KEY].norms
        assert torch.equal(norms, token_norms(embeds, record))
        OneStoryInspect.execute(conditioning)


def test_without_a_story_it_says_where_to_wire_it():
    with pytest.raises(ValueError, match="found no story in its conditioning: wire .* from Story Prompt"):
        OneStoryInspect.execute([[torch.zeros(1, 77, 768), {}]])


def test_separate_prompts_have_one_frame_a_row(sd):
    conditioning = OneStoryPrompt.execute(sd.clip, story(FOX, *FRAMES[:2]), "separate prompts", 0, "story").result[0]
    (embeds, options), *_ = conditioning
    assert [{r for r in line.roles[0] if r >= 0} for line in lines_of(embeds, *options[KEY][:2])] == [
        {0},
        {1},
    ]
    assert [part.role for part in parts_of(options[KEY].record)] == [IDENTITY, 0, 1]
