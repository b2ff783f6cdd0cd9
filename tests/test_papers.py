"""The measures of One-Prompt-One-Story's table, diversity and the maps, on made-up pictures and tiny random models."""

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
import torch
import vision
from onestory.bench.quality import backgrounds, figures, maps, papers, plane, report
from onestory.bench.quality import vision as measure_by
from onestory.story.files import read_stories
from PIL import Image, ImageDraw

SIDE = 64
RED, BLUE, GREEN, SAND = (210, 40, 30), (30, 60, 220), (20, 150, 60), (220, 200, 150)
PROMPTS = ["a fox in a field", "a fox at the sea", "a fox at night"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return str(vision.write_clip_folder(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def story(tmp_path):
    """Writes frames of a disc on a ground, and its masks; returns the task that measures them."""

    def story(characters, grounds, masks=True, prompts=PROMPTS) -> dict:
        task: dict = {
            "frames": [],
            "masks": [] if masks else None,
            "prompts": prompts,
            "file": tmp_path / "vectors.npy",
        }
        mask = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(mask).ellipse((8, 8, 56, 56), fill=255)
        for number, (character, ground) in enumerate(zip(characters, grounds, strict=True)):
            frame = Image.new("RGB", (SIDE, SIDE), ground)
            frame.paste(character, (0, 0), mask)
            names = [tmp_path / f"{kind}_{len(list(tmp_path.glob('*')))}_{number}.png" for kind in ("frame", "mask")]
            frame.save(names[0])
            mask.save(names[1])
            task["frames"].append(names[0])
            if masks:
                task["masks"].append(names[1])
        return task

    return story


def run(kind, folder, task) -> dict:
    with torch.inference_mode():
        return measure_by.KINDS[kind](folder, "cpu")(task)


# --- backgrounds ------------------------------------------------------------------------------------------------------


def test_the_character_stands_on_noise_and_fades_to_grey():
    frame = np.random.default_rng(9).integers(0, 256, (4, 5, 3), np.uint8)
    mask = np.zeros((4, 5))
    mask[1], mask[2], mask[3, 0] = 1.0, 0.25, 0.015
    found = backgrounds.without_background(frame, mask, 3)
    noise = np.random.default_rng(3).integers(0, 256, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(found[1], frame[1])
    np.testing.assert_array_equal(found[2], np.rint(frame[2] * 0.25 + 130 * 0.75))
    np.testing.assert_array_equal(found[[0, 3]], noise[[0, 3]])
    other = backgrounds.without_background(frame, mask, 4)
    assert (other[0] != found[0]).any() and (other[1] == found[1]).all()
    assert backgrounds.without_background(frame, np.full((4, 5), 0.01), 3) is None


def test_the_background_keeps_its_own_mean_where_the_character_was():
    frame = np.random.default_rng(9).integers(0, 256, (4, 5, 3), np.uint8)
    mask = np.zeros((4, 5))
    mask[:2], mask[2] = 1.0, 0.5
    found = backgrounds.without_character(frame, mask)
    mean = (frame[2].sum(0) * 0.5 + frame[3].sum(0)) / (5 * 1.5)
    np.testing.assert_array_equal(found[3], frame[3])
    np.testing.assert_array_equal(found[:2], np.broadcast_to(np.rint(mean), (2, 5, 3)))
    np.testing.assert_allclose(found[2], frame[2] * 0.5 + mean * 0.5, atol=0.5)
    assert backgrounds.without_character(frame, np.ones((4, 5))) is None


def test_a_mask_is_white_on_black_or_a_character_that_is_cut_out(tmp_path):
    grey = Image.fromarray(np.array([[0, 255], [51, 0]], np.uint8))
    grey.save(tmp_path / "grey.png")
    cut = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    cut.putalpha(grey)
    cut.save(tmp_path / "cut.png")
    for name in ("grey.png", "cut.png"):
        np.testing.assert_array_equal(backgrounds.read_mask(tmp_path / name, (2, 2)), [[0, 1], [0.2, 0]])
    assert backgrounds.read_mask(tmp_path / "grey.png", (6, 4)).shape == (4, 6)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_removing_backgrounds_changes_clip_i_as_it_should(story, clip_folder):
    """The same character in other places becomes more alike, other characters in the same place less."""

    def clip_i(characters, grounds, masks):
        return run("clip_image", clip_folder, story(characters, grounds, masks))["clip_i"]

    same = ([RED] * 3, [BLUE, GREEN, SAND])
    other = ([RED, BLUE, GREEN], [SAND] * 3)
    assert clip_i(*same, True) > clip_i(*same, False)
    assert clip_i(*other, True) < clip_i(*other, False)
    assert clip_i(*same, True) > clip_i(*other, True) and clip_i(*same, False) < clip_i(*other, False)


def test_scenes_are_diverse_where_backgrounds_differ_whatever_the_characters_do(story, clip_folder):
    def scenes(characters, grounds):
        return run("clip_image", clip_folder, story(characters, grounds))["scenes"]

    assert abs(scenes([RED, BLUE, GREEN], [SAND] * 3)) < 1e-3 < scenes([RED] * 3, [BLUE, GREEN, SAND])
    assert scenes([RED] * 3, [BLUE, GREEN, SAND]) == pytest.approx(scenes([SAND] * 3, [BLUE, GREEN, SAND]), abs=0.01)


@torch.inference_mode()
def test_clip_t_is_what_the_package_itself_says(story, clip_folder):
    """transformers' own logits are the cosines, times its temperature."""
    from transformers import CLIPModel, CLIPProcessor

    task = story([RED, BLUE, SAND], [SAND, GREEN, BLUE])
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    texts = [f"A photo depicts {prompt}" for prompt in PROMPTS]
    frames = [Image.fromarray(backgrounds.read_frame(path)) for path in task["frames"]]
    given = processor(text=texts, images=frames, return_tensors="pt", padding=True)
    cosines = model(**given).logits_per_image / model.logit_scale.exp()
    wanted = [2.5 * max(0.0, float(cosines[n, n])) for n in range(3)]
    assert run("clip", clip_folder, task)["clip_t"] == pytest.approx(wanted, abs=1e-5) and max(wanted) > 0.01


def test_frames_that_copy_each_other_are_not_told_apart(story, clip_folder):
    copies = run("clip", clip_folder, story([RED] * 3, [SAND] * 3))
    assert copies["told_apart"] == pytest.approx(1 / 3) and len(copies["clip_t"]) == 3
    assert run("clip", clip_folder, story([RED], [SAND], prompts=PROMPTS[:1]))["told_apart"] is None
    assert run("clip_image", clip_folder, story([RED], [SAND]))["clip_i"] is None


def test_a_frame_whose_mask_is_empty_counts_in_no_pair(story, clip_folder):
    task = story([RED, RED, BLUE], [SAND, GREEN, SAND])
    pair = run("clip_image", clip_folder, {**task, "frames": task["frames"][:2], "masks": task["masks"][:2]})
    Image.new("L", (SIDE, SIDE)).save(task["masks"][2])
    found = run("clip_image", clip_folder, task)
    assert found["clip_i"] == pair["clip_i"] and (pair["empty_masks"], found["empty_masks"]) == (0, 1)


def test_models_have_their_usual_names():
    from transformers import CLIPConfig, CLIPModel

    for width, patch, name in ((768, 32, "ViT-B/32"), (1024, 14, "ViT-L/14"), (48, 8, "ViT-48/8")):
        small = {"num_hidden_layers": 1, "intermediate_size": 8, "image_size": patch, "num_attention_heads": 4}
        with torch.device("meta"):
            model = CLIPModel(CLIPConfig(vision_config=dict(small, hidden_size=width, patch_size=patch)))
        assert measure_by.clip_name(model) == name


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_prompts_are_read_alone_and_in_one_prompt(story, clip_folder, tmp_path):
    """Against the tokens' own places, by their offsets in the text."""
    from transformers import CLIPModel, CLIPTokenizerFast

    model, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizerFast.from_pretrained(clip_folder)
    identity, prompts = "a small fox", ["reading a map", "asleep"]

    def mean(text, piece):
        read = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        start = text.index(piece)
        offsets = read.pop("offset_mapping")[0]
        inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= start + len(piece)) & (offsets[:, 1] > offsets[:, 0])
        return model.text_model(**read).last_hidden_state[0][inside].double().mean(0).numpy()

    task = {"identity": identity, "prompts": prompts, "file": tmp_path / "texts.npy"}
    assert run("texts", clip_folder, task) == {"fits": True}
    alone, together = np.load(task["file"])
    whole = " ".join([identity, *prompts])
    with torch.inference_mode():
        np.testing.assert_allclose(alone, [mean(f"{identity} {p}", p) for p in prompts], atol=1e-5)
        np.testing.assert_allclose(together, [mean(whole, p) for p in prompts], atol=1e-5)
    np.testing.assert_allclose(alone[0], together[0], atol=1e-5)  # CLIP reads from left to right
    assert np.abs(alone[1] - together[1]).max() > 1e-3
    long = {**task, "prompts": ["asleep " * 80], "file": tmp_path / "long.npy"}
    assert run("texts", clip_folder, long) == {"fits": False} and not long["file"].exists()


def test_frames_have_vectors_of_clip_or_dino_without_their_background(story, clip_folder, tmp_path):
    from transformers import BitImageProcessor, Dinov2Model

    task = story([RED, BLUE], [SAND, GREEN], prompts=PROMPTS[:2])
    assert run("features", clip_folder, task) == {"frames": 2}
    alike = np.load(task["file"]).astype(np.float64)
    alike /= np.linalg.norm(alike, axis=1, keepdims=True)
    assert alike[0] @ alike[1] == pytest.approx(run("clip_image", clip_folder, task)["clip_i"], abs=1e-6)
    dino = vision.write_dino_folder(tmp_path / "dino")
    assert run("features", str(dino), task) == {"frames": 2}
    model, reader = Dinov2Model.from_pretrained(dino), BitImageProcessor.from_pretrained(dino)
    for number, vector in enumerate(np.load(task["file"]), 1):
        frame = backgrounds.read_frame(task["frames"][number - 1])
        mask = backgrounds.read_mask(task["masks"][number - 1], (SIDE, SIDE))
        alone = Image.fromarray(backgrounds.without_background(frame, mask, number))
        with torch.inference_mode():
            wanted = model(**reader(images=alone, return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(vector, wanted, atol=1e-5)


# --- maps and plane ---------------------------------------------------------------------------------------------------


def clusters(count: int, each: int, channels: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    stories = np.repeat(np.arange(count), each)
    return rng.normal(size=(count, channels))[stories] + 0.05 * rng.normal(size=(len(stories), channels)), stories


def test_a_map_is_the_same_each_time_and_keeps_neighbours():
    vectors, stories = clusters(3, 4)
    first, second = maps.embed(vectors), maps.embed(vectors)
    np.testing.assert_array_equal(first, second)
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (stories[distances.argmin(1)] == stories).all()
    assert maps.embed(vectors[:4]).shape == (4, 2)


def test_a_maps_numbers_are_mean_cosines():
    vectors, stories = clusters(3, 3)
    unit = [v / np.linalg.norm(v) for v in vectors]
    pairs = [(float(unit[i] @ unit[j]), stories[i] == stories[j]) for i, j in combinations(range(9), 2)]
    wanted = [fmean(value for value, same in pairs if same is np.bool_(which)) for which in (True, False)]
    assert maps.within_and_between(vectors, stories) == pytest.approx(wanted)
    assert maps.within_and_between(vectors[:3], stories[:3])[1] is None


def test_a_map_needs_four_points_and_shows_the_first_stories(tmp_path):
    vectors, stories = clusters(maps.SHOWN + 2, 2)
    titles = [f"story {n}" for n in range(maps.SHOWN + 2)]
    assert not maps.draw([maps.Points("few", vectors[:3], stories[:3])], titles, tmp_path / "few.png")
    assert not (tmp_path / "few.png").exists()
    assert maps.draw([maps.Points("many", vectors, stories)] * 2, titles, tmp_path / "many.png")
    assert min(backgrounds.read_frame(tmp_path / "many.png").shape[:2]) > 300


def found_of(**more) -> dict:
    values = {key: {"mean": mean, "error": 0.01} for key, mean in (("clip_i", 0.9), ("scenes", 0.2))}
    rows = [{"row": name, "title": name, "boards": 2, "values": values} for name in ("separate", "ipca")]
    settings = {
        "checkpoint": "sd_xl_base_1.0.safetensors", "stories": "consistory+.yaml", "size": "1024x1024", "steps": 50,
        "eot": "scale", "set": None, "clip-vision": None,
    }  # fmt: skip
    stories = [{"title": "a", "frames": "\n".join("f" * (6 if i < 140 else 5))} for i in range(192)]
    facts = {"clip": "ViT-B/32", "clip_image": "ViT-B/16", "masks": "remover birefnet.safetensors"}
    return {
        "settings": settings, "stories": stories, "table": rows, "measures": ["clip_i", "scenes"], "measured": facts,
    } | more  # fmt: skip


def test_the_plane_has_every_row_that_has_both_measures(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plane, "plot", lambda *given: drawn.update(given=given))
    [figure] = figures.plane_of(tmp_path, found_of())
    table, path, x, y = drawn["given"]
    assert (x, y, path) == ("scenes", "clip_i", tmp_path / figure["file"])
    assert table["rows"][0]["values"]["clip_i"] == pytest.approx((0.9, 0.9 - 0.0196, 0.9 + 0.0196))
    assert not list(figures.plane_of(tmp_path, found_of(measures=["clip_i", "seconds"])))
    monkeypatch.undo()
    row = {"title": "a", "values": {"x": (0.5, 0.4, 0.6), "y": (0.5, 0.4, 0.6)}}
    rows = [row, {"title": "b", "values": {"x": None, "y": (0.5, 0.4, 0.6)}}]
    plane.plot({"columns": {"x": "x ↑", "y": "y ↑"}, "rows": rows}, tmp_path / "plane.png", "x", "y")
    assert (tmp_path / "plane.png").is_file()


# --- the paper's table ------------------------------------------------------------------------------------------------


def test_printed_figures_stand_beside_ours():
    table = papers.lines(found_of())
    assert table[0] == ["", "here", "CLIP-I ↑ printed", "here"] and len(table) == 12
    assert table[2] == ["Vanilla SDXL", "separate", "0.8165", "0.9000"]
    assert table[-1] == ["1Prompt1Story", "ipca", "0.9117", "0.9000"] and table[-3][1:] == ["–", "0.8755", "–"]
    assert papers.lines(found_of(measures=["seconds"])) == []


def test_what_differs_from_the_paper_is_said():
    found = found_of()
    found["stories"] = found["stories"][:192]
    assert sum(len(story["frames"].splitlines()) for story in found["stories"]) == papers.FRAMES
    only = "They removed backgrounds with CarveKit for CLIP-I and DreamSim; here it was done by remover birefnet"
    assert [each.startswith(only) for each in papers.differences(found)] == [True]
    other = {
        **found["settings"],
        "checkpoint": "dreamshaper.safetensors",
        "steps": 30,
        "eot": "reweight",
        "set": {"a": 1},
    }
    said = papers.differences(
        {**found, "settings": other, "measured": {"clip": "ViT-L/14"}, "stories": found["stories"][:2]}
    )
    for text in (
        "here it is dreamshaper", "here 2 of consistory+.yaml with 12", "in 30", "--eot scale", "--set", "by ViT-L/14",
        "here whole pictures count",
    ):  # fmt: skip
        assert sum(text in each for each in said) == 1, text


def test_the_papers_own_benchmark_is_read_whole(tmp_path):
    """Its layout: categories of entries with a style, a subject and settings, 192 of them with 1100 settings."""
    entry = "- concept_token: x\n  settings:\n{}  style: A photo of\n  subject: a fox\n"
    lines = ["animals:\n"] + [entry.format("  - runs\n" * (6 if i < 140 else 5)) for i in range(192)]
    (tmp_path / "plus.yaml").write_text("".join(lines))
    stories = read_stories(tmp_path / "plus.yaml")
    assert (len(stories), sum(len(s.frames.splitlines()) for s in stories)) == (papers.STORIES, papers.FRAMES)
    assert stories[191].title == "animals_191" and stories[0].identity == "A photo of a fox"


def test_notes_say_how_pictures_were_measured():
    found = found_of()
    found["measured"]["empty_masks"] = 3
    notes = report.notes_of(found)
    assert any("the characters alone on noise, by remover birefnet" in note for note in notes)
    assert "3 frames have an empty mask, and count in none of these." in notes
    assert any("whole pictures" in note for note in report.notes_of(found_of(measured={})))
