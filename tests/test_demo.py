"""`run.py demo` as its user runs it, on a real server."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from onestory.tools import demo, host

NAME = "onestory_random.safetensors"
STORY = "A linocut of a grey owl\n\nreading a map # Where to?\n\nflying over a lake\ncrossing a bridge\n"


def run_demo(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, host.ROOT / "run.py", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


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
    assert "128x64, steps 1, seed 3" in done.stderr


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
    from PIL import Image

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


def test_a_story_the_nodes_refuse_is_their_sentence(fast, tmp_path):
    story = tmp_path / "long.txt"
    story.write_text(f"A fox\n\n{'very ' * 90}long\n")
    done = run_demo(*fast, "--story", story)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("OneStoryPrompt (node 3): Frame 1 (“very very")
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


def test_a_server_of_its_own_makes_the_story_and_is_gone_afterwards(checkpoint, tmp_path):
    environment = {**os.environ, "COMFYUI_PATH": os.environ.get("COMFYUI_PATH", str(host.HOST / "ComfyUI"))}
    command = [sys.executable, host.ROOT / "run.py", "demo", "--checkpoint", checkpoint, "--size", "64x64"]
    command += ["--steps", "1", "--out", tmp_path]
    before = set(host.HOST.glob("run-*"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["board.png", *(f"frame_0{i}.png" for i in range(1, 5))]
    assert set(host.HOST.glob("run-*")) == before


@pytest.mark.parametrize(("width", "side"), [(768, 512), (1024, 768), (2048, 1024)])
def test_a_checkpoints_header_tells_the_size_it_was_trained_on(tmp_path, width, side):
    name = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    header = json.dumps({"__metadata__": {}, name: {"dtype": "F16", "shape": [640, width], "data_offsets": [0, 0]}})
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    assert demo.trained_size(file) == side


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 an old pickle", struct.pack("<Q", 2) + b"{}"])
def test_another_file_tells_no_size(tmp_path, data):
    file = tmp_path / "a.ckpt"
    file.write_bytes(data)
    assert demo.trained_size(file) is None
