"""StoryMaker's file through Image Characters: tokens by place, background and LoRA against float64, row by row."""

from functools import partial

import folder_paths
import pytest
import torch
from adapters import LAYERS, Exact, adapter, flat
from graphs import empty, in_runs, ipca, positive, random, sample, scaled_error, self_attention, story
from joint import overridden
from onestory.attention.architectures import unet
from onestory.nodes.cast import OneStoryCast
from onestory.nodes.image_adapter import OneStoryImageAdapter
from onestory.nodes.regions import OneStoryRegions
from onestory.subjects.adapters import read_adapter
from reference import ONE_LAYER, relative_error
from safetensors.torch import save_file
from test_image_adapter import Decoupled
from vision import TINY_CLIP, tiny
from warned import warnings_of

CHARACTERS = "[Mia] a red fox\n[Otto] a blue owl\n[Ada] a cat"
TALE = story(CHARACTERS, "[Otto] reads", "[Mia] and [Otto] wave", "[Mia], [Otto] and [Ada] sing", "[NC] rain")
SHOWN = [("Otto",), ("Mia", "Otto"), ("Mia", "Otto", "Ada"), ()]
SCALE, LORA = 0.8, 0.2
"""A random LoRA as strong as StoryMaker's own, 0.8, makes the model chaotic: weights that differ in their last bit then
move its latents by 0.003 of a standard deviation in two steps, and by 2e-5 at 0.2."""
STATE = adapter("StoryMaker", lora=2)
one_step = partial(sample, steps=1, cfg=1.0)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tale():
    return TALE


@pytest.fixture(scope="module")
def latent():
    return empty(TALE, 24, 40)


@pytest.fixture(scope="module")
def clip_vision():
    return tiny(TINY_CLIP)


@pytest.fixture(scope="module")
def cast():
    """Two pictures of Mia with masks and one face for both, one of Otto with his, and one of Ada without a face."""
    mask = torch.zeros(2, 60, 40)
    mask[0, 10:35, 5:30], mask[1, 20:40, 12:40] = 1, 0.8
    face = {"face": 20 * random([1, 512], 3) - 10, "face_pictures": random([1, 56, 56, 3], 4)}
    cast = OneStoryCast.execute(TALE, random([2, 60, 40, 3], 1), "Mia", mask=mask, **face)[0]
    face = {"face": random([1, 512], 5) - 0.5, "face_pictures": random([1, 56, 56, 3], 6)}
    cast = OneStoryCast.execute(TALE, random([1, 40, 40, 3], 2), "Otto", **face, cast=cast)[0]
    return OneStoryCast.execute(TALE, random([1, 30, 40, 3], 7), "Ada", cast=cast)[0]


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    before = folder_paths.folder_names_and_paths.get("ipadapter")
    folder = tmp_path_factory.mktemp("ipadapter")
    folder_paths.folder_names_and_paths["ipadapter"] = ([str(folder)], folder_paths.supported_pt_extensions)
    folder_paths.filename_list_cache.pop("ipadapter", None)
    torch.save(STATE, folder / "mask.bin")
    save_file(flat(adapter("StoryMaker", [640], text=2048)), folder / "sdxl.safetensors")
    yield
    folder_paths.folder_names_and_paths.pop("ipadapter")
    if before is not None:
        folder_paths.folder_names_and_paths["ipadapter"] = before


@pytest.fixture(scope="module")
def drawn(cast, clip_vision):
    def drawn(model, cast=cast, **changed):
        inputs = {
            "adapter": "mask.bin", "scale": SCALE, "fit": "pad", "pictures": "all", "version": "auto",
            "lora_strength": LORA, "blocks": "all", "start_percent": 0.0, "end_percent": 1.0,
            "clip_vision": clip_vision, **changed,
        }  # fmt: skip
        return OneStoryImageAdapter.execute(model, cast, **inputs)[0]

    return drawn


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "form"), [(128, dict), (192, flat)], ids=["nested", "flat"])
def test_tokens_are_those_of_the_formula_at_every_place(text, form):
    state = adapter("StoryMaker", [320], text=text)
    own, exact = read_adapter("a file", form(state)), Exact(state["image_proj_model"])
    assert (own.kind, own.text_channels, own.vision_channels, own.places) == ("StoryMaker", text, 32, 3)
    seen = 3 * random([2, 512], 1) - 1, random([2, 17, 32], 2) - 0.5, random([2, 17, 32], 3) - 0.5
    for place, got in enumerate(own.person_tokens(*seen)):
        want = torch.cat([exact.person(*(x[n] for x in seen), place, text) for n in range(2)])
        assert got.shape == want.shape == (14, text)
        assert relative_error(got, want) < ONE_LAYER
    assert torch.equal(own.ground, state["image_proj_model"]["bg_embed"][0])


# --- whole runs ------------------------------------------------------------------------------------------------------


class StoryMade(Decoupled):
    """The reference: `tokens` and `blank` have those of each place, and the background stands before them."""

    def __init__(self, *args, ground, **more):
        super().__init__(*args, **more)
        self.ground = ground

    def looked(self, names, shown, negative):
        own = [self.blank[shown.index(name)] if negative else self.tokens[name][shown.index(name)] for name in names]
        return torch.cat([self.ground, *own])


def person_on_white(image, mask):
    """The bounding box of the mask, which a Gaussian of 5 pixels softens, spelled out pixel by pixel."""
    ys, xs = ((mask >= 0.5).any(side).nonzero().flatten().tolist() for side in (1, 0))
    out = torch.empty(ys[-1] + 1 - ys[0], xs[-1] + 1 - xs[0], 3, dtype=torch.float64)
    weights = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    for y in range(ys[0], ys[-1] + 1):
        for x in range(xs[0], xs[-1] + 1):
            soft = sum(
                weights[dy + 2] * weights[dx + 2]
                * float(mask[min(max(y + dy, ys[0]), ys[-1]), min(max(x + dx, xs[0]), xs[-1])])
                for dy in range(-2, 3)
                for dx in range(-2, 3)
            )  # fmt: skip
            out[y - ys[0], x - xs[0]] = soft * image[y, x] + (1 - soft)
    return out.float()


@pytest.fixture(scope="module")
def lora_only(sd):
    """The model with the file's LoRA in every attention, as weights."""
    changed, lora = sd.model.clone(), STATE["ip_adapter"]
    for m in range(2 * LAYERS):
        module = unet.transformers(sd.model.model)[m // 2].module
        for part, target in {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}.items():
            up, down = (lora[f"{m}.to_{part}_lora.{side}.weight"] for side in ("up", "down"))
            key = f"diffusion_model.{module}.attn{1 + m % 2}.{target}.weight"
            assert changed.add_patches({key: (LORA * up @ down,)}), key
    return changed


@pytest.fixture(scope="module")
def reference(lora_only, cast, clip_vision):
    with torch.inference_mode():
        exact, tokens = Exact(STATE["image_proj_model"]), {}
        none = torch.zeros(17, 32)
        for member in cast:
            bodies = list(member.images)
            if member.mask is not None:
                bodies = [person_on_white(image, mask) for image, mask in zip(member.images, member.mask, strict=True)]
            see = [clip_vision.encode_image(body[None], crop=False)["penultimate_hidden_states"][0] for body in bodies]
            face, crop = torch.zeros(512), none
            if member.face is not None:
                face = member.face[0]
                crop = clip_vision.encode_image(member.crops)["penultimate_hidden_states"][0]
            tokens[member.name] = [
                torch.cat([exact.person(face, crop, body, place) for body in see]) for place in range(3)
            ]
        blank = [exact.person(torch.zeros(512), none, none, place) for place in range(3)]
        ground = STATE["image_proj_model"]["bg_embed"][0].double()
        return partial(StoryMade, lora_only, STATE["ip_adapter"], tokens, blank, SHOWN, scale=SCALE, ground=ground)


@pytest.mark.parametrize(("steps", "cfg"), [(2, 5.0), (1, 1.0)])
def test_a_run_equals_the_formula_row_by_row(
    sd, frames, negative, latent, drawn, reference, lora_only, steps, cfg, caplog
):
    override = reference()
    models = overridden(lora_only, override), drawn(sd.model), lora_only
    want, got, plain = (sample(model, frames, negative, latent, steps=steps, cfg=cfg) for model in models)
    assert override.calls
    assert scaled_error(got, want) < 5e-5, "float noise of two steps"
    assert all(scaled_error(got[i], plain[i]) > 1e-3 for i in range(3))
    assert scaled_error(got[3], plain[3]) < 5e-5, "a frame that shows nobody has the LoRA alone"
    [warning] = [text for text in warnings_of(caplog) if "StoryMaker" in text]
    assert "Story Cast has no `face` and no `face_pictures` of [Ada], so StoryMaker will not keep the face" in warning


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_with_regions_each_character_has_a_softmax_of_its_own_in_its_place(
    sd, frames, negative, latent, drawn, reference, lora_only, cfg
):
    def halves(frame, height, width):
        left = ((torch.arange(width * 40, dtype=torch.float64) + 0.5) / (width * 40) < 0.5).double()
        left = left.unflatten(0, (width, 40)).mean(1).expand(height, -1).flatten()
        return {"Mia": left, "Otto": 1 - left, "Ada": torch.ones_like(left)} if frame == 1 else None

    located = regions(lora_only, "Mia@2: left\nOtto@2: right")
    want = one_step(overridden(located, reference(factors=halves)), frames, negative, latent, cfg=cfg)
    got = one_step(drawn(regions(sd.model, "Mia@2: left\nOtto@2: right")), frames, negative, latent, cfg=cfg)
    assert scaled_error(got, want) < 5e-5


def regions(model, layout):
    inputs = {"strength": 1.0, "end_of_text": 0.0, "blocks": "all", "start_percent": 0.0, "end_percent": 1.0}
    return OneStoryRegions.execute(model, TALE, layout, character="", **inputs)[0]


def test_runs_of_one_frame_are_the_whole_story(sd, frames, negative, latent, drawn):
    model = drawn(sd.model)
    whole = one_step(model, frames, negative, latent, cfg=5.0)
    assert scaled_error(in_runs(model, frames, negative, latent, 1, 0, steps=1), whole) < 5e-5


def test_off_and_without_a_cast_all_is_bit_equal_and_so_is_the_model_afterwards(sd, frames, negative, latent, drawn):
    plain = one_step(sd.model, frames, negative, latent)
    for changed in ({"scale": 0.0}, {"cast": ()}):
        assert torch.equal(one_step(drawn(sd.model, **changed), frames, negative, latent), plain)
    one_step(drawn(sd.model), frames, negative, latent)
    assert torch.equal(one_step(sd.model, frames, negative, latent), plain)
    without = drawn(sd.model, lora_strength=0.0)
    assert torch.equal(one_step(without, frames, negative, latent)[3], plain[3]), "a frame that shows nobody"


def test_the_order_of_the_nodes_does_not_matter(sd, frames, negative, latent, drawn):
    def others(model):
        return regions(self_attention(ipca(model)), "Mia@2: left")

    first = one_step(others(drawn(sd.model)), frames, negative, latent)
    assert torch.equal(first, one_step(drawn(others(sd.model)), frames, negative, latent))
    assert scaled_error(first, one_step(others(sd.model), frames, negative, latent)) > 1e-3


# --- what is wrong gets one sentence ---------------------------------------------------------------------------------


def test_what_does_not_fit_gets_a_sentence(sd, negative, drawn, cast):
    for changed, says in (
        ({"adapter": "sdxl.safetensors"}, "“sdxl.safetensors” was made for SDXL, and this model is SD1.5"),
        ({"clip_vision": None}, "made for the CLIP vision model one (32 channels): load it with Load CLIP Vision"),
        ({"cast": (cast[0]._replace(crops=random([3, 56, 56, 3])),)}, "2 pictures and 3 faces of [Mia]"),
        ({"cast": (cast[0]._replace(mask=torch.zeros(2, 60, 40)),)}, "The mask of [Mia] is empty in picture 1"),
    ):
        with pytest.raises(ValueError) as error:
            drawn(sd.model, **changed)
        assert says in str(error.value) and str(error.value).endswith(".")
    four = story(f"{CHARACTERS}\n[Bo] a dog", "[Mia] naps", "[Mia], [Otto], [Ada] and [Bo] sing")
    model = drawn(sd.model, (*cast, cast[2]._replace(name="Bo")))
    with pytest.raises(
        ValueError, match="Frame 2 shows 4 characters of the cast, and StoryMaker knows 3 in one picture"
    ):
        one_step(model, positive(sd.clip, four), negative, empty(four, 24, 40))
