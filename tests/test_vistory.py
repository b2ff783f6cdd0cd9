"""`run.py bench vistory`: ViStoryBench's layout in and out, its casts on a real server, and its measures' formulas."""

import argparse
import json
import math
from itertools import combinations, permutations
from statistics import fmean

import numpy as np
import pytest
import torch
import vision
from onestory.bench.vistory import command, dataset, drawing, score
from onestory.nodes.image_adapter import OneStoryImageAdapter
from onestory.story.script import parse_script
from onestory.tools.client import WorkflowError
from onestory.tools.failure import Failure
from PIL import Image
from studio import twin
from test_demo import NAME

RABBIT, BEAR = "Big Brown Rabbit", "Mr. [B]ear: the elder"


def shot(index: int, *names: str, **more: object) -> dict:
    texts = {
        key: {"en": f"{name} {index} [of] it #1", "ch": f"{name}文 {index}"} for name, key in dataset.TEXTS.items()
    }
    return {"index": index, **texts, "Characters Appearing": {"en": list(names), "ch": list(names)}, **more}


def story(*shots: dict) -> dict:
    def character(name: str, tag: str) -> dict:
        return {
            "name_en": name,
            "name_ch": name,
            "prompt_en": f"a {tag},\n of clay",
            "prompt_ch": f"{tag}文",
            "tag": tag,
        }

    characters = {RABBIT: character(RABBIT, "non_human"), BEAR: character(BEAR, "realistic_human")}
    return {"Story_type": {"en": "Fable", "ch": "寓言"}, "Characters": characters, "Shots": list(shots)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Two stories in the benchmark's layout: of three shots and of one, with pictures of both characters."""
    folder = tmp_path_factory.mktemp("dataset") / "ViStory"
    broken = {key: value for key, value in shot(9).items() if key != dataset.TEXTS["camera"]}
    for name, shots in (
        ("01", [shot(0, RABBIT), shot(1, BEAR, RABBIT), broken, shot(4)]),
        ("10", [shot(1, BEAR), shot(2, BEAR)]),
    ):
        for key, colour in ((RABBIT, "brown"), (BEAR, "navy")):
            place = folder / name / "image" / key
            place.mkdir(parents=True)
            Image.new("RGB", (40, 48), colour).save(place / "00.jpg")
            Image.linear_gradient("L").resize((40, 48)).save(place / "01.png")
        (folder / name / "story.json").write_text("\ufeff" + json.dumps(story(*shots)), encoding="utf-8")
    (folder / "notes").mkdir()
    return folder


def arguments(*given: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([*map(str, given)])


# --- the benchmark's stories ------------------------------------------------------------------------------------------


def test_stories_are_read_as_the_benchmark_reads_them(bench):
    first, second = dataset.read_dataset(bench)
    assert (first.id, second.id) == ("01", "10") and [s.number for s in first.shots] == [0, 1, 4]
    assert [c.tag for c in first.characters] == ["non_human", "realistic_human"]
    assert [path.name for path in first.characters[0].pictures] == ["00.jpg", "01.png"]
    assert first.shots[1].texts["script"] == "script 1 [of] it #1" and first.shots[1].characters == (BEAR, RABBIT)
    (chinese,) = dataset.read_dataset(bench, "ch", ["10"])
    assert chinese.shots[0].texts["scene"] == "scene文 1" and chinese.characters[0].key == RABBIT
    assert len(dataset.LITE) == 20 and len(set(dataset.LITE)) == 20


def test_a_story_is_a_script_that_parses_to_the_same_casts(bench):
    first, second = dataset.read_dataset(bench)
    text = dataset.story_text(first, ("scene", "camera"))
    parsed = parse_script(text.identity, text.frames)
    assert [c.name for c in parsed.characters] == [RABBIT, "Mr. B ear the elder"]
    assert [f.characters for f in parsed.frames] == [(RABBIT,), (RABBIT, "Mr. B ear the elder"), ()]
    assert parsed.frames[1].prompt == "camera 1 [of] it #1; scene 1 [of] it #1"
    assert parsed.frames[0].identity == "a non_human, of clay" and not parsed.frames[2].identity
    (only,) = parse_script(*dataset.story_text(second)[1:]).characters
    assert only.name == "Mr. B ear the elder"
    short = dataset.story_text(first, ("script",), words=2)
    assert "[Big Brown Rabbit] a non_human\n" in short.identity and short.frames.endswith("[NC] script 4")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no story.json: download the data set again"),
        ("{", "cannot be read as a story of ViStoryBench in en: JSONDecodeError"),
        ('{"Characters": {}}', "cannot be read as a story of ViStoryBench in en: KeyError"),
        ('{"Characters": {}, "Shots": [{"index": 1}]}', "has no whole shot"),
    ],
)
def test_what_is_no_story_is_a_sentence(tmp_path, content, said):
    (tmp_path / "01").mkdir()
    if content is not None:
        (tmp_path / "01" / "story.json").write_text(content)
    with pytest.raises(Failure, match=said):
        dataset.read_dataset(tmp_path)


def test_a_folder_without_stories_says_where_to_get_them(tmp_path, bench):
    with pytest.raises(Failure, match="There is no folder .*huggingface.co/datasets/ViStoryBench"):
        dataset.read_dataset(tmp_path / "none")
    with pytest.raises(Failure, match="has no stories: it needs folders such as 01"):
        dataset.read_dataset(tmp_path)
    with pytest.raises(Failure, match="has no story 07, 80: it has 01 to 10"):
        dataset.read_dataset(bench, "en", ["01", "07", "80"])


# --- with their cast --------------------------------------------------------------------------------------------------


def test_every_character_on_stage_has_a_story_cast_with_its_first_picture(bench):
    first, second = dataset.read_dataset(bench)
    plain = twin("One Prompt One Story")
    assert not drawing.takes_cast(plain) and drawing.with_cast(plain, first) == plain
    graph = drawing.with_cast(drawing.with_image_characters(plain, "base.safetensors", "clip.pt"), first)
    casts = {key: each["inputs"] for key, each in graph.items() if each["class_type"] == "OneStoryCast"}
    assert [each["character"] for each in casts.values()] == [RABBIT, "Mr. B ear the elder"]
    assert casts["cast 1"]["cast"] == ["cast 0", 0] and "cast" not in casts["cast 0"]
    (sampler,) = (each["inputs"] for each in graph.values() if each["class_type"] == "KSampler")
    adapter = graph[sampler["model"][0]]["inputs"]
    assert adapter["cast"] == ["cast 1", 0] and graph[adapter["model"][0]]["class_type"] == "OneStoryIPCA"
    assert graph["cast picture 1"]["inputs"]["image"] == "onestory_vistory/01_Mr_B_ear_the_elder.jpg"
    again = drawing.with_cast(graph, second)
    names = [each["inputs"]["character"] for each in again.values() if each["class_type"] == "OneStoryCast"]
    assert names == ["Mr. B ear the elder"], "the workflow's own cast gives its place to the story's"
    bare = second._replace(characters=tuple(c._replace(pictures=()) for c in second.characters))
    with pytest.raises(WorkflowError, match="It has no pictures of its characters, which the workflow needs"):
        drawing.with_cast(graph, bare)


def test_image_characters_has_the_nodes_defaults():
    defaults = {i.id: i.default for i in OneStoryImageAdapter.define_schema().inputs if hasattr(i, "default")}
    assert {name: value for name, value in defaults.items() if value is not None} == drawing.IMAGE_CHARACTERS


def test_a_workflow_that_saves_another_number_of_pictures_is_told(bench, tmp_path):
    picture = {"filename": "a.png", "type": "output"}
    outputs = {"1": {"images": [picture] * 2}, "2": {"images": [picture] * 3}, "3": {"text": ["a"]}}
    assert drawing.pictures_of(outputs, 3) == [picture] * 3
    one = dataset.read_dataset(bench, "en", ["10"])[0]
    drawn = drawing.Drawing(one, dataset.story_text(one), 1, tmp_path / "10" / "shots")
    drawn.keep(None, {"2": outputs["2"]}, 1.0)
    said = "Story 10: The workflow saved 3 pictures of a story of 2 shots: it has to save one for each."
    assert drawn.problems == [said] and not drawn.made and not drawn.folder.exists()


@pytest.fixture(scope="module")
def finished(server, bench, tmp_path_factory):
    """Both stories drawn on the server with random models, and measured; the folder and the arguments."""
    folder = tmp_path_factory.mktemp("vistory")
    clip, detector = vision.write_clip_folder(folder / "clip"), vision.write_detector_folder(folder / "detector")
    given = [
        bench,
        "--server",
        server.url,
        "--checkpoint",
        NAME,
        "--steps",
        1,
        "--size",
        "64x64",
        "--out",
        folder / "o",
    ]
    given += ["--adapter", "base.safetensors", "--clip-vision", "clip.pt", "--run", "20260131_235959"]
    given += ["--clip", clip, "--detector", detector]
    assert command.run(arguments(*given)) == 0
    return folder / "o" / "onestory" / "One_Prompt_One_Story" / "en" / "20260131_235959", given


def test_shots_are_where_the_benchmarks_scorer_looks_for_them(finished):
    """Its reader goes METHOD/MODE/LANGUAGE/RUN/ID, into a folder of shots, and takes the number after the last “_”."""
    run, _ = finished
    found = {
        story.name: {int(path.stem.split("_")[-1]): path for path in (story / "shots").glob("*.png")}
        for story in run.iterdir()
        if story.is_dir()
    }
    assert {name: sorted(shots) for name, shots in found.items()} == {"01": [0, 1, 4], "10": [1, 2]}
    assert all(Image.open(path).size == (64, 64) for shots in found.values() for path in shots.values())


def test_what_is_there_is_not_drawn_or_measured_again(finished, capsys):
    run, given = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert command.run(arguments(*[word for word in given if word not in ("--run", "20260131_235959")])) == 0
    told = capsys.readouterr()
    assert "2 of 2 stories are there already." in told.err and told.out.splitlines()[-1] == str(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    for more, said in ((["--words", 3], "holds results of --words None, not 3"), (["--steps", 2], "another workflow")):
        with pytest.raises(Failure, match=said):
            command.run(arguments(*given, *more))


def test_every_story_is_measured_and_the_table_has_the_means(finished):
    run, _ = finished
    scores = json.loads((run / "scores.json").read_text())
    assert [len(scores[name]["clip"]["clip_t"]) for name in ("01", "10")] == [3, 2]
    columns = command.values_of(scores["01"])
    assert list(columns) == list(command.COLUMNS) and columns["cross"] == scores["01"]["cast"]["cross"]
    mean = fmean(command.values_of(each)["on_stage"] for each in scores.values())
    assert f"| {mean:.4f} |" in command.table(scores)


# --- the measures -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_scores_are_the_papers(tmp_path):
    """Against one picture at a time, every matching tried, and float64, with the detector's own boxes."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, CLIPModel, CLIPProcessor

    folder, finder = vision.write_clip_folder(tmp_path / "clip"), vision.write_detector_folder(tmp_path / "detector")
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    detect = score.detector(str(finder), "cpu")
    rng = np.random.default_rng(1)

    def picture(name):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / name)
        return tmp_path / name

    def look(picture):
        pixels = processor.image_processor(picture, return_tensors="pt")
        vector = model.visual_projection(model.vision_model(**pixels).pooler_output)[0].double().numpy()
        return vector / np.linalg.norm(vector)

    shown = Image.open(picture("any.png"))
    reader = AutoProcessor.from_pretrained(finder)
    given = reader(images=shown, text="character.", return_tensors="pt")
    answer = AutoModelForZeroShotObjectDetection.from_pretrained(finder)(**given)
    sizes = [shown.size[::-1]]
    (own,) = reader.post_process_grounded_object_detection(answer, given.input_ids, 0.25, 0.25, target_sizes=sizes)
    within = own["boxes"].clamp(min=0).minimum(torch.tensor([*shown.size] * 2))[own["scores"].argsort(descending=True)]
    assert (
        np.abs(np.array(detect(shown)) - within.numpy()).max() <= 1.5
    )  # the benchmark's own code cuts to whole pixels

    pictures = {"A": [picture("a0.png"), picture("a1.png")], "B": [picture("b0.png")]}
    shots = [{"file": picture(f"s{n}.png"), "stage": stage} for n, stage in enumerate((["A"], ["B", "A"], [], ["B"]))]
    task = {"pictures": pictures, "shots": shots, "detector": str(finder)}
    found = score.cast(str(folder), "cpu")(task)

    known, mirrors, crops, counts = {}, {}, {"A": [], "B": []}, []
    for name, files in pictures.items():
        cut = [Image.open(file).crop(detect(Image.open(file))[0]) for file in files]
        known[name] = [look(each) for each in cut]
        mirrors[name] = [look(cut[0]), look(cut[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    for each in shots:
        if stage := each["stage"]:
            boxes = [look(Image.open(each["file"]).crop(box)) for box in detect(Image.open(each["file"]))]
            counts.append(100 * math.exp(-abs(len(boxes) - len(stage)) / len(stage)))
            orders = permutations(range(len(boxes)), len(stage))
            best = max(orders, key=lambda o: sum(max(boxes[i] @ k for k in known[c]) for c, i in zip(stage, o)))
            for name, number in zip(stage, best):
                crops[name].append(boxes[number])
    assert [len(each) for each in crops.values()] == [2, 2] and min(counts) < 100
    cross = fmean(fmean(a @ b for a in crops[c] for b in known[c]) for c in crops)
    alike = fmean(fmean(a @ b for a, b in combinations(crops[c], 2)) for c in crops)
    copied = fmean(
        fmean(math.exp(v @ one / 0.01) / (math.exp(v @ one / 0.01) + math.exp(v @ other / 0.01)) for v in crops[c])
        for c, (one, other) in mirrors.items()
    )
    assert found["on_stage"] == pytest.approx(fmean(counts), rel=1e-5)
    assert (found["cross"], found["self"]) == pytest.approx((cross, alike), abs=1e-5)
    assert found["copy_paste"] == pytest.approx(copied, abs=1e-3)  # float32 noise times 1 / 0.01


def test_a_character_that_is_found_nowhere_counts_as_unlike(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "blue.png")
    task = {
        "pictures": {"A": [tmp_path / "red.png"], "B": [tmp_path / "blue.png"]},
        "shots": [
            {"file": tmp_path / "red.png", "stage": ["A", "B"]},
            {"file": tmp_path / "blue.png", "stage": []},
        ],
    }

    def embed(pictures):
        vectors = np.stack([np.asarray(each, np.float64).mean((0, 1)) for each in pictures])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    found = score.score(task, lambda picture: [(0, 0, 8, 8)], embed)
    assert found["characters"] == {"A": {"self": 1.0, "cross": 1.0}, "B": {"self": 0.0, "cross": 0.0}}
    assert found["on_stage"] == pytest.approx(100 * math.exp(-0.5), rel=1e-5) and found["copy_paste"] == 0.5
    nobody = score.score({**task, "shots": task["shots"][1:]}, lambda picture: [], embed)
    assert (nobody["cross"], nobody["on_stage"], nobody["copy_paste"]) == (0.0, None, None)


def test_boxes_are_the_sure_ones_in_pixels():
    sure = torch.tensor([0.3, 0.9, 0.2, 0.5, 0.4])
    boxes = torch.tensor(
        [[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.5], [0.5] * 4, [0.9, 0.9, 0.4, 0.4], [0.5, 0.5, 0, 0]]
    )
    assert score.boxes_of(sure, boxes, (100, 40)) == [(0, 10, 50, 30), (70, 28, 100, 40), (0, 0, 100, 40)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--clip", "/no/such"], "There is no model in /no/such: .*by --clip, .*openai/clip-vit-large-patch14"),
        (["--detector", "/no/such"], "by --detector, such as a download of .*IDEA-Research/grounding-dino-tiny"),
    ],
)
def test_models_that_are_missing_are_named_with_what_to_download(bench, given, said):
    with pytest.raises(Failure, match=said):
        command.run(arguments(bench, "--server", "http://127.0.0.1:1", *given))
