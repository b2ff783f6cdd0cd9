"""Story PhotoMaker: image tokens and fused words against float64, slots in the prompt, whole runs."""

from functools import partial
from itertools import product

import comfy.clip_model
import comfy.clip_vision
import comfy.model_detection
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
import comfy_extras.nodes_photomaker as core
import folder_paths
import pytest
import torch
from adapters import Code, flat
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer
from graphs import SVR, empty, encode, in_runs, ipca, ksampler, random, sample, scaled_error, self_attention, story
from onestory.nodes.cast import OneStoryCast
from onestory.nodes.photomaker import OneStoryLoadFastComposer, OneStoryPhotoMaker
from onestory.nodes.prompt import OneStoryPrompt
from onestory.nodes.regions import OneStoryRegions
from onestory.nodes.reweight import OneStoryNaiveReweight, OneStorySVR
from onestory.subjects.photomaker import read_photomaker
from onestory.subjects.vision import clip_pixels, picture_side
from onestory.svr.pictures import Pictures
from onestory.svr.record import KEY
from photomakers import LAYOUTS, LORA_MODULE, SIDE, ExactPhotoMaker, photomaker, write_photomakers
from reference import ONE_LAYER, relative_error
from safetensors.torch import save_file
from test_image_adapter import SD15, Model
from tiny import sd3, text_encoder, vae_weights
from warned import warnings_of

FILES = dict(zip(LAYOUTS, ("photomaker-v1.safetensors", "photomaker-v2.bin", "pytorch_model.bin"), strict=True))
MIA, OTTO = "a girl img with (red:1.2) hair", "a small robot img"
FRAMES = ("[Mia] at sea", "reading to [Otto]", "[Mia] holds [Otto], [Mia] waves", "[NC] rain")
TALE = story(f"[Mia] {MIA}\n[Otto] {OTTO}", *FRAMES)
PLAIN = story("[Mia] a girl with (red:1.2) hair\n[Otto] a small robot", *FRAMES)
SHOWN = [("Mia",), ("Otto", "Otto"), ("Mia", "Otto", "Otto", "Mia"), ()]
"""Whose class words each frame's own prompt has, in order, for separate prompts; names at the front are dropped."""
PICTURES = {"Mia": 2, "Otto": 1}


SMALL = {f"clip_{name}_model_config": {"num_hidden_layers": 3, "intermediate_size": 64} for name in "lg"}


@pytest.fixture(scope="module")
def clip():
    """SD1.5's text encoder, small."""
    return text_encoder(SD1ClipModel, SD1Tokenizer, **SMALL)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("photomaker")


@pytest.fixture(scope="module", autouse=True)
def files(folder):
    """A small file of every layout in ComfyUI's folder for them."""
    before = folder_paths.folder_names_and_paths["photomaker"]
    folder_paths.folder_names_and_paths["photomaker"] = ([str(folder)], folder_paths.supported_pt_extensions)
    folder_paths.filename_list_cache.pop("photomaker", None)
    write_photomakers(folder)
    yield
    folder_paths.folder_names_and_paths["photomaker"] = before


@pytest.fixture(scope="module")
def cast():
    """Two pictures of Mia, one of Otto, and their faces, of ArcFace's own length."""
    mia = OneStoryCast.execute(TALE, random([2, 60, 40, 3], 1), "Mia", face=40 * random([2, 512], 3) - 20)[0]
    otto = {"face": 40 * random([1, 512], 4) - 20, "cast": mia}
    return OneStoryCast.execute(TALE, random([1, 40, 40, 3], 2), "Otto", **otto)[0]


@pytest.fixture(scope="module")
def made(sd, cast):
    """Story PhotoMaker's model and pictures, for the layout v1 unless told otherwise."""

    def made(model=sd.model, cast=cast, layout="PhotoMaker v1", lora_strength=0.7, start_percent=0.0, file=None):
        file = file or FILES[layout]
        return OneStoryPhotoMaker.execute(model, cast, file, lora_strength, start_percent).result

    return made


def prompt(clip, photomaker, tale=TALE, mode="separate prompts", window=0, **more):
    return OneStoryPrompt.execute(clip, tale, mode, window, "story", photomaker=photomaker, **more)[0]


# --- image tokens and the networks that fuse -------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "text", "form"), [*product(LAYOUTS, [128], [dict]), ("PhotoMaker v1", 256, flat)])
def test_every_layout_gives_the_image_tokens_and_words_of_its_formula(layout, text, form):
    state = photomaker(layout, text)
    own, exact = read_photomaker("a file", form(state)), ExactPhotoMaker(layout, state)
    assert (own.layout, own.channels, picture_side(own.encoder)) == (layout, text, SIDE)
    pixels, faces = 4 * random([3, 3, SIDE, SIDE], 1) - 2, 40 * random([3, 512], 2) - 20
    got, want = own.tokens(pixels, faces if own.reads_face else None), exact.image_tokens(pixels, faces)
    assert got.shape == want.shape == ({"PhotoMaker v1": 3, "PhotoMaker v2": 6, "FastComposer": 1}[layout], text)
    assert relative_error(got, want) < ONE_LAYER
    words = random([len(want), text], 3) - 0.5
    fused = torch.stack([exact.fuse(word, token) for word, token in zip(words, want, strict=True)])
    assert relative_error(own.fuse(words, want.float()), fused) < ONE_LAYER


def test_one_frame_with_one_picture_is_what_comfyuis_own_photomaker_gives(monkeypatch):
    """Its encoder in its real widths, with one layer, on the words that CLIP Text Encode makes of the prompt."""
    sdxl = text_encoder(SDXLClipModel, SDXLTokenizer, **SMALL)
    monkeypatch.setitem(core.VISION_CONFIG_DICT, "num_hidden_layers", 1)
    theirs = core.PhotoMakerIDEncoder().float()
    generator = torch.Generator().manual_seed(0)
    for name, weight in theirs.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        is_norm = "norm" in name and name.endswith("weight")
        weight.data = 1 + 0.1 * drawn if is_norm else drawn / max(1, weight[0].numel()) ** 0.5
    own = read_photomaker("a file", {"id_encoder": theirs.state_dict()})
    picture = random([1, 300, 250, 3], 1)
    tokens = own.tokens(clip_pixels(picture, picture_side(own.encoder)))
    assert own.channels == 2048 and tokens.shape == (1, 2048)

    pictures = Pictures(own.file, own.channels, {"": tokens}, own.fuse, 0.0)
    tale = story("a tall girl img with a hat", "by the sea")
    got = prompt(sdxl, pictures, tale)[0][0]
    words = encode(sdxl, "a tall girl with a hat by the sea")[0][0]
    pixels = comfy.clip_vision.clip_preprocess(picture)
    at = torch.arange(77)[None] == 3
    want = theirs(pixels[None], words.clone(), at)
    assert relative_error(got, want) < ONE_LAYER
    assert relative_error(got, words) > 1e-2


# --- the prompt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["separate prompts", "one prompt"])
def test_class_words_are_stacked_and_fused_row_by_row_after_svr(clip, cast, made, layout, mode):
    """Frames with one, one, two and no characters: v1 has a word for each picture, v2 two, FastComposer one for all."""
    each, most = {"PhotoMaker v1": (1, 9), "PhotoMaker v2": (2, 9), "FastComposer": (1, 1)}[layout]
    counts = {name: min(each * n, most) for name, n in PICTURES.items()}
    got = prompt(clip, made(layout=layout)[1], mode=mode)
    exact = ExactPhotoMaker(layout, photomaker(layout))
    tokens = {}
    for member in cast:
        pixels = torch.cat([clip_pixels(picture[None], SIDE) for picture in member.images])
        tokens[member.name] = exact.image_tokens(pixels, member.face)

    stacked = {"Mia": "girl", "Otto": "robot"}
    words = {name: " ".join([word] * counts[name]) for name, word in stacked.items()}
    described = f"[Mia] a {words['Mia']} with (red:1.2) hair\n[Otto] a small {words['Otto']}"
    plain = OneStoryPrompt.execute(clip, story(described, *FRAMES), mode, 0, "story")[0]
    for reweighted in (lambda c: c, svr, naive):
        [(embeds, options)], [(before, old)] = reweighted(got), reweighted(plain)
        want, record = before.double(), options[KEY].record
        for row, values, others in zip(record.rows, want, old[KEY].record.rows, strict=True):
            assert row.spans == others.spans and row.subjects == others.subjects
            assert [name for name, _ in row.slots[0]] == list(SHOWN[row.frame]) or mode == "one prompt"
            for name, (start, stop) in row.slots[0]:
                assert "".join(row.texts[0][start:stop]).split() == [stacked[name]] * counts[name]
                for n in range(start, stop):
                    values[n] = exact.fuse(values[n], tokens[name][n - start])
        assert relative_error(embeds, want) < ONE_LAYER
        assert torch.equal(embeds[3], before[3]), "a frame that shows nobody"
        assert torch.equal(options["pooled_output"], old["pooled_output"])


def svr(conditioning):
    return OneStorySVR.execute(conditioning, **SVR)[0]


def naive(conditioning):
    return OneStoryNaiveReweight.execute(conditioning, 2.0, 0.5)[0]


def test_three_characters_in_a_frame_each_get_their_own(clip, made):
    tale = story("[Ada] a cat img\n[Bo] a dog img\n[Cy] an owl img", "[Ada], [Bo] and [Cy] sing", "[Bo] naps")
    exact, tokens, cast = ExactPhotoMaker("PhotoMaker v1", photomaker("PhotoMaker v1")), {}, ()
    for number, name in enumerate(("Ada", "Bo", "Cy"), 1):
        images = random([number, SIDE, SIDE, 3], number)
        cast = OneStoryCast.execute(tale, images, name, cast=cast)[0]
        pixels = torch.cat([clip_pixels(each[None], SIDE) for each in images])
        tokens[name] = exact.image_tokens(pixels, [None] * number)
    [(embeds, options)] = prompt(clip, made(cast=cast)[1], tale)
    words, rows = options[KEY].words, options[KEY].record.rows
    assert [(name, span.stop - span.start) for name, span in rows[0].slots[0]] == [("Ada", 1), ("Bo", 2), ("Cy", 3)]
    for row, values, before in zip(rows, embeds, words, strict=True):
        at = {n: (name, n - start) for name, (start, stop) in row.slots[0] for n in range(start, stop)}
        for n in range(77):
            want = exact.fuse(before[n], tokens[at[n][0]][at[n][1]]) if n in at else before[n]
            assert relative_error(values[n], want) < ONE_LAYER, n


def test_each_alone_puts_pictures_into_the_words_that_were_encoded_alone(clip, made):
    together, alone = (prompt(clip, made()[1], identity=each) for each in ("together", "each alone"))
    record = alone[0][1][KEY].record
    [_, (_, span)] = record.rows[2].slots[0][:2]
    first = prompt(clip, made()[1], story(f"[Otto] {OTTO}", "[NC] x", "[Otto] reads"), identity="together")
    [(_, own)] = first[0][1][KEY].record.rows[1].slots[0]
    assert relative_error(alone[0][0][2, slice(*span)], first[0][0][1, slice(*own)]) < ONE_LAYER
    assert relative_error(together[0][0][2, slice(*span)], first[0][0][1, slice(*own)]) > 1e-3


def test_before_the_start_words_alone_count_and_marks_are_gone(clip, made):
    _, pictures = made(start_percent=0.3)
    for mode in ("separate prompts", "one prompt"):
        [before, after] = prompt(clip, pictures, mode=mode)
        plain = OneStoryPrompt.execute(clip, PLAIN, mode, 0, "story")[0]
        assert torch.equal(before[0], plain[0][0])
        assert torch.equal(after[0], prompt(clip, made()[1], mode=mode)[0][0])
        assert before[1][KEY].record == plain[0][1][KEY].record
        ranges = [(each[1]["start_percent"], each[1]["end_percent"]) for each in (before, after)]
        assert ranges == [(0.0, pytest.approx(0.3, abs=1e-4)), (0.3, 1.0)]
    [(embeds, _)] = prompt(clip, made(start_percent=1.0)[1])
    assert torch.equal(embeds, OneStoryPrompt.execute(clip, PLAIN, "separate prompts", 0, "story")[0][0][0])


@pytest.mark.parametrize("start_percent", [0.0, 0.4])
def test_without_a_cast_nothing_changes(sd, clip, made, start_percent):
    model, pictures = made(cast=(), lora_strength=0.0, start_percent=start_percent)
    [(embeds, options)] = prompt(clip, pictures)
    [(plain, others)] = OneStoryPrompt.execute(clip, PLAIN, "separate prompts", 0, "story")[0]
    assert model is sd.model and torch.equal(embeds, plain)
    assert options[KEY].record == others[KEY].record


# --- whole runs ------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 24, 40
one_step = partial(sample, steps=1, cfg=1.0)


@pytest.fixture(scope="module")
def latent():
    return empty(TALE, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def drawn(clip, made):
    """The model and the conditioning after SVR, from the first step on."""
    with torch.inference_mode():
        model, pictures = made()
        return model, svr(prompt(clip, pictures, mode="one prompt"))


def test_the_lora_is_added_to_the_weights_and_the_model_stays_as_it_was(sd, clip, made, negative, latent):
    frames = prompt(clip, made()[1])
    before = one_step(sd.model, frames, negative, latent)
    changed, lora = sd.model.clone(), photomaker("PhotoMaker v1")["lora_weights"]
    for part in "qv":
        up, down = (lora[f"unet.{LORA_MODULE}.processor.to_{part}_lora.{side}.weight"] for side in ("up", "down"))
        key = f"diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_{part}.weight"
        assert changed.add_patches({key: (0.7 * up @ down,)}), key
    want = one_step(changed, frames, negative, latent)
    got = one_step(made()[0], frames, negative, latent)
    assert scaled_error(got, want) < 5e-5
    assert scaled_error(got, before) > 1e-3
    assert torch.equal(one_step(sd.model, frames, negative, latent), before)
    assert made(lora_strength=0.0)[0] is sd.model


def test_pictures_change_the_frames_that_show_them_and_no_others(clip, made, negative, latent):
    model, pictures = made(lora_strength=0.0)
    with_, without = (
        one_step(model, prompt(clip, each), negative, latent, cfg=5.0) for each in (pictures, made(cast=())[1])
    )
    assert all(scaled_error(with_[i], without[i]) > 1e-3 for i in range(3))
    assert torch.equal(with_[3], without[3])


def test_the_start_is_two_samplers_that_hand_the_latent_over(clip, made, negative, latent):
    model, pictures = made(start_percent=0.5)
    frames = prompt(clip, pictures)
    before, after = ([[each[0], {KEY: each[1][KEY]}]] for each in frames)
    half = ksampler(model, before, negative, latent, last_step=1)
    want = ksampler(model, after, negative, half, start_step=1, disable_noise=True)["samples"]
    assert scaled_error(sample(model, frames, negative, latent), want) < 5e-5


def test_runs_of_one_frame_and_branches_apart_are_the_whole_story(drawn, negative, latent, monkeypatch):
    model, frames = drawn
    whole = one_step(model, frames, negative, latent, cfg=5.0)
    assert scaled_error(in_runs(model, frames, negative, latent, 1, 0, steps=1), whole) < 5e-5
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    assert scaled_error(one_step(model, frames, negative, latent, cfg=5.0), whole) < 5e-5


def regions(model):
    inputs = {"strength": 1.0, "end_of_text": 0.0, "blocks": "all", "start_percent": 0.0, "end_percent": 1.0}
    return OneStoryRegions.execute(model, TALE, "Mia: left", character="", **inputs)[0]


def test_beside_ipca_self_attention_and_regions_the_order_does_not_matter(sd, made, drawn, negative, latent):
    def others(model):
        return regions(self_attention(ipca(model)))

    model, frames = drawn
    first = one_step(others(model), frames, negative, latent)
    assert torch.equal(first, one_step(made(others(sd.model))[0], frames, negative, latent))
    assert scaled_error(first, one_step(model, frames, negative, latent)) > 1e-3
    assert scaled_error(first, one_step(others(sd.model), frames, negative, latent)) > 1e-3


# --- FastComposer's own model ----------------------------------------------------------------------------------------


def diffusers_unet() -> dict[str, tuple[int, ...]]:
    """The shapes of SD1.5's U-Net, in diffusers' names."""
    shapes = {name: tuple(weight.shape) for name, weight in Model(SD15).diffusion_model.state_dict().items()}
    names = comfy.utils.unet_to_diffusers({n: list(v) if isinstance(v, list) else v for n, v in SD15.items()})
    return {theirs: shapes[ours] for theirs, ours in names.items() if ours in shapes}


def clip_l() -> dict[str, tuple[int, ...]]:
    """The shapes of CLIP-L's text encoder, in the names that FastComposer's class gives them."""
    config = {
        "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": 49407,
    }  # fmt: skip
    model = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)
    names = {name.removeprefix("text_model."): tuple(weight.shape) for name, weight in model.state_dict().items()}
    return {name: shape for name, shape in names.items() if name != "text_projection.weight"}


def test_fastcomposers_own_model_comes_out_of_its_file(sd, folder, monkeypatch):
    """SD1.5 in full; the weights of the file are a few numbers that all tensors share. ComfyUI's loader of U-Nets gets
    one that its detection knows, and is not run: it takes gigabytes."""
    numbers = torch.randn(49408 * 768, generator=torch.Generator().manual_seed(0)).half() * 0.02
    shapes = {f"unet.{name}": shape for name, shape in diffusers_unet().items()}
    shapes |= {f"text_encoder.{name}": shape for name, shape in clip_l().items()}
    weights = {name: numbers[: torch.Size(shape).numel()].view(shape) for name, shape in shapes.items()}
    vae = {f"vae.{name}": weight for name, weight in vae_weights().items()}
    torch.save({**weights, **vae, **photomaker("FastComposer")}, folder / "whole.bin")
    loaded = []
    monkeypatch.setattr("comfy.sd.load_diffusion_model_state_dict", lambda state: loaded.append(state) or sd.model)
    model, clip, decoder = OneStoryLoadFastComposer.execute("whole.bin").result
    assert model is sd.model
    assert {name: tuple(weight.shape) for name, weight in loaded[0].items()} == diffusers_unet()
    assert type(comfy.model_detection.model_config_from_diffusers_unet(loaded[0])) is comfy.supported_models.SD15
    for name, weight in clip.cond_stage_model.clip_l.transformer.text_model.state_dict().items():
        assert torch.equal(weight.flatten()[:8].half(), numbers[: min(8, weight.numel())]), name
    assert decoder.decode(torch.zeros(1, 16, 2, 2)).shape == (1, 16, 16, 3)
    assert OneStoryPhotoMaker.execute(model, (), "whole.bin", 1.0, 0.0)[1].channels == 768


# --- what is wrong gets one sentence ---------------------------------------------------------------------------------


def broken(folder, name):
    if name == "code.bin":
        torch.save({"id_encoder": Code(), "lora_weights": {}}, folder / name)
    elif name == "garbage.safetensors":
        (folder / name).write_bytes(b"{}" * 20)
    elif name == "lora.safetensors":
        save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, folder / name)
    elif name == "sdxl.pt":
        state = photomaker("PhotoMaker v1", 64)["id_encoder"]
        state |= {f"visual_projection{n}.weight": torch.zeros(1024, 64) for n in ("", "_2")}
        torch.save({"id_encoder": {**state, "fuse_module.layer_norm.weight": torch.ones(2048)}}, folder / name)
    elif name == "narrow.bin":
        state = photomaker("PhotoMaker v1")["id_encoder"]
        torch.save({"id_encoder": {**state, "visual_projection.weight": torch.zeros(100, 64)}}, folder / name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("code.bin", "“code.bin” can't be read: it is damaged, or a pickle with more in it than weights"),
        ("garbage.safetensors", "“garbage.safetensors” can't be read"),
        ("lora.safetensors", "“lora.safetensors” is no file that Story PhotoMaker knows: it reads PhotoMaker v1"),
        ("narrow.bin", "“narrow.bin” is no file that Story PhotoMaker knows"),
        ("sdxl.pt", "“sdxl.pt” was made for SDXL, and this model is SD1.5: choose a checkpoint of SDXL"),
    ],
)
def test_every_wrong_file_gets_one_sentence(folder, made, capsys, name, says):
    broken(folder, name)
    with pytest.raises(ValueError) as error:
        made(file=name)
    text = str(error.value)
    assert says in text and text.endswith(".") and "\n" not in text
    assert "this ran" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        made(file="../outside.bin")


def test_what_else_does_not_fit_gets_a_sentence(sd, clip, made, cast, folder):
    mia, otto = cast
    for changed, says in (
        ({"layout": "PhotoMaker v2", "cast": (mia._replace(face=None),)}, "Story Cast has no `face` of [Mia]"),
        ({"layout": "PhotoMaker v2", "cast": (mia._replace(face=random([3, 512])),)}, "2 pictures and 3 faces of"),
        ({"cast": (otto._replace(mask=torch.zeros(1, 40, 40)),)}, "The mask of [Otto] is empty in picture 1"),
        ({"model": sd3()}, "was made for SD1.5, and this model is SD3: choose a checkpoint of SD1.5, or another file."),
    ):
        with pytest.raises(ValueError) as error:
            made(**changed)
        assert says in str(error.value)
    with pytest.raises(ValueError, match="“pytorch_model.bin” holds no whole model: Load FastComposer reads"):
        OneStoryLoadFastComposer.execute("pytorch_model.bin")

    pictures = made()[1]
    for described, says in (
        ("a girl", "“a girl” marks no word for them: write img once, behind the word that says what [Mia] is"),
        ("a girl img or cat img", "marks 2 words for them"),
        ("img of a girl", "marks no word before “img” for them"),
        (" ".join(["very"] * 74) + " girl img", "or give its characters fewer pictures."),
    ):
        with pytest.raises(ValueError) as error:
            prompt(clip, pictures, story(f"[Mia] {described}\n[Otto] {OTTO}", *FRAMES))
        assert says in str(error.value)
    with pytest.raises(ValueError, match="Frame 1 has img twice in a row"):
        prompt(clip, pictures, story(f"[Mia] {MIA}\n[Otto] {OTTO}", "give [Otto] img to [Mia]"))
    wide = pictures._replace(channels=2048)
    with pytest.raises(ValueError, match="was made for SDXL, and this text encoder gives 768 channels"):
        prompt(clip, wide)


def test_pictures_of_nobody_in_the_story_get_a_warning(clip, made, cast, caplog):
    tale = story(f"[Mia] {MIA}", "at sea")
    [(embeds, options)] = prompt(clip, made()[1], tale)
    assert [name for name, _ in options[KEY].record.rows[0].slots[0]] == ["Mia"]
    assert [text for text in warnings_of(caplog) if "pictures of [Otto], whom no frame of the story shows" in text]
