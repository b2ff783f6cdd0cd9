"""The Story World's own checkpoint: what it draws with core nodes alone, in `run.py demo` and in `bench quality`."""

import argparse
import importlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import COMFYUI
from onestory.bench import command as bench
from onestory.bench.quality import story_world
from onestory.bench.quality.world_probe import READ, ProbeStage
from onestory.story.files import StoryText
from onestory.story.script import parse_script
from onestory.tools import demo, host, picture_graphs, picture_stories
from onestory.tools.failure import Failure
from onestory.world.drawing.attributes import draw
from onestory.world.drawing.render import render
from onestory.world.train import painter
from PIL import Image, ImageChops, ImageStat


@pytest.fixture
def own_host(tmp_path, monkeypatch):
    """This ComfyUI as the one that was set up; what runs on it, and is trained, stays below `tmp_path`."""
    monkeypatch.setattr(host, "HOST", tmp_path / "host")
    monkeypatch.setattr(host, "set_up", lambda: host.Host(COMFYUI, Path(sys.executable)))
    monkeypatch.setattr(host, "find", lambda comfyui=None: None)


def test_demo_compares_a_story_of_the_world(own_host, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    out = tmp_path / "out"
    assert demo.run(parser.parse_args(["--steps", "1", "--seed", "5", "--out", str(out)])) == 0
    ways = ("one_prompt", "separate_prompts")
    frames = [f"frame_{way}_0{i}.png" for way in ways for i in range(1, 6)]
    others = ["comparison.png", *(f"board_{way}.png" for way in ways)]
    assert sorted(path.name for path in out.iterdir()) == sorted([*frames, *others])
    assert Image.open(out / frames[0]).size == (128, 128)
    assert Image.open(out / "board_one_prompt.png").width == demo.WORLD["page_width"]
    comparison = Image.open(out / "comparison.png")
    assert comparison.size == Image.open(host.ROOT / "docs" / "story.jpg").size
    assert comparison.text == Image.open(out / frames[0]).text and {"prompt", "workflow"} <= comparison.text.keys()
    prompts = [node["inputs"] for node in json.loads(comparison.text["prompt"]).values() if "window" in node["inputs"]]
    assert {(prompt["mode"], prompt["window"]) for prompt in prompts} == {("one prompt", 4), ("separate prompts", 4)}
    for top, way in ((40, ways[1]), (420, ways[0])):  # as in the README: separate prompts above
        for i in range(5):
            drawn = Image.open(out / f"frame_{way}_0{i + 1}.png").resize((302, 302))
            left = 21 + 314 * i
            seen = comparison.crop((left, top + 19, left + 302, top + 19 + 302))
            assert max(ImageStat.Stat(ImageChops.difference(seen, drawn)).mean) < 4
    printed = capsys.readouterr()
    assert "Drawing “story”: 5 frames of 128x128 pixels, from one prompt and from separate prompts," in printed.err
    assert "steps 1, seed 5, with onestory_world.safetensors on cpu" in printed.err
    assert Path(printed.out.splitlines()[-1]) == out / "comparison.png"
    theirs = COMFYUI / "models" / "checkpoints"  # a user's ComfyUI in this test: told, not written into
    assert f"{host.WORLD_CHECKPOINT} to {theirs}, start your ComfyUI and drop one" in printed.err


@pytest.mark.parametrize(("frames", "window"), [(1, 0), (2, 0), (3, 2), (5, 4), (9, 4)])
def test_each_frame_of_the_worlds_story_stands_first_in_a_prompt_of_its_own(frames, window):
    assert demo.window_of(StoryText("", "a fox", "in the forest\n" * frames)) == window


def test_bench_quality_measures_the_world_to_a_table(own_host, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(story_world, "HELD_OUT", 300)
    probe = ProbeStage(host.HOST / "world-training")
    probe.folder.mkdir(parents=True)
    net = probe.build()
    probe.save(net, net.state_dict(), probe.optimizer(net), probe.steps)
    out = tmp_path / "out"

    def measure(*arguments: object) -> int:
        parser = argparse.ArgumentParser()
        bench.add_arguments(parser)
        usual = ["--limit", 1, "--rows", "separate", "all", "--seeds", 1, "--steps", 1, "--dtype", "fp32", "--out", out]
        return bench.run(parser.parse_args(["quality", *map(str, usual), *map(str, arguments)]))

    assert measure() == 0
    found = json.loads((out / "results.json").read_text())
    assert [(row["row"], row["stories"], row["pictures"]) for row in found["rows"]] == [
        ("separate", 1, 5),
        ("all", 1, 5),
    ]
    assert found["settings"]["steps"] == 1 and found["settings"]["seeds"] == [1]
    assert found["probe"].keys() == READ.keys() and found["pictures"] == 300
    for row in found["rows"]:
        values = [value for name, value in row["values"].items() if value or name != "apart"]
        assert row["frechet"] > 0 and all(0 <= low <= mean <= high <= 1 for mean, low, high in values)
    printed = capfd.readouterr()
    assert (out / "table.md").read_text() in printed.out and "Don't trust its reading" in printed.err
    assert Image.open(out / "table.png").size == (1000, 620)
    assert len([*out.rglob("frame_*.png")]) == 10
    with pytest.raises(Failure, match="results of --steps 1, not 2: choose another --out"):
        measure("--steps", 2)
    kept = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps({**kept, "weights": "others"}))
    with pytest.raises(Failure, match="results of another Story World asset: choose another --out"):
        measure()


def test_bench_quality_times_the_number_formats_unless_it_goes_on(own_host, tmp_path, monkeypatch):
    this = host.set_up()
    monkeypatch.setattr(host, "has_gpu", lambda _: False)
    assert story_world.number_format(this, tmp_path) in ("bf16", "fp32")
    for kept in ("fp16", None):
        (tmp_path / "settings.json").write_text(json.dumps({"dtype": kept}))
        assert story_world.number_format(this, tmp_path) == kept
    monkeypatch.setattr(host, "has_gpu", lambda _: True)
    assert story_world.number_format(this, tmp_path / "new") is None


@pytest.mark.parametrize(
    ("cores", "gpu", "stories", "threads"), [(2, False, 9, [1, 1]), (8, False, 1, [None]), (8, True, 9, [None])]
)
def test_bench_quality_shares_a_cpu_between_servers(own_host, tmp_path, monkeypatch, cores, gpu, stories, threads):
    @contextmanager
    def running(this, folder, models, log, threads):
        assert folder.is_dir() and models == tmp_path
        yield log, threads

    (tmp_path / "host").mkdir()
    monkeypatch.setattr(host, "running", running)
    monkeypatch.setattr(host, "has_gpu", lambda _: gpu)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    with story_world.servers(host.set_up(), tmp_path, stories) as found:
        logs, used = zip(*found, strict=True)
        assert list(used) == threads and len(set(logs)) == len(logs)


def test_the_pictures_that_are_shown_ask_for_what_the_checkpoint_knows():
    others = [value for value in vars(picture_stories).values() if isinstance(value, picture_stories.Picture)]
    shown = [*picture_stories.STORIES.values(), *others, *picture_stories.BY_PICTURE]
    texts = [(picture.identity, picture.frames) for picture in shown] + [demo.read_story(demo.WORLD_STORY)[1:]]
    for identity, frames in texts:
        for frame in parse_script(identity, frames).frames:
            assert len(painter.tokens(f"{frame.identity} {frame.prompt}")) == 77
    for picture in shown:  # whoever looks like a picture is not described
        looks = {value for look in picture.cast.values() for value in look.values()}
        assert not looks & set(picture.identity.split())


def test_workflows_are_shown_by_their_own_graphs_without_other_checkpoints_models():
    pictures = importlib.import_module("onestory.tools.pictures")
    assert sorted(pictures.STORIES) == sorted(path.stem for path in pictures.WORKFLOWS.glob("*.json"))
    for name, picture in pictures.STORIES.items():
        graph = pictures.graph_of(name, picture, "world.safetensors")
        kinds = [node["class_type"] for node in graph.values()]
        unused = {*picture_graphs.OTHERS_MODELS, *picture_graphs.BESIDE_THEM}
        loads = picture.cast or name in ("Inpaint a Frame", "Story with an Edit Model")
        assert unused & {*kinds} == ({"LoadImage"} if loads else set()), name
        assert ("OneStoryBoard" in kinds) == (name != "Story to Film"), name
        assert ("OneStoryImageAdapter" in kinds) == bool(picture.cast) == ("from" in name and "Picture" in name), name
        values = [value for node in graph.values() for value in node["inputs"].values()]
        assert all(link[0] in graph for link in values if isinstance(link, list))
        assert {"world.safetensors", picture.seed, picture.identity} <= {v for v in values if not isinstance(v, list)}
        casts = [node["inputs"] for node in graph.values() if node["class_type"] == "OneStoryCast" and picture.cast]
        given = {inputs["character"]: graph[inputs["images"][0]]["inputs"]["image"] for inputs in casts}
        assert given == {who: picture_graphs.file_of(who, look) for who, look in picture.cast.items()}
        files = {
            name for key in ("adapter", "clip_name") for node in graph.values() if (name := node["inputs"].get(key))
        }
        own = {Path(file).name for file in host.WORLD_ADAPTER_FILES}
        assert not picture.cast or files == own


@pytest.fixture(scope="module")
def shipped():
    """The Story World's own checkpoint, as ComfyUI's *Load Checkpoint* gives it."""
    import comfy.sd

    file = host.world_checkpoint(host.Host(COMFYUI, Path(sys.executable)))
    return comfy.sd.load_checkpoint_guess_config(str(file))[:3]


def paint(model, clip, vae, texts, latent, denoise=1.0) -> torch.Tensor:
    """Pictures [texts, height, width, 3], by core nodes alone: a KSampler for each text, with the same noise."""
    import nodes

    (nothing,) = nodes.CLIPTextEncode().encode(clip, "")
    pictures = []
    for text in texts:
        (asked,) = nodes.CLIPTextEncode().encode(clip, text)
        (found,) = nodes.KSampler().sample(model, 1, 8, 5.0, "euler", "normal", asked, nothing, latent, denoise=denoise)
        pictures.append(nodes.VAEDecode().decode(vae, found)[0])
    return torch.cat(pictures)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 128), (96, 160)])
def test_the_shipped_checkpoint_draws_what_is_asked_at_several_sizes(shipped, width, height):
    import nodes

    (latent,) = nodes.EmptyLatentImage().generate(width, height)
    bedroom, moon, meadow, sea = paint(
        *shipped,
        ["a fox in a bedroom", "a fox on the moon", "a fox in a meadow", "a fox under the sea"],
        latent,
    )
    assert bedroom.shape == (height, width, 3)
    assert bedroom.mean() > moon.mean() + 0.2
    sky = {name: picture[: height // 4].mean((0, 1)) for name, picture in (("sea", sea), ("moon", moon))}
    assert sky["sea"][2] > sky["sea"][0] + 0.1 and sky["sea"][2] > sky["moon"][2]
    ground = meadow[-height // 8 :].mean((0, 1))
    assert ground[1] > ground[0] and ground[1] > ground[2]


def test_the_shipped_checkpoint_takes_a_picture_and_a_lora(shipped):
    import comfy.sd
    from studio import random_lora

    import nodes

    model, clip, vae = shipped
    picture = render(draw(1, torch.Generator().manual_seed(4))).movedim(1, -1)
    (latent,) = nodes.VAEEncode().encode(vae, picture)
    assert (nodes.VAEDecode().decode(vae, latent)[0] - picture).abs().mean() < 0.05
    (near,) = paint(model, clip, vae, ["a fox in a meadow"], latent, denoise=0.3)
    (far,) = paint(model, clip, vae, ["a fox in a meadow"], latent, denoise=0.9)
    assert (near - picture).abs().mean() < (far - picture).abs().mean()
    patched, words = comfy.sd.load_lora_for_models(model, clip, random_lora(), 8.0, 8.0)
    (other,) = paint(patched, words, vae, ["a fox in a meadow"], latent, denoise=0.9)
    assert other.shape == far.shape and (other - far).abs().mean() > 1e-3
