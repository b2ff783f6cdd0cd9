"""`run.py bench quality --server` as its user runs it, on a real server; and Story Metrics there, with CLIP by file."""

import argparse
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
import vision
from command_line import run_here
from conftest import COMFYUI
from onestory.bench.quality import command as quality
from onestory.bench.quality import graphs, masks, measures, pair_graphs, picture_graphs, report
from onestory.bench.quality.boards import maker
from onestory.bench.quality.graphs import PAIR_ROWS, PICTURE_ROWS, ROWS
from onestory.bench.quality.jobs import jobs_of, json_of
from onestory.nodes.attention_view import OneStoryAttentionRecorder
from onestory.nodes.image_adapter import OneStoryImageAdapter
from onestory.nodes.regions import OneStoryRegions
from onestory.nodes.reweight import OneStoryNaiveReweight
from onestory.nodes.self_attention import OneStorySelfAttention
from onestory.story.files import StoryText, read_stories
from onestory.tools import host, pool
from onestory.tools.client import Client, WorkflowError, images
from onestory.tools.failure import Failure
from PIL import Image
from test_demo import NAME, one_sentence, png_size, wait_for

STORIES = """\
stories:
  - title: Owl & map
    identity: a linocut of a grey owl
    frames: [reading a map, "flying <far> over a lake"]
  - title: Robot
    identity: a small robot
    frames: [watering a plant, painting]
"""
TWO = ("separate", "ipca")


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(host.ROOT / "run.py"), "bench", "quality", *map(str, arguments)]


def run_quality(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return run_here("bench", "quality", *arguments, COMFYUI_PATH=str(COMFYUI), **environment)


@pytest.fixture
def stories(tmp_path) -> Path:
    file = tmp_path / "two.yaml"
    file.write_text(STORIES)
    return file


@pytest.fixture
def fast(server, stories, tmp_path) -> list:
    """Arguments for a quick run on the session's server."""
    given = ["--server", server.url, "--checkpoint", NAME, "--stories", stories, "--steps", 1, "--size", "64x64"]
    return [*given, "--out", tmp_path / "out", "--rows"]


def boards(out: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(out)) for path in out.glob("*/*/result.json"))


@pytest.fixture(scope="module")
def finished(server, tmp_path_factory):
    """A run of two stories in two ways, and what it printed; its folder is to be read or copied."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "two.yaml").write_text(STORIES)
    given = ["--server", server.url, "--checkpoint", NAME, "--stories", folder / "two.yaml", "--steps", 1]
    done = run_quality(*given, "--size", "64x64", "--rows", *TWO, "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out", done


# --- a run ------------------------------------------------------------------------------------------------------------


def test_every_story_is_made_in_every_way(finished):
    out, _ = finished
    assert boards(out) == [f"{i}/{row}-42" for i in ("000_Owl_map", "001_Robot") for row in sorted(TWO)]
    for board in boards(out):
        frames = sorted((out / board).glob("frame_*.png"))
        assert [png_size(frame) for frame in frames] == [(64, 64)] * 2
        assert (out / board / "board.webp").read_bytes()[8:12] == b"WEBP"
    first = [(out / f"000_Owl_map/{row}-42/frame_02.png").read_bytes() for row in TWO]
    assert first[0] != first[1]


def test_the_page_has_every_board_and_needs_no_other_file(finished):
    page = (finished[0] / "report.html").read_text()
    assert page.count('src="data:image/webp;base64,') == 4 == page.count("<figure>")
    assert not re.search(r'(src|href)="(?!data:)', page)
    for text in ("Owl &amp; map", "flying &lt;far&gt; over a lake", "separate prompts, seed 42", "SVR + IPCA, seed 42"):
        assert text in page


def test_table_and_json_say_the_same(finished):
    out, done = finished
    found = json.loads((out / "results.json").read_text())
    assert found["settings"]["checkpoint"] == NAME and found["measures"] == ["seconds"]
    assert [row["boards"] for row in found["table"]] == [2, 2]
    assert "| separate prompts | 2 | " in done.stdout and "| SVR + IPCA | 2 | " in done.stdout
    assert done.stdout.splitlines()[-2:] == [str(out / "report.html"), str(out / "results.json")]


def test_what_is_not_measured_is_said_in_a_line_each(finished):
    lines = finished[1].stderr.splitlines()
    said = (
        "CLIP-T is left out: --clip names no CLIP model, such as a download of https://huggingface.co/openai/clip-vit-"
    )
    assert f"{said}base-patch32." in lines
    assert any(line.startswith("DreamSim is left out: ") for line in lines)
    assert "The servers measured nothing: --clip-vision names no vision model of theirs." in lines
    assert any(re.match(r"4/4 boards, \d+ s left: Robot is done at http://", line) for line in lines)


def test_an_interrupted_run_goes_on_where_it_stopped(fast, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(command(*fast, *TWO), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: boards(out))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in process.stderr.read()
    made = {board: (out / board / "result.json").stat().st_mtime_ns for board in boards(out)}
    assert 0 < len(made) < 4 and not (out / "report.html").exists()
    done = run_quality(*fast, *TWO)
    assert done.returncode == 0, done.stderr
    assert f"{len(made)} of 4 boards are there already." in done.stderr
    assert len(boards(out)) == 4
    assert {board: (out / board / "result.json").stat().st_mtime_ns for board in made} == made


def test_an_interruption_leaves_nothing_in_the_servers_queue(server, fast):
    process = subprocess.Popen(
        command(*fast, "all", "--steps", 1000), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: server.get("/queue")["queue_running"])
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    wait_for(lambda: not any(server.get("/queue").values()))


def test_rows_seeds_and_stories_can_be_added_later(fast, tmp_path):
    assert run_quality(*fast, "separate", "--limit", 1).returncode == 0
    done = run_quality(*fast, "separate", "naive", "--limit", 1, "--seeds", 42, 7)
    assert done.returncode == 0 and "1 of 4 boards are there already." in done.stderr
    assert "| naive reweighting | 2 | " in done.stdout


# --- servers that fail ------------------------------------------------------------------------------------------------


class Proxy:
    """A way to the server that spoils the requests for which `spoil` names how; "" lets one through.

    "reset" drops the connection at once, "cut" in the middle of the answer, "502" is a proxy's answer.
    """

    def __init__(self, server: Client):
        self.port = int(server.url.rpartition(":")[2])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.seen: list[str] = []
        self.spoil = lambda request: ""
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self.pass_on, args=self.listener.accept()[:1], daemon=True).start()

    def pass_on(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = connection.recv(65536)
            request = " ".join(data.decode("latin-1").split()[:2])
            self.seen.append(request)
            how = self.spoil(request)
            if how == "502":
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            if how in ("502", "reset"):
                return
            with socket.create_connection(("127.0.0.1", self.port)) as upstream:
                upstream.sendall(data)
                threading.Thread(target=self.pipe, args=(connection, upstream), daemon=True).start()
                if how == "cut":
                    answer = upstream.recv(65536)
                    connection.sendall(answer[: answer.index(b"\r\n\r\n") + 5])
                    connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.pipe(upstream, connection)

    def pipe(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)


@pytest.fixture
def proxy(server):
    made = Proxy(server)
    yield made
    made.listener.close()


@pytest.fixture
def maker_of(stories, tmp_path, monkeypatch):
    """Makes a Maker of two stories in one way, a board each, for some servers; it makes short pauses."""
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.01)
    settings = {"checkpoint": NAME, "size": "64x64", "steps": 1, "eot": "reweight", "dtype": None, "clip-vision": None}
    two = read_stories(stories)

    def maker_of(*servers: Client, **options) -> pool.Maker:
        jobs = jobs_of(tmp_path / "out", two, ("separate",), (1,))
        return maker(servers, two, jobs, settings, **options)

    return maker_of


def first(count: int, request: str, how: str):
    """Spoils the first so many of these requests."""
    left = [how] * count
    return lambda seen: left.pop() if left and seen.startswith(request) else ""


@pytest.mark.parametrize(
    ("request_", "how", "times", "says"),
    [
        ("POST /prompt", "reset", 1, "No ComfyUI answers at "),
        ("POST /prompt", "cut", 1, "No ComfyUI answers at "),
        ("POST /prompt", "502", 1, "HTTP Error 502"),
        ("GET /view", "reset", 1, ""),
        ("GET /view", "502", 1, ""),
        ("GET /view", "reset", 3, "No ComfyUI answers at "),
        ("GET /view", "cut", 1, "No ComfyUI answers at "),
        ("GET /history", "reset", 1, ""),
        ("GET /history", "cut", 1, ""),
        ("GET /history", "502", 1, ""),
        ("GET /ws", "reset", 1, ""),
    ],
)
def test_a_connection_that_fails_once_loses_no_server(maker_of, proxy, tmp_path, capsys, request_, how, times, says):
    """While a board is being made, nothing is lost; else the story is made again, which is told."""
    proxy.spoil = first(times, request_, how)
    assert maker_of(Client(proxy.url)).run() == {}
    assert boards(tmp_path / "out") == ["000_Owl_map/separate-1", "001_Robot/separate-1"]
    told = [line for line in capsys.readouterr().err.splitlines() if " is done at " not in line]
    if says:
        failed, works = told
        assert says in failed
        assert failed.endswith(f" “Owl & map” goes back into the queue, and {proxy.url} is tried again.")
        assert works == f"{proxy.url} works again."
    else:
        assert not told and proxy.seen.count("POST /prompt") == 2


def test_a_server_that_is_away_for_a_while_is_waited_for(maker_of, proxy, tmp_path, capsys, monkeypatch):
    pauses = []
    wait_for_ = threading.Condition.wait_for
    monkeypatch.setattr(
        threading.Condition,
        "wait_for",
        lambda self, predicate, timeout=None: (pauses.append(timeout), wait_for_(self, predicate, timeout))[1],
    )
    proxy.spoil = first(6, "", "reset")
    assert maker_of(Client(proxy.url)).run() == {}
    assert len(boards(tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert told.count("is tried again.") == 1 == told.count("works again.")
    grown = [pause for pause in pauses if pause]
    assert len(grown) > 2 and grown == [0.01 * 2**i for i in range(len(grown))]


def test_a_server_that_never_works_leaves_its_story_to_the_others(maker_of, server, proxy, tmp_path):
    proxy.spoil = lambda request: "reset" if request == "POST /prompt" else ""
    lost = Client(proxy.url)
    maker = maker_of(lost, server)
    assert maker.run() == {} and not maker.todo
    made = {json.loads(file.read_text())["server"] for file in (tmp_path / "out").glob("*/*/result.json")}
    assert made == {server.url}


def test_when_all_servers_are_gone_the_reason_and_the_way_on_are_told(maker_of, proxy, tmp_path):
    views = []

    def spoil(request):
        views.append(request.startswith("GET /view"))
        return "reset" if sum(views) >= 3 and not views[-1] else ""  # after the first board's three pictures

    proxy.spoil = spoil
    with pytest.raises(Failure) as failure:
        maker_of(Client(proxy.url), patience=0).run()
    assert str(failure.value).startswith(f"No ComfyUI answers at {proxy.url}: ")
    assert str(failure.value).endswith(". 1 of 2 boards are made: run the same command again to make the rest.")
    assert boards(tmp_path / "out") == ["000_Owl_map/separate-1"]
    proxy.spoil = lambda request: ""
    assert maker_of(Client(proxy.url)).run() == {} and len(boards(tmp_path / "out")) == 2


def test_a_server_that_was_gone_takes_stories_again(maker_of, server, proxy, tmp_path, capsys):
    """The other one holds its story until the first has come back and made one."""
    made = threading.Event()

    class Slow(Client):
        def run(self, workflow, progress=None):
            assert made.wait(60)
            return super().run(workflow, progress)

    class Back(Client):
        def run(self, workflow, progress=None):
            outputs = super().run(workflow, progress)
            made.set()
            return outputs

    proxy.spoil = first(8, "", "reset")
    maker = maker_of(Back(proxy.url), Slow(server.url), patience=0)
    assert maker.run() == {} and len(boards(tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert told.count(f"{proxy.url} has made nothing for 0 min: the others go on without it.") == 1
    assert told.count(f"{proxy.url} works again.") == 1


def test_a_server_that_answers_but_fails_every_story_is_given_up(maker_of, server):
    class Failing(Client):
        def run(self, workflow, progress=None):
            raise Failure("It is out of disk space.")

    with pytest.raises(Failure, match="^It is out of disk space. 0 of 2 boards are made: "):
        maker_of(Failing(server.url), patience=0.05).run()


def test_the_command_goes_on_after_a_dropped_connection(proxy, fast, tmp_path):
    proxy.spoil = first(1, "POST /prompt", "reset")
    done = run_quality("--server", proxy.url, *fast[2:], "separate")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is tried again.") == 1 and "Traceback" not in done.stderr
    assert len(boards(tmp_path / "out")) == 2


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_another_setting_in_the_same_folder_is_refused(finished):
    out, done = finished
    given = done.args[2:]
    before = (out / "settings.json").read_bytes()
    for option, value, says in (
        ("--steps", "2", "holds results of --steps 1, not 2"),
        ("--size", "64x128", "holds results of --size 64x64, not 64x128"),
        ("--eot", "scale", "holds results of --eot reweight, not scale"),
        ("--set", "KSampler.cfg=4.5", "holds results of --set None, not KSampler.cfg=4.5"),
    ):
        assert says in one_sentence(run_quality(*given, option, value))
    assert (out / "settings.json").read_bytes() == before


def test_other_story_texts_in_the_same_folder_are_refused(finished, tmp_path):
    out, done = finished
    (tmp_path / "two.yaml").write_text(STORIES.replace("grey", "blue"))
    failed = run_quality(*done.args[2:], "--stories", tmp_path / "two.yaml")
    assert "holds results of other story texts: choose another --out" in one_sentence(failed)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--server", "http://127.0.0.1:1"], "No ComfyUI answers at http://127.0.0.1:1"),
        (["--checkpoint", "no.safetensors"], "has no checkpoint no.safetensors: name one with --checkpoint"),
        (["--stories", "/no/such.yaml"], "There is no story file “such.yaml”"),
        (["--stories", __file__], "is no story file"),
        (["--clip", "/no/such"], "There is no CLIP model in /no/such"),
        (["--clip-vision", "no.pt"], "has no vision model no.pt: name one with --clip-vision"),
        (["--out", "/dev/null/out"], "The results cannot be kept in /dev/null/out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(fast, arguments, says, tmp_path):
    assert says in one_sentence(run_quality(*fast, "separate", *arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("OneStorySVR.alpha=1", "OneStorySVR.alpha is not to be set: choose one of OneStoryPrompt.window, "),
        ("OneStoryIPCA.strength=2", "OneStoryIPCA.strength is not to be set"),
        ("OneStorySVR.express_alpha=", "OneStorySVR.express_alpha is a number, and “” is none."),
        ("KSampler.cfg=nan", "KSampler.cfg is a number, and “nan” is none."),
    ],
)
def test_a_setting_that_is_none_is_a_usage_error(fast, given, says, tmp_path):
    failed = run_quality(*fast, "ipca", "--set", given)
    assert failed.returncode == 2 and says in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()


def test_a_value_that_the_node_refuses_is_its_sentence_and_leaves_the_folder_free(fast, tmp_path):
    failed = run_quality(*fast, "ipca", "--set", "OneStoryIPCA.blocks=none")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "OneStoryIPCA" in (last := failed.stderr.splitlines()[-1]) and "“none”" in last
    assert run_quality(*fast, "ipca", "--set", "OneStoryIPCA.blocks=up", "--limit", 1).returncode == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["set"] == {"OneStoryIPCA.blocks": "up"}


@pytest.mark.parametrize("name", ["server", "checkpoint", "stories"])
def test_what_is_missing_is_named(fast, name):
    place = fast.index(f"--{name}")
    assert f"--{name} is missing" in one_sentence(run_quality(*fast[:place], *fast[place + 2 :], "separate"))


def test_a_broken_story_file_is_one_sentence(fast, stories):
    stories.write_text("identity: a fox\nframe: [a]\n")
    assert "“two.yaml”, line 2 (frame): there is no key “frame” here" in one_sentence(run_quality(*fast, "separate"))


def test_a_story_that_the_nodes_refuse_does_not_stop_the_others(fast, stories, tmp_path):
    stories.write_text(STORIES.replace("watering a plant", "watering " * 90))
    done = run_quality(*fast, "separate")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert boards(tmp_path / "out") == ["000_Owl_map/separate-42"]
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "1 of 2 boards could not be made, and are tried again in the next run: Robot: OneStoryPrompt"
    )
    assert "Not made" in (tmp_path / "out" / "report.html").read_text()


# --- the ways ---------------------------------------------------------------------------------------------------------


def wired(row: str, **settings) -> tuple[dict, list[str]]:
    """A row's graph, and the kinds of node that stand before its sampler."""
    given = {
        "checkpoint": NAME,
        "size": "64x96",
        "steps": 3,
        "eot": "scale",
        "dtype": None,
        "clip-vision": None,
        **settings,
    }
    graph = graphs.story_graph(StoryText("A", "a fox", "one\ntwo"), ROWS[row], 7, given)
    (sampler,) = (node for node in graph.values() if node["class_type"] == "KSampler")
    found, todo = [], [sampler["inputs"]["positive"][0], sampler["inputs"]["model"][0]]
    while todo:
        node = graph[todo.pop(0)]
        found.append(node["class_type"])
        todo += [value[0] for name, value in node["inputs"].items() if name in ("conditioning", "model")]
    return graph, found


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ("separate", ["OneStoryPrompt"]),
        ("all", ["OneStorySVR", "OneStorySelfAttention", "OneStoryPrompt", "OneStoryIPCA"]),
    ],
)
def test_another_dtype_stands_in_front_of_all_patches(row, kinds):
    graph, found = wired(row, dtype="bf16")
    assert found == [*kinds, "ModelComputeDtype", "CheckpointLoaderSimple"]
    assert graph["dtype"]["inputs"]["dtype"] == "bf16"


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ("separate", ["OneStoryPrompt", "CheckpointLoaderSimple"]),
        ("consolidated", ["OneStoryPrompt", "CheckpointLoaderSimple"]),
        ("naive", ["OneStoryNaiveReweight", "CheckpointLoaderSimple", "OneStoryPrompt"]),
        ("svr", ["OneStorySVR", "CheckpointLoaderSimple", "OneStoryPrompt"]),
        ("ipca", ["OneStorySVR", "OneStoryIPCA", "OneStoryPrompt", "CheckpointLoaderSimple"]),
        (
            "all",
            ["OneStorySVR", "OneStorySelfAttention", "OneStoryPrompt", "OneStoryIPCA", "CheckpointLoaderSimple"],
        ),
        ("different", ["OneStoryPrompt", "CheckpointLoaderSimple"]),
        ("svr-paper", ["OneStorySVR", "CheckpointLoaderSimple", "OneStoryPrompt"]),
        ("ipca-half", ["OneStorySVR", "OneStoryIPCA", "OneStoryPrompt", "CheckpointLoaderSimple"]),
        ("ipca-double", ["OneStorySVR", "OneStoryIPCA", "OneStoryPrompt", "CheckpointLoaderSimple"]),
        ("anchors", ["OneStoryPrompt", "OneStorySelfAttention", "CheckpointLoaderSimple"]),
        ("tiles", ["OneStoryPrompt", "OneStorySelfAttention", "CheckpointLoaderSimple"]),
    ],
)
def test_a_row_has_its_nodes_and_no_others(row, kinds):
    graph, found = wired(row)
    assert found == kinds
    values = {node["class_type"]: node["inputs"] for node in graph.values()}
    assert values["OneStoryPrompt"]["mode"] == ROWS[row].mode
    assert (ROWS[row].mode == "separate prompts") == (row in ("different", "separate", "anchors", "tiles"))
    assert values["OneStoryLatent"]["noise"] == ("different" if row == "different" else "same")
    assert values.get("OneStorySVR", {}).get("variant") == {"svr-paper": "paper"}.get(
        row, "released" if "OneStorySVR" in found else None
    )
    strengths = {"ipca": 1.0, "all": 1.0, "ipca-half": 0.5, "ipca-double": 2.0}
    assert values.get("OneStoryIPCA", {}).get("strength") == strengths.get(row)
    variant = {"all": "anchors", "anchors": "anchors", "tiles": "tiles"}.get(row)
    assert values.get("OneStorySelfAttention", {}).get("variant") == variant
    assert (values["KSampler"]["seed"], values["KSampler"]["steps"]) == (7, 3)
    assert (values["OneStoryLatent"]["width"], values["OneStoryLatent"]["height"]) == (64, 96)
    assert values.get("OneStorySVR", {}).get("eot", "scale") == "scale"
    assert values["OneStoryScript"] == {"identity": "a fox", "frames": "one\ntwo"}
    assert "OneStoryMetrics" not in values and "SaveImage" not in values


PAIR = StoryText(
    "Pair 1", "[Right] a blue owl\n[Left] a red fox", "[Right] and [Left] at sea\n[Right] and [Left] at home"
)


def pair_graph(row: str, **more) -> dict[str, dict]:
    given = {"checkpoint": NAME, "size": "128x64", "steps": 8, "eot": "reweight", "dtype": None, "clip-vision": None}
    return graphs.story_graph(PAIR, PAIR_ROWS[row], 7, given | more)


def inputs_of(graph: dict[str, dict], kind: str) -> list[dict]:
    return [node["inputs"] for node in graph.values() if node["class_type"] == kind]


@pytest.mark.parametrize("row", PAIR_ROWS)
def test_a_story_of_two_has_its_regions_between_model_and_sampler(row):
    graph = pair_graph(row, set={"OneStoryRegions.end_percent": 0.5})
    (prompt,), (script,) = inputs_of(graph, "OneStoryPrompt"), inputs_of(graph, "OneStoryScript")
    assert prompt["identity"] == PAIR_ROWS[row].identity and prompt["mode"] == "separate prompts"
    assert script["identity"].splitlines() == (
        ["[Right] a blue owl on the right", "[Left] a red fox on the left"]
        if row == "sides"
        else PAIR.identity.splitlines()
    )
    regions = inputs_of(graph, "OneStoryRegions")
    assert [each["layout"] != "" for each in regions] == {"text": [True], "": []}.get(
        PAIR_ROWS[row].regions, [False, False]
    )
    assert all(each["strength"] == PAIR_ROWS[row].strength and each["end_percent"] == 0.5 for each in regions)
    last = next(key for key, node in graph.items() if node["class_type"] == "VAEDecode")
    sampler = graph[graph[last]["inputs"]["samples"][0]]["inputs"]
    patches, key = [], sampler["model"][0]
    while graph[key]["class_type"] != "CheckpointLoaderSimple":
        patches.append(key)
        key = graph[key]["inputs"]["model"][0]
    assert [graph[key]["class_type"] for key in patches] == ["OneStoryRegions"] * len(regions)


def test_regions_from_attention_go_on_where_the_recorded_sampler_stopped():
    graph = pair_graph("attention")
    first, second = sorted(inputs_of(graph, "KSamplerAdvanced"), key=lambda each: each["start_at_step"])
    assert first["model"] == ["recorder", 0] and second["model"] == ["regions Right", 0]
    assert (first["end_at_step"], second["start_at_step"]) == (2, 2) and first["steps"] == second["steps"] == 8
    assert (first["add_noise"], first["return_with_leftover_noise"]) == ("enable", "enable")
    assert (second["add_noise"], second["return_with_leftover_noise"]) == ("disable", "disable")
    assert first["noise_seed"] == second["noise_seed"] == 7 and first["positive"] == second["positive"]
    masks = {each["character"]: each for each in inputs_of(graph, "OneStoryRegionMasks")}
    assert masks.keys() == {"Left", "Right"}
    assert all(each["latent"] == ["first sampler", 0] for each in masks.values())
    assert second["latent_image"] == ["mask Right", 1] and inputs_of(graph, "KSampler") == []


PICTURED = StoryText("Picture 7", "a spotted gray mouse with a crown", "standing at sea\nreading a book at home")


@pytest.mark.parametrize(("row", "says"), [*zip(PICTURE_ROWS, ("a cartoon", "", "a mouse", "", ""), strict=True)])
def test_a_picture_says_what_the_words_leave_out(row, says):
    settings = {"checkpoint": NAME, "size": "64x64", "steps": 2, "eot": "reweight", "dtype": None, "clip-vision": None}
    graph = graphs.story_graph(PICTURED, PICTURE_ROWS[row], 7, settings)
    (script,) = inputs_of(graph, "OneStoryScript")
    wanted = {"picture": "a cartoon", "species-picture": "a mouse", "words": PICTURED.identity}
    assert script["identity"] == (says or wanted[row])
    (sampler,), pictures = inputs_of(graph, "KSampler"), inputs_of(graph, "LoadImage")
    shown = PICTURE_ROWS[row].scale > 0
    assert [each["image"] for each in pictures] == ["Picture_7.png"] * shown
    assert (graph[sampler["model"][0]]["class_type"] == "OneStoryImageAdapter") == shown


def test_masks_stand_at_the_characters_sides():
    graph = pair_graph("masks")
    for name, left in (("Left", 5), ("Right", 67)):
        where = graph[f"mask {name}"]["inputs"]
        box = graph[f"mask {name} box"]["inputs"]
        assert (where["x"], where["y"]) == (left, 19) and 55 <= box["width"] <= 57 and box["height"] == 45
        (regions,) = (each for each in inputs_of(graph, "OneStoryRegions") if each["character"] == name)
        assert regions["mask"] == [f"mask {name}", 0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pairs", "--rows", "svr"], "--rows svr is not for --pairs: choose of plain, sides,"),
        (["--rows", "masks"], "--rows masks is for --pairs: choose of different, separate,"),
        (["--pairs", "--checkpoint", "mine"], "--pairs has the Story World's own stories: leave --server"),
        (["--pictures", "--rows", "masks"], "--rows masks is for --pairs: choose of nothing, picture,"),
        (["--pictures", "--rows", "svr"], "--rows svr is not for --pictures: choose of nothing, picture,"),
        (["--pairs", "--rows", "words"], "--rows words is for --pictures: choose of plain, sides,"),
        (["--pictures", "--stories", "mine.yaml"], "--pictures has the Story World's own stories: leave --server"),
    ],
)
def test_the_worlds_kinds_of_stories_have_rows_of_their_own(arguments, sentence):
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    with pytest.raises(Failure, match=sentence):
        quality.run(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("node", "given"),
    [
        (OneStoryNaiveReweight, graphs.NAIVE),
        (OneStorySelfAttention, graphs.SELF_ATTENTION),
        (OneStoryRegions, pair_graphs.REGIONS),
        (OneStoryAttentionRecorder, pair_graphs.RECORDER),
        (OneStoryImageAdapter, picture_graphs.IMAGE_CHARACTERS),
    ],
)
def test_rows_use_the_nodes_defaults(node, given):
    defaults = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
    assert given == {name: value for name, value in defaults.items() if value is not None}


def test_set_values_reach_their_nodes_and_no_others():
    given = ["OneStorySVR.express_alpha=0.012", "KSampler.cfg=4", "OneStoryIPCA.blocks=up", "OneStoryPrompt.window=3"]
    changes = dict(map(quality.change, given))
    graph, _ = wired("ipca", set=changes)
    usual, _ = wired("ipca")
    different = {
        f"{node['class_type']}.{name}": value
        for key, node in graph.items()
        for name, value in node["inputs"].items()
        if usual[key]["inputs"][name] != value
    }
    assert different == changes == dict(zip(changes, (0.012, 4, "up", 3), strict=True))
    assert wired("separate", set={"OneStorySVR.express_alpha": 0.5})[0] == wired("separate")[0]


def test_every_row_runs_on_the_server(server):
    for row in ("consolidated", "naive", "svr-paper", "tiles", "all"):
        graph, _ = wired(row, size="64x64", steps=1)
        outputs = server.run(graph)
        assert len(images(outputs, ["frames"])) == 2 and len(images(outputs, ["board picture"])) == 1


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return vision.write_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def papers_run(finished, clip_folder, tmp_path_factory):
    """The same run measured as the paper does it, with masks of half of every frame; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("papers")
    out, masks = shutil.copytree(finished[0], folder / "out"), folder / "masks"
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 32))
    for frame in out.glob("*/*/frame_*.png"):
        file = masks / frame.relative_to(out)
        file.parent.mkdir(parents=True, exist_ok=True)
        mask.save(file)
    done = run_quality(*finished[1].args[2:], "--out", out, "--clip", clip_folder, "--masks", masks)
    assert done.returncode == 0, done.stderr
    return out, done


@torch.inference_mode()
def test_clip_t_and_clip_i_are_the_papers(papers_run, clip_folder):
    """Against the model's own parts: one text and one picture at a time, and the formula in float64."""
    from transformers import CLIPModel, CLIPProcessor

    out, done = papers_run
    assert "| CLIP-T ↑ | CLIP-I ↑ | scene diversity ↑ | told apart ↑ |" in done.stdout
    assert "CLIP-T is left out" not in done.stderr and "whole pictures" not in done.stderr

    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)

    def unit(vector):
        return vector.flatten().double() / vector.flatten().double().norm()

    def look(picture):
        pixels = processor.image_processor(picture, return_tensors="pt")
        return unit(model.visual_projection(model.vision_model(**pixels).pooler_output))

    prompts = ["a linocut of a grey owl reading a map", "a linocut of a grey owl flying <far> over a lake"]
    texts, pictures, alone, empty = [], [], [], []
    for number, prompt in enumerate(prompts, 1):
        words = processor.tokenizer(f"A photo depicts {prompt}", return_tensors="pt")
        texts.append(unit(model.text_projection(model.text_model(**words).pooler_output)))
        frame = np.array(Image.open(out / f"000_Owl_map/ipca-42/frame_{number:02}.png").convert("RGB"))
        pictures.append(look(Image.fromarray(frame)))
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        alone.append(look(Image.fromarray(np.concatenate([frame[:32], noise[32:]]))))
        mean = np.broadcast_to(frame[32:].astype(np.float64).mean((0, 1)).round(), (32, 64, 3)).astype(np.uint8)
        empty.append(look(Image.fromarray(np.concatenate([mean, frame[32:]]))))
    result = json.loads((out / "000_Owl_map/ipca-42/result.json").read_text())
    wanted = [2.5 * max(0.0, float(t @ p)) for t, p in zip(texts, pictures)]
    nearest = [max(range(2), key=lambda k: float(texts[k] @ picture)) for picture in pictures]
    assert result["clip"]["clip_t"] == pytest.approx(wanted, abs=1e-5) and max(wanted) > 0.01
    assert result["clip"]["told_apart"] == fmean(k == n for n, k in enumerate(nearest))
    assert result["clip_image"]["clip_i"] == pytest.approx(float(alone[0] @ alone[1]), abs=1e-5)
    assert result["clip_image"]["scenes"] == pytest.approx(1 - float(empty[0] @ empty[1]), abs=1e-5)
    told = json.loads((out / "results.json").read_text())
    (row,) = (row for row in told["table"] if row["row"] == "ipca")
    every = [json.loads((out / f"{s}/ipca-42/result.json").read_text())["clip"] for s in ("000_Owl_map", "001_Robot")]
    assert row["values"]["clip_t"]["mean"] == pytest.approx(fmean(fmean(each["clip_t"]) for each in every))


def test_the_page_has_the_plane_the_maps_and_the_papers_table(papers_run):
    out, _ = papers_run
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3 and not re.search(r'src="(?!data:)', page)
    for file in ("plane.png", "prompts.png", "frames.png"):
        assert min(Image.open(out / file).size) > 300
    row = next(line for line in page.splitlines() if "1Prompt1Story</td>" in line)
    mean = next(r for r in json.loads((out / "results.json").read_text())["table"] if r["row"] == "ipca")["values"]
    assert re.findall("<td>(.*?)</td>", row) == [
        "1Prompt1Story", "SVR + IPCA", "0.8942", f"{mean['clip_t']['mean']:.4f}", "0.9117",
        f"{mean['clip_i']['mean']:.4f}",
    ]  # fmt: skip
    for said in ("here 2 of two.yaml with 4", "here 64x64 in 1", "here by ViT-32/8", "with CarveKit", "/masks"):
        assert said in page


def test_what_is_measured_is_not_measured_again_but_by_other_masks_it_is(papers_run, finished):
    out, _ = papers_run
    stories = read_stories(finished[0].parent / "two.yaml")
    jobs = jobs_of(out, stories, TWO, (42,))
    result = json_of(jobs[0])
    clip_, source = Path(result["clip"]["model"]), result["clip_image"]["masks"]
    same = masks.Masks(source, lambda job: Path(source) / job.folder.relative_to(out))
    plans = [measures.plan(kind, clip_, stories, jobs, same) for kind in ("clip_image", "features")]
    plans += [measures.plan("clip", clip_, stories, jobs), measures.plan_texts(clip_, stories, jobs)]
    assert [plan.tasks for plan in plans] == [[]] * 4
    assert len(measures.plan("clip_image", clip_, stories, jobs).tasks) == 4
    other = masks.Masks("another", same.folder)
    assert len(measures.plan("features", clip_, stories, jobs, other).tasks) == 4
    nowhere = masks.from_folder(out / "nowhere", out)
    with pytest.raises(Failure, match="There is no mask .*nowhere/000_Owl_map/separate-42/frame_01.png: --masks needs"):
        measures.plan("clip_image", clip_, stories, jobs, nowhere)


def test_a_remover_of_the_servers_gets_every_frame_and_its_masks_are_kept(finished, server, tmp_path, monkeypatch):
    """ComfyUI's remover needs a real model of a gigabyte; a mask of the red channel stands in its place."""
    graph_ = masks.removal_graph("birefnet.safetensors", ["a.png", "b.png"])
    for kind in (masks.LOADER, masks.REMOVER):
        known = server.get(f"/object_info/{kind}")[kind]["input"]["required"]
        assert all(node["inputs"].keys() == known.keys() for node in graph_.values() if node["class_type"] == kind)

    def stand_in(name, frames):
        graph = graph_of(name, frames)
        return {
            key: pair_graphs.node("ImageToMask", image=node["inputs"]["image"], channel="red")
            if node["class_type"] == masks.REMOVER
            else node
            for key, node in graph.items()
            if key != "model"
        }

    graph_of = masks.removal_graph
    monkeypatch.setattr(masks, "removal_graph", stand_in)
    out = shutil.copytree(finished[0], tmp_path / "out")
    jobs = jobs_of(out, read_stories(finished[0].parent / "two.yaml"), ("ipca",), (42,))
    made = masks.by_servers([server], "my remover.safetensors", jobs)
    for job in jobs:
        for frame, path in zip(masks.frames_of(job), made.of(job), strict=True):
            assert Path(path) == job.folder / "masks_my_remover" / frame.name
            red = np.asarray(Image.open(frame).convert("RGB"))[..., 0]
            assert np.abs(np.asarray(Image.open(path).convert("L")).astype(int) - red).max() <= 1
    monkeypatch.setattr(masks, "make", lambda *_: pytest.fail("they are there already"))
    assert masks.by_servers([server], "my remover.safetensors", jobs).of(jobs[0]) == made.of(jobs[0])


def test_a_remover_that_is_not_there_is_told_with_where_to_get_one(server):
    with pytest.raises(Failure, match="has no background-removal model birefnet.safetensors: .*Comfy-Org/BiRefNet"):
        masks.check_remover(server, "birefnet.safetensors")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dinov2", "/no/such"], "There is no DINOv2 model in /no/such: .*https://huggingface.co/facebook/dinov2-b"),
        (["--clip-image", "/no/such"], "There is no CLIP model in /no/such: .*openai/clip-vit-base-patch16"),
        (["--masks", "/no/such"], "There is no folder of masks /no/such: name one with --masks"),
        (["--masks", "/", "--remover", "a"], "--masks and --remover exclude each other"),
    ],
)
def test_what_measures_is_checked_before_anything_is_made(arguments, sentence):
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    given = ["--server", "http://127.0.0.1:1", "--checkpoint", "a", "--stories", "b.yaml", *arguments]
    with pytest.raises(Failure, match=sentence):
        quality.run(parser.parse_args(given))


def test_a_folder_without_weights_is_refused_before_anything_is_made(fast, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "There is no CLIP model in" in one_sentence(run_quality(*fast, "separate", "--clip", tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_is_one_reason_and_what_was_measured_is_kept(finished, tmp_path, monkeypatch):
    script = tmp_path / "measure.py"
    script.write_text("""import json, sys
json.load(sys.stdin)
print(json.dumps({"clip_t": [0.5, 0.7], "told_apart": 0.5}), flush=True)
sys.exit("Traceback\\nValueError: it is no CLIP.")
""")
    monkeypatch.setattr(measures, "SCRIPT", script)
    out = shutil.copytree(finished[0], tmp_path / "out")
    stories = read_stories(finished[0].parent / "two.yaml")
    jobs = jobs_of(out, stories, ("ipca",), (42,))
    with pytest.raises(Failure, match=f"not be measured with {tmp_path}: ValueError: it is no CLIP.$"):
        measures.carry_out(Path(sys.executable), None, [measures.plan("clip", tmp_path, stories, jobs)])
    kept = [json_of(job).get("clip") for job in jobs]
    assert kept == [{"model": str(tmp_path), "clip_t": [0.5, 0.7], "told_apart": 0.5}, None]
    assert measures.plan("clip", tmp_path, stories, jobs).tasks[0]["prompts"] == [
        "a small robot watering a plant",
        "a small robot painting",
    ]


PACKAGE = '''
"""Stands for the dreamsim package, by what its README says of `dreamsim()`; the distance is that of mean colours."""
import torch

def dreamsim(pretrained=True, device="cuda", cache_dir="./models"):
    from pathlib import Path
    if not (Path(cache_dir) / "weights").exists():
        torch.hub.download_url_to_file("https://example.com/weights", str(Path(cache_dir) / "weights"))
    def preprocess(image):
        return torch.tensor(list(image.resize((1, 1)).getdata())[0]).float()[None]
    return (lambda a, b: (a - b).abs().mean(-1)), preprocess
'''


def test_dreamsim_is_measured_where_its_package_and_weights_are(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "dreamsim.py").write_text(PACKAGE)
    weights = tmp_path / "weights"
    weights.mkdir()
    given = [*finished[1].args[2:], "--out", out, "--dreamsim", weights]
    done = run_quality(*given, PYTHONPATH=str(tmp_path / "packages"))
    assert done.returncode == 0, done.stderr
    assert f"DreamSim is left out: its weights are not in {weights}" in done.stderr
    (weights / "weights").touch()
    done = run_quality(*given, PYTHONPATH=str(tmp_path / "packages"))
    assert done.returncode == 0 and "| DreamSim ↓ |" in done.stdout
    folder = out / "001_Robot/separate-42"
    colours = [
        torch.tensor(Image.open(folder / f"frame_{i:02}.png").convert("RGB").resize((1, 1)).getpixel((0, 0))).float()
        for i in (1, 2)
    ]
    wanted = float((colours[0] - colours[1]).abs().mean())
    assert json.loads((folder / "result.json").read_text())["dreamsim"]["dreamsim"] == pytest.approx(wanted)


def test_a_tables_means_are_over_stories_and_the_best_row_is_bold():
    def board(story, row, seed, value):
        return {"story": story, "row": row, "seed": seed, "measures": {"dreamsim": value, "seconds": 1.0}}

    found = {
        "measures": ["dreamsim", "seconds"],
        "settings": {"clip-vision": None},
        "table": [
            {"row": name, "title": name, **report.row_of(boards_, ["dreamsim", "seconds"])}
            for name, boards_ in (
                ("a", [board(0, "a", 1, 0.2), board(0, "a", 2, 0.4), board(1, "a", 1, 0.7)]),
                ("b", [board(0, "b", 1, 0.1)]),
            )
        ],
    }
    value = found["table"][0]["values"]["dreamsim"]
    assert value == {"mean": pytest.approx(0.5), "error": pytest.approx(0.2), "stories": 2}
    assert report.best_of(found) == {"dreamsim": "b"}
    assert report.cells(found)[1:] == [["a", "3", "0.5000 ± 0.2000", "1.0 ± 0.0"], ["b", "1", "0.1000", "1.0"]]


# --- Story Metrics on the server --------------------------------------------------------------------------------------


def test_the_servers_vision_model_measures_the_frames(fast, tmp_path):
    done = run_quality(*fast, "separate", "--limit", 1, "--clip-vision", "clip.pt")
    assert done.returncode == 0, done.stderr
    similarity = json.loads((tmp_path / "out/000_Owl_map/separate-42/result.json").read_text())["similarity"]
    assert 0 < similarity < 1 and f"| {similarity:.4f} |" in done.stdout
    assert "by Story Metrics on the servers with clip.pt" in (tmp_path / "out" / "report.html").read_text()


def test_the_node_answers_through_the_server(server):
    picture = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 255}}
    loader = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "clip.pt"}}
    metrics = {"class_type": "OneStoryMetrics", "inputs": {"images": ["picture", 0], "clip_vision": ["loader", 0]}}
    with pytest.raises(WorkflowError) as error:
        server.run({"picture": picture, "loader": loader, "metrics": metrics})
    assert error.value.node_id == "metrics"
    assert error.value.message == "Story Metrics has one frame only: wire two or more into `images`, as one batch."
