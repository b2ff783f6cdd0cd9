"""Prompt consolidation with ComfyUI's own tokenizers and text encoders: what is encoded, and where each part stands."""

import logging
import time
from functools import partial
from types import SimpleNamespace

import comfy.hooks
import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.genmo
import comfy.text_encoders.hydit
import comfy.text_encoders.sd2_clip
import pytest
import torch
from comfy.sd1_clip import ClipTokenWeightEncoder, SD1ClipModel, SD1Tokenizer
from comfy.sdxl_clip import SDXLClipModel, SDXLRefinerClipModel, SDXLTokenizer
from comfy.text_encoders.sd2_clip import SD2ClipModel, SD2Tokenizer
from comfy_extras.nodes_hooks import SetClipHooks
from onestory.nodes.inspect import OneStoryInspect
from onestory.nodes.prompt import OneStoryPrompt
from onestory.nodes.reweight import OneStoryNaiveReweight, OneStorySVR
from onestory.story.script import parse_script
from onestory.svr.consolidate import consolidate
from onestory.svr.encoders import side_by_side
from onestory.svr.measures import prompt_list
from onestory.svr.record import KEY, Span, token_norms
from reference import ONE_LAYER, naive_reweight, relative_error, singular_value_reweight
from safetensors.torch import save_file
from tiny import sd3_clip

import nodes

FOX = "a watercolor of a young red fox"


class RefinerTokenizer(SD1Tokenizer):
    def __init__(self, **kwargs):
        super().__init__(clip_name="g", tokenizer=comfy.sdxl_clip.SDXLClipGTokenizer, **kwargs)


ENCODERS = {"SD1": ("l",), "SD2": ("h",), "SDXL": ("l", "g"), "refiner": ("g",)}
TOKENIZERS = {"SD1": SD1Tokenizer, "SD2": SD2Tokenizer, "SDXL": SDXLTokenizer, "refiner": RefinerTokenizer}
MODELS = {"SD1": SD1ClipModel, "SD2": SD2ClipModel, "SDXL": SDXLClipModel, "refiner": SDXLRefinerClipModel}
TINY: dict = {f"clip_{name}_model_config": {"num_hidden_layers": 3, "intermediate_size": 64} for name in "lhg"}
TINY["dtype"] = torch.float32


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """Textual inversions: `fox` for SD1, `foxh` for SD2 and `foxg` for CLIP-G alone, `foxxl` for both of SDXL's."""
    folder = tmp_path_factory.mktemp("embeddings")
    torch.manual_seed(0)
    save_file({"emb_params": torch.randn(3, 768)}, folder / "fox.safetensors")
    save_file({"emb_params": torch.randn(768)}, folder / "one.safetensors")
    save_file({"emb_params": torch.randn(2, 1024)}, folder / "foxh.safetensors")
    save_file({"emb_params": torch.randn(4, 1280)}, folder / "foxg.safetensors")
    save_file({"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}, folder / "foxxl.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def tokenizers(embeddings):
    return {name: tokenizer(embedding_directory=embeddings) for name, tokenizer in TOKENIZERS.items()}


@pytest.fixture(scope="module")
def clips(embeddings):
    """`clips(name)`: the real text encoder with three small layers and seeded random weights."""
    made = {}

    def clip(name):
        if name not in made:
            target = SimpleNamespace(params={}, clip=MODELS[name], tokenizer=TOKENIZERS[name])
            made[name] = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=TINY)
            model = made[name].cond_stage_model
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for key, weight in model.named_parameters():
                    if weight.ndim > 1:
                        weight.normal_(std=0.5 if "embedding" in key else weight.shape[1] ** -0.5, generator=generator)
                    else:
                        weight.fill_(float("norm" in key and key.endswith("weight")))
        return made[name]

    return clip


def script(*frames, identity=FOX):
    return parse_script(identity, "\n".join(frames))


def plan(tokenizer, encoders, story, **kwargs):
    tokenize = partial(tokenizer.tokenize_with_weights, return_word_ids=True)
    return consolidate(story, tokenize, side_by_side(*encoders), **kwargs)


def words(tokens, span):
    """What stands in a span: token ids, embedding vectors as lists, weights."""
    return [(t.tolist() if torch.is_tensor(t) else t, w) for t, w in tokens[slice(*span)]]


# --- tokens and spans -------------------------------------------------------------------------------------------------

STORIES = {
    "plain": ([FOX, "reading a book", "running", "sailing a small boat"]),
    "a frame repeats the identity's words": ([FOX, "a young red fox", "red fox", FOX, "fox"]),
    "two identical frames": ([FOX, "running through snow", "running through snow", "running"]),
    "one frame": ([FOX, "running"]),
    "punctuation at the joins": (["a fox,", ", running", "'s friend", ".", "fox, ,", "-", "'", "!?", "…"]),
    "apostrophes": (["the fox's", "'s", "'t 're", "don't", "'"]),
    "digits": (["fox 12", "3", "45", "6th day"]),
    "weights": (["a (red fox:1.2), ((old))", "(running:0.5)", "in (deep (white:1.5) snow)", "(a)(b)", "(: (x:y):1.3)"]),
    "weights at the joins": (["(red fox:1.2)", "(running:0.5)", "(fast:1.1)", "(:1.2)x"]),
    "escaped parentheses": ([r"a fox \(animal\)", r"running \(fast", r"slow\)", r"(\(in\) snow:1.2)"]),
    "brackets and signs": (["a fox <3 {red|blue}", "[close-up] of it", "a_b", "100% | fox", "\\", "<lora:x:1>"]),
    "Chinese": (["一只红色的狐狸", "在雪中奔跑", "在树下读书", "雪"]),
    "Arabic": (["ثعلب أحمر", "يركض في الثلج", "يقرأ كتابا"]),
    "accents, composed and not": (["un renard très âgé", "à la plage", "a\u0300 la plage", "\u0301 combining first"]),
    "Hindi, Thai, Greek, Cyrillic": (["लाल लोमड़ी", "จิ้งจอกวิ่ง", "Η ΑΛΕΠΟΎΣ", "лиса бежит", "İstanbul ẞ"]),
    "emoji": (["🦊 fox", "🦊", "🏃‍♀️ in ❄️", "👩‍👩‍👧‍👦 family", "❤️"]),
    "spaces": (["a   red \t fox ", "running  fast", "\u00a0no-break\u00a0", "\u3000wide\u3000space", "a\u200bb"]),
    "capitals": (["A RED Fox", "RUNNING", "ReADing"]),
    "html": (["a &amp; b", "&lt;fox&gt;", "fox &amp;amp; hound"]),
    "long words": (["fox", "Donaudampfschifffahrtsgesellschaftskapitän", "pneumonoultramicroscopicsilicovolcano"]),
    "an embedding": (["embedding:fox red", "embedding:one x", "embedding:fox, (embedding:one:1.3) x"]),
    "SDXL embedding": (["a embedding:foxxl", "embedding:foxxl x", "embedding:foxxl, running"]),
    "a missing embedding": (["a fox embedding:nowhere", "embedding:nowhere, running", "embedding:nowhere sits"]),
    "not an embedding": (["a fox,embedding:fox", "xembedding:fox", "embed ding:fox"]),
}  # fmt: skip


@pytest.mark.parametrize("model", TOKENIZERS)
@pytest.mark.parametrize("name", STORIES)
def test_the_one_prompt_is_comfyuis_tokens_of_the_pieces_joined_by_a_space(tokenizers, model, name):
    identity, *frames = STORIES[name]
    story = script(*frames, identity=identity)
    assert len(story.frames) == len(frames)
    prompts, chosen, record = plan(tokenizers[model], ENCODERS[model], story)
    text = " ".join([story.frames[0].identity, *(f.prompt for f in story.frames)])
    want = tokenizers[model].tokenize_with_weights(text)
    assert chosen == [0] * len(frames) and len(prompts) == 1
    tokens = prompts[0].tokens
    assert set(tokens) == set(want)
    for encoder, spans in zip(ENCODERS[model], prompts[0].spans, strict=True):
        chunk, expected = tokens[encoder][0], without_misfits(want[encoder], encoder)
        assert len(tokens[encoder]) == 1 and len(chunk) == 77
        everywhere = Span(0, 77)
        assert words(chunk, everywhere) == words(expected, everywhere)
        assert chunk[spans.eot.start][0] == 49407

        # Each span holds what the tokenizer makes of its piece alone, and they lie end to end.
        pieces = [story.frames[0].identity, *(f.prompt for f in story.frames)]
        stop = 1
        for piece, span in zip(pieces, [spans.identity, *spans.frames], strict=True):
            alone = without_misfits(tokenizers[model].tokenize_with_weights(piece)[encoder], encoder)[1:]
            alone = alone[: next(i for i, (t, _) in enumerate(alone) if not torch.is_tensor(t) and t == 49407)]
            assert span.start == stop
            stop = span.stop
            assert words(chunk, span) == words(alone, Span(0, len(alone))), piece
        assert spans.eot == Span(stop, 77)
    assert [row.frame for row in record.rows] == list(range(len(frames)))
    assert all(row.window == tuple(range(len(frames))) for row in record.rows)


def without_misfits(chunks, encoder):
    """ComfyUI's one chunk without the embeddings that its encoder ignores, padded again at the end."""
    width = {"l": 768, "h": 1024, "g": 1280}[encoder]
    assert len(chunks) == 1
    fitting = [(t, w) for t, w in chunks[0] if not torch.is_tensor(t) or t.shape[-1] == width]
    return fitting + chunks[0][-1:] * (77 - len(fitting))


@pytest.mark.parametrize("model", TOKENIZERS)
@pytest.mark.parametrize(
    ("identity", "frames"),
    [
        ("a young red fox", ["red fox", "running with a red fox", "red fox", "sits , ok"]),
        ("a fox", ["reading", "reading", "reading a book", "a fox reading"]),
    ],
)
def test_decoding_each_span_gives_the_piece_back(tokenizers, model, identity, frames):
    prompts, _, _ = plan(tokenizers[model], ENCODERS[model], script(*frames, identity=identity))
    for encoder, spans in zip(ENCODERS[model], prompts[0].spans, strict=True):
        decode = getattr(tokenizers[model], f"clip_{encoder}").decode
        chunk = prompts[0].tokens[encoder][0]
        for piece, span in zip([identity, *frames], [spans.identity, *spans.frames], strict=True):
            assert decode([t for t, _ in chunk[slice(*span)]]).strip() == piece


@pytest.mark.parametrize(
    ("model", "name", "lengths", "ignored_by"),
    [
        ("SD1", "fox", {"l": 3}, []),
        ("SD1", "one", {"l": 1}, []),
        ("SD2", "foxh", {"h": 2}, []),
        ("refiner", "foxg", {"g": 4}, []),
        ("SDXL", "foxxl", {"l": 2, "g": 2}, []),
        ("SDXL", "fox", {"l": 3, "g": 0}, ["CLIP-G"]),
        ("SDXL", "foxg", {"l": 0, "g": 4}, ["CLIP-L"]),
        ("SD2", "fox", {"h": 0}, ["OpenCLIP-H"]),
    ],
)
def test_an_embeddings_vectors_count_where_they_fit_and_are_ignored_aloud_elsewhere(
    tokenizers, caplog, model, name, lengths, ignored_by
):
    story = script(f"running embedding:{name} fast", "sailing", identity=f"a embedding:{name} fox")
    with caplog.at_level(logging.WARNING):
        prompts, _, _ = plan(tokenizers[model], ENCODERS[model], story)
    for encoder, spans in zip(ENCODERS[model], prompts[0].spans, strict=True):
        n = lengths[encoder]
        assert spans.identity == (1, 3 + n)
        assert spans.frames == ((3 + n, 5 + 2 * n), (5 + 2 * n, 6 + 2 * n))
        kinds = [torch.is_tensor(t) for t, _ in prompts[0].tokens[encoder][0]]
        assert kinds[1:4] == ([False] + [True] * n + [False] * 2)[:3]
        assert sum(kinds) == 2 * n and len(kinds) == 77
    for encoder in ("CLIP-L", "CLIP-G", "OpenCLIP-H"):
        assert (f"is not made for {encoder}" in caplog.text) == (encoder in ignored_by)


def test_a_text_with_an_unfitting_embedding_is_warned_about_once(tokenizers, caplog):
    story = script(*["running embedding:fox " + "fast " * 20] * 3, identity="a fox")
    with caplog.at_level(logging.WARNING):
        plan(tokenizers["SDXL"], ENCODERS["SDXL"], story)
    assert [record.message for record in caplog.records] == [
        "OneStory: an embedding in “running embedding:fox fast fast fast…” is not made for CLIP-G, which ignores it."
    ]


@pytest.mark.parametrize("model", TOKENIZERS)
def test_a_missing_embedding_is_ignored_with_a_warning(tokenizers, caplog, model):
    prompts, _, _ = plan(tokenizers[model], ENCODERS[model], script("a embedding:nowhere running", "sailing"))
    assert all(spans.frames[0].stop - spans.frames[0].start == 2 for spans in prompts[0].spans)
    assert "embedding:nowhere does not exist" in caplog.text


def test_a_frame_that_is_nothing_but_a_missing_embedding_says_so(tokenizers):
    with pytest.raises(ValueError, match="Frame 2 .*embedding:nowhere.* has no tokens .*check the embedding's name"):
        plan(tokenizers["SD1"], ("l",), script("running", "embedding:nowhere"))


# --- windows ----------------------------------------------------------------------------------------------------------


TRIO = "[Mia] a (young:1.2) girl's doll\n[Otto] an old man\n[Tom] a man"


@pytest.mark.parametrize("model", TOKENIZERS)
def test_every_description_of_a_character_is_found_in_the_identity_and_where_a_frame_names_it_again(tokenizers, model):
    """Open brackets, weights and a description within another one move nothing."""
    lines = [
        "[Mia] and [Otto] with [Tom]",
        "[Otto] by (the [Tom], [Mia] and [Otto]:1.3)",
        "[Tom] (near [Otto]",
        "[NC] sea",
    ]
    story = script(*lines, identity=TRIO)
    described = {c.name: c.description for c in story.characters}
    prompts, chosen, record = plan(tokenizers[model], ENCODERS[model], story)
    for row, p in zip(record.rows, chosen):
        for key, subjects, spans in zip(ENCODERS[model], row.subjects, row.spans):
            tokens = [token for token, _ in words(prompts[p].tokens[key][0], (0, None))]
            for name, span in subjects:
                [own] = plan(tokenizers[model], ENCODERS[model], script(described[name]))[0]
                alone = [
                    token for token, _ in words(own.tokens[key][0], own.spans[ENCODERS[model].index(key)].frames[0])
                ]
                assert tokens[slice(*span)] == alone[-(span.stop - span.start) :], (row.frame, name)
            order = [span.start for _, span in subjects]
            assert order == sorted(order)
            identity = [name for name, span in subjects if span.stop <= spans.identity.stop]
            assert identity == list(record.characters[row.frame])
            again = [name for name, span in subjects if span.start >= spans.identity.stop]
            named = [n for k in row.window for n in (["Tom"], ["Tom", "Mia", "Otto"], ["Otto"], [])[k]]
            assert again == named
        for name in record.characters[row.frame]:
            columns = record.subject_columns(row, name)
            assert len(columns) == sum(name == n for n, _ in row.subjects[0])
    assert record.rows[3].subjects == ((),) * len(ENCODERS[model])


def frames_of(*lengths, word="cat"):
    """Frame prompts of these many tokens."""
    return [" ".join([word] * n) for n in lengths]


def windows(tokenizers, lengths, identity=6, model="SD1", **kwargs):
    story = script(*frames_of(*lengths), identity=" ".join(["red"] * identity))
    return [row.window for row in plan(tokenizers[model], ENCODERS[model], story, **kwargs)[2].rows]


@pytest.mark.parametrize("model", TOKENIZERS)
@pytest.mark.parametrize(
    ("identity", "lengths", "expected"),
    [
        (6, [20, 20, 29], [(0, 1, 2)] * 3),  # 75 tokens
        (6, [20, 20, 30], [(0, 1), (1, 2), (2, 0)]),  # 76
        (6, [5] * 13, [tuple(range(13))] * 13),
        (6, [5] * 14, [tuple((j + i) % 14 for i in range(13)) for j in range(14)]),
        (6, [60, 9, 9, 9], [(0, 1), (1, 2), (2, 3), (3, 0)]),  # any two fit, no three with the first
        (6, [60, 9, 10, 9], [(0, 1), (1, 2), (2, 3), (3, 0)]),
        (6, [60, 10, 1, 1], [(0,), (1,), (2,), (3,)]),
        (6, [69], [(0,)]),
        (74, [1, 1, 1], [(0,), (1,), (2,)]),
        (1, [1] * 74, [tuple(range(74))] * 74),
    ],
)
def test_windows_are_circular_own_first_and_as_wide_as_all_of_them_allow(
    tokenizers, model, identity, lengths, expected
):
    assert windows(tokenizers, lengths, identity, model) == expected


@pytest.mark.parametrize("limit", range(5))
def test_a_window_is_never_wider_than_the_limit(tokenizers, limit):
    width = limit or 4
    expected = [tuple((j + i) % 4 for i in range(width)) for j in range(4)] if width < 4 else [(0, 1, 2, 3)] * 4
    assert windows(tokenizers, [5, 5, 5, 5], window=limit) == expected


def test_a_limit_above_what_fits_changes_nothing(tokenizers):
    assert (
        windows(tokenizers, [30, 30, 30], window=100) == windows(tokenizers, [30, 30, 30]) == [(0, 1), (1, 2), (2, 0)]
    )


def test_separate_prompts_have_one_frame_each(tokenizers):
    assert windows(tokenizers, [5, 5, 5], separate=True) == [(0,), (1,), (2,)]


def test_spans_follow_the_windows_order(tokenizers):
    story = script(*frames_of(20, 30, 25), identity="red red")
    _, chosen, record = plan(tokenizers["SD1"], ("l",), story)
    assert chosen == [0, 1, 2]
    assert [(row.window, row.expressed, row.spans[0]) for row in record.rows] == [
        ((0, 1), 0, ((1, 3), ((3, 23), (23, 53)), (53, 77), (0, 1))),
        ((1, 2), 0, ((1, 3), ((3, 33), (33, 58)), (58, 77), (0, 1))),
        ((2, 0), 0, ((1, 3), ((3, 28), (28, 48)), (48, 77), (0, 1))),
    ]


def test_the_encoder_that_counts_most_tokens_sets_the_windows(tokenizers):
    story = script(*["embedding:fox cat"] * 5, identity=" ".join(["red"] * 59))
    _, _, record = plan(tokenizers["SDXL"], ("l", "g"), story)
    assert [row.window for row in record.rows] == [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 0), (3, 4, 0, 1), (4, 0, 1, 2)]
    assert [span.identity for span in record.rows[0].spans] == [(1, 60), (1, 60)]
    assert [span.frames[1] for span in record.rows[0].spans] == [(64, 68), (61, 62)]


CAST = "[Mia] a girl in a red coat\n[Tom] a boy"


def test_frames_that_show_the_same_characters_share_their_prompts(tokenizers):
    frames = ["[Mia] reads", "[Tom] runs", "[NC] a forest", "[Mia] sleeps", "a lake"]
    story = script(*frames, "[Tom] with [Mia]", "[Mia] and [Tom] sit", identity=CAST)
    prompts, chosen, record = plan(tokenizers["SD1"], ("l",), story)
    assert [row.window for row in record.rows] == [(0, 3), (1,), (2,), (0, 3), (4,), (5, 6), (5, 6)]
    assert chosen == [0, 1, 2, 0, 3, 4, 4] and len(prompts) == 5
    assert record.characters == (("Mia",), ("Tom",), (), ("Mia",), (), ("Mia", "Tom"), ("Mia", "Tom"))
    decode = tokenizers["SD1"].decode
    ids = [[t for t, _ in p.tokens["l"][0]] for p in prompts]
    assert [decode(i).strip() for i in ids] == [
        "a girl in a red coat reads sleeps",
        "a boy runs",
        "a forest",
        "a lake",
        "a girl in a red coat and a boy with a girl in a red coat sit",
    ]
    assert record.rows[2].spans[0] == ((1, 1), ((1, 3),), (3, 77), (0, 1))


def test_one_crowded_group_does_not_narrow_another(tokenizers):
    long = " ".join(["cat"] * 40)
    story = script(f"[Mia] {long}", f"[Mia] {long}", "[Tom] runs", "[Tom] sits", identity=CAST)
    assert [row.window for row in plan(tokenizers["SD1"], ("l",), story)[2].rows] == [(0,), (1,), (2, 3), (2, 3)]


@pytest.mark.parametrize(
    ("model", "encoder"), [("SD1", "CLIP-L"), ("SD2", "OpenCLIP-H"), ("SDXL", "CLIP-L"), ("refiner", "CLIP-G")]
)
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("length", [70, 71, 200])
def test_a_frame_that_is_too_long_names_itself_its_tokens_and_the_limit(tokenizers, model, encoder, separate, length):
    story = script("cat", " ".join(["cat"] * length), identity="red red red red red red")
    with pytest.raises(ValueError) as error:
        plan(tokenizers[model], ENCODERS[model], story, separate=separate)
    message = str(error.value)
    over = "1 token" if length == 70 else f"{length - 69} tokens"
    assert message.startswith(
        f"Frame 2 is too long for {encoder} by {over}: {6 + length} of at most 75 (6 of the identity, {length} of the "
    )
    assert len(message) < 200, "the whole frame is not quoted"
    assert plan(tokenizers[model], ENCODERS[model], script("cat", identity=" ".join(["red"] * 74)), separate=separate)


def test_an_identity_that_is_too_long_is_counted_in_the_frames_error(tokenizers):
    with pytest.raises(ValueError, match=r"Frame 1 .* by 76 tokens: 151 of .* \(150 of the identity, 1 of the frame"):
        plan(tokenizers["SD1"], ("l",), script("cat", identity=" ".join(["red"] * 150)))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("lengths", [[4] * 100, [1] * 98 + [35, 35], [1] * 50 + [35] + [1] * 49, [1] * 100])
def test_a_hundred_frames_are_planned_at_once(tokenizers, lengths):
    start = time.perf_counter()
    found = windows(tokenizers, lengths, model="SDXL")
    assert len(found) == 100 and all(window[0] == j for j, window in enumerate(found))
    assert len({len(window) for window in found}) == 1
    for window in found:
        assert 6 + sum(lengths[k] for k in window) <= 75
    assert time.perf_counter() - start < 3


# --- encoding ---------------------------------------------------------------------------------------------------------

SCRIPT = ("reading a red fox book", "🦊 running, fast", "sailing", "sailing")


def encode(clip, story, mode="one prompt", window=0, pooled="story"):
    return OneStoryPrompt.execute(clip, story, mode, window, pooled).result[0]


def clip_text_encode(clip, text):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def joined(story, frames=None):
    chosen = story.frames if frames is None else [story.frames[j] for j in frames]
    return " ".join([story.frames[0].identity, *(f.prompt for f in chosen)])


@pytest.mark.parametrize("model", [*MODELS, "whole SD1"])
def test_one_prompt_encodes_as_clip_text_encode_does(sd, clips, model):
    clip, story = sd.clip if model == "whole SD1" else clips(model), script(*SCRIPT, "(red:1.3) fox")
    model = model.removeprefix("whole ")
    [[embeds, options]] = encode(clip, story)
    [[want, want_options]] = clip_text_encode(clip, joined(story))
    assert embeds.shape == (5, 77, {"SD1": 768, "SD2": 1024, "SDXL": 2048, "refiner": 1280}[model])
    assert torch.equal(embeds, want.expand_as(embeds))
    assert {*want_options, KEY} <= set(options)
    assert all(name.startswith(KEY) for name in set(options) - set(want_options))
    assert torch.equal(options["pooled_output"], want_options["pooled_output"].expand(5, -1))
    record = options[KEY].record
    assert [e.name for e in record.encoders] == list(ENCODERS[model])
    assert record.encoders[-1].channels.stop == embeds.shape[2]


@pytest.mark.parametrize("mode", ["one prompt", "separate prompts"])
@pytest.mark.parametrize("model", [*MODELS, "SD3"])
def test_each_alone_puts_what_clip_text_encode_makes_of_a_description_where_the_story_has_it(clips, model, mode):
    clip = sd3_clip("lt") if model == "SD3" else clips(model)
    story = script(
        "[Mia] and [Otto] sail", "[Otto] waves at (an old [Mia]:1.2)", "[Tom] runs", "[NC] sea", identity=TRIO
    )
    [[together, options]] = encode(clip, story, mode)
    [[got, got_options]] = OneStoryPrompt.execute(clip, story, mode, 0, "story", "each alone").result[0]
    record = got_options[KEY].record
    assert record.rows == options[KEY].record.rows
    want = together.clone()
    for j, row in enumerate(record.rows):
        for encoder, subjects in zip(record.encoders, row.subjects):
            channels, first = slice(*encoder.channels), encoder.tokens.start
            first += encoder.name in "lhg"
            for name, span in subjects:
                alone = clip_text_encode(clip, next(c.description for c in story.characters if c.name == name))[0][0]
                count = span.stop - span.start
                want[j, span.start : span.stop, channels] = alone[0, first : first + count, channels]
    torch.testing.assert_close(got, want, atol=ONE_LAYER, rtol=ONE_LAYER)
    assert relative_error(got[0], together[0]) > 1e-3
    assert torch.equal(got[3], together[3]), "a frame that shows nobody"
    torch.testing.assert_close(got_options[KEY].norms, token_norms(got, record))


@pytest.mark.parametrize("model", ["SD1", "SDXL"])
def test_separate_prompts_encode_as_clip_text_encode_does(clips, model):
    clip, story = clips(model), script(*SCRIPT)
    [[embeds, options]] = encode(clip, story, mode="separate prompts")
    for j in range(4):
        [[want, want_options]] = clip_text_encode(clip, joined(story, [j]))
        assert torch.equal(embeds[j], want[0])
        assert torch.equal(options["pooled_output"][j], want_options["pooled_output"][0])


def test_a_windowed_story_encodes_each_window_as_clip_text_encode_does(clips):
    clip, story = clips("SDXL"), script(*SCRIPT)
    [[embeds, options]] = encode(clip, story, window=2)
    for j in range(4):
        [[want, want_options]] = clip_text_encode(clip, joined(story, [j, (j + 1) % 4]))
        assert torch.equal(embeds[j], want[0])
        assert torch.equal(options["pooled_output"][j], want_options["pooled_output"][0])


@pytest.mark.parametrize("model", ["SDXL", "refiner"])
@pytest.mark.parametrize("window", [0, 2])
def test_pooled_is_of_the_story_of_the_frame_alone_or_zero(clips, model, window):
    clip, story = clips(model), script(*SCRIPT)
    results = {pooled: encode(clip, story, window=window, pooled=pooled)[0] for pooled in ("story", "frame", "zero")}
    separate = encode(clip, story, mode="separate prompts")[0][1]["pooled_output"]
    assert separate.shape == (4, 1280)
    pooled = {name: options["pooled_output"] for name, (_, options) in results.items()}
    assert torch.equal(pooled["frame"], separate)
    assert torch.equal(pooled["zero"], torch.zeros_like(separate))
    assert (pooled["story"][0] == pooled["story"][1]).all() == (window == 0)
    assert relative_error(pooled["story"], separate) > 1e-2
    assert all(torch.equal(embeds, results["story"][0]) for embeds, _ in results.values())


@pytest.mark.parametrize("model", [*MODELS, "whole SD1"])
def test_sot_and_identity_are_the_same_vectors_in_the_identity_prompt_alone(sd, clips, model):
    """CLIP is causal: what IPCA rests on."""
    clip, story = sd.clip if model == "whole SD1" else clips(model), script(*SCRIPT)
    [[embeds, options]] = encode(clip, story)
    stop = options[KEY].record.rows[0].spans[0].identity.stop
    [[alone, _]] = clip_text_encode(clip, FOX)
    assert stop == 8
    assert relative_error(embeds[:, :stop], alone[:, :stop].expand(4, -1, -1)) < ONE_LAYER
    assert relative_error(embeds[:, stop : stop + 1], alone[:, stop : stop + 1].expand(4, -1, -1)) > 1e-2


@pytest.fixture
def sd1(clips):
    return clips("SD1")


def record_of(conditioning):
    return conditioning[0][1][KEY].record


def test_a_weight_scales_its_tokens_and_moves_no_span(sd1):
    plain = encode(sd1, script("red fox", "running fast"))
    weighted = encode(sd1, script("red fox", "(running:1.5) fast"))
    assert record_of(plain) == record_of(weighted)
    [[empty, _]] = clip_text_encode(sd1, "")
    span = record_of(plain).rows[0].spans[0].frames[1]
    a, b = plain[0][0], weighted[0][0]
    torch.testing.assert_close(b[:, span.start] - empty[:, span.start], 1.5 * (a[:, span.start] - empty[:, span.start]))
    b[:, span.start] = a[:, span.start]
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("model", MODELS)
def test_an_embedding_that_one_encoder_lacks_encodes_as_clip_text_encode_does(clips, model):
    story = script("a embedding:foxg running", "embedding:fox sailing embedding:foxxl x")
    [[embeds, _]] = encode(clips(model), story)
    [[want, _]] = clip_text_encode(clips(model), joined(story))
    torch.testing.assert_close(embeds, want.expand_as(embeds))


def test_clip_skip_counts(sd1):
    story = script(*SCRIPT)
    plain = encode(sd1, story)
    [skipped] = nodes.CLIPSetLastLayer().set_last_layer(sd1, -2)
    got = encode(skipped, story)
    assert torch.equal(got[0][0][:1], clip_text_encode(skipped, joined(story))[0][0])
    assert relative_error(got[0][0], plain[0][0]) > 1e-2
    assert record_of(got) == record_of(plain)
    assert torch.equal(encode(sd1, story)[0][0], plain[0][0]), "the clip before it is left as it was"


KEY_PATCHED = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


def patch_of(clip):
    weight = clip.cond_stage_model.state_dict()[KEY_PATCHED]
    return {KEY_PATCHED: (0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 28,)}


def test_a_lora_patched_clip_counts(sd1):
    story = script(*SCRIPT)
    plain = encode(sd1, story)
    patched = sd1.clone()
    assert patched.add_patches(patch_of(sd1), 1.0)
    got = encode(patched, story)
    assert torch.equal(got[0][0][:1], clip_text_encode(patched, joined(story))[0][0])
    assert relative_error(got[0][0], plain[0][0]) > 1e-2
    assert record_of(got) == record_of(plain)
    assert torch.equal(encode(sd1, story)[0][0], plain[0][0])


def hooked(clip, strengths):
    """`clip` with one LoRA hook whose strength follows `strengths`, pairs of (start percent, strength)."""
    hook = comfy.hooks.WeightHook(strength_model=0.0, strength_clip=1.0)
    hook.need_weight_init = False
    hook.weights_clip = patch_of(clip)
    group = comfy.hooks.HookGroup()
    group.add(hook)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for start, strength in strengths:
        keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    group.set_keyframes_on_hooks(keyframes)
    return SetClipHooks().apply_hooks(clip, schedule_clip=True, apply_to_conds=True, hooks=group)[0]


@pytest.mark.parametrize("pooled", ["story", "frame", "zero"])
def test_scheduled_clip_hooks_give_one_entry_for_each_part_of_the_schedule(sd1, pooled):
    story = script(*SCRIPT)
    clip = hooked(sd1, [(0.0, 1.0), (0.5, 0.25)])
    got = encode(clip, story, pooled=pooled)
    want = clip_text_encode(clip, joined(story))
    assert len(got) == len(want) == 2
    for (embeds, options), (want_embeds, want_options) in zip(got, want):
        assert torch.equal(embeds, want_embeds.expand_as(embeds))
        for name in ("clip_start_percent", "clip_end_percent", "hooks"):
            assert options[name] == want_options[name]
        assert len(options["pooled_output"]) == 4
        assert options[KEY].record == record_of(got)
    assert relative_error(got[0][0], got[1][0]) > 1e-3
    reweighted = OneStorySVR.execute(got).result[0]
    assert [set(options) for _, options in reweighted] == [set(options) for _, options in got]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("window", [0, 2])
def test_reweighting_a_real_encoders_output_agrees_with_the_formulas(clips, model, window):
    conditioning = encode(clips(model), script(*SCRIPT), window=window)
    before = conditioning[0][0].clone()
    for node, reference in ((OneStorySVR, singular_value_reweight), (OneStoryNaiveReweight, naive_reweight)):
        [[embeds, options]] = node.execute(conditioning, **DEFAULTS[node]).result[0]
        assert relative_error(embeds, reference(before, record_of(conditioning))) < ONE_LAYER
        assert options == conditioning[0][1] and options is not conditioning[0][1]
        assert torch.equal(conditioning[0][0], before), "the conditioning that came in is left as it was"


DEFAULTS = {
    node: {i.id: i.default for i in node.define_schema().inputs if i.id != "conditioning"}
    for node in (OneStorySVR, OneStoryNaiveReweight)
}


@pytest.mark.parametrize("node", [OneStorySVR, OneStoryNaiveReweight])
def test_reweighting_without_a_story_says_where_it_comes_from(sd1, node):
    with pytest.raises(ValueError, match="found no story in its conditioning: wire .* from Story Prompt"):
        node.execute(clip_text_encode(sd1, FOX), **DEFAULTS[node])


def test_reweighting_leaves_entries_without_a_story_as_they_are(sd1):
    other = clip_text_encode(sd1, "a forest")
    both = encode(sd1, script("running", "sailing")) + other
    [_, [embeds, options]] = OneStorySVR.execute(both, **DEFAULTS[OneStorySVR]).result[0]
    assert embeds is other[0][0] and options is other[0][1]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"express_alpha": 1.0}, "lower express_alpha (1) or express_beta (1)"),
        ({"express_alpha": 0.9, "express_beta": 10.0}, "lower express_alpha (0.9) or express_beta (10)"),
    ],
)
def test_parameters_that_overflow_name_the_frame_and_what_to_lower(sd1, parameters, says):
    conditioning = encode(sd1, script("running", "sailing"))
    with pytest.raises(ValueError) as error:
        OneStorySVR.execute(conditioning, **{**DEFAULTS[OneStorySVR], "variant": "paper", **parameters})
    assert str(error.value).startswith("SVR makes frame 1's embedding overflow") and says in str(error.value)


# --- frames alone in their prompts ------------------------------------------------------------------------------------

README_CAST = "[Mia] a girl with short red hair and a yellow raincoat\n[Otto] a small grey robot"
README_FRAMES = (
    "[Mia] jumping over a puddle",
    "[Mia] and [Otto] looking at the stars",
    "[NC] an empty street in the rain",
)
LONE = {
    "a story of one frame": (script("running"), {}, [0]),
    "a frame without characters": (script("[NC] a street", "[Mia] runs", "[Mia] sits", identity=README_CAST), {}, [0]),
    "a cast of one frame": (script("[Mia] runs", "[Otto] reads", "[Mia] sits", identity=README_CAST), {}, [1]),
    "the README's table": (script(*README_FRAMES, identity=README_CAST), {}, [0, 1, 2]),
    "window 1": (script(*SCRIPT), {"window": 1}, [0, 1, 2, 3]),
    "separate prompts": (script(*SCRIPT), {"mode": "separate prompts"}, [0, 1, 2, 3]),
    "frames too long to share": (script(*frames_of(60, 50)), {}, [0, 1]),
}
REWEIGHTINGS = [
    *(
        (OneStorySVR, {"variant": variant, "eot": eot})
        for variant in ("released", "paper")
        for eot in ("reweight", "scale")
    ),
    (OneStoryNaiveReweight, {}),
]


@pytest.mark.parametrize(("node", "changed"), REWEIGHTINGS, ids=lambda value: str(getattr(value, "__name__", value)))
@pytest.mark.parametrize("model", ["SD1", "SDXL"])
@pytest.mark.parametrize("name", LONE)
def test_a_frame_alone_in_its_prompt_is_left_as_it_is(clips, model, name, node, changed):
    story, settings, alone = LONE[name]
    conditioning = encode(clips(model), story, **settings)
    [[before, options]] = conditioning
    [[after, kept]] = node.execute(conditioning, **{**DEFAULTS[node], **changed}).result[0]
    assert [i for i, row in enumerate(options[KEY].record.rows) if len(row.window) == 1] == alone
    grown = (token_norms(after, options[KEY].record) / kept[KEY].norms).amax(dim=(1, 2))
    assert (grown[alone] == 1).all(), f"lone rows grew {grown.tolist()} times"
    for i in range(len(before)):
        assert torch.equal(after[i], before[i]) == (i in alone)


# --- conditionings and clips that other nodes have changed ------------------------------------------------------------


@pytest.fixture
def told(sd1):
    return encode(sd1, script("running", "sailing", "reading"))


def take(node, conditioning):
    if node is OneStoryInspect:
        return node.execute(conditioning)
    return node.execute(conditioning, **DEFAULTS[node])


@pytest.mark.parametrize(
    ("node", "name"),
    [(OneStorySVR, "SVR"), (OneStoryNaiveReweight, "Naive Reweighting"), (OneStoryInspect, "Inspect Story")],
)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e[1:2], "1 rows where the story's record has 3: .* use Split Story"),
        (lambda e: e.repeat(2, 1, 1), "6 rows where the story's record has 3: .* use Split Story"),
        (lambda e: e[:, :60], "60 tokens where the story's record has 77: .* wire it before Story Prompt"),
        (lambda e: e.repeat_interleave(2, 1), "154 tokens where the story's record has 77: .* before Story Prompt"),
        (lambda e: torch.stack([e, -e], 2).flatten(1, 2), "154 tokens where the story's record has 77"),
        (lambda e: torch.nn.functional.pad(e, (0, 1280)), "2048 channels where the story's record has 768"),
    ],
)
def test_a_conditioning_that_is_not_its_records_gets_a_sentence_with_both_numbers(told, node, name, change, says):
    [[embeds, options]] = told
    with pytest.raises(ValueError, match=f"^{name} found {says}") as error:
        take(node, [[change(embeds), options]])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("node", [OneStorySVR, OneStoryNaiveReweight, OneStoryInspect])
def test_tokens_appended_by_conditioning_concat_are_left_as_they_are(sd1, told, node):
    twice = [[embeds.expand(3, -1, -1), options] for embeds, options in clip_text_encode(sd1, "in the snow")]
    [longer] = nodes.ConditioningConcat().concat(told, twice)
    assert longer[0][0].shape[1] == 154
    result = take(node, longer).result[0]
    if node is not OneStoryInspect:
        torch.testing.assert_close(result[0][0][:, :77], take(node, told).result[0][0][0])
        assert torch.equal(result[0][0][:, 77:], longer[0][0][:, 77:])


@pytest.mark.parametrize(("node", "name"), [(OneStorySVR, "SVR"), (OneStoryNaiveReweight, "Naive Reweighting")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_conditioning_that_was_not_finite_before_is_said_to_be_that(clips, node, name, bad):
    [[embeds, options]] = encode(clips("SDXL"), script("running", "sailing"))
    embeds[1, 70, 1000] = bad
    with pytest.raises(ValueError, match=rf"^Frame 2's embedding of CLIP-G was not finite .* before {name}: .*take it"):
        take(node, [[embeds, options]])


def patched(clip, change, names=("l",)):
    """`clip` with a patch, as other packs make them, on what these encoders give: (embeds, pooled, weights)."""
    patched = clip.clone()
    for name in names:
        encoder = getattr(clip.cond_stage_model, f"clip_{name}")

        def encode_token_weights(chunks, encoder=encoder):
            weights = torch.tensor([[weight for _, weight in chunk] for chunk in chunks])
            plain = [[(token, abs(weight)) for token, weight in chunk] for chunk in chunks]
            return change(*ClipTokenWeightEncoder.encode_token_weights(encoder, plain), weights[..., None])

        patched.patcher.add_object_patch(f"clip_{name}.encode_token_weights", encode_token_weights)
    return patched


def keys_and_values(embeds, pooled, weights):
    """NegPiP: each token as key and as value, side by side; the value is negated where the weight is negative."""
    return torch.stack([embeds, embeds * weights.sign()], dim=2).flatten(1, 2), pooled


@pytest.mark.parametrize(("node", "changed"), REWEIGHTINGS, ids=lambda value: str(getattr(value, "__name__", value)))
@pytest.mark.parametrize(("model", "window"), [("SD1", 2), ("SDXL", 0)])
def test_negative_weights_by_interleaved_keys_and_values_are_reweighted_with_their_tokens(
    clips, model, node, changed, window
):
    frames = ["reading a book", "running (fast:{}1.2)", "sailing"]
    clip = clips(model)
    negative, positive = (script(*(frame.format(sign) for frame in frames)) for sign in ("-", ""))
    interleaved = encode(patched(clip, keys_and_values, ENCODERS[model]), negative, window=window)
    plain = encode(clip, positive, window=window)
    record, [[before, _]] = record_of(interleaved), interleaved
    assert before.shape[1] == 154 and (record.tokens, record.interleaved) == (77, 2)
    assert record._replace(interleaved=1) == record_of(plain)
    sign = torch.where((before[:, 1::2] == before[:, 0::2]).all(2, keepdim=True), 1.0, -1.0)
    assert (sign == -1).sum() == 3 * (window == 0) + 2 * (window == 2)

    [[got, _]] = node.execute(interleaved, **{**DEFAULTS[node], **changed}).result[0]
    [[want, _]] = node.execute(plain, **{**DEFAULTS[node], **changed}).result[0]
    assert relative_error(got[:, 0::2], want) < ONE_LAYER
    assert relative_error(got[:, 1::2], want * sign) < ONE_LAYER
    OneStoryInspect.execute(interleaved)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda embeds, pooled, _: (embeds[:, :50], pooled), "[1, 50, 768]"),
        (lambda embeds, pooled, _: (torch.cat([embeds, embeds], 1), pooled), "[1, 154, 768]"),
        (lambda embeds, pooled, _: (embeds.repeat(2, 1, 1), pooled), "[2, 77, 768]"),
        (lambda embeds, pooled, _: (torch.cat([embeds, embeds], 2), pooled), "[1, 77, 1536]"),
    ],
)
def test_a_patched_clip_that_gives_something_else_gets_a_sentence_with_both_sizes(sd1, change, got):
    with pytest.raises(ValueError) as error:
        encode(patched(sd1, change), script("running", "sailing"))
    message = str(error.value)
    assert message.startswith(f"The text encoder returned {got} ") and "[1, 77, 768]" in message and "`clip`" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_encoder_that_gives_nan_is_named_with_the_frames_and_the_way_out(clips, bad):
    def one_bad_token(embeds, pooled, weights):
        return embeds.index_fill(1, torch.tensor([70]), bad), pooled

    with pytest.raises(ValueError, match="^CLIP-G's output is not finite .* of frames 1, 2: .*--fp32-text-enc"):
        encode(patched(clips("SDXL"), one_bad_token, "g"), script("running", "sailing"))
    with pytest.raises(ValueError, match="^CLIP-L's output is not finite .* of frame 1: .*--fp32-text-enc"):
        encode(patched(clips("SDXL"), one_bad_token, "l"), script("running", "sailing"), mode="separate prompts")


@pytest.mark.parametrize("pooled", ["story", "frame"])
def test_a_pooled_output_that_is_nan_is_named_too(clips, pooled):
    clip = patched(clips("SDXL"), lambda embeds, pooled, _: (embeds, pooled * float("nan")), "g")
    with pytest.raises(ValueError, match="^The text encoder's pooled output is not finite .*--fp32-text-enc"):
        encode(clip, script("running", "sailing"), pooled=pooled)


class Foreign(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    "encoder",
    [
        Foreign,
        comfy.sdxl_clip.StableCascadeClipModel,
        comfy.text_encoders.genmo.MochiT5XXL,
        comfy.text_encoders.hydit.HyditModel,
    ],
)
def test_another_text_encoder_gets_a_sentence_that_names_what_is_supported(encoder):
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = encoder.__new__(encoder)
    with pytest.raises(ValueError) as error:
        encode(clip, script("running"))
    message = str(error.value)
    assert f"The text encoder {encoder.__name__} is not supported" in message
    assert all(name in message for name in ("SD1.x", "SD2.x", "SDXL base", "SDXL refiner"))


def test_a_checkpoint_without_a_text_encoder_gets_a_sentence():
    with pytest.raises(ValueError, match="no text encoder"):
        encode(None, script("running"))


def test_a_hundred_frames_encode(clips):
    story = script(*(f"doing thing number {j} in the snow" for j in range(100)))
    [[embeds, options]] = encode(clips("SD1"), story)
    assert embeds.shape == (100, 77, 768) and len(options[KEY].record.rows) == 100
    [[reweighted, _]] = OneStorySVR.execute([[embeds, options]], **DEFAULTS[OneStorySVR]).result[0]
    assert reweighted.isfinite().all()


@pytest.mark.parametrize(
    ("frames", "separate", "window", "shown"),
    [
        ("runs in snow\nsleeps", False, 0, "Frames 1–2 in one prompt: 11 of 75 tokens"),
        ("runs in snow\nsleeps", True, 0, "Frames 1–2, each alone: 8 to 10 of 75 tokens"),
        ("runs\nsits\nsleeps", False, 2, "Frames 1–3, each with the 1 after it: 9 of 75 tokens"),
        (
            "runs in snow\n[NC] a street\nsits",
            False,
            0,
            "Frames 1, 3 in one prompt: 11 of 75 tokens\nFrame 2: 2 of 75 tokens",
        ),
    ],
)
def test_prompt_list_tells_how_full_the_prompts_are(tokenizers, frames, separate, window, shown):
    tokenize = partial(tokenizers["SDXL"].tokenize_with_weights, return_word_ids=True)
    story = parse_script(FOX, frames)
    assert prompt_list(consolidate(story, tokenize, side_by_side("l", "g"), separate, window)[2]) == shown
