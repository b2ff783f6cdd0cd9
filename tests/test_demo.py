"""`run.py demo` as its user runs it, on a real server."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import run_here
from onestory.tools import demo, host
from onestory.tools.failure import Failure
from PIL import Image
from studio import NAMES, WORKFLOWS, read, twin
from test_workflows import to_api

NAME = "onestory_random.safetensors"
STORY = "A linocut of a grey owl\n\nreading a map # Where to?\n\nflying over a lake\ncrossing a bridge\n"


def run_demo(*arguments: object) -> subprocess.CompletedProcess:
    return run_here("demo", *arguments)


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_sentence(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    return done.stderr.strip()


@pytest.fixture
def fast(server, tmp_path) -> list:
    """Arguments for a quick run on the session's server."""
    return ["--server", server.url, "--checkpoint", NAME, "--steps", 1, "--size", "128x64", "--out", tmp_path / "out"]


def test_the_shipped_story_becomes_frames_and_a_board(fast, tmp_path):
    done = run_demo(*fast, "--seed", 3)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == [*(f"frame_0{i}.png" for i in range(1, 5)), "board.png"]
    assert all(png_size(path) == (128, 64) for path in paths[:4])
    assert png_size(paths[4]) > (128, 64)
    assert len({path.read_bytes() for path in paths[:4]}) == 4
    drawing, going_on = done.stderr.splitlines()
    assert drawing == (
        "Drawing “One Prompt One Story”: 4 frames of 128x64 pixels, from one prompt, steps 1, seed 3, with "
        f"{NAME} on cpu, into {tmp_path / 'out'}."
    )
    assert going_on.startswith("To go on in the editor, open http://127.0.0.1:") and "drop one" in going_on


def test_a_picture_holds_the_editors_workflow_that_draws_it(server, fast, tmp_path):
    story = tmp_path / "owl.txt"
    story.write_text(STORY)
    done = run_demo(*fast, "--story", story, "--seed", 7)
    assert done.returncode == 0, done.stderr
    original = read(WORKFLOWS / "One Prompt One Story.json")
    info = server.get("/object_info")
    for path in map(Path, done.stdout.splitlines()):
        metadata = Image.open(path).text
        graph = json.loads(metadata["workflow"])
        assert to_api(graph, info) == json.loads(metadata["prompt"])
        assert graph["groups"] == original["groups"] and graph["links"] == original["links"]
    values = {node["type"]: node.get("widgets_values", []) for node in graph["nodes"]}
    assert values["CheckpointLoaderSimple"] == [NAME] and values["KSampler"][:3] == [7, "fixed", 1]
    assert values["OneStoryLatent"][:2] == [128, 64]
    identity, frames = values["OneStoryScript"]
    assert identity == "A linocut of a grey owl" and frames.splitlines()[0] == "reading a map # Where to?"


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_workflow_can_be_filled_in_for_the_editor(name):
    original = read(WORKFLOWS / f"{name}.json")
    assert demo.editor_workflow(WORKFLOWS / f"{name}.json", twin(name)) == original
    loads = any(node["class_type"] == "CheckpointLoaderSimple" for node in twin(name).values())
    filled = demo.fill_in(twin(name), None, {"seed": 77, "steps": 9, "checkpoint": "mine.safetensors"})
    nodes = demo.editor_workflow(WORKFLOWS / f"{name}.json", filled)["nodes"]
    samplers = [node for node in nodes if node["type"] in demo.SAMPLERS]
    assert samplers
    for values in (node["widgets_values"][node["type"] == "KSamplerAdvanced" :] for node in samplers):
        assert values[0] == 77 and values[2] == 9
    assert loads == (["mine.safetensors"] in [node.get("widgets_values") for node in nodes])


def test_the_rest_is_estimated_from_steps_after_a_samplers_first(capsys):
    def sampler(steps: int) -> dict:
        return {"class_type": "KSampler", "inputs": {"steps": steps}}

    seconds = iter([40.0, 42.0, 46.0, 100.0, 103.0])
    bar = demo.ProgressBar(
        {"a": sampler(10), "b": sampler(20), "c": {"class_type": "VAEDecode"}}, lambda: next(seconds)
    )

    def rest(node: str, value: int, steps: int) -> float | None:
        bar("executing", {"node": node})
        data = {"node": node, "value": value, "max": steps}
        bar("progress", data)
        return bar.left.get(node)

    assert rest("c", 1, 4) is None and capsys.readouterr().err == ""
    assert rest("a", 1, 10) == 9 and capsys.readouterr().err == ""
    assert rest("a", 2, 10) == 8
    # 8 + 20 steps of 2 s: the first one, with loading, does not count
    assert capsys.readouterr().err == "About 56 s to go.\n"
    for node, value, steps in (("a", 3, 10), ("b", 1, 20), ("b", 2, 20)):
        rest(node, value, steps)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (56, "56 s"), (130, "2 min"), (7300, "2 h 2 min")])
def test_an_estimate_is_said_in_the_unit_that_fits(seconds, words):
    assert demo.duration(seconds) == words


def test_a_story_file_is_told_and_a_second_run_overwrites_nothing(fast, tmp_path):
    story = tmp_path / "owl.txt"
    story.write_text(STORY)
    done = run_demo(*fast, "--story", story)
    assert done.returncode == 0, done.stderr
    first = names(tmp_path / "out")
    assert first == ["board.png", "frame_01.png", "frame_02.png", "frame_03.png"]
    done = run_demo(*fast, "--story", story)
    assert done.returncode == 0, done.stderr
    again = [path.replace(".png", "-2.png") for path in first]
    assert names(tmp_path / "out") == sorted(first + again)


def test_equal_seeds_make_equal_pictures_and_others_do_not(fast, tmp_path):
    for seed in (1, 2, 1):
        assert run_demo(*fast, "--seed", seed).returncode == 0
    one, two, same = (png_pixels(tmp_path / "out" / f"frame_02{end}.png") for end in ("", "-2", "-3"))
    assert one == same != two


def png_pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def test_an_unknown_checkpoint_lists_what_the_server_has(server, tmp_path):
    done = run_demo("--server", server.url, "--checkpoint", "no.safetensors", "--out", tmp_path / "out")
    assert NAME in one_sentence(done) and "no.safetensors" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_servers_checkpoint_must_be_named(server, tmp_path):
    assert "--checkpoint" in one_sentence(run_demo("--server", server.url, "--out", tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--server", "http://127.0.0.1:1"], "No ComfyUI answers at http://127.0.0.1:1"),
        (["--checkpoint", "/no/such.safetensors"], "There is no checkpoint /no/such.safetensors"),
        (["--story", "/no/such.txt"], "such.txt"),
        (["--comfyui", "/no/such"], "no ComfyUI in /no/such"),
        (["--server", "x", "--comfyui", "y"], "--server and --comfyui"),
        (["--server", "x", "--out", "/dev/null/out"], "cannot be saved in /dev/null/out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path):
    out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    assert sentence in one_sentence(run_demo(*arguments, *out))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--size", "100x100"], ["--size", "9"], ["--steps", "0"], ["--seed", "-1"], ["--x"]]
)
def test_a_malformed_argument_is_a_usage_error(arguments):
    done = run_demo(*arguments)
    assert done.returncode == 2 and arguments[-1] in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("demo --stpes 5", "unrecognized arguments: --stpes 5 (did you mean --steps?)"),
        ("demo --checkpiont=x", "unrecognized arguments: --checkpiont=x (did you mean --checkpoint?)"),
        ("demo more", "unrecognized arguments: more"),
        ("bench quality --limt 2", "unrecognized arguments: --limt 2 (did you mean --limit?)"),
        ("matrix --wirte", "unrecognized arguments: --wirte (did you mean --write?)"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_verbs_own_usage(command, sentence):
    done = run_here(*command.split())
    verb = re.match(r"[a-z ]+[a-z]", command)[0].removesuffix(" more")
    assert done.returncode == 2 and done.stderr.startswith(f"usage: run.py {verb} [-h]")
    assert done.stderr.endswith(f"run.py {verb}: error: {sentence}\n")


def test_a_story_the_nodes_refuse_is_their_sentence(fast, tmp_path):
    story = tmp_path / "long.txt"
    story.write_text(f"A fox\n\n{'very ' * 90}long\n")
    done = run_demo(*fast, "--story", story)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "OneStoryPrompt (node 3): Frame 1 is too long for CLIP-L by 18 tokens: "
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_ctrl_c_takes_the_job_off_a_running_server(server, fast):
    command = [sys.executable, host.ROOT / "run.py", "demo", *map(str, fast), "--steps", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: server.get("/queue")["queue_running"])
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in process.stderr.read()
    wait_for(lambda: not any(server.get("/queue").values()))


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """Folders of checkpoints: of our own ComfyUI, of a user's, and of `.host`; the working directory is another."""
    monkeypatch.setattr(host, "HOST", tmp_path / ".host")
    monkeypatch.chdir(tmp_path)
    roots = {"own": host.HOST / "ComfyUI", "user's": tmp_path / "theirs", "host": host.HOST, "here": tmp_path}
    folders = {name: root / "models" / "checkpoints" for name, root in roots.items()} | {"here": tmp_path}
    for folder in folders.values():
        (folder / "sub").mkdir(parents=True)
    return folders


@pytest.mark.parametrize("name", ["a.safetensors", "sub/a.safetensors"])
def test_a_checkpoints_name_is_looked_for_in_every_place(places, tmp_path, name):
    theirs = host.Host(tmp_path / "theirs", Path(sys.executable))
    with pytest.raises(Failure) as error:
        demo.find_checkpoint(name, theirs)
    assert all(str(folder / name) in str(error.value) for folder in places.values())
    for place in ("host", "own", "user's", "here"):  # each comes before those in front of it
        (places[place] / name).touch()
        assert demo.find_checkpoint(name, theirs) == places[place] / name
    for place in ("user's", "here"):
        (places[place] / name).unlink()
    assert demo.find_checkpoint(name, None) == places["own"] / name
    assert demo.find_checkpoint(str(places["own"] / "sub" / ".." / name), None) == places["own"] / name


def test_the_server_and_the_pictures_use_the_name_that_the_editor_lists(places, tmp_path):
    theirs = host.Host(tmp_path / "theirs", Path(sys.executable))
    assert demo.listed_name(places["user's"] / "sub" / "a.safetensors", theirs) == str(Path("sub", "a.safetensors"))
    assert demo.listed_name(places["own"] / "a.safetensors", theirs) is None


def test_a_server_of_its_own_makes_the_story_and_is_gone_afterwards(checkpoint, tmp_path):
    environment = {**os.environ, "COMFYUI_PATH": os.environ.get("COMFYUI_PATH", str(host.HOST / "ComfyUI"))}
    command = [sys.executable, host.ROOT / "run.py", "demo", "--checkpoint", checkpoint.name, "--size", "64x64"]
    command += ["--steps", "1", "--out", tmp_path]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        folders: list[Path] = []
        while process.poll() is None and not folders:
            folders = list(host.HOST.glob(f"run-{process.pid}-*"))
            time.sleep(0.1)
        _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert names(tmp_path) == ["board.png", *(f"frame_0{i}.png" for i in range(1, 5))]
    assert len(folders) == 1 and not folders[0].exists()


@pytest.mark.parametrize(("width", "side"), [(768, 512), (1024, 768), (2048, 1024)])
def test_a_checkpoints_header_tells_the_size_it_was_trained_on(tmp_path, width, side):
    name = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    size = 640 * width * 2
    header = json.dumps({"__metadata__": {}, name: {"dtype": "F16", "shape": [640, width], "data_offsets": [0, size]}})
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(size))
    assert demo.trained_size(file) == side


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 an old pickle", struct.pack("<Q", 2) + b"{}"])
def test_another_file_tells_no_size(tmp_path, data):
    file = tmp_path / "a.ckpt"
    file.write_bytes(data)
    assert demo.trained_size(file) is None
