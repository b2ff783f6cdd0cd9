"""`run.py make`: the stories of a file by any workflow, on a real server."""

import json

import pytest
from command_line import run_here
from conftest import COMFYUI
from onestory.story.files import StoryText
from onestory.tools import make
from onestory.tools.failure import Failure
from PIL import Image
from studio import twin
from test_demo import NAME

STORIES = """\
stories:
  - title: Owl & map
    identity: a linocut of a grey owl
    frames: [reading a map, flying over a lake]
  - title: Robot
    identity: a small robot
    frames: [watering a plant, painting, sleeping]
"""
STORY = StoryText("The <fox>", "a fox", "runs\nsleeps")


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    file = tmp_path_factory.mktemp("stories") / "two.yaml"
    file.write_text(STORIES)
    return file


@pytest.fixture(scope="module")
def draw(server, stories):
    """Draw the stories into a folder, with more arguments; returns the finished command."""

    def draw(out, *more):
        given = [stories, "--server", server.url, "--checkpoint", NAME, "--size", "64x64", "--out", out, *more]
        return run_here("make", *given, COMFYUI_PATH=str(COMFYUI))

    return draw


def test_every_story_is_drawn_with_every_seed_kept_and_shown(draw, tmp_path):
    out = tmp_path / "out"
    done = draw(out, "--steps", 1, "--seeds", 1, "--limit", 1)
    assert done.returncode == 0, done.stderr
    kept = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    done = draw(out, "--steps", 1, "--seeds", 1, 2)
    assert done.returncode == 0 and "1 of 4 drawings are there already." in done.stderr, done.stderr
    assert done.stdout.splitlines() == [str(out / "index.html")]
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "not drawn again"
    for story, frames in (("000_Owl_map", 2), ("001_Robot", 3)):
        names = [f"frame_{n:02}.png" for n in range(1, frames + 1)] + ["board_01.png"]
        for seed in (1, 2):
            folder = out / story / f"seed-{seed}"
            result = json.loads((folder / "result.json").read_text())
            assert sorted(result["files"]) == sorted(names) and result["seconds"] > 0
            assert all(Image.open(folder / name).size == (64, 64) for name in names[:-1])
        first = [(out / story / f"seed-{seed}" / "frame_01.png").read_bytes() for seed in (1, 2)]
        assert first[0] != first[1]
    page = (out / "index.html").read_text()
    assert "Owl &amp; map" in page and page.count("<img ") == 2 * (3 + 4)
    assert page.index("000_Owl_map/seed-1/board_01.png") < page.index("000_Owl_map/seed-1/frame_01.png")


def test_a_story_that_a_node_refuses_is_told_and_does_not_stop_the_others(draw, tmp_path):
    out = tmp_path / "out"
    done = draw(out, "--steps", 1, "--set", "OneStoryPrompt.window=1", "OneStoryLatent.noise_ids=1,2,3")
    assert done.returncode == 1 and (out / "001_Robot" / "seed" / "board_01.png").is_file()
    assert "1 of 2 drawings are missing, and tried again in the next run." in done.stderr
    [sentence] = [
        line for line in done.stderr.splitlines() if line.startswith("Not drawn, the workflow's seed: Owl & map: ")
    ]
    assert "3" in sentence and sentence.split("Owl & map: ")[1][:20] in (out / "index.html").read_text()
    done = draw(out, "--steps", 2)
    assert done.returncode == 1 and "holds results of --steps 1, not 2: choose another --out" in done.stderr


def test_stories_may_be_added_to_the_file_but_not_changed(tmp_path):
    [[first]] = make.drawings(tmp_path, [STORY], [3])
    assert not first.made
    first.folder.mkdir(parents=True)
    (first.folder / "result.json").write_text(json.dumps({"text": make.digest(STORY), "files": []}))
    [[again], [second]] = make.drawings(tmp_path, [STORY, STORY._replace(title="More")], [3])
    assert again.made and not second.made
    [[other]] = make.drawings(tmp_path, [STORY._replace(frames="runs")], [3])
    with pytest.raises(Failure, match="holds “The <fox>” with another text: choose another --out"):
        assert other.made


def test_a_load_story_gives_its_place_and_its_other_outputs_to_the_story():
    workflow = {
        "1": {"class_type": "OneStoryLoad", "inputs": {"file": "tales.yaml", "index": 3}},
        "2": {"class_type": "OneStoryPrompt", "inputs": {"story": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["1", 1], "images": ["2", 0]}},
        "4": {"class_type": "PrimitiveInt", "inputs": {"value": ["1", 2]}},
    }
    got = make.with_story(workflow, STORY)
    assert got["1"] == {"class_type": "OneStoryScript", "inputs": {"identity": "a fox", "frames": "runs\nsleeps"}}
    assert got["2"] == workflow["2"] and got["3"]["inputs"] == {"filename_prefix": "The <fox>", "images": ["2", 0]}
    assert got["4"]["inputs"]["value"] == 1 and workflow["1"]["class_type"] == "OneStoryLoad"


def test_a_seed_reaches_every_sampler_and_nothing_else():
    workflow = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 7, "steps": 2}},
        "2": {"class_type": "KSamplerAdvanced", "inputs": {"noise_seed": ["4", 0]}},
        "3": {"class_type": "RandomNoise", "inputs": {"noise_seed": 8}},
        "4": {"class_type": "PrimitiveInt", "inputs": {"value": 9}},
        "5": {"class_type": "OneStoryIPCA", "inputs": {"seed": 5}},
    }
    got = make.with_seed(workflow, 42)
    seeds = [got["1"]["inputs"]["seed"], got["4"]["inputs"]["value"], got["3"]["inputs"]["noise_seed"]]
    assert seeds == [42] * 3 and got["5"] == workflow["5"] and got["2"] == workflow["2"]
    assert make.with_seed(workflow, None) == workflow and workflow["1"]["inputs"]["seed"] == 7


def test_values_are_set_by_type_or_number_and_keep_their_kind():
    workflow = twin("One Prompt One Story")
    [(key, ipca)] = [(k, n["inputs"]) for k, n in workflow.items() if n["class_type"] == "OneStoryIPCA"]
    got = make.with_values(workflow, ["OneStoryIPCA.strength=2", f"{key}.blocks=up", "OneStoryPrompt.window=3"])
    assert got[key]["inputs"] == {**ipca, "strength": 2, "blocks": "up"} and ipca["strength"] != 2
    for change, said in (
        ("OneStoryIPCA.might=2", r"has no OneStoryIPCA.might. It has .*OneStoryIPCA.strength"),
        ("strength", "has no strength. It has "),
        ("OneStoryIPCA.model=3", "has no OneStoryIPCA.model"),
        ("OneStoryIPCA.strength=much", "has 1 there, and “much” is nothing of the kind"),
    ):
        with pytest.raises(Failure, match=said):
            make.with_values(workflow, [change])


def test_files_have_short_names_whatever_kind_of_output_they_are():
    picture = {"filename": "frame_00001_.png", "subfolder": "OneStory", "type": "output"}
    other, book = {**picture, "filename": "frame_00002_.png"}, {**picture, "filename": "tale_00001_.pdf"}
    workflow = {
        "1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "OneStory/frame"}},
        "2": {"class_type": "PreviewImage", "inputs": {}},
        "3": {"class_type": "OneStoryBook", "inputs": {"filename_prefix": "my/tale"}},
        "4": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["1", 0]}},
    }
    outputs = {
        "1": {"images": [picture, other], "animated": [False]},
        "2": {"images": [{**picture, "type": "temp"}]},
        "3": {"text": ["tale"], "files": [book]},
    }
    names = make.named_files(workflow, outputs)
    assert names == [("frame_01.png", picture), ("frame_02.png", other), ("tale_01.pdf", book)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no file and no shipped workflow: those are .*One Prompt One Story"),
        ("{", "cannot be read: "),
        ('{"nodes": []}', "is no workflow in the API format: write it by “Export"),
        ('{"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "a"}}}', "has 0 nodes that give a story"),
        ('{"1": {"class_type": "OneStoryScript", "inputs": {}}}', "saves nothing: put a Save Image behind"),
    ],
)
def test_what_is_no_workflow_for_stories_is_a_sentence(tmp_path, content, said):
    file = tmp_path / "some.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Failure, match=said):
        make.read_workflow(str(file))


@pytest.mark.parametrize("path", sorted(make.WORKFLOW.parent.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_workflows_take_a_story_or_say_why_not(path):
    workflow, name = make.read_workflow(path.stem)
    drawn = make.with_seed(make.with_story(workflow, STORY), 3)
    assert name == path.stem and [n["inputs"] for n in drawn.values() if n["class_type"] == "OneStoryScript"] == [
        {"identity": STORY.identity, "frames": STORY.frames}
    ]
