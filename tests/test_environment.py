"""The environments that are made, and how `run.py` goes on in the tools' own. Processes are real, packages are not."""

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from onestory.tools import environment
from onestory.tools.failure import Failure
from test_host import wait_for

PROBE = """
import sys
from . import environment

def add_arguments(parser):
    parser.add_argument("--code", type=int)

def run(args):
    print(sys.prefix, environment.started_by(), args.others, sep="\\n")
    return args.code
"""


@pytest.fixture
def venv(tmp_path, monkeypatch) -> Path:
    """The place of an environment that `make` and `install` pretend to fill; `venv.done` says what they did."""
    folder = tmp_path / "venv"
    done: list[str] = []

    def make(venv, held):
        shutil.rmtree(venv, ignore_errors=True)
        environment.venv_python(venv).parent.mkdir(parents=True)
        environment.venv_python(venv).touch()
        done.append("make")

    def install(python, held, *files):
        done.extend(file.name for file in files)
        return True

    monkeypatch.setattr(environment, "make", make)
    monkeypatch.setattr(environment, "install", install)
    monkeypatch.setattr(environment, "done", done, raising=False)
    return folder


def provide(venv: Path, name: str, pin: str = "1") -> list[str]:
    """What it takes to provide `name.txt`."""
    environment.done.clear()
    assert environment.provide(venv, name, pin, "Installing", Path(f"{name}.txt")).is_file()
    return environment.done


def test_only_what_is_missing_or_of_another_pin_is_installed(venv):
    assert provide(venv, "tools") == ["make", "tools.txt"]
    assert provide(venv, "dev") == ["dev.txt"]
    assert provide(venv, "tools") == provide(venv, "dev") == []
    assert provide(venv, "tools", "2") == ["tools.txt"]


def test_an_environment_whose_change_was_stopped_is_made_anew(venv, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    provide(venv, "tools")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(environment, "install", stopped)
        provide(venv, "dev")
    assert provide(venv, "tools") == ["make", "tools.txt"]
    assert provide(venv, "dev") == ["dev.txt"]


def test_an_install_that_fails_leaves_the_environment_and_says_how_to_go_on(venv, monkeypatch):
    provide(venv, "tools")
    with monkeypatch.context() as patch, pytest.raises(Failure, match="^The packages of dev.txt could not be "):
        patch.setattr(environment, "install", lambda *_: False)
        provide(venv, "dev")
    assert provide(venv, "tools") == [] and provide(venv, "dev") == ["dev.txt"]


def test_an_installer_that_outlives_a_killed_run_is_waited_for(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(environment.ROOT)!r})\nfrom pathlib import Path\n"
    script += f"from tools import environment as e\nwith e.lock(Path({str(tmp_path / 'venv')!r})) as held:\n"
    script += "    e.call([sys.executable, '-c', 'import os; print(os.getpid(), flush=True); input()'], held)"
    run = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    installer = int(run.stdout.readline())
    run.kill()
    run.wait()
    with open(tmp_path / "venv.lock", "a") as file:
        assert not environment.try_lock(file.fileno())
        os.kill(installer, signal.SIGKILL)
        wait_for(lambda: environment.try_lock(file.fileno()))


@pytest.fixture
def tree(tmp_path) -> Path:
    """`run.py` in a folder of its own, whose `demo` tells where it runs; the tools' environment is there."""
    tree = tmp_path / "tree"
    (tree / "tools").mkdir(parents=True)
    for name in ("run.py", "onestory.py", "tools/environment.py", "tools/failure.py", "tools/requirements-tools.txt"):
        shutil.copy(environment.ROOT / name, tree / name)
    (tree / "tools" / "demo.py").write_text(PROBE, encoding="utf-8")
    venv = tree / ".host" / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pin = environment.digest(environment.REQUIREMENTS)
    environment.stamp(venv, pin, f"{environment.STAMP}-tools")
    return tree


def run(tree: Path, *words: str, python: Path | str = sys.executable, **more: str) -> subprocess.CompletedProcess:
    command = [python, tree / "run.py", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **more})


def test_a_command_goes_on_in_the_tools_python_with_its_words_and_exit_code(tree):
    venv = tree / ".host" / "venv"
    done = run(tree, "demo", "--code", "7")
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == [str(venv), sys.executable, "[]"]
    there = environment.venv_python(venv)
    assert run(tree, "demo", "--code", "7", python=there).stdout.splitlines() == [str(venv), str(there), "[]"]


def test_a_pipe_of_few_characters_gets_question_marks(tree):
    (tree / "tools" / "demo.py").write_text(PROBE.replace("print(", "print('fidelity ↑', "), encoding="utf-8")
    done = run(tree, "demo", "--code", "0", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fidelity ?\n")


def test_help_needs_no_environment(tree):
    shutil.rmtree(tree / ".host")
    assert "make a story's frames" in run(tree, "--help").stdout
    assert run(tree, "paint").returncode == 2
    assert not (tree / ".host").exists()


def test_without_a_package_index_one_sentence_says_what_is_wanted(tree):
    """Also when it was started by the tools' own Python, whose environment was left unfinished."""
    venv = tree / ".host" / "venv"
    environment.mark(venv).touch()
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tree), "PIP_CONFIG_FILE": os.devnull}
    done = run(tree, "demo", "--code", "0", python=environment.venv_python(venv), **offline)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"Making a Python environment in {venv}")
    assert lines[-1].startswith("The packages of requirements-tools.txt could not be installed, for the reason above.")
    assert environment.is_whole(venv)


def test_a_line_is_shown_on_a_terminal_and_gone_afterwards():
    script = f"import sys; sys.path.insert(0, {str(environment.ROOT)!r})\nfrom tools.progress import show\n"
    script += "show('Drawing [b]', 3, 10, ', about 5 s to go')\nprint('said', file=sys.stderr)\nraise SystemExit(3)"
    primary, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], stderr=terminal, env={**os.environ, "TERM": "xterm"})
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(primary, 4096):
            seen += part
    except OSError:
        pass  # Linux's end of a terminal
    os.close(primary)
    assert process.wait() == 3
    text = seen.decode()
    assert "Drawing [b]" in text and "3/10, about 5 s to go" in text and "said\r\n" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert text.endswith("\x1b[2K")
