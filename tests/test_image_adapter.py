"""Image Characters: projectors and whole sampling runs against float64, row by row, in an otherwise unpatched model."""

import math
from functools import partial

import comfy.clip_vision
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from adapters import LAYERS, Code, Exact, adapter, flat, projector
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from graphs import control, empty, encode, in_runs, ipca, random, sample, scaled_error, self_attention, story
from joint import by_head, overridden
from onestory.attention.architectures import unet
from onestory.attention.blocks import parse_blocks
from onestory.attention.recorder import Recorder, Recording
from onestory.attention.runtime import patch, patch_runs
from onestory.nodes.cast import OneStoryCast
from onestory.nodes.image_adapter import OneStoryImageAdapter
from onestory.nodes.regions import OneStoryRegions
from onestory.subjects.adapters import read_adapter
from safetensors.torch import save_file
from tiny import sd3
from vision import TINY_CLIP, TINY_SIGLIP, tiny
from warned import warnings_of

import nodes

pytestmark = pytest.mark.usefixtures("temporary")

TALE = story("[Mia] a red fox\n[Otto] a blue owl", "[Mia] at sea", "[Otto] reads", "[Mia] and [Otto] wave", "[NC] rain")
SHOWN = [("Mia",), ("Otto",), ("Mia", "Otto"), ()]
WIDTH, HEIGHT = 24, 40
SIZES = {15: (5, 3), 6: (3, 2)}
SCALE = 0.7
one_step = partial(sample, steps=1, cfg=1.0)


@pytest.fixture(scope="module")
def tale():
    return TALE


@pytest.fixture(scope="module")
def latent():
    return empty(TALE, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def clip_vision():
    return tiny(TINY_CLIP)


@pytest.fixture(scope="module")
def cast():
    """Two pictures of Mia, one of Otto, and their faces."""
    mia = OneStoryCast.execute(TALE, random([2, 60, 40, 3], 1), "Mia", face=random([2, 512], 3) - 0.5)[0]
    return OneStoryCast.execute(TALE, random([1, 40, 40, 3], 2), "Otto", face=random([1, 512], 4) - 0.5, cast=mia)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ipadapter")


@pytest.fixture(scope="module", autouse=True)
def files(folder):
    """Small adapters of three layouts for the random checkpoint, in ComfyUI's folder for them."""
    before = folder_paths.folder_names_and_paths.get("ipadapter")
    folder_paths.folder_names_and_paths["ipadapter"] = ([str(folder)], folder_paths.supported_pt_extensions)
    folder_paths.filename_list_cache.pop("ipadapter", None)
    save_file(flat(adapter("base")), folder / "base.safetensors")
    torch.save(adapter("plus"), folder / "plus.bin")
    torch.save(adapter("FaceID-Plus", lora=2), folder / "faceid-plusv2.bin")
    yield
    if before is None:
        del folder_paths.folder_names_and_paths["ipadapter"]
    else:
        folder_paths.folder_names_and_paths["ipadapter"] = before


@pytest.fixture(scope="module")
def drawn(cast, clip_vision):
    """Image Characters on a model, with the base adapter unless `changed` says otherwise."""

    def drawn(model, cast=cast, **changed):
        inputs = {
            "adapter": "base.safetensors",
            "scale": SCALE,
            "fit": "pad",
            "pictures": "all",
            "version": "auto",
            "lora_strength": 1.0,
            "blocks": "all",
            "start_percent": 0.0,
            "end_percent": 1.0,
            "clip_vision": clip_vision,
            **changed,
        }
        return OneStoryImageAdapter.execute(model, cast, **inputs).result[0]

    return drawn


def regions(model, layout, **changed):
    inputs = {
        "strength": 1.0,
        "end_of_text": 0.0,
        "blocks": "all",
        "start_percent": 0.0,
        "end_percent": 1.0,
        "character": "",
        **changed,
    }
    return OneStoryRegions.execute(model, TALE, layout, **inputs).result[0]


# --- projectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tokens", "shortcut"),
    [
        ("base", 4, False),
        ("plus", 3, False),
        ("full face", 6, False),
        ("FaceID", 4, False),
        ("portrait", 16, False),
        ("FaceID-Plus", 4, False),
        ("FaceID-Plus", 4, True),
    ],
)
@pytest.mark.parametrize(("text", "form"), [(128, dict), (192, flat)], ids=["nested", "flat"])
def test_every_layout_gives_the_tokens_of_its_formula(kind, tokens, shortcut, text, form):
    weights = projector(kind, text=text, tokens=tokens)
    state = {"image_proj": weights, "ip_adapter": {"1.to_k_ip.weight": torch.empty(1, text)}}
    own = read_adapter("a file", form(state))
    assert own.kind == {"portrait": "FaceID"}.get(kind, kind)
    assert own.text_channels == text
    faces = random([2, 512], 1) - 0.5 if own.reads_face else None
    seen = random([2, 24] if kind == "base" else [2, 6, 32], 2) - 0.5 if own.vision_channels else None
    assert own.vision_channels == (seen.shape[-1] if seen is not None else None)
    got = own.tokens(seen, faces, shortcut)
    exact = Exact(state["image_proj"])
    want = torch.stack(
        [
            exact.tokens(
                own.kind,
                None if seen is None else seen[i],
                None if faces is None else faces[i],
                shortcut,
                text,
            )
            for i in range(2)
        ]
    )
    assert got.shape == want.shape == (2, tokens, text)
    assert (got.double() - want).norm() / want.norm() < 1e-5


# --- layers ----------------------------------------------------------------------------------------------------------

SD15 = {
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
}
SDXL = {
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
}


class Model:
    """What of a `BaseModel` the layers' order depends on."""

    def __init__(self, config):
        fixed = {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "use_spatial_transformer": True,
            "legacy": False,
        }
        self.diffusion_model = UNetModel(**fixed, **config, device="meta", operations=comfy.ops.disable_weight_init)


@pytest.mark.parametrize(("config", "count"), [(SD15, 16), (SDXL, 70)], ids=["SD1.5", "SDXL"])
def test_layers_stand_in_the_order_of_diffusers_attention_processors(config, count):
    """Down, up, mid, each by its numbers, as diffusers' U-Net registers its children."""
    names = comfy.utils.unet_to_diffusers({name: list(v) if isinstance(v, list) else v for name, v in config.items()})
    ends = ".attn2.to_k.weight"
    theirs = sorted(
        (name for name in names if name.endswith(ends)),
        key=lambda name: (
            ["down_blocks", "up_blocks", "mid_block"].index(name.split(".")[0]),
            [int(part) for part in name.split(".") if part.isdigit()],
        ),
    )
    model = Model(config)
    found = unet.transformers(model)
    assert len(found) == count
    assert [f"{each.module}{ends}" for each in found] == [names[name] for name in theirs]
    shapes = {name: tuple(weight.shape) for name, weight in model.diffusion_model.state_dict().items()}
    for each in found:
        assert shapes[f"{each.module}{ends}"] == (each.channels, each.text_channels)
    assert found[-1].block == ("middle", 0)


# --- whole runs ------------------------------------------------------------------------------------------------------


class Decoupled:
    """An attention override: to each cross-attention, that to the image tokens of whom the row's frame shows."""

    def __init__(self, model, exact, tokens, blank, shown=SHOWN, factors=None, scale=SCALE):
        order = unet.transformers(model.model)
        self.layers = {each.block: n for n, each in enumerate(order)}
        self.weights = {name: weight.double() for name, weight in exact.items()}
        self.tokens, self.blank, self.shown, self.scale = tokens, blank, shown, scale
        self.factors = factors
        self.calls = 0

    def looked(self, names, shown, negative):
        """The tokens that `names` of the characters `shown` are drawn from together."""
        return self.blank if negative else torch.cat([self.tokens[name] for name in names])

    def attend(self, q, tokens, n, heads):
        k, v = (tokens @ self.weights[f"{2 * n + 1}.to_{x}_ip.weight"].T for x in "kv")
        Q, K, V = (by_head(x[None], heads)[0] for x in (q, k, v))
        return ((Q @ K.mT / math.sqrt(Q.shape[-1])).softmax(-1) @ V).transpose(0, 1).flatten(1)

    def __call__(self, func, q, k, v, heads, mask=None, **options):
        out = func(q, k, v, heads, mask=mask, **options)
        at = options.get("transformer_options", {})
        if k.shape[1] % 77 or "cond_or_uncond" not in at:
            return out
        self.calls += 1
        n, exact, frames = self.layers[tuple(at["block"])], out.double(), len(self.shown)
        for i in range(len(q)):
            chunk, frame = divmod(i, frames)
            names, negative = self.shown[frame], at["cond_or_uncond"][chunk] == 1
            if not names:
                continue
            query = q[i].double()
            factors = self.factors and self.factors(frame, *SIZES[len(query)])
            if factors:
                total = sum(factors[name] for name in names).clamp(min=1)
                for name in names:
                    seen = self.attend(query, self.looked([name], names, negative), n, heads)
                    exact[i] += self.scale * (factors[name] / total)[:, None] * seen
            else:
                exact[i] += self.scale * self.attend(query, self.looked(names, names, negative), n, heads)
        return exact.to(q)


@pytest.fixture(scope="module")
def decoupled(sd, cast, clip_vision):
    """The reference for the base adapter, from the pictures on: padded to squares, seen by CLIP, projected exactly."""
    state = adapter("base")
    exact = Exact(state["image_proj"])
    tokens = {}
    for member in cast:
        n, height, width, _ = member.images.shape
        side = max(height, width)
        square = torch.ones(n, side, side, 3)
        square[:, (side - height) // 2 : (side + height) // 2, (side - width) // 2 : (side + width) // 2] = (
            member.images
        )
        with torch.inference_mode():
            seen = clip_vision.encode_image(square)["image_embeds"]
        tokens[member.name] = torch.cat([exact.tokens("base", each) for each in seen])
    blank = exact.tokens("base", torch.zeros(24))
    return partial(Decoupled, sd.model, state["ip_adapter"], tokens, blank)


@pytest.fixture(scope="module")
def plain(sd, frames, negative, latent):
    """One step of the unpatched model."""
    return one_step(sd.model, frames, negative, latent)


@pytest.fixture(scope="module")
def adapted(sd, frames, negative, latent, drawn):
    """One step with the base adapter."""
    return one_step(drawn(sd.model), frames, negative, latent)


@pytest.mark.parametrize(("steps", "cfg"), [(3, 5.0), (1, 1.0)])
def test_a_run_equals_the_formula_row_by_row(sd, frames, negative, latent, drawn, decoupled, steps, cfg):
    override = decoupled()
    models = overridden(sd.model, override), drawn(sd.model), sd.model
    want, got, plain = (sample(model, frames, negative, latent, steps=steps, cfg=cfg) for model in models)
    assert override.calls
    assert scaled_error(got, want) < 5e-5, "float noise of three steps"
    assert all(scaled_error(got[i], plain[i]) > 1e-3 for i in range(3))
    assert torch.equal(got[3], plain[3]), "a frame that shows nobody"


LAYOUT = "Mia: left\nOtto@3: 0.5 0 1 1"


def halves(frame, height, width):
    """LAYOUT's factors: in frame 1 Mia's, in frame 3 both, counted in a fine grid."""
    x = (torch.arange(width * 40, dtype=torch.float64) + 0.5) / (width * 40)
    left = (x < 0.5).double().unflatten(0, (width, 40)).mean(1).expand(height, -1).flatten()
    return {0: {"Mia": left}, 2: {"Mia": left, "Otto": 1 - left}}.get(frame)


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_with_regions_each_character_has_a_softmax_of_its_own_in_its_place(
    sd, frames, negative, latent, drawn, decoupled, adapted, cfg
):
    located = regions(sd.model, LAYOUT)
    want = one_step(overridden(located, decoupled(factors=halves)), frames, negative, latent, cfg=cfg)
    got = one_step(drawn(located), frames, negative, latent, cfg=cfg)
    assert scaled_error(got, want) < 5e-5
    if cfg == 1.0:
        assert scaled_error(got[2], adapted[2]) > 1e-3
        assert torch.equal(one_step(regions(drawn(sd.model), LAYOUT), frames, negative, latent), got)


def test_soft_overlapping_regions_and_one_character_without_any(sd, frames, negative, latent, drawn, decoupled):
    masks = random([4, 18, 10], 9)

    def soft(frame, height, width):
        if "Mia" not in SHOWN[frame]:
            return None
        own = torch.nn.functional.adaptive_avg_pool2d(masks[frame][None].double(), (height, width)).flatten()
        return {"Mia": 1 - 0.6 * (1 - own), "Otto": torch.ones_like(own)}

    located = regions(sd.model, "", mask=masks, character="Mia", strength=0.6)
    want = one_step(overridden(located, decoupled(factors=soft)), frames, negative, latent)
    assert scaled_error(one_step(drawn(located), frames, negative, latent), want) < 5e-5


def test_runs_of_one_frame_and_passes_of_two_are_the_whole_story(sd, frames, negative, latent, drawn):
    model = drawn(regions(sd.model, LAYOUT))
    whole = one_step(model, frames, negative, latent, cfg=5.0)
    assert scaled_error(in_runs(model, frames, negative, latent, 1, 0, steps=1), whole) < 5e-5
    assert scaled_error(one_step(patch_runs(model, 2), frames, negative, latent, cfg=5.0), whole) < 5e-5


def test_branches_sampled_apart_equal_one_batch(sd, frames, negative, latent, drawn, monkeypatch):
    """As a small GPU does: each conditioning in a forward pass of its own."""
    model = drawn(sd.model)
    together = one_step(model, frames, negative, latent, cfg=5.0)
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    assert scaled_error(one_step(model, frames, negative, latent, cfg=5.0), together) < 5e-5


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": 0.0, "adapter": "faceid-plusv2.bin"},
        {"start_percent": 0.9},
        {"cast": (), "adapter": "faceid-plusv2.bin"},
    ],
)
def test_without_scale_or_cast_or_outside_of_its_steps_all_is_bit_equal(
    sd, frames, negative, latent, drawn, plain, changed
):
    assert torch.equal(one_step(drawn(sd.model, **changed), frames, negative, latent), plain)


def test_blocks_share_the_work_and_nodes_add_up(sd, frames, negative, latent, drawn, adapted):
    down_up = drawn(sd.model, blocks="down+up")
    assert scaled_error(one_step(down_up, frames, negative, latent), adapted) > 1e-4
    assert scaled_error(one_step(drawn(down_up, blocks="mid"), frames, negative, latent), adapted) < 1e-5


def test_average_is_one_picture_halfway_between_all(sd, frames, negative, latent, drawn, adapted):
    average = one_step(drawn(sd.model, pictures="average"), frames, negative, latent)
    assert scaled_error(average[1], adapted[1]) < 1e-5, "Otto has one picture"
    assert scaled_error(average[0], adapted[0]) > 1e-4


def test_a_mask_shows_the_adapter_the_character_alone(sd, frames, negative, latent, drawn):
    image, mask = random([1, 40, 40, 3], 5), torch.zeros(1, 40, 40)
    mask[:, 10:30, 10:30] = 1
    alone = torch.ones_like(image)
    alone[:, 10:30, 10:30] = image[:, 10:30, 10:30]

    def with_(image, mask=None):
        cast = OneStoryCast.execute(TALE, image, "Mia", mask=mask)[0]
        return one_step(drawn(sd.model, cast), frames, negative, latent)

    assert scaled_error(with_(image, mask), with_(image[:, 10:30, 10:30])) < 1e-5
    assert scaled_error(with_(image, mask), with_(image)) > 1e-4


# --- FaceID ----------------------------------------------------------------------------------------------------------


def test_faceid_plus_adds_its_lora_to_the_weights_and_reads_a_face_for_each_picture(
    sd, frames, negative, latent, drawn, cast, clip_vision, plain
):
    state = adapter("FaceID-Plus", lora=2)
    exact, lora = Exact(state["image_proj"]), state["ip_adapter"]
    tokens = {}
    with torch.inference_mode():
        for member in cast:
            seen = clip_vision.encode_image(member.images)["penultimate_hidden_states"]
            found = [exact.tokens("FaceID-Plus", s, f, True) for s, f in zip(seen, member.face, strict=True)]
            tokens[member.name] = torch.cat(found)
        grey = clip_vision.model(pixel_values=torch.zeros(1, 3, 56, 56), intermediate_output=-2)[1][0]
    blank = exact.tokens("FaceID-Plus", grey, torch.zeros(512), True)
    changed = sd.model.clone()
    targets = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    for m in range(2 * LAYERS):
        module = unet.transformers(sd.model.model)[m // 2].module
        for part, target in targets.items():
            up, down = (lora[f"{m}.to_{part}_lora.{side}.weight"] for side in ("up", "down"))
            key = f"diffusion_model.{module}.attn{1 + m % 2}.{target}.weight"
            assert changed.add_patches({key: (0.5 * up @ down,)}), key
    override = Decoupled(sd.model, lora, tokens, blank)
    want = one_step(overridden(changed, override), frames, negative, latent, cfg=5.0)
    inputs = {"adapter": "faceid-plusv2.bin", "lora_strength": 0.5, "fit": "crop"}
    assert scaled_error(one_step(drawn(sd.model, **inputs), frames, negative, latent, cfg=5.0), want) < 5e-5
    v1 = drawn(sd.model, **inputs, version="FaceID-Plus v1")
    assert scaled_error(one_step(v1, frames, negative, latent, cfg=5.0), want) > 1e-3
    assert torch.equal(one_step(sd.model, frames, negative, latent), plain), "the model afterwards"


# --- beside other nodes ----------------------------------------------------------------------------------------------


def foreign(model):
    """A patch as IPAdapter_plus leaves it: it calls attention without transformer_options."""
    tokens = 2 * random([1, 4, 320]) - 1

    def replace(q, k, v, extra_options):
        heads, picture = extra_options["n_heads"], tokens.expand(len(q), -1, -1).to(q)
        return optimized_attention(q, k, v, heads) + optimized_attention(q, picture, picture, heads)

    clone = model.clone()
    for name, number in unet.blocks(model.model):
        clone.set_model_attn2_replace(replace, name, number)
    return clone


def lora(model):
    up, down = random([320, 1], 1) - 0.5, random([1, 320], 2) - 0.5
    weights = {f"diffusion_model.middle_block.1.proj_in.lora_{s}.weight": w for s, w in (("up", up), ("down", down))}
    return comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)[0]


def everything(model):
    return regions(self_attention(ipca(model)), LAYOUT)


OTHERS = {
    "IPCA, self-attention and regions": everything,
    "a foreign IP-Adapter": foreign,
    "PAG": lambda model: PerturbedAttentionGuidance.execute(model, 3.0)[0],
    "LoRA": lora,
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_order_of_the_nodes_does_not_matter(sd, frames, negative, latent, drawn, adapted, name):
    other = OTHERS[name]
    first = one_step(other(drawn(sd.model)), frames, negative, latent)
    assert torch.equal(first, one_step(drawn(other(sd.model)), frames, negative, latent))
    assert scaled_error(first, one_step(other(sd.model), frames, negative, latent)) > 1e-3
    assert scaled_error(first, adapted) > 1e-3


def with_controlnet(frames, negative):
    return control(frames, negative, random([4, HEIGHT, WIDTH, 3]))


def with_area(frames, negative):
    return nodes.ConditioningSetAreaPercentage().append(frames, 1.0, 0.5, 0.0, 0.0, 1.0)[0], negative


def with_mask(frames, negative):
    return nodes.ConditioningSetMask().append(frames, random([1, HEIGHT, WIDTH]), "default", 1.0)[0], negative


@pytest.mark.parametrize("other", [with_controlnet, with_area, with_mask])
def test_beside_nodes_on_the_conditioning_it_does_as_much_as_alone(
    sd, frames, negative, latent, drawn, plain, adapted, other
):
    conditionings = other(frames, negative)
    effect = one_step(drawn(sd.model), *conditionings, latent) - one_step(sd.model, *conditionings, latent)
    assert 0.3 < effect[:3].std() / (adapted - plain)[:3].std() < 3
    assert not effect[3].any(), "a frame that shows nobody"


def test_a_recorder_sees_the_words_only_in_either_order(sd, frames, negative, latent, drawn):
    def seen(model_of):
        recording = Recording()
        one_step(model_of(Recorder(recording, parse_blocks("all"), 0.0, 1.0)), frames, negative, latent)
        return recording.maps()

    before, after = seen(lambda r: drawn(patch(sd.model, r))), seen(lambda r: patch(drawn(sd.model), r))
    assert torch.equal(before, after)
    assert 0 < before.max() <= 1 + 1e-6, "a share of the text's attention"


def test_two_adapters_add_up_in_any_order(sd, frames, negative, latent, drawn, adapted):
    both = one_step(drawn(drawn(sd.model), adapter="plus.bin"), frames, negative, latent)
    assert scaled_error(both, adapted) > 1e-3
    swapped = one_step(drawn(drawn(sd.model, adapter="plus.bin")), frames, negative, latent)
    assert scaled_error(swapped, both) < 5e-5, "float noise"


# --- what is wrong gets one sentence ---------------------------------------------------------------------------------


def broken(folder, name):
    if name == "code.bin":
        torch.save({"image_proj": Code(), "ip_adapter": {}}, folder / name)
    elif name == "garbage.safetensors":
        (folder / name).write_bytes(b"{}" * 20)
    elif name == "short.bin":
        (folder / name).write_bytes((folder / "plus.bin").read_bytes()[:5000])
    elif name == "lora.safetensors":
        save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, folder / name)
    elif name == "sdxl.safetensors":
        save_file(flat(adapter("base", [640], text=2048)), folder / name)
    elif name == "narrow.bin":
        torch.save(adapter("base", [320] * (LAYERS - 1) + [640]), folder / name)
    elif name == "more.bin":
        torch.save(adapter("base", [320] * (LAYERS + 1)), folder / name)
    elif name == "wide.bin":
        torch.save(adapter("plus", seen=1280), folder / name)
    elif name == "bigg.bin":
        torch.save(adapter("base", embedding=1280), folder / name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("code.bin", "“code.bin” can't be read: it is damaged, or a pickle with more in it than weights"),
        ("garbage.safetensors", "“garbage.safetensors” can't be read"),
        ("short.bin", "“short.bin” can't be read"),
        ("lora.safetensors", "“lora.safetensors” is no adapter that Image Characters knows"),
        ("sdxl.safetensors", "“sdxl.safetensors” was made for SDXL, and this model is SD1.5"),
        ("narrow.bin", f"“narrow.bin” does not fit the {LAYERS} attention layers of this model"),
        ("more.bin", f"“more.bin” does not fit the {LAYERS} attention layers"),
        ("wide.bin", "CLIP vision model ViT-H (1280 channels), and this one is one of 32 channels"),
        ("bigg.bin", "CLIP vision model ViT-bigG (1280 channels), and this one is one of 24 channels"),
    ],
)
def test_every_wrong_file_gets_one_sentence(sd, folder, drawn, capsys, name, says):
    broken(folder, name)
    with pytest.raises(ValueError) as error:
        drawn(sd.model, adapter=name)
    text = str(error.value)
    assert says in text and text.endswith(".") and "\n" not in text
    assert "this ran" not in capsys.readouterr().out


def test_what_else_does_not_fit_gets_a_sentence(sd, drawn, cast, folder):
    for changed, says in (
        ({"clip_vision": None}, "made for the CLIP vision model one (24 channels): load it with Load CLIP Vision"),
        ({"clip_vision": tiny(TINY_SIGLIP)}, "and this one is siglip_vision_model"),
        ({"adapter": "faceid-plusv2.bin", "cast": (cast[0]._replace(face=None),)}, "no `face` of [Mia]"),
        (
            {"adapter": "faceid-plusv2.bin", "cast": (cast[0]._replace(face=random([3, 512])),)},
            "2 pictures and 3 faces",
        ),
        ({"cast": (cast[0]._replace(mask=torch.zeros(2, 60, 40)),)}, "The mask of [Mia] is empty in picture 1"),
        ({"blocks": "double"}, "are none that this model has attention in"),
    ):
        with pytest.raises(ValueError) as error:
            drawn(sd.model, **changed)
        assert says in str(error.value)
    with pytest.raises(ValueError, match="works with SD1.5 and SDXL, and this model is SD3"):
        drawn(sd3())
    torch.save(adapter("base"), folder.parent / "outside.bin")
    with pytest.raises(FileNotFoundError):
        drawn(sd.model, adapter="../outside.bin")


def test_a_character_that_the_story_lacks_gets_a_warning(sd, frames, negative, latent, drawn, cast, caplog):
    one_step(drawn(sd.model, (*cast, cast[0]._replace(name="Ada"))), frames, negative, latent)
    assert [text for text in warnings_of(caplog) if "pictures of [Ada], whom no frame" in text]
    caplog.clear()
    plain = encode(sd.clip, "a fox")
    got = one_step(drawn(sd.model), plain, negative, latent)
    assert len(warnings_of(caplog)) == 2, "one for each of the cast"
    assert torch.equal(got, one_step(sd.model, plain, negative, latent))


def test_other_packs_entry_for_the_folder_is_shared(folder, monkeypatch, tmp_path):
    (tmp_path / "ipadapter").mkdir()
    (tmp_path / "ipadapter" / "mine.bin").touch()
    (tmp_path / "ipadapter" / "notes.txt").touch()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    paths, extensions = folder_paths.folder_names_and_paths["ipadapter"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", (list(paths), set()))
    folder_paths.filename_list_cache.pop("ipadapter", None)
    [choices] = [i.options for i in OneStoryImageAdapter.define_schema().inputs if i.id == "adapter"]
    assert {"base.safetensors", "plus.bin", "mine.bin"} <= set(choices) and "notes.txt" not in choices
    assert folder_paths.folder_names_and_paths["ipadapter"][0] == [*paths, str(tmp_path / "ipadapter")]
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "ipadapter")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "none"))
    [choices] = [i.options for i in OneStoryImageAdapter.define_schema().inputs if i.id == "adapter"]
    assert choices == [] and "ipadapter" not in folder_paths.folder_names_and_paths
    folder_paths.filename_list_cache.pop("ipadapter", None)
