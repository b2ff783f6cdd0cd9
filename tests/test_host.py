"""Finding, setting up, linking and running a ComfyUI. Whatever would need the network is faked; processes are real."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from onestory.tools import environment, host
from onestory.tools.failure import Failure

FAKE_SERVER = """
import argparse, http.server, os, pathlib, subprocess, sys
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
port = parser.parse_known_args()[0].port
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids").write_text(f"{os.getpid()} {child.pid}")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def make_comfyui(folder: Path, main: str = "", python: bool = True) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(main)
    if python:
        path = host.venv_python(folder / "venv")
        path.parent.mkdir(parents=True)
        path.touch()
    return folder.resolve()


def make_archive(path: Path, *members: tarfile.TarInfo | str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = 0 if info.type != tarfile.REGTYPE else 4
            tar.addfile(info, io.BytesIO(b"text"))
    return path


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


def test_the_option_comes_before_the_variable_before_the_packs_own_place(no_variable, tmp_path, monkeypatch):
    option, variable, around = (make_comfyui(tmp_path / name) for name in ("option", "variable", "around"))
    pack = around / "custom_nodes" / "pack"
    assert host.find(root=pack).comfyui == around
    monkeypatch.setenv("COMFYUI_PATH", str(variable))
    assert host.find(root=pack).comfyui == variable
    assert host.find(str(option), root=pack).comfyui == option


def test_without_a_comfyui_nothing_is_found(no_variable, tmp_path):
    assert host.find(root=tmp_path / "somewhere" / "pack") is None
    assert host.find(root=tmp_path / "custom_nodes" / "pack") is None


def test_a_folder_without_a_comfyui_is_an_error_that_names_it(no_variable, tmp_path):
    with pytest.raises(Failure, match="--comfyui: there is no ComfyUI in .*main.py"):
        host.find(str(tmp_path))


def test_a_comfyui_runs_in_its_own_environment_or_in_a_python_that_has_torch(tmp_path, monkeypatch):
    assert host.find_python(make_comfyui(tmp_path / "a")) == host.venv_python(tmp_path / "a" / "venv")
    bare = make_comfyui(tmp_path / "b", python=False)
    assert host.find_python(bare) == Path(sys.executable)
    monkeypatch.setattr(host, "has_modules", lambda python, *names: False)
    with pytest.raises(Failure, match="Run this command with the Python that starts that ComfyUI"):
        host.find_python(bare)


def test_a_comfyui_that_was_set_up_here_is_known_with_its_environment(no_variable, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "HOST", tmp_path / ".host")
    monkeypatch.setattr(host, "has_modules", lambda python, *names: False)
    own = make_comfyui(host.HOST / "ComfyUI", python=False)
    python = host.venv_python(host.HOST / "venv")
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(Failure, match="was not finished: the same command without naming it finishes it"):
        host.find(str(own))
    (host.HOST / "venv" / host.STAMP).touch()
    assert host.find(str(own)) == host.Host(own, host.HOST.resolve() / "venv" / python.relative_to(host.HOST / "venv"))
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    assert host.is_own(host.find())


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """The Story World's checkpoint as if it had been expanded, and our own ComfyUI."""
    monkeypatch.setattr(host, "HOST", tmp_path / ".host")
    file = host.HOST / "models" / "checkpoints" / host.WORLD_CHECKPOINT
    file.parent.mkdir(parents=True)
    file.write_bytes(b"first weights")
    monkeypatch.setattr(host, "written", lambda *_: [file])
    return file


def test_the_worlds_adapter_and_what_it_reads_stand_among_our_own_editors_models(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "HOST", tmp_path / ".host")
    monkeypatch.setattr(host, "WORLD_ADAPTER", host.ROOT / "missing.safetensors")
    own = host.Host(make_comfyui(host.HOST / "ComfyUI"), Path(sys.executable))
    with pytest.raises(Failure, match="There is no missing.safetensors: docs/story-world.md says how to train it."):
        host.world_adapter(own, host.HOST)
    monkeypatch.setattr(host, "WORLD_ADAPTER", Path(__file__))

    def write(command, **_):
        for path in command[3:]:
            path.write_text(path.parent.name)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(host.subprocess, "run", write)
    found = host.world_adapter(own, host.HOST)
    assert found == [own.comfyui / "models" / name for name in host.WORLD_ADAPTER_FILES]
    assert [path.read_text() for path in found] == ["ipadapter", "clip_vision"]
    monkeypatch.setattr(host.subprocess, "run", refuse)
    assert host.world_adapter(own, host.HOST) == found


def refuse(*_, **__) -> None:
    raise OSError("no hard links here")


@pytest.mark.parametrize("links", [True, False])
def test_our_own_editor_gets_the_worlds_checkpoint_and_its_next_version(world, monkeypatch, links):
    if not links:
        monkeypatch.setattr(host.os, "link", refuse)
    own = host.Host(make_comfyui(host.HOST / "ComfyUI"), Path(sys.executable))
    listed = host.world_checkpoint(own)
    assert listed == own.comfyui / "models" / "checkpoints" / world.name
    assert listed.read_bytes() == b"first weights" and listed.samefile(world) == links
    new = world.with_suffix(".new")
    new.write_bytes(b"other weights")
    new.replace(world)
    assert host.world_checkpoint(own).read_bytes() == b"other weights"
    assert [path.name for path in listed.parent.iterdir()] == [world.name]


def test_a_copy_that_was_stopped_is_not_listed_and_made_again(world, monkeypatch):
    def stop(source, target):
        Path(target).write_bytes(b"first")
        raise KeyboardInterrupt

    own = host.Host(make_comfyui(host.HOST / "ComfyUI"), Path(sys.executable))
    with monkeypatch.context() as patch:
        patch.setattr(host.os, "link", refuse)
        patch.setattr(host.shutil, "copy2", stop)
        with pytest.raises(KeyboardInterrupt):
            host.world_checkpoint(own)
    folder = own.comfyui / "models" / "checkpoints"
    assert not list(folder.glob("*.safetensors"))
    assert host.world_checkpoint(own).read_bytes() == b"first weights"
    assert [path.name for path in folder.iterdir()] == [world.name]


def test_a_users_models_are_left_alone_and_a_link_into_their_nodes_is_said(world, tmp_path, capsys):
    theirs = host.Host(make_comfyui(tmp_path / "theirs"), Path(sys.executable))
    assert host.world_checkpoint(theirs) == world
    assert not (theirs.comfyui / "models").exists()
    host.link_pack(theirs, tmp_path)
    host.link_pack(theirs, tmp_path)
    link = theirs.comfyui / "custom_nodes" / "onestory"
    assert capsys.readouterr().err == f"This ComfyUI has the pack now, by the link {link}.\n"


def test_only_the_vendored_comfyui_is_extracted(tmp_path):
    names = ("a/README", "a/vendor/ComfyUI/main.py", "a/vendor/ComfyUI/comfy/x.py", "a/vendor/ComfyUI2/main.py")
    host.extract(make_archive(tmp_path / "a.tar.gz", *names), "a/vendor/ComfyUI", tmp_path / "out")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.py"))
    assert files == ["comfy/x.py", "main.py"]


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        "p/../../escaped",
        "p//escaped/../../../escaped",
        link("p/link", "../../escaped", tarfile.SYMTYPE),
        link("p/link", "a/README", tarfile.LNKTYPE),
    ],
    ids=["parent", "deep parent", "symbolic link", "hard link"],
)
def test_an_archive_that_leads_elsewhere_is_refused(tmp_path, member):
    with pytest.raises(Failure, match="no plain file inside it"):
        host.extract(make_archive(tmp_path / "a.tar.gz", member), "p", tmp_path / "out")
    assert not (tmp_path / "escaped").exists()


def test_an_absolute_path_in_an_archive_is_refused(tmp_path):
    with pytest.raises(Failure, match="no plain file inside it"):
        host.extract(make_archive(tmp_path / "a.tar.gz", f"p/{tmp_path}/escaped"), "p", tmp_path / "out")
    assert not (tmp_path / "escaped").exists()


def test_another_archive_than_the_pinned_one_is_refused_with_both_sums(tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz", "a/README")
    with pytest.raises(Failure, match=rf"{host.digest(archive)}.*{host.NEWEST.sha256}"):
        host.check(archive, host.NEWEST)


def fake_steps(monkeypatch: pytest.MonkeyPatch, done: list[str]) -> None:
    """Replace what needs the network by steps that only leave their files."""

    def make(venv, held):
        done.append("venv")
        host.venv_python(venv).parent.mkdir(parents=True, exist_ok=True)
        host.venv_python(venv).touch()

    def install(python, held, *files):
        done.append("install")
        return True

    def download(folder, source):
        done.append("download")
        names = ("main.py", "comfy/x.py", "requirements.txt")
        return make_archive(folder / "a.tar.gz", *(f"{source.folder}/{name}" for name in names))

    monkeypatch.setattr(environment, "make", make)
    monkeypatch.setattr(environment, "install", install)
    monkeypatch.setattr(host, "download", download)
    monkeypatch.setattr(host, "check", lambda archive, source: None)


@pytest.mark.parametrize(
    ("module", "step", "repeated"),
    [
        (host, "download", ["download", "venv", "install"]),
        (host, "extract", ["download", "venv", "install"]),
        (environment, "make", ["venv", "install"]),
        (environment, "install", ["venv", "install"]),
    ],
)
def test_a_set_up_that_was_stopped_in_any_step_is_finished_by_the_next(tmp_path, monkeypatch, module, step, repeated):
    done: list[str] = []
    fake_steps(monkeypatch, done)
    with monkeypatch.context() as patch:
        whole = getattr(module, step)

        def stopped(*args):
            whole(*args)
            raise KeyboardInterrupt

        patch.setattr(module, step, stopped)
        with pytest.raises(KeyboardInterrupt):
            host.set_up(tmp_path)
    assert host.is_stamped(tmp_path / "ComfyUI", host.NEWEST.sha256) == (module is environment)
    done.clear()
    made = host.set_up(tmp_path)
    assert done == repeated
    assert made.comfyui.is_dir() and host.is_set_up(made)
    assert not list(tmp_path.glob("download-*"))


def test_a_finished_set_up_does_nothing_more(tmp_path, monkeypatch):
    done: list[str] = []
    fake_steps(monkeypatch, done)
    host.set_up(tmp_path)
    done.clear()
    started = time.monotonic()
    host.set_up(tmp_path)
    assert done == [] and time.monotonic() - started < 0.2


def test_a_comfyui_of_another_version_is_moved_aside_not_deleted(tmp_path, monkeypatch):
    fake_steps(monkeypatch, [])
    old = host.set_up(tmp_path).comfyui
    (old / "mine.safetensors").touch()
    host.stamp(old, "another version")
    assert not (host.set_up(tmp_path).comfyui / "mine.safetensors").exists()
    assert [path.name for path in tmp_path.glob("ComfyUI-*/mine.safetensors")] == ["mine.safetensors"]


def test_two_runs_do_not_set_up_at_once(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(host.ROOT)!r})\nfrom pathlib import Path\nfrom tools import host\n"
    script += f"with host.lock(Path({str(tmp_path)!r})): print('in', flush=True)"
    with host.lock(tmp_path):
        other = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert "waiting" in other.stderr.readline()
        assert other.poll() is None
    assert other.communicate(timeout=20)[0] == "in\n"


def test_what_a_users_python_lacks_is_named_whatever_its_versions(tmp_path):
    (tmp_path / "a.txt").write_text("# what a needs\nPyYAML==0.1\nno-such-package==1.0\n")
    (tmp_path / "b.txt").write_text("pytest_xdist==0.1\nplaywright==0.1\nno-other-one==1.0\n")
    found = host.missing_packages(Path(sys.executable), tmp_path / "a.txt", tmp_path / "b.txt")
    assert found == ["no-such-package", "no-other-one"]


def test_uv_gets_pips_settings(tmp_path, monkeypatch):
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = http://index/simple\nextra-index-url = http://one http://two\nfind-links = /a /b\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_CERT", "/cert.pem")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this environment has no pip")
    settings = environment.uv_settings(Path(sys.executable))
    assert settings["UV_DEFAULT_INDEX"] == "http://index/simple"
    assert settings["UV_INDEX"] == "http://one http://two"
    assert settings["UV_FIND_LINKS"] == "/a,/b"
    assert settings["SSL_CERT_FILE"] == "/cert.pem"


def test_the_pack_is_linked_once_under_whatever_name_it_has(tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    this = host.Host(make_comfyui(tmp_path / "comfyui"), Path(sys.executable))
    assert host.link_pack(this, pack) == "onestory"
    assert (this.comfyui / "custom_nodes" / "onestory").resolve() == pack
    assert host.link_pack(this, pack) == "onestory"
    (this.comfyui / "custom_nodes" / "onestory").rename(this.comfyui / "custom_nodes" / "ComfyUI-OneStory")
    assert host.link_pack(this, pack) == "ComfyUI-OneStory"


def test_linking_leaves_what_it_finds_alone(tmp_path):
    this = host.Host(make_comfyui(tmp_path / "comfyui"), Path(sys.executable))
    other = this.comfyui / "custom_nodes" / "onestory"
    other.mkdir(parents=True)
    (other / "theirs.py").touch()
    with pytest.raises(Failure, match="is not this copy of the pack"):
        host.link_pack(this, tmp_path)
    assert (other / "theirs.py").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no links are made there")
def test_a_comfyui_that_cannot_be_written_to_is_a_sentence(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    this = host.Host(make_comfyui(tmp_path / "ComfyUI"), Path(sys.executable))
    with pytest.raises(Failure, match=r"can't be made \(Permission denied\): let .*custom_nodes be written to"):
        host.link_pack(this, tmp_path)


def test_a_server_is_stopped_with_its_children_when_the_block_fails(tmp_path, monkeypatch):
    this = host.Host(make_comfyui(tmp_path / "comfyui", FAKE_SERVER), Path(sys.executable))
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ZeroDivisionError), host.running(this, folder, cpu=True):
        pids = [int(pid) for pid in (folder / "pids").read_text().split()]
        assert all(map(is_running, pids))
        raise ZeroDivisionError
    wait_for(lambda: not any(map(is_running, pids)))


def test_what_a_dead_process_left_in_the_servers_group_is_stopped_too(tmp_path, monkeypatch):
    orphan = 'import subprocess, sys; subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])'
    main = FAKE_SERVER.replace("child = ", f"subprocess.run([sys.executable, '-c', {orphan!r}])\nchild = ")
    this = host.Host(make_comfyui(tmp_path / "comfyui", main), Path(sys.executable))
    with host.running(this, tmp_path, cpu=True):
        pid = int((tmp_path / "pids").read_text().split()[0])
        pids = [each.pid for each in host.family(pid)]
        assert len(pids) == 3
    wait_for(lambda: not any(map(is_running, pids)))


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path):
    main = "import sys; print('one'); sys.exit('no such device')"
    this = host.Host(make_comfyui(tmp_path / "comfyui", main), Path(sys.executable))
    with pytest.raises(Failure, match=r"(?s)exit code 1 .*one\nno such device"), host.running(this, tmp_path, cpu=True):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_is_stopped_by_ctrl_c_and_termination(tmp_path, number):
    comfyui = make_comfyui(tmp_path / "comfyui", FAKE_SERVER)
    script = f"""
        import signal, sys, time
        sys.path.insert(0, {str(host.ROOT)!r})
        from pathlib import Path
        from tools import host
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
        this = host.Host(Path({str(comfyui)!r}), Path(sys.executable))
        with host.running(this, Path({str(tmp_path)!r}), cpu=True):
            print("up", flush=True)
            time.sleep(600)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"up\n"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    process.send_signal(number)
    process.wait(20)
    wait_for(lambda: not any(map(is_running, pids)))


def test_the_real_host_answers_and_sees_the_pack_and_the_checkpoint(server):
    assert server.get("/system_stats")["devices"]
    assert server.choices("OneStorySVR", "variant") == ["released", "paper"]
    assert "onestory_random.safetensors" in server.choices("CheckpointLoaderSimple", "ckpt_name")
    assert server.choices("NoSuchNode", "x") is None


def test_the_random_checkpoint_makes_sane_latents_that_depend_on_the_prompt(sd):
    import torch

    import nodes

    fox, owl, empty = (nodes.CLIPTextEncode().encode(sd.clip, text)[0] for text in ("a red fox", "an owl", ""))
    norms = fox[0][0].norm(dim=-1)
    assert torch.all((norms > 27) & (norms < 29))
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    a, b = (
        nodes.KSampler().sample(sd.model, 1, 4, 7.0, "euler", "normal", text, empty, latent)[0]["samples"]
        for text in (fox, owl)
    )
    assert 0.5 < a.std() < 5 and (a - b).norm() > 0.1 * a.norm()
    blocks = [name for name, _ in sd.model.model.diffusion_model.named_modules() if name.endswith(".attn2")]
    assert {name.partition("_blocks")[0].partition("_block")[0] for name in blocks} == {"input", "middle", "output"}
