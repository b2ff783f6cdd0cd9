"""`run.py bench quality --server` as its user runs it, on a real server; and Story Metrics there, with CLIP by file."""

import argparse
import json
import os
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

import pytest
import torch
from command_line import run_here
from conftest import COMFYUI
from onestory.bench.quality import command as quality
from onestory.bench.quality import graphs, measures, pair_graphs, report
from onestory.bench.quality.boards import maker
from onestory.bench.quality.graphs import PAIR_ROWS, ROWS
from onestory.bench.quality.jobs import jobs_of, json_of
from onestory.nodes.attention_view import OneStoryAttentionRecorder
from onestory.nodes.regions import OneStoryRegions
from onestory.nodes.reweight import OneStoryNaiveReweight
from onestory.nodes.self_attention import OneStorySelfAttention
from onestory.story.files import StoryText, read_stories
from onestory.tools import host, pool
from onestory.tools.client import Client, WorkflowError, images
from onestory.tools.failure import Failure
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
    assert "CLIP-T is left out: --clip names no CLIP model." in lines
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
    given = done.args[4:]
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
    failed = run_quality(*done.args[4:], "--stories", tmp_path / "two.yaml")
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
    ],
)
def test_stories_of_two_have_rows_of_their_own(arguments, sentence):
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
    """A tiny random CLIP as transformers saves it, with CLIP's own vocabulary."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)  # its pictures and texts look in one direction, so that CLIP-T is not 0
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=dict(small, bos_token_id=49406, eos_token_id=49407),
        vision_config=dict(small, image_size=32, patch_size=8),
        projection_dim=16,
        initializer_factor=8.0,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(COMFYUI / "comfy" / "sd1_tokenizer")
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


@torch.inference_mode()
def test_clip_t_and_clip_i_are_the_papers(finished, clip_folder, tmp_path):
    """Against the model's own parts: one text and one picture at a time, and the formula in float64."""
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    out = shutil.copytree(finished[0], tmp_path / "out")
    done = run_quality(*finished[1].args[4:], "--out", out, "--clip", clip_folder)
    assert done.returncode == 0, done.stderr
    assert "| CLIP-T ↑ | CLIP-I ↑ |" in done.stdout and "CLIP-T is left out" not in done.stderr

    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)

    def unit(vector):
        return vector.flatten().double() / vector.flatten().double().norm()

    prompts = ["a linocut of a grey owl reading a map", "a linocut of a grey owl flying <far> over a lake"]
    texts, pictures = [], []
    for number, prompt in enumerate(prompts, 1):
        words = processor.tokenizer(f"A photo depicts {prompt}", return_tensors="pt")
        texts.append(unit(model.text_projection(model.text_model(**words).pooler_output)))
        frame = Image.open(out / f"000_Owl_map/ipca-42/frame_{number:02}.png")
        pixels = processor.image_processor(frame, return_tensors="pt")
        pictures.append(unit(model.visual_projection(model.vision_model(**pixels).pooler_output)))
    found = json.loads((out / "000_Owl_map/ipca-42/result.json").read_text())["clip"]
    wanted = [2.5 * max(0.0, float(t @ p)) for t, p in zip(texts, pictures)]
    assert found["clip_t"] == pytest.approx(wanted, abs=1e-5) and max(wanted) > 0.01
    assert found["clip_i"] == pytest.approx(float(pictures[0] @ pictures[1]), abs=1e-5)
    told = json.loads((out / "results.json").read_text())
    (row,) = (row for row in told["table"] if row["row"] == "ipca")
    every = [json.loads((out / f"{s}/ipca-42/result.json").read_text())["clip"] for s in ("000_Owl_map", "001_Robot")]
    assert row["values"]["clip_t"]["mean"] == pytest.approx(fmean(fmean(each["clip_t"]) for each in every))


def test_a_folder_without_weights_is_refused_before_anything_is_made(fast, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "There is no CLIP model in" in one_sentence(run_quality(*fast, "separate", "--clip", tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_is_one_reason_and_what_was_measured_is_kept(finished, tmp_path, monkeypatch):
    script = tmp_path / "measure.py"
    script.write_text("""import json, sys
json.load(sys.stdin)
print(json.dumps({"clip_t": [0.5, 0.7], "clip_i": 0.9}), flush=True)
sys.exit("Traceback\\nValueError: it is no CLIP.")
""")
    monkeypatch.setattr(measures, "SCRIPT", script)
    out = shutil.copytree(finished[0], tmp_path / "out")
    stories = read_stories(finished[0].parent / "two.yaml")
    jobs = jobs_of(out, stories, ("ipca",), (42,))
    with pytest.raises(Failure, match=f"not be measured with {tmp_path}: ValueError: it is no CLIP.$"):
        measures.add_measures(Path(sys.executable), "clip", tmp_path, None, stories, jobs)
    kept = [json_of(job).get("clip") for job in jobs]
    assert kept == [{"model": str(tmp_path), "clip_t": [0.5, 0.7], "clip_i": 0.9}, None]


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
    from PIL import Image

    out = shutil.copytree(finished[0], tmp_path / "out")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "dreamsim.py").write_text(PACKAGE)
    weights = tmp_path / "weights"
    weights.mkdir()
    given = [*finished[1].args[4:], "--out", out, "--dreamsim", weights]
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
