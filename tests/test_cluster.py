"""`run.py make --ray`: a Ray that is started here, whose actors have a ComfyUI each, and its parts without one."""

import json
import os
import signal
import subprocess
import sys
import uuid
from types import SimpleNamespace

import psutil
import pytest
from conftest import COMFYUI
from onestory.bench.actors import command as bench_actors
from onestory.tools import environment, host, make, pool
from onestory.tools.client import WorkflowError
from onestory.tools.failure import Failure
from PIL import Image, ImageChops, ImageStat
from test_demo import one_sentence, wait_for
from test_quality_servers import Proxy

ray = pytest.importorskip("ray", reason="Ray has no package for this Python: --ray is not tested")

from onestory.tools import cluster, ray_actor  # noqa: E402

WHO = ("a fox with a scarf", "a cat with a hat")
WHERE = ("in the forest", "in the city", "on the beach", "in the library", "on the moon")


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """A file of ten stories of the Story World."""
    file = tmp_path_factory.mktemp("stories") / "ten.json"
    stories = [
        {"title": f"{who} {where}", "identity": who, "frames": [where, "in the kitchen"]}
        for who in WHO
        for where in WHERE
    ]
    file.write_text(json.dumps({"stories": stories}))
    return file


def command(*words: object) -> list[str]:
    return [sys.executable, str(host.ROOT / "run.py"), "make", *map(str, words), "--size", "64x64", "--steps", "1"]


def results(out):
    return sorted(out.glob("*/*/result.json"))


def alive(mark: str) -> list[psutil.Process]:
    """The processes that a command left, by a variable of its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ONESTORY_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


@pytest.fixture(scope="module")
def by_ray(ten, tmp_path_factory):
    """The folder of a run with two actors, of which one is killed while it draws, after two stories."""
    mark, out = uuid.uuid4().hex, tmp_path_factory.mktemp("ray") / "out"
    words = command(ten, "--ray", "--actors", 2, "--cpus", 1, "--out", out)
    given = {**os.environ, "COMFYUI_PATH": str(COMFYUI), "ONESTORY_TEST": mark}
    run = subprocess.Popen(words, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(results(out)) >= 2 or run.poll() is not None, 240)
        drawing: list[psutil.Process] = []  # Ray calls a process by what it does; the other actor may still be starting
        wait_for(
            lambda: (
                drawing.extend(each for each in alive(mark) if each.name().startswith("ray::Station.d"))
                or drawing
                or run.poll() is not None
            )
        )
        drawing[0].send_signal(signal.SIGKILL)
        left = 10 - len(results(out))
        printed, said = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == 0 and left >= 4, said
    assert printed.splitlines() == [str(out / "index.html")]
    assert said.count(" goes back into the queue, and actor ") == 1, said
    assert_each_is_drawn_once(said, "actor ")
    wait_for(lambda: not alive(mark), 60)
    return out


def assert_each_is_drawn_once(said: str, place: str) -> None:
    for who in WHO:
        for where in WHERE:
            assert said.count(f"{who} {where} (the workflow's seed) is done at {place}") == 1, said


def test_ten_stories_are_drawn_once_each_although_an_actor_is_killed_which_leaves_no_process(by_ray):
    for result in results(by_ray):
        kept = json.loads(result.read_text())
        assert kept["files"] == ["frame_01.png", "frame_02.png", "board_01.png"] and kept["seconds"] > 0
        assert kept["server"].startswith("actor ")
        assert all(Image.open(result.parent / name).size == (64, 64) for name in kept["files"][:2])
    assert len(results(by_ray)) == 10 and (by_ray / "index.html").read_text().count("<img ") == 30


def test_servers_of_which_one_is_lost_draw_the_same_ten_stories(ten, by_ray, server, tmp_path):
    name = host.world_checkpoint(host.Host(COMFYUI, sys.executable)).name
    same = ["OneStoryBoard.page_width=1280", "CLIPTextEncode.text="]  # what else suits the Story World
    out, lost = tmp_path / "out", Proxy(server)
    lost.spoil = lambda request: "reset" if sum(seen.startswith("POST /prompt") for seen in lost.seen) > 3 else ""
    servers = ("--server", lost.url, "--server", server.url)
    words = command(ten, *servers, "--checkpoint", name, "--set", *same, "--out", out)
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    lost.listener.close()
    assert done.returncode == 0 and done.stderr.count(" goes back into the queue, and ") == 1, done.stderr
    assert_each_is_drawn_once(done.stderr, "http://")
    places = [[file.parent.relative_to(folder) for file in results(folder)] for folder in (out, by_ray)]
    assert places[0] == places[1]
    for place in places[0]:
        here, there = (json.loads((folder / place / "result.json").read_text()) for folder in (out, by_ray))
        assert here["files"] == there["files"] and here["text"] == there["text"]
        for picture in here["files"]:
            pair = [Image.open(folder / place / picture).convert("RGB") for folder in (out, by_ray)]
            assert max(ImageStat.Stat(ImageChops.difference(*pair)).mean) < 1  # of 255: threads round differently


# --- the queue --------------------------------------------------------------------------------------------------------


class Work:
    """A work that a fake actor makes in no time."""

    what, made = "", False

    def __init__(self, title: str):
        self.title, self.kept = title, 0

    def graph(self):
        return {"title": self.title}

    def keep(self, server, outputs, seconds):
        self.kept += 1


class Fake:
    """An actor that is started `late` checks after the first, and ends when it draws “deadly”."""

    def __init__(self, late: int = 0):
        self.url, self.late, self.drawn = f"actor {late}", late, []

    def check(self):
        self.late -= 1
        if self.late >= 0:
            raise Failure("It has not started yet.")

    def run(self, graph, progress=None):
        assert self.late < 0, "nothing is to be drawn before the actor is ready"
        self.drawn.append(graph["title"])
        if graph["title"] == "deadly":
            raise pool.Lost("The actor ended.")
        if graph["title"] == "refused":
            raise WorkflowError("no")
        return {}


def make_all(fakes, *titles, patience=600):
    works = [Work(title) for title in titles]
    maker = pool.Maker(fakes, [[work] for work in works], Fake.check, patience=patience, started=False)
    return works, maker.run()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.01)


def test_a_work_that_ends_its_actors_is_given_up_and_one_that_is_refused_is_not_tried_again(quick, capsys):
    fakes = [Fake(), Fake()]
    works, errors = make_all(fakes, "a", "deadly", "b", "refused", "c")
    drawn = sorted(fakes[0].drawn + fakes[1].drawn)
    assert drawn == ["a", "b", "c", *["deadly"] * pool.LOSSES, "refused"]
    assert [work.kept for work in works] == [1, 0, 1, 0, 1]
    assert errors == {works[1]: "deadly: The actor ended. So ended 3 attempts.", works[3]: "refused: no"}
    assert "The actor ended. “deadly” goes back into the queue, and actor 0 is tried again." in capsys.readouterr().err


def test_actors_that_are_still_starting_are_neither_given_work_nor_waited_for(quick, capsys):
    late, early = Fake(late=10**6), Fake()
    works, errors = make_all([late, early], "a", "b", "c", patience=0.001)
    assert not errors and early.drawn == ["a", "b", "c"] and not late.drawn
    works, errors = make_all([Fake(late=3)], "a")
    assert not errors and works[0].kept == 1 and "works again" not in capsys.readouterr().err


# --- the actor and its station ----------------------------------------------------------------------------------------

STATION = """
import json, sys
if {fail!r}:
    sys.exit("No ComfyUI here.")
print(json.dumps({{"defaults": {{"checkpoint": "x"}}}}), flush=True)
for line in sys.stdin:
    story = json.loads(line)
    if story == "deadly":
        sys.exit("Killed.")
    answer = {{"refused": "no"}} if story == "bad" else {{"outputs": {{}}, "files": [{{"path": {file!r}}}]}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def station(tmp_path):
    """Makes the inside of an actor, whose station draws a file that is there."""

    def station(fail=False):
        file = tmp_path / "drawn.png"
        file.write_bytes(b"drawn")
        made = ray_actor.Station([])
        made.command = [sys.executable, "-c", STATION.format(fail=fail, file=str(file))]
        return made

    return station


def test_an_actor_starts_its_station_again_once_it_ended(station):
    actor = station()
    assert actor.draw("good") == ({"lost": "Ray started the actor again"}, [])
    for _ in range(2):
        assert actor.ready()[1] == {"defaults": {"checkpoint": "x"}} == actor.ready()[1]
        assert actor.draw("good")[1] == [b"drawn"]
        assert actor.draw("bad") == ({"refused": "no"}, [])
        assert actor.draw("good")[1] == [b"drawn"]
        assert actor.draw("deadly") == ({"lost": "Killed."}, [])
    assert station(fail=True).ready()[1] == {"failure": "No ComfyUI here."}


def test_a_checkpoint_arrives_in_pieces_and_is_there_once_whole(station, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_actor, "CHECKPOINTS", tmp_path / "checkpoints")
    actor, content = station(), bytes(range(250))
    for at in range(0, 250, 100):
        assert not actor.has("x.safetensors", 250)
        actor.receive("x.safetensors", at, content[at : at + 100], 250)
    assert actor.has("x.safetensors", 250) and not actor.has("x.safetensors", 251)
    assert [file.read_bytes() for file in (tmp_path / "checkpoints").iterdir()] == [content]


@pytest.fixture
def handle_of(monkeypatch):
    """Makes what stands for an actor's handle of some functions, which are called here and done at once."""
    monkeypatch.setattr(ray, "wait", lambda refs, **_: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: ref)

    def handle_of(**calls):
        return SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})

    return handle_of


def test_a_checkpoint_is_sent_where_it_is_missing_and_once_for_a_machine(handle_of, tmp_path, monkeypatch, capsys):
    """Both actors looked for the file before one of them got it."""
    monkeypatch.setattr(cluster, "PIECE", 100)
    monkeypatch.setattr(ray_actor, "CHECKPOINTS", tmp_path / "there")
    file = tmp_path / "x.safetensors"
    file.write_bytes(bytes(range(250)))

    def actor(number, *sends):
        inside, answers = ray_actor.Station([]), iter([{"missing": "There is no checkpoint."}, {"defaults": {}}])
        handle = handle_of(ready=lambda: ("gpu2", next(answers)), has=inside.has, receive=inside.receive)
        return cluster.Actor(number, handle, *sends)

    assert actor(1, file).ready() == {} == actor(2, file).ready()
    assert (tmp_path / "there" / file.name).read_bytes() == file.read_bytes()
    assert capsys.readouterr().err.count("Sending x.safetensors (0.0 GB) to gpu2 ...") == 1
    with pytest.raises(Failure, match="^actor 3 on gpu2 has no ComfyUI: There is no checkpoint.$"):
        actor(3).ready()


@pytest.mark.parametrize(
    ("machines", "actors", "cpus", "expected"),
    [
        (
            [{"CPU": 8, "GPU": 2}, {"CPU": 4}, {"CPU": 8, "GPU": 1}],
            None,
            None,
            (3, {"num_gpus": 1, "num_cpus": 0}, None),
        ),
        ([{"CPU": 8, "GPU": 2}], 5, None, (5, {"num_gpus": 1, "num_cpus": 0}, None)),
        ([{"CPU": 8, "GPU": 2}], None, 4, (2, {"num_cpus": 4}, 4)),
        ([{"CPU": 8}, {"CPU": 4}, {}], None, None, (3, {"num_cpus": 4}, 4)),
        ([{"CPU": 8}], None, 9, "--cpus 9: no machine of this Ray has so many cores, 8 at most."),
        ([{}], None, None, "No machine of this Ray has a GPU or a CPU core to give"),
    ],
)
def test_there_is_an_actor_for_each_gpu_or_for_so_many_cores(monkeypatch, machines, actors, cpus, expected):
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}])
    if isinstance(expected, str):
        with pytest.raises(Failure, match=expected):
            cluster.places(actors, cpus)
    else:
        assert cluster.places(actors, cpus) == expected


def test_bench_actors_draws_with_sleepers_and_says_how_busy_they_were(handle_of):
    sleeper = bench_actors.Sleeper(0.01, 5000)
    handle = handle_of(ready=sleeper.ready, draw=sleeper.draw)
    one = bench_actors.measure([cluster.Actor(number, handle) for number in (1, 2)], 0.01, 7)
    assert (one.actors, one.drawings, one.ideal, one.megabytes) == (2, 7, 0.04, 0.005) and one.seconds >= 0.04
    row = bench_actors.table([one._replace(seconds=0.08, driver=0.014)]).splitlines()[-1]
    assert row == "| 2 | 0.01 s, 0.005 MB | 7 | 0.04 s | 0.1 s | 50% | 87.5 | 2 ms |"


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--server", "http://127.0.0.1:1", "--ray"], "--server and --ray exclude each other"),
        (["--actors", "2"], "--actors is for --ray: add that, or leave --actors out."),
        (["--cpus", "2", "--server", "http://127.0.0.1:1"], "--cpus is for --ray: add that"),
        (["--ray", "127.0.0.1:1"], "No Ray answers at --ray 127.0.0.1:1: "),
    ],
)
def test_what_does_not_go_together_is_a_sentence(ten, tmp_path, words, said):
    done = subprocess.run(command(ten, *words, "--out", tmp_path / "out"), capture_output=True, text=True, timeout=100)
    assert said in one_sentence(done)


def test_without_ray_and_without_an_index_one_sentence_says_what_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "HOST", tmp_path)
    monkeypatch.setattr(
        environment, "make", lambda venv, held: environment.venv_python(venv).parent.mkdir(parents=True)
    )
    monkeypatch.setattr(environment, "install", lambda *_: False)
    with pytest.raises(Failure, match="^The packages of requirements-ray.txt could not be installed"):
        make.ray_engine("local")
