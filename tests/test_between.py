"""Pictures between a story's frames: text and noise lie between theirs, and they look at both."""

import math
from io import BytesIO
from types import SimpleNamespace

import av
import folder_paths
import numpy
import pytest
import torch
from adapters import Exact, adapter, flat
from comfy.ldm.modules.attention import attention_basic
from families import COLUMNS, FLUX, ROWS
from graphs import empty, encode, ipca, positive, random, sample, scaled_error, self_attention, story
from joint import overridden
from onestory.attention.batch import Cast
from onestory.attention.between import InBetweens, between_noise, slerp
from onestory.nodes.between import OneStoryInBetweens
from onestory.nodes.passes import OneStoryRuns
from onestory.svr.record import KEY, Attached, Between, Encoder, Record, Row, Span, Spans
from safetensors.torch import save_file
from studio import saved
from test_image_adapter import Decoupled
from test_server import graph, node
from vision import TINY_CLIP, tiny

TALE = story("[Mia] a girl\n[Otto] an owl", "[Mia] runs", "[Mia] eats", "[Otto] flies")
FILM = [0, 3, 1, 4, 2]
"""The numbers of a film's frames with one picture in each gap."""


@pytest.fixture(scope="module")
def tale():
    return TALE


def between(model, conditioning, latent, count=1, pairs="all neighbours", **more):
    reach = {"blocks": "all", "start_percent": 0.0, "end_percent": 1.0}
    return OneStoryInBetweens.execute(model, conditioning, latent, count, pairs, **reach, **more).result


def small_story(characters=(("Mia",), ("Mia",), ("Otto",))):
    """A conditioning of random numbers with a record: one token of identity, one of its own for each frame."""
    spans = Spans(Span(1, 2), (Span(2, 3),), Span(3, 4))
    rows = tuple(Row(j, (j,), (spans,)) for j in range(len(characters)))
    record = Record(len(rows), (Encoder("l", Span(0, 4), Span(0, 8)),), rows, characters)
    embeds = random([len(rows), 4, 8])
    options = {"pooled_output": random([len(rows), 6], 1), KEY: Attached.to(embeds, record)}
    return [[embeds, options]], {"samples": torch.zeros(len(rows), 4, 2, 2), "batch_index": [0, 5, 7][: len(rows)]}


def test_text_lies_between_that_of_the_frames_and_theirs_stays_bit_for_bit(sd):
    conditioning, latent = small_story()
    _, [[embeds, options]], out, _ = between(sd.model, conditioning, latent, count=3)
    text, pooled = conditioning[0][0].double(), conditioning[0][1]["pooled_output"].double()
    assert torch.equal(embeds[[0, 4, 8]], conditioning[0][0])
    for row, (start, share) in enumerate(((0, 0), (0, 0.25), (0, 0.5), (0, 0.75), (1, 0), (1, 0.25))):
        end = start + bool(share)
        for got, of in ((embeds, text), (options["pooled_output"], pooled)):
            assert (got[row] - (of[start] * (1 - share) + of[end] * share)).abs().max() < 1e-6
    assert out["samples"].shape == (9, 4, 2, 2) and [out["batch_index"][row] for row in (0, 4, 8)] == [0, 5, 7]
    record = options[KEY].record
    assert [row.frame for row in record.rows] == [0, 3, 4, 5, 1, 6, 7, 8, 2]
    assert record.characters == (("Mia",), ("Mia",), ("Otto",), *[()] * 6)
    record.check(embeds, "The test")


def test_noise_lies_on_the_sphere_between_that_of_the_frames():
    conditioning, _ = small_story()
    record = conditioning[0][1][KEY].record
    rows = tuple(record.rows[0]._replace(frame=frame) for frame in FILM)
    record = record._replace(
        rows=rows, characters=(*record.characters, (), ()), between=(Between(0, 1, 0.25), Between(1, 2, 0.5))
    )
    noise = torch.randn([5, 4, 8, 8], generator=torch.Generator().manual_seed(0))
    got = between_noise(noise, record)
    assert torch.equal(got[[0, 2, 4]], noise[[0, 2, 4]])
    for row, share in ((1, 0.25), (3, 0.5)):
        a, b = noise[row - 1].double().flatten(), noise[row + 1].double().flatten()
        angle = math.acos(a @ b / (a.norm() * b.norm()))
        want = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
        assert (got[row].flatten() - want).abs().max() < 1e-6
        assert abs(got[row].std() - 1) < 0.15
    assert torch.equal(slerp(noise[0], noise[0], 0.5), noise[0])
    assert torch.equal(slerp(noise[0] * 0, noise[1] * 0, 0.5), noise[0] * 0)


def test_a_picture_looks_at_itself_and_at_both_ends_by_its_share():
    q, k, v = (random([3, 6, 8], seed).double() for seed in (1, 2, 3))
    cast = Cast((0, 2, 1), ((), (), ()), (Between(0, 1, 0.3),))
    batch = SimpleNamespace(
        frames=cast.frames, cast=cast, between=cast.between, whole=True, chunks=((0, 3, None),), kept=None
    )
    call = SimpleNamespace(
        q=q, k=k, v=v, heads=1, picture=Span(0, 6), attention=attention_basic, options={}, layer=None
    )
    plain = attention_basic(q, k, v, 1)
    got = InBetweens((), 0.0, 1.0).prepare(batch).attend(call, lambda call: plain)

    def looking(*rows):
        keys, values = k[list(rows)].flatten(0, 1), v[list(rows)].flatten(0, 1)
        return (q[1] @ keys.T / 8**0.5).softmax(-1) @ values

    assert torch.equal(got[[0, 2]], plain[[0, 2]])
    assert (got[1] - (0.7 * looking(1, 0) + 0.3 * looking(1, 2))).abs().max() < 1e-12


def test_the_storys_own_frames_are_in_the_film_as_they_were(sd, frames, negative):
    model, latent = self_attention(ipca(sd.model)), empty(TALE)
    want = sample(model, frames, negative, latent)
    patched, conditioning, stretched, _ = between(model, frames, latent)
    film = sample(patched, conditioning, negative, stretched)
    assert len(film) == 5
    assert scaled_error(film[::2], want) < 1e-4


# --- with the frames' pictures ----------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The inputs for what CLIP and a small adapter see in the story's drawn frames."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("ipadapter", None)
    for name in ("base", "FaceID"):
        save_file(flat(adapter(name)), tmp_path / f"{name}.safetensors")
    images = random([3, 56, 56, 3], 5)
    return {"images": images, "adapter": "base.safetensors", "clip_vision": tiny(TINY_CLIP), "scale": 0.7}


def test_pictures_between_look_at_image_tokens_on_the_line_between_those_of_both(sd, frames, negative, pictures):
    """The whole run against attention to the tokens of the formula, row by row in float64."""
    film = {"count": 2, "pairs": "same characters"}
    model, conditioning, latent, _ = between(sd.model, frames, empty(TALE), **film)
    state = adapter("base")
    exact = Exact(state["image_proj"])
    with torch.inference_mode():
        seen = pictures["clip_vision"].encode_image(pictures["images"])["image_embeds"]
    first, second = (exact.tokens("base", each) for each in seen[:2])
    tokens = {"near": first * 2 / 3 + second / 3, "far": first / 3 + second * 2 / 3}
    blank = exact.tokens("base", torch.zeros(24))
    shown = [(), ("near",), ("far",), (), ()]
    override = Decoupled(sd.model, state["ip_adapter"], tokens, blank, shown)
    want = sample(overridden(model, override), conditioning, negative, latent)
    got = sample(between(sd.model, frames, empty(TALE), **film, **pictures)[0], conditioning, negative, latent)
    plain = sample(model, conditioning, negative, latent)
    assert override.calls and scaled_error(got, want) < 5e-5, "float noise of two steps"
    assert torch.equal(got[[0, 3, 4]], plain[[0, 3, 4]]), "the story's own frames"
    assert all(scaled_error(got[row], plain[row]) > 1e-3 for row in (1, 2))
    pictures["scale"] = 0.0
    off = between(sd.model, frames, empty(TALE), **film, **pictures)[0]
    assert torch.equal(sample(off, conditioning, negative, latent), plain)


def test_wrong_pictures_are_a_sentence(sd, pictures):
    for changed, said in (
        ({"images": None}, "the adapter “base.safetensors” and no `images` for it to look at: wire the story's frames"),
        ({"adapter": "none"}, "has `images` and no `adapter` that looks at them: choose an IP-Adapter file"),
        ({"images": pictures["images"][:1]}, "has 1 picture in `images` and a story of 3 frames: wire one picture"),
        (
            {"adapter": "FaceID.safetensors"},
            "reads faces, and Story In-Betweens gives it whole pictures: choose a base",
        ),
        ({"clip_vision": None}, r"was made for the CLIP vision model one \(24 channels\): load it with"),
    ):
        with pytest.raises(ValueError, match=said):
            between(sd.model, *small_story(), **pictures | changed)
    with pytest.raises(
        ValueError, match="takes `images` for SD1.5 and SDXL, and this model is Flux: take the wire out"
    ):
        between(FLUX.model(), *small_story(), **pictures)


# --- films ------------------------------------------------------------------------------------------------------------


def test_comfyuis_own_nodes_save_the_film(server):
    """Six pictures that a player reads back are those that the batch decodes to, but for the codec."""
    chosen = {"count": 4, "pairs": "all neighbours", "blocks": "all", "start_percent": 0.0, "end_percent": 1.0}
    wired = {"model": ["between", 0], "positive": ["between", 1], "latent_image": ["between", 2]}
    more = {
        "between": node(
            "OneStoryInBetweens", model=["ipca", 0], conditioning=["svr", 0], latent=["latent", 0], **chosen
        ),
        "latent": node("OneStoryLatent", story=["script", 0], width=64, height=64, noise="different"),
        "sampler": node("KSampler", **graph()["sampler"]["inputs"] | wired),
        "video": node("CreateVideo", images=["pictures", 0], fps=12.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix="film", format="auto", codec="auto"),
    }
    film = {name: each for name, each in graph(frames="running\nsleeping", **more).items() if "board" not in name}
    outputs = server.run(film)
    pictures = [numpy.asarray(picture.convert("RGB")) for picture in saved(server, outputs, "save frames")]
    (video,) = outputs["save"]["images"]
    with av.open(BytesIO(server.download(video))) as file:
        assert file.streams.video[0].average_rate == 12
        read = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(pictures) == len(read) == 6
    for got, want in zip(read, pictures):
        assert got.shape == want.shape
        assert abs(got.mean((0, 1)) - want.mean((0, 1))).max() < 8


def test_drawn_a_few_at_a_time_the_film_is_the_same(sd, frames, negative):
    patched, conditioning, stretched, _ = between(ipca(sd.model), frames, empty(TALE), count=2)
    whole = sample(patched, conditioning, negative, stretched)
    runs = OneStoryRuns.execute(patched, 3).result[0]
    assert scaled_error(sample(runs, conditioning, negative, stretched), whole) < 1e-4


def test_a_transformers_film_has_the_storys_own_frames_and_is_the_same_in_runs():
    """Flux's text and picture stand in one attention call: pictures look at both ends there as well."""
    clip, tale = FLUX.clip(), story("a watercolor fox", "runs", "sleeps")
    given, negative = positive(clip, tale), encode(clip, "red fox")
    latent = empty(tale, COLUMNS * FLUX.pixels, ROWS * FLUX.pixels)
    want = sample(FLUX.model(), given, negative, latent)
    patched, conditioning, stretched, _ = between(FLUX.model(), given, latent, count=2)
    film = sample(patched, conditioning, negative, stretched)
    assert scaled_error(film[[0, 3]], want) < 1e-4
    alone = sample(FLUX.model(), conditioning, negative, stretched)
    assert scaled_error(film[1:3], alone[1:3]) > 1e-2, "they look at both ends"
    runs = OneStoryRuns.execute(patched, 1).result[0]
    assert scaled_error(sample(runs, conditioning, negative, stretched), film) < 1e-4


@pytest.mark.parametrize(
    "more, said",
    [
        ({"pairs": "same characters", "cuts": "1"}, "has a cut after every frame: choose “all neighbours”"),
        ({"cuts": "9"}, "cuts has “9”, and the story has 3 frames"),
    ],
)
def test_wrong_cuts_are_a_sentence(sd, more, said):
    with pytest.raises(ValueError, match=said):
        between(sd.model, *small_story(), **more)


def test_what_is_no_whole_story_is_a_sentence(sd):
    conditioning, latent = small_story()
    once = between(sd.model, conditioning, latent)
    for given, said in (
        (([[conditioning[0][0], {}]], latent), "has a conditioning without a story: wire it from Story Prompt"),
        (once[1:3], "or one that has in-betweens already: wire the whole story"),
        (small_story((("Mia",),)), "has a story of 1 frame: there is nothing between"),
        ((conditioning, {"samples": latent["samples"][:2]}), "The latent batch has 2 frames and the story 3"),
    ):
        with pytest.raises(ValueError, match=said):
            between(sd.model, *given)
    assert len(between(sd.model, conditioning, latent, pairs="same characters")[2]["samples"]) == 4
