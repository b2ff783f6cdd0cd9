"""The Story World's IP-Adapter: it trains on a frozen painter, and ComfyUI and the pack read what it is packed as."""

import random
import sys
from pathlib import Path

import pytest
import torch
from conftest import COMFYUI
from graphs import empty, encode, sample, story
from onestory.attention.architectures import unet
from onestory.bench.quality.picture_graphs import IMAGE_CHARACTERS
from onestory.nodes.cast import OneStoryCast
from onestory.nodes.image_adapter import OneStoryImageAdapter
from onestory.nodes.prompt import OneStoryPrompt
from onestory.subjects.adapters import read_adapter
from onestory.tools import host
from onestory.world import asset
from onestory.world.drawing.attributes import IDENTITY, VALUES, draw
from onestory.world.drawing.captions import MENTIONED, identity_prompt
from onestory.world.drawing.render import render
from onestory.world.train import adapter, vision
from onestory.world.train.autoencoder import Autoencoder
from onestory.world.train.painter import TOKENS, Painter, looks, tokens
from onestory.world.train.unet import CHANNELS, HEADS, Attention
from reference import relative_error
from safetensors.torch import load_file, save_file

COUNT = 5
"""The U-Net's transformers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training whose first stages have random weights, and whose adapter has learned for two steps."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    nets = {"autoencoder": Autoencoder(), "painter": Painter(), "vision": vision.Reader()}
    for name, net in nets.items():
        torch.save({"averaged": net.state_dict()}, folder / f"{name}.state.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter.AdapterStage, "bank_steps", 2)
        patch.setattr(adapter, "FITTED", 8)
        assert adapter.AdapterStage(folder, steps=2, batch=2).train()
    return folder


@pytest.fixture(scope="module")
def packed(folder):
    """The asset and the files that it expands into."""
    assert asset.pack(adapter.adapter_weights(folder), [], folder / "asset.safetensors") < 4 * 2**20
    asset.main(*(str(folder / name) for name in ("asset.safetensors", "adapter.safetensors", "vision.pt")))
    return folder


def test_the_adapter_learns_alone_and_its_training_starts_and_ends_with_the_same_painter(folder):
    state = torch.load(folder / "adapter.state.pt", weights_only=True)
    assert state["step"] == 2
    names = {name.partition(".")[0] for name in state["net"]}
    assert names == {"projector", "layers"} and len(state["net"]) == 4 + 2 * COUNT
    stage = adapter.AdapterStage(folder, steps=2, batch=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "FITTED", 8)
        stage.build()
    painted = torch.load(folder / "painter.state.pt", weights_only=True)["averaged"]
    learning = [name for name, weight in stage.unet.named_parameters() if weight.requires_grad]
    assert len(learning) == 2 * COUNT and all("_ip." in name for name in learning)
    assert not any(weight.requires_grad for net in (stage.teacher, stage.eyes) for weight in net.parameters())
    assert all(torch.equal(weight, painted[name]) for name, weight in stage.teacher.state_dict().items())


def test_the_tokens_begin_as_those_after_whole_captions(folder):
    """With as many pictures as the embedding has numbers, squares leave nothing over."""
    stage = adapter.AdapterStage(folder, steps=2, batch=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "FITTED", 32)
        net = stage.build()
    attributes = vision.alone(32, torch.Generator().manual_seed(7_907))
    with torch.inference_mode():
        seen = stage.embeddings(attributes, torch.Generator().manual_seed(0))
        rows = [tokens(identity_prompt(looks(attributes, index), set(MENTIONED))) for index in range(32)]
        wanted = stage.teacher.text(torch.tensor(rows))[:, adapter.PLACES]
        assert relative_error(net.projector(seen), wanted) < 0.02


def test_an_adapted_attention_adds_a_softmax_over_the_pictures_tokens():
    torch.manual_seed(1)
    attention = Attention(768)
    layer = adapter.Layer(attention)
    torch.nn.init.normal_(layer.to_v_ip.weight, std=0.05)
    adapted = adapter.Adapted(attention, layer).double()
    x, text, picture = (torch.randn(2, n, width).double() for n, width in ((9, CHANNELS), (77, 768), (4, 768)))

    def attend(context, to_k, to_v):
        q, k, v = (
            (y @ weight.weight.mT).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for y, weight in ((x, attention.to_q), (context, to_k), (context, to_v))
        )
        return ((q @ k.mT / (CHANNELS // HEADS) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    wanted = attend(text, attention.to_k, attention.to_v) + attend(picture, layer.to_k_ip, layer.to_v_ip)
    wanted = wanted @ attention.to_out[0].weight.mT + attention.to_out[0].bias
    assert relative_error(adapted(x, torch.cat([text, picture], 1)), wanted) < 1e-12


def test_captions_beside_a_picture_say_less_than_the_teacher_is_told():
    rng = random.Random(0)
    attributes = vision.alone(400, torch.Generator().manual_seed(2))
    pictures = [looks(attributes, index) for index in range(400)]
    found = [adapter.Captions.of(picture, rng) for picture in pictures]
    assert 20 < sum(each.blind for each in found) < 65
    for picture, each in zip(pictures, found, strict=True):
        if each.blind:
            assert each.whole == each.said
            continue
        assert each.whole.startswith(identity_prompt(picture, set(MENTIONED)))
        species = VALUES["species"][picture["species"]]
        assert each.said == "" or each.said.startswith(f"{adapter.ANYBODY} ") or species in each.said
    silent = sum(each.said.startswith(f"{adapter.ANYBODY} ") for each in found)
    assert 150 < silent < 280 and 20 < sum(each.said == "" for each in found) < 65
    assert all(len(tokens(each.whole)) == 77 for each in found)


def test_the_reader_reads_every_attribute_of_identity(folder):
    reader = vision.Reader()
    pictures = render(draw(2, torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        assert {name: x.shape[1] for name, x in reader(pictures).items()} == {n: len(v) for n, v in IDENTITY.items()}
    stage = vision.VisionStage(folder, steps=1, batch=4)
    stage.bank_steps = 2
    losses = [stage.loss(reader, 0).item() for _ in range(2)]
    assert losses[0] == losses[1]


@torch.inference_mode()
def test_comfyui_loads_the_encoder_as_a_clip_vit_l_that_sees_the_same(packed):
    import comfy.clip_vision

    pictures = render(draw(1, torch.Generator().manual_seed(5))).clone()
    loaded = comfy.clip_vision.load(str(packed / "vision.pt"))
    found = loaded.encode_image(pictures.movedim(1, -1))["image_embeds"].cpu()
    net = vision.Vision().eval()
    held = asset.unpack(packed / "asset.safetensors")[0]
    net.load_state_dict({name[7:]: value for name, value in held.items() if name.startswith("vision.")})
    assert found.shape == (1, 768) and not found[:, 128:].any()
    # half precision and ComfyUI's 256 levels of a picture
    assert relative_error(found[:, :128], net(vision.clip_pictures(pictures))) < 0.02


@torch.inference_mode()
def test_the_pack_reads_the_adapter_in_the_order_of_its_transformers(packed):
    own = read_adapter("adapter", load_file(packed / "adapter.safetensors"))
    assert own.kind == "base" and own.vision_channels == 768 and own.text_channels == 768
    own.check([(CHANNELS, 768)] * COUNT)
    held = asset.unpack(packed / "asset.safetensors")[0]
    projector = adapter.Projector()
    projector.load_state_dict(
        {n.removeprefix("image_proj."): v for n, v in held.items() if n.startswith("image_proj.")}
    )
    seen = torch.randn(2, 128)
    found = own.tokens(torch.cat([seen, torch.randn(2, 640)], 1), None, False)
    assert relative_error(found, projector(seen)) < 1e-3


def test_transformers_are_numbered_as_the_pack_numbers_them(folder):
    import comfy.sd

    net = Painter()
    vae = {f"vae.{name}": value for name, value in Autoencoder().state_dict().items()}
    asset.pack(net.state_dict() | vae, TOKENS, folder / "checkpoint.asset")
    save_file(asset.checkpoint(folder / "checkpoint.asset"), folder / "checkpoint.safetensors")
    model = comfy.sd.load_checkpoint_guess_config(str(folder / "checkpoint.safetensors"), False, False)[0].model
    names = {id(module): name for name, module in net.unet.named_modules()}
    ours = [names[id(block)] for block in adapter.blocks(net.unet)]
    assert [each.module for each in unet.transformers(model)] == ours and len(ours) == COUNT


WHO = {
    "species": ("fox", "owl"),
    "colour": ("red", "blue"),
    "headwear": ("crown", "none"),
    "neckwear": ("none", "scarf"),
    "company": ("alone", "alone"),
    "scene": ("city", "city"),
}
"""Two characters, as pictures show them."""


@pytest.fixture
def shipped():
    """The Story World's checkpoint and what it reads pictures by, in ComfyUI's hands: (model, clip, vae, encoder)."""
    import comfy.clip_vision
    import comfy.sd
    import folder_paths

    this = host.Host(COMFYUI, Path(sys.executable))
    own, encoder = host.world_adapter(this)
    loaded = comfy.sd.load_checkpoint_guess_config(str(host.world_checkpoint(this)))[:3]
    with pytest.MonkeyPatch.context() as patch:
        folders = {**folder_paths.folder_names_and_paths, "ipadapter": ([str(own.parent)], {".safetensors"})}
        patch.setattr(folder_paths, "folder_names_and_paths", folders)
        patch.setattr(folder_paths, "filename_list_cache", {})
        yield *loaded, comfy.clip_vision.load(str(encoder))


@torch.inference_mode()
def test_a_story_shows_whom_a_picture_shows_where_words_say_nothing_of_it(shipped):
    """As the Story World's own encoder sees it, each drawing is far nearer to its own picture than to the other's."""
    model, clip, vae, eyes = shipped
    attributes = draw(2, torch.Generator().manual_seed(0))
    attributes |= {name: torch.tensor([VALUES[name].index(value) for value in each]) for name, each in WHO.items()}
    pictures = render(attributes).movedim(1, -1)
    tale = story("[Mia] a cartoon", "[Mia] in the forest")
    prompt = OneStoryPrompt.execute(clip, tale, "separate prompts", 0, "story")[0]
    inputs = {"adapter": "onestory_world.safetensors", "scale": 1.0, "clip_vision": eyes}
    drawn = []
    for picture in pictures:
        cast = OneStoryCast.execute(tale, picture[None], "Mia")[0]
        adapted = OneStoryImageAdapter.execute(model, cast, **IMAGE_CHARACTERS | inputs)[0]
        latent = sample(adapted, prompt, encode(clip, ""), empty(tale, 128, 128), steps=6, cfg=4.5)
        drawn.append(vae.decode(latent))
    net = vision.Vision().eval()
    net.load_state_dict({n[7:]: v for n, v in asset.unpack(asset.ADAPTER)[0].items() if n.startswith("vision.")})
    seen, wanted = (
        torch.nn.functional.normalize(net(vision.clip_pictures(each.movedim(-1, 1))), dim=-1)
        for each in (torch.cat(drawn), pictures)
    )
    alike = seen @ wanted.mT
    assert (alike.diagonal() - alike.flip(1).diagonal()).min() > 0.3, alike
