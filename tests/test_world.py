"""The Story World: its pictures follow their attributes, its captions fit, and its networks are ComfyUI's."""

import random

import pytest
import torch
from onestory.demo import asset
from onestory.demo.train import painter
from onestory.demo.train.autoencoder import Autoencoder
from onestory.demo.train.loop import Stage
from onestory.demo.world.attributes import FRAME, IDENTITY, NAMES, VALUES, draw, select
from onestory.demo.world.captions import ACTIVITY_WORDS, SCENE_WORDS, TIME_WORDS, caption
from onestory.demo.world.render import render
from reference import relative_error
from safetensors.torch import save_file

STD = 1.7


def look(attributes, index) -> dict[str, int]:
    return {name: int(attributes[name][index]) for name in (*VALUES, "name")}


@pytest.fixture(scope="module")
def attributes():
    return draw(64, torch.Generator().manual_seed(3))


def test_the_same_seed_is_the_same_world(attributes):
    again = draw(64, torch.Generator().manual_seed(3))
    assert all(torch.equal(values, again[name]) for name, values in attributes.items())
    assert torch.equal(render(attributes), render(again))
    texts = [[caption(look(a, i), random.Random(i)) for i in range(64)] for a in (attributes, again)]
    assert texts[0] == texts[1]


def test_a_picture_does_not_depend_on_those_drawn_with_it(attributes):
    alone = render(select(attributes, torch.tensor([5])))
    assert torch.allclose(alone[0], render(attributes)[5], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in VALUES if name != "company"])
def test_every_value_of_an_attribute_shows(name):
    """Nothing but the one attribute differs, and each two of its values are seen to differ."""
    count = len(VALUES[name])
    base = select(draw(1, torch.Generator().manual_seed(0)), torch.zeros(count, dtype=torch.long))
    base |= {"scene": torch.zeros(count, dtype=torch.long), "company": torch.zeros(count, dtype=torch.long)}
    base |= {"headwear": torch.ones(count, dtype=torch.long), name: torch.arange(count)}
    pictures = render(base)
    assert pictures.shape == (count, 3, 128, 128) and pictures.min() >= 0 and pictures.max() <= 1
    for i in range(count):
        for j in range(i):
            changed = (pictures[i] - pictures[j]).abs().amax(0) > 0.1
            assert changed.float().mean() > 0.002, (VALUES[name][i], VALUES[name][j])


def test_captions_fit_the_encoder_and_say_what_is_there():
    attributes, rng = draw(3000, torch.Generator().manual_seed(1)), random.Random(1)
    seen = set()
    for i in range(3000):
        text = caption(looks := look(attributes, i), rng)
        words = text.replace(",", " ,").split()
        assert len(words) <= 75
        assert len(painter.tokens(text)) == 77
        named = looks["name"] >= 0 and list(NAMES)[looks["name"]] in text
        assert named or VALUES["species"][looks["species"]] in text
        seen |= set(words)
    known = {word.lower() for word in seen}
    assert known == set(painter.VOCABULARY)
    assert all(value in " ".join(seen) or " " in value for value in IDENTITY["species"] + IDENTITY["accent"])


def test_the_vocabulary_is_clips(sd):
    tokenizer = sd.clip.tokenizer.clip_l
    for word, number in painter.VOCABULARY.items():
        ids = [token for token, _ in tokenizer.tokenize_with_weights(word)[0]]
        assert ids[1] == number and ids[2] == painter.END, word


@pytest.fixture(scope="module")
def networks():
    """A painter and an autoencoder with random weights that let every part of them count."""
    torch.manual_seed(0)
    net, vae = painter.Painter().eval(), Autoencoder().eval()
    for name, weight in net.unet.named_parameters():
        if weight.dim() > 1 and name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return net, vae


@pytest.fixture(scope="module")
def expanded(networks, tmp_path_factory):
    """What ComfyUI loads from those weights, packed and expanded; and the weights as the asset holds them."""
    import comfy.sd

    net, vae = networks
    folder = tmp_path_factory.mktemp("asset")
    weights = dict(net.state_dict()) | {f"vae.{name}": value for name, value in vae.state_dict().items()}
    asset.pack(weights, painter.TOKENS, STD, folder / "asset.safetensors")
    held, tokens, std = asset.unpack(folder / "asset.safetensors")
    assert tokens == painter.TOKENS and std == pytest.approx(STD, rel=1e-6) and held.keys() == weights.keys()
    for name, weight in weights.items():
        assert held[name].shape == weight.shape
        assert (held[name] - weight).norm() <= 0.055 * weight.norm(), name
    save_file(asset.checkpoint(folder / "asset.safetensors"), folder / "checkpoint.safetensors")
    loaded = comfy.sd.load_checkpoint_guess_config(str(folder / "checkpoint.safetensors"))[:3]
    with torch.no_grad():
        net.load_state_dict({name: value.half().float() for name, value in held.items() if not name.startswith("vae.")})
        vae.load_state_dict({k.removeprefix("vae."): v.half().float() for k, v in held.items() if k.startswith("vae.")})
    return loaded


TEXT = "a spotted blue fox with a red scarf, reading a book in the forest at night"


@torch.inference_mode()
def test_the_expanded_text_encoder_is_the_trained_one(networks, expanded):
    net, _ = networks
    clip = expanded[1]
    found = clip.encode_from_tokens(clip.tokenize(TEXT))
    wanted = net.text(torch.tensor([painter.tokens(TEXT)]))
    assert relative_error(found, wanted) < 1e-4
    assert wanted.norm(dim=-1).mean().item() == pytest.approx(768**0.5, rel=0.01)


@torch.inference_mode()
def test_the_expanded_unet_is_the_trained_one(networks, expanded):
    net, _ = networks
    model = expanded[0].model.diffusion_model
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 16, 12, generator=generator)
    steps, context = torch.tensor([12, 900]), torch.randn(2, 77, 768, generator=generator)
    found = model.float()(x, steps, context=context)
    assert relative_error(found, net.unet(x, steps, context)) < 1e-4


@torch.inference_mode()
def test_the_expanded_autoencoder_is_the_trained_one_at_unit_scale(networks, expanded):
    _, vae = networks
    model, _, loaded = expanded
    picture = render(draw(1, torch.Generator().manual_seed(4)))
    latents = loaded.encode(picture.movedim(1, -1))
    unit = model.model.latent_format.process_in(latents)
    assert relative_error(unit, vae.encode(picture) / STD) < 1e-2
    drawn = loaded.decode(latents).movedim(-1, 1)
    assert (drawn - vae.decode(vae.encode(picture)).clamp(0, 1)).abs().max() < 0.02


def test_an_idle_block_is_one_with_nothing_learned():
    torch.manual_seed(0)
    light, full = Autoencoder(light=True), Autoencoder()
    full.load_state_dict(light.state_dict())
    picture = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(light.decode(light.encode(picture)), full.decode(full.encode(picture)))


class Line(Stage):
    """A stage that fits a line."""

    name, rate, average = "line", 1e-2, 0.9

    def build(self):
        return torch.nn.Linear(3, 1)

    def loss(self, net, step):
        x = torch.randn(self.batch, 3, generator=torch.Generator().manual_seed(step))
        return (net(x) - x.sum(1, keepdim=True)).square().mean()


def test_training_goes_on_where_it_stopped(tmp_path):
    """In two pieces or in one: the same weights."""
    whole = Line(tmp_path / "whole", steps=60, batch=4)
    assert whole.train()
    pieces = Line(tmp_path / "pieces", steps=60, batch=4)
    while not pieces.train(minutes=0.0005):
        pass
    for name, value in whole.trained().items():
        assert torch.equal(value, pieces.trained()[name])
    assert (tmp_path / "whole" / "line.log.jsonl").read_text().count("\n") == 2


def test_frames_are_named_in_captions():
    assert set(SCENE_WORDS) == set(FRAME["scene"])
    assert set(ACTIVITY_WORDS) == set(FRAME["activity"]) and set(TIME_WORDS) == set(FRAME["time"])
