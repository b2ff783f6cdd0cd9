"""The Story World: its pictures follow their attributes, its captions fit, and its networks are ComfyUI's."""

import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy.sd1_clip import SDTokenizer
from conftest import COMFYUI
from onestory.bench.quality.pair_graphs import LAYOUT, with_sides
from onestory.bench.quality.world_measures import frechet, interval, measures, pair_measures, picture_measures
from onestory.bench.quality.world_probe import READ, ProbeStage, accuracies, pictures_and_attributes, read
from onestory.bench.quality.world_stories import pair_stories, picture_stories, world_stories
from onestory.story.layout import parse_layout
from onestory.story.script import parse_script
from onestory.tools import host
from onestory.tools.failure import Failure
from onestory.world import asset
from onestory.world.drawing.attributes import FRAME, IDENTITY, NAMES, OTHER, PAIR, VALUES, draw, select
from onestory.world.drawing.captions import ACTIVITY_WORDS, SCENE_WORDS, TIME_WORDS, caption, whole_caption
from onestory.world.drawing.render import render
from onestory.world.train import painter, precision
from onestory.world.train.autoencoder import Autoencoder, AutoencoderStage, crops, standardise
from onestory.world.train.decoder import Guessed, MendingStage, guessed_crops
from onestory.world.train.loop import Stage
from reference import relative_error
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def attributes():
    return draw(64, torch.Generator().manual_seed(3))


def test_the_same_seed_is_the_same_world(attributes):
    again = draw(64, torch.Generator().manual_seed(3))
    assert all(torch.equal(values, again[name]) for name, values in attributes.items())
    assert torch.equal(render(attributes), render(again))
    texts = [[caption(painter.looks(a, i), random.Random(i)) for i in range(64)] for a in (attributes, again)]
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
    pictures = all_differ(base, name)
    assert pictures.shape == (count, 3, 128, 128) and pictures.min() >= 0 and pictures.max() <= 1


def all_differ(attributes, name):
    """The pictures, of which each two are seen to differ."""
    pictures = render(attributes)
    for i in range(len(pictures)):
        for j in range(i):
            changed = (pictures[i] - pictures[j]).abs().amax(0) > 0.1
            assert changed.float().mean() > 0.002, (name, i, j)
    return pictures


@pytest.mark.parametrize("name", OTHER)
def test_every_value_shows_to_the_right_of_a_pair_and_nowhere_else(name):
    count = len(OTHER[name])
    base = select(draw(1, torch.Generator().manual_seed(0)), torch.zeros(count, dtype=torch.long))
    base |= {"scene": torch.zeros(count, dtype=torch.long), "x": torch.zeros(count), "y": torch.zeros(count)}
    base |= {"company": torch.full((count,), PAIR), "other_headwear": torch.ones(count, dtype=torch.long)}
    pictures = all_differ(base | {name: torch.arange(count)}, name)
    assert (pictures[:, :, :, :48] - pictures[:1, :, :, :48]).abs().max() == 0


def test_pictures_of_two_characters_say_who_is_where():
    """What is said before "on the left" is the left one's, whatever stands first; twins are one character twice."""
    attributes, rng = draw(3000, torch.Generator().manual_seed(2)), random.Random(2)
    pairs = (attributes["company"] == PAIR).nonzero().flatten().tolist()
    assert len(pairs) == pytest.approx(600, abs=100)
    sides, first = 0, {"left": 0, "right": 0}
    for i in pairs:
        looks = painter.looks(attributes, i)
        text = caption(looks, rng)
        found = re.findall(r"(.*?) on the (left|right)", text)
        assert len(found) in (0, 2)
        if found:
            sides += 1
            first[found[0][1]] += 1
            for words, side in found:
                prefix = "" if side == "left" else "other_"
                named = looks[f"{prefix}name"] >= 0 and list(NAMES)[looks[f"{prefix}name"]] in words
                assert named or VALUES["species"][looks[f"{prefix}species"]] in words, text
    assert sides > len(pairs) / 2 and min(first.values()) > sides / 4
    alone = attributes["company"] != PAIR
    assert all(torch.equal(attributes[name][alone], attributes[name[6:]][alone]) for name in OTHER)
    shown = [(attributes[f"{at}accent"], attributes[f"{at}colour"]) for at in ("", "other_")]
    for accent, colour in shown:
        hidden = [VALUES["accent"][a] == VALUES["colour"][c] for a, c in zip(accent, colour, strict=True)]
        assert not any(hidden)


@pytest.mark.parametrize("name", [*IDENTITY, *FRAME, *OTHER])
def test_a_whole_caption_tells_every_value_from_every_other(name):
    looks = dict.fromkeys(painter.DESCRIBED, 1) | {"company": PAIR, "name": -1, "other_name": -1, "scene": 0}
    texts = {whole_caption(looks | {name: value}) for value in range(len((VALUES | OTHER)[name]))}
    assert len(texts) == len((VALUES | OTHER)[name])


def test_captions_fit_the_encoder_and_say_what_is_there():
    attributes, rng = draw(3000, torch.Generator().manual_seed(1)), random.Random(1)
    seen = set()
    for i in range(3000):
        text = caption(looks := painter.looks(attributes, i), rng)
        words = text.replace(",", " ,").split()
        assert len(words) <= 75
        assert len(painter.tokens(text)) == 77
        named = looks["name"] >= 0 and list(NAMES)[looks["name"]] in text
        assert named or VALUES["species"][looks["species"]] in text
        seen |= set(words)
    known = {word.lower() for word in seen}
    assert known == set(painter.VOCABULARY)
    assert all(value in " ".join(seen) or " " in value for value in IDENTITY["species"] + IDENTITY["accent"])


def test_the_vocabulary_is_clips():
    tokenizer = SDTokenizer()
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
    asset.pack(weights, painter.TOKENS, folder / "asset.safetensors")
    held, tokens = asset.unpack(folder / "asset.safetensors")
    assert tokens == painter.TOKENS and held.keys() == weights.keys()
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
def test_spread_captions_differ_in_size_alone_and_in_padding_that_says_nothing(networks):
    net, _ = networks
    rows = torch.tensor([painter.tokens(text) for text in ("", *[TEXT] * 100)])
    plain, empty = net.text(rows), net.text(rows[:1])
    spread = painter.Spread.of(rows, random.Random(1))
    found = net.spread(rows, spread)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(spread.sizes, painter.Spread.of(rows, random.Random(1)).sizes)
    end = 1 + len(TEXT.replace(",", " ,").split())
    assert torch.equal(found[1:, 0], plain[1:, 0])
    sizes = found[1:].norm(dim=-1) / plain[1:].norm(dim=-1)
    assert relative_error(found[1:, :end], plain[1:, :end] * sizes[:, :end, None]) < 1e-6
    directions = found[1:, end:] / sizes[:, end:, None]
    said, silent = (((directions - wanted[:, end:]).abs() < 1e-3).all((1, 2)) for wanted in (plain[1:], empty))
    assert (said ^ silent).all() and said.any() and silent.sum() > said.sum()
    assert (sizes[:, 1:end] < 0.11).any(1).float().mean() == pytest.approx(painter.FAINT_SHARE, abs=0.1)
    assert (sizes[:, end:].amax(1) - sizes[:, end:].amin(1)).max() < 1e-4


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
    assert relative_error(unit, vae.encode(picture)) < 1e-2
    drawn = loaded.decode(latents).movedim(-1, 1)
    assert (drawn - vae.decode(vae.encode(picture)).clamp(0, 1)).abs().max() < 0.02


def test_an_idle_block_is_one_with_nothing_learned():
    torch.manual_seed(0)
    light, full = Autoencoder(light=True), Autoencoder()
    full.load_state_dict(light.state_dict())
    picture = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(light.decode(light.encode(picture)), full.decode(full.encode(picture)))


def asset_of(net, path, part, known=painter.TOKENS):
    asset.pack({f"{part}{name}": value for name, value in net.state_dict().items()}, known, path)
    return path


@torch.inference_mode()
def test_an_autoencoder_goes_on_from_an_asset_with_what_is_idle_forgotten(tmp_path):
    torch.manual_seed(0)
    file = asset_of(Autoencoder(), tmp_path / "asset.safetensors", "vae.")
    found = AutoencoderStage(tmp_path, steps=1, batch=2, start=file).build()
    held = {name.removeprefix("vae."): value for name, value in asset.unpack(file)[0].items()}
    for name, value in found.state_dict().items():
        block = found.get_submodule(name.rpartition(".conv.")[0])
        forgotten = getattr(block, "idle", False) and ".conv.4." in name
        assert torch.equal(value, torch.zeros_like(value) if forgotten else held[name]), name


def test_a_painter_goes_on_from_an_asset_that_knows_fewer_words():
    torch.manual_seed(0)
    net = painter.Painter()
    before = net.text.token_embedding.weight.detach().clone()
    new = {painter.VOCABULARY[word] for word in ("left", "right")}
    known = [token for token in reversed(painter.TOKENS) if token not in new]
    weights = {name: torch.randn_like(value) for name, value in net.state_dict().items()} | {"vae.x": torch.zeros(1)}
    weights["text.token_embedding.weight"] = torch.randn(len(known), 768)
    net.load_state_dict(painter.known_words(net, weights, known))
    for token in painter.TOKENS:
        row = net.text.token_embedding.weight[painter.ROWS[token]]
        assert torch.equal(row, before[painter.ROWS[token]] if token in new else weights_of(weights, known, token))
    assert torch.equal(net.unet.out[2].weight, weights["unet.out.2.weight"])


def weights_of(weights, known, token):
    return weights["text.token_embedding.weight"][known.index(token)]


def test_a_step_of_the_autoencoder_depends_on_its_number_alone(tmp_path):
    one, other = (AutoencoderStage(tmp_path, steps=99, batch=2) for _ in range(2))
    torch.manual_seed(0)
    net = one.build()
    losses = [one.loss(net, step).item() for step in (0, 7, 8, 9)]
    assert [other.loss(net, step).item() for step in (9, 0)] == [losses[3], losses[0]]
    assert len({*losses}) == 4


def test_every_pixel_of_a_picture_is_in_many_parts():
    pictures = torch.arange(128 * 128).view(1, 1, 128, 128).float()
    parts = crops(pictures, 2000, torch.Generator().manual_seed(0))
    counts = parts.flatten().long().bincount(minlength=128 * 128)
    assert parts.shape == (2000, 1, 64, 64) and counts.min() > 60


@torch.inference_mode()
def test_what_a_perfect_painter_guesses_is_the_latents(tmp_path, monkeypatch):
    """The decoder learns to mend the painter's mistakes: of one that makes none, latents are as they were."""
    torch.manual_seed(0)
    net = standardise(Autoencoder())
    stage = MendingStage(tmp_path, steps=1, batch=4)
    seen = {}

    def encode(pictures):
        seen["clean"] = net.encode(pictures)
        return seen["clean"]

    def paint(noisy, steps, rows):
        share = painter.signal()[steps].view(-1, 1, 1, 1)
        assert steps.max() < stage.latest * painter.STEPS and rows.shape == (len(noisy), 77)
        return (noisy - share.sqrt() * seen["clean"]) / (1 - share).sqrt()

    monkeypatch.setattr(precision, "fastest", lambda device: torch.float32)
    stage.encoder, stage.painter = SimpleNamespace(encode=encode), paint
    guessed = stage.guess(torch.Generator().manual_seed(0))
    assert relative_error(guessed.latents, net.encode(guessed.pictures)) < 1e-3
    cells = Guessed(guessed.latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3), guessed.latents)
    pictures, latents = guessed_crops(cells, 6, torch.Generator().manual_seed(1))
    assert pictures.shape == (6, 3, 64, 64) and latents.shape == (6, 4, 8, 8)
    assert torch.equal(pictures[..., ::8, ::8], latents[:, :3])


def test_the_painters_loss_weighs_a_step_by_its_noise_and_takes_a_step_from_every_range(tmp_path):
    """A painter that always answers no noise has the mean of the weights as its loss: noise has variance 1."""
    stage = painter.PainterStage(tmp_path, steps=4, batch=8, start=tmp_path)
    latents = torch.randn(painter.SHARD, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    stage.pool = {(shard, 128): latents for shard in range(painter.FIRST_SHARDS)}
    seen = []

    def silent(noisy, steps, rows, spread):
        assert rows.shape == spread.sizes.shape == spread.silent.shape == (8, 77)
        seen.append(steps)
        return torch.zeros_like(noisy)

    found = sum(stage.loss(silent, step).item() for step in range(4)) / 4
    steps = torch.stack(seen)
    assert torch.equal((steps * 8 // painter.STEPS).sort(1).values, torch.arange(8).expand(4, 8))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0)
    wanted = (signal / (1 - signal))[steps].rsqrt().mean().item()
    assert found == pytest.approx(wanted, rel=0.05)


def test_work_is_timed_after_a_first_round_that_does_not_count():
    ticks, rounds = iter([0, 9, 10, 13, 20, 28]), []
    assert precision.duration(lambda: rounds.append(1), clock=lambda: next(ticks)) == 3
    assert len(rounds) == 1 + precision.ROUNDS


@pytest.mark.parametrize("faster", precision.FORMATS)
def test_training_takes_the_format_that_is_faster_here(faster, monkeypatch):
    took: list[torch.dtype] = []
    monkeypatch.setattr(precision, "there_and_back", lambda device, dtype: took.append(dtype))
    monkeypatch.setattr(precision, "duration", lambda work: work() or float(took[-1] != faster))
    precision.fastest.cache_clear()
    with precision.autocast("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    precision.fastest.cache_clear()
    assert product.dtype == faster and {*took} == {*precision.FORMATS}


def test_the_format_is_chosen_where_no_gradients_are_kept_too():
    precision.fastest.cache_clear()
    with torch.inference_mode():
        assert precision.fastest("cpu") in precision.FORMATS


@torch.inference_mode()
def test_standardised_latents_have_unit_scale_and_decode_as_before():
    torch.manual_seed(0)
    net = Autoencoder()
    pictures = render(draw(64, torch.Generator().manual_seed(0)))
    net.taesd_encoder[-1].weight.mul_(0.05)  # within the decoder's bound, where it changes little
    net.taesd_encoder[-1].bias.copy_(torch.tensor([0.1, -0.2, 0.05, 0.0]))
    before = net.decode(net.encode(pictures[:2]))[..., 32:-32, 32:-32]
    standardise(net)
    latents = net.encode(pictures)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-4
    after = net.decode(net.encode(pictures[:2]))[..., 32:-32, 32:-32]
    assert (after - before).abs().mean() < 0.25 * before.std()


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


TRUTH = world_stories(1, seed=5)[0]


def readings(story, **wrong) -> dict[str, torch.Tensor]:
    """What a perfect probe reads in frames that show the story, but for `wrong`: {attribute: values of the frames}."""
    found = {}
    for name, values in VALUES.items():
        if name in FRAME:
            seen = [frame[name] for frame in story.frames]
        else:
            seen = [story.identity.get(name, 0)] * len(story.frames)
        found[name] = torch.eye(len(values))[torch.tensor(wrong.get(name, seen))]
    return found


def test_a_perfect_board_measures_one():
    found = measures(TRUTH, readings(TRUTH))
    wrong = {"leak": 0, "earlier": 0, "later": 0}
    right = ("fidelity", "scene", "prompt", "agreement", "apart", "open", "held", "readable")
    assert found == dict.fromkeys(right, 1) | wrong


def test_measures_count_what_is_wrong():
    scenes = [TRUTH.frames[1]["scene"], *(frame["scene"] for frame in TRUTH.frames[1:])]
    found = measures(TRUTH, readings(TRUTH, scene=scenes))
    assert found["fidelity"] == pytest.approx(14 / 15) and found["leak"] == pytest.approx(1 / 15)
    assert found["scene"] == pytest.approx(4 / 5) and (found["earlier"], found["later"]) == (0, 1 / 5)
    none = next(scene for scene in range(len(FRAME["scene"])) if scene not in (f["scene"] for f in TRUTH.frames))
    found = measures(TRUTH, readings(TRUTH, scene=[scenes[1], scenes[1], scenes[0], none, scenes[1]]))
    assert (found["scene"], found["earlier"], found["later"]) == pytest.approx((1 / 5, 2 / 5, 1 / 5))
    left_open = next(name for name in IDENTITY if name not in TRUTH.identity)
    found = measures(TRUTH, readings(TRUTH, scene=[3, 3, 3, 3, 4], **{left_open: [0, 1, 2, 0, 0]}))
    assert found["apart"] == pytest.approx(1 - 2 / 4 / len(IDENTITY))
    assert measures(TRUTH, readings(TRUTH, scene=[3] * 5))["apart"] is None
    found = measures(TRUTH, readings(TRUTH, **{left_open: [1, 0, 0, 0, 0]}))
    lost = 4 / 10
    assert found["agreement"] == pytest.approx(1 - lost / len(IDENTITY)) and found["prompt"] == 1
    assert found["open"] == pytest.approx(1 - lost / (len(IDENTITY) - len(TRUTH.identity)))
    assert measures(TRUTH, readings(TRUTH, accent=[1, 0, 0, 0, 0]))["held"] == 1
    assert measures(TRUTH, readings(TRUTH, headwear=[1, 0, 0, 0, 0]))["held"] == 0
    assert measures(TRUTH, readings(TRUTH, scene=scenes))["held"] == 0
    said = {name: [1 - min(value, 1)] * 5 for name, value in TRUTH.identity.items()}
    assert measures(TRUTH, readings(TRUTH, **said))["prompt"] == 0


def test_the_frechet_distance_of_gaussians_is_the_formula():
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(40_000, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    scales, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, -2.0])
    assert frechet(one, one) == pytest.approx(0, abs=1e-8)
    assert frechet(one, other * scales + shift) == pytest.approx(5 + 1 + 0.25, rel=0.03)


def test_the_interval_covers_the_mean_of_most_samples():
    inside = 0
    for seed in range(100):
        values = torch.rand(40, generator=torch.Generator().manual_seed(seed)).tolist()
        mean, low, high = interval(values)
        assert low < mean < high
        inside += low < 0.5 < high
    assert 88 <= inside <= 99


def test_stories_are_told_in_the_worlds_words():
    stories = world_stories(60)
    assert stories == world_stories(60) and len({story.text for story in stories}) == 60
    for story in stories:
        lines = story.text.frames.splitlines()
        assert len(lines) == len(story.frames) == 5
        assert len(painter.tokens(f"{story.text.identity} {' '.join(lines)}")) == 77
        assert "species" in story.identity and len(story.identity) < len(IDENTITY)
        said = {name: VALUES[name][value] for name, value in story.identity.items()}
        assert "accent" not in said or said["accent"] != said.get("colour")


def test_stories_of_two_tell_them_apart_in_everything_and_put_either_first():
    stories = pair_stories(60)
    assert stories == pair_stories(60) and len({story.text for story in stories}) == 60
    first = set()
    for story in stories:
        left, right = story.sides.values()
        assert left.keys() == right.keys() >= {"species", "colour"}
        assert all(left[name] != right[name] for name in left)
        script = parse_script(story.text.identity, story.text.frames)
        assert script.warnings == () and len(script.frames) == len(story.frames) == 2
        assert {name: len(boxes) for name, boxes in parse_layout(LAYOUT, script).items()} == {"Left": 2, "Right": 2}
        first.add(script.characters[0].name)
        for side, look in story.sides.items():
            own = next(c.description for c in script.characters if c.name == side)
            assert all(VALUES[name][value] in own for name, value in look.items())
        told = parse_script(with_sides(story.text.identity), story.text.frames)
        assert all(c.description.endswith(f" on the {c.name.lower()}") for c in told.characters)
        assert all(len(painter.tokens(f"{frame.identity} {frame.prompt}")) == 77 for frame in told.frames)
    assert first == {"Left", "Right"}


def pair_readings(story, left, right, scenes=None, company="pair") -> dict[str, torch.Tensor]:
    """What a perfect probe reads in frames that show `left` and `right`."""
    count = len(story.frames)
    seen = {name: [0] * count for name in READ}
    seen |= {"company": [VALUES["company"].index(company)] * count}
    seen |= {"scene": scenes or [frame["scene"] for frame in story.frames]}
    for prefix, look in (("", left), ("other_", right)):
        seen |= {prefix + name: [value] * count for name, value in look.items()}
    return {name: torch.eye(len(values))[torch.tensor(seen[name])] for name, values in READ.items()}


def test_measures_of_two_tell_right_from_swapped_and_blended():
    story = next(story for story in pair_stories(20, seed=3) if len(story.sides["Left"]) == 3)
    left, right = story.sides.values()
    found = pair_measures(story, pair_readings(story, left, right))
    assert found == {"place": 1, "swapped": 0, "whichever": 1, "species": 1, "two": 1, "scene": 1, "readable": 1}
    found = pair_measures(story, pair_readings(story, right, left))
    assert (found["place"], found["swapped"], found["whichever"], found["species"]) == (0, 1, 1, 0)
    twins = pair_measures(story, pair_readings(story, left, left, company="twin"))
    assert (twins["place"], twins["swapped"], twins["whichever"], twins["two"]) == (0.5, 0.5, 0.5, 0)
    blend = {**left, "colour": right["colour"]}
    found = pair_measures(story, pair_readings(story, blend, right, scenes=[story.frames[0]["scene"]] * 2))
    assert found["place"] == pytest.approx(5 / 6) and found["species"] == 1 and found["scene"] == 0.5


def test_stories_of_a_picture_say_all_of_it_and_stand_elsewhere():
    stories = picture_stories(40)
    assert stories == picture_stories(40) and len({story.text for story in stories}) == 40
    for story in stories:
        assert story.picture["scene"] not in [frame["scene"] for frame in story.frames] and len(story.frames) == 2
        assert VALUES["species"][story.picture["species"]] in story.text.identity
        assert VALUES["colour"][story.picture["colour"]] in story.text.identity
        assert parse_script(story.text.identity, story.text.frames).warnings == ()


def test_measures_of_a_picture_are_shares_of_its_looks():
    story = picture_stories(1)[0]
    seen = {name: [0, 0] for name in READ}
    seen |= {name: [value, value] for name, value in story.picture.items()}
    seen |= {"scene": [story.frames[0]["scene"]] * 2}
    seen["colour"] = [story.picture["colour"], (story.picture["colour"] + 1) % 8]
    found = picture_measures(
        story, {name: torch.eye(len(values))[torch.tensor(seen[name])] for name, values in READ.items()}
    )
    assert (found["species"], found["colour"], found["pattern"], found["scene"]) == (1, 0.5, 1, 0.5)
    assert found["looks"] == pytest.approx(1 - 0.5 / len(IDENTITY)) and found["readable"] == 1


class ShortProbe(ProbeStage):
    """Few steps on few pictures."""

    pictures = 32
    average = 0.8
    rate = 2e-2


def test_the_probe_learns_to_read_pictures(tmp_path):
    stage = ShortProbe(tmp_path, steps=80, batch=16)
    stage.train()
    net = stage.build()
    net.load_state_dict(stage.trained())
    pictures, attributes = pictures_and_attributes(32, 0)
    features, found = read(net.eval(), pictures.float() / 255)
    assert features.shape == (32, 256) and found.keys() == READ.keys()
    right = dict(accuracies(found, attributes))
    assert right["time"] > 0.8 and right["company"] > 0.8


def test_without_the_trained_weights_one_sentence_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "WORLD", host.ROOT / "world" / "nothing.safetensors")
    with pytest.raises(Failure, match="There is no world/nothing.safetensors: docs/story-world.md says how"):
        host.world_checkpoint(host.Host(COMFYUI, Path(sys.executable)), tmp_path)
