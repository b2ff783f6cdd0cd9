"""Python environments that are made for the tools and for ComfyUI, and how `run.py` goes on in the tools' own.

Standard library only: this runs before anything else is there.
"""

import ast
import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .failure import Failure

ROOT = Path(__file__).resolve().parents[1]
HOST = Path(os.environ.get("ONESTORY_HOST") or ROOT / ".host").expanduser()
"""Where all that is set up lies; the variable is for machines that get the code anew each time (tools/cluster.py)."""
TOOLS = ROOT / "tools"
REQUIREMENTS = TOOLS / "requirements-tools.txt"

UV = "uv>=0.8,<1"
STAMP = ".onestory-set-up"
STARTED_BY = "onestory"
"""The -X option that tells the Python which a command was started with."""


def enter(script: str) -> None:
    """Go on with this command in the tools' Python, that of `.host/venv`; made first when it is not there.

    Returns at once when this is that Python already. Raises `Failure` when it cannot be made.
    """
    venv = HOST / "venv"
    inside = os.path.exists(venv) and os.path.samefile(sys.prefix, venv)
    if inside and not is_whole(venv):
        base = Path(sys._base_executable)  # type: ignore[attr-defined]
        go_on(base, script)  # an environment is not cleared by its own Python
    python = provide(venv, "tools", digest(REQUIREMENTS), "Installing what the tools need (100 MB) ...", REQUIREMENTS)
    if inside:
        return
    if STARTED_BY in sys._xoptions:
        raise Failure(f"{python} is not the Python of its own folder: delete {venv} and run this again.")
    go_on(python, "-X", f"{STARTED_BY}={sys.executable}", script)


def go_on(python: Path, *words: str) -> None:
    """Become another Python with this command's arguments. Windows can't, so there this waits for the other one."""
    command = [str(python), *words, *sys.argv[1:]]
    sys.stdout.flush()
    if sys.platform != "win32":
        os.execv(python, command)
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):  # which the other one gets too
                process.wait()
    sys.exit(process.returncode)


def started_by() -> Path:
    """The Python that this command was started with, which the tools' Python took over from."""
    return Path(sys._xoptions.get(STARTED_BY, sys.executable))


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def provide(venv: Path, name: str, pin: str, what: str, *requirements: Path) -> Path:
    """The Python of an environment that has these requirement files' packages; `what` is said before it is changed.

    `pin` tells whether they were installed under this `name` already. What was stopped halfway is made anew, for half
    a package looks like a whole one.
    """
    stamp_name = f"{STAMP}-{name}" if name else STAMP
    if not (is_whole(venv) and is_stamped(venv, pin, stamp_name)):
        with lock(venv) as held:
            if not is_whole(venv):
                say(f"Making a Python environment in {venv}, once. It may be interrupted and run again.")
                with unfinished(venv):
                    make(venv, held)
            if not is_stamped(venv, pin, stamp_name):
                say(what)
                with unfinished(venv):
                    done = install(venv_python(venv), held, *requirements)
                if not done:
                    files = " and ".join(path.name for path in requirements)
                    raise Failure(
                        f"The packages of {files} could not be installed, for the reason above. When the package index"
                        " that pip is set to can be reached, run this again."
                    )
                stamp(venv, pin, stamp_name)
    return venv_python(venv)


def is_whole(venv: Path) -> bool:
    """Whether an environment is there, nobody was stopped while changing it, and its base Python still exists."""
    return venv_python(venv).exists() and not mark(venv).exists()


def mark(venv: Path) -> Path:
    return venv.with_name(f"{venv.name}.unfinished")


@contextlib.contextmanager
def unfinished(venv: Path) -> Iterator[None]:
    """The environment counts as unfinished in this block, and after one that does not end by itself."""
    mark(venv).touch()
    yield
    mark(venv).unlink()


@contextlib.contextmanager
def lock(venv: Path) -> Iterator[int]:
    """Let one process at a time change an environment.

    Gives the descriptor of the lock: a process that inherits it holds the lock on when this one is killed.
    """
    try:
        venv.parent.mkdir(parents=True, exist_ok=True)
        file = open(venv.with_name(f"{venv.name}.lock"), "a")  # noqa: SIM115
    except OSError as error:
        raise Failure(f"No environment can be made in {venv.parent}: {error.strerror}.") from None
    with file:
        told = False
        while not try_lock(file.fileno()):
            if not told:
                say(f"Another run is setting up {venv}: waiting for it.")
            told = True
            time.sleep(0.5)
        yield file.fileno()


def try_lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def make(venv: Path, held: int) -> None:
    """Make an environment with pip and, where it can be had, uv, in place of any that is there."""
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        raise Failure(
            "This Python cannot make a virtual environment: its ensurepip module is missing."
            " On Debian and Ubuntu, `apt install python3-venv` brings it."
        )
    done = call([sys.executable, "-m", "venv", "--clear", venv], held, capture_output=True, text=True)
    if done.returncode:
        reason = ((done.stderr or done.stdout).strip().splitlines() or ["it gave no reason"])[-1]
        raise Failure(f"No virtual environment could be made in {venv}: {reason}")
    call([venv_python(venv), "-m", "pip", "install", "--quiet", UV], held, stderr=subprocess.DEVNULL)


def install(python: Path, held: int, *requirements: Path) -> bool:
    """Install requirement files with uv, by the user's pip settings, or with pip when uv is missing or fails.

    Returns whether they are installed; what stood in the way is in the installers' messages.
    """
    files = [word for path in requirements for word in ("-r", path)]
    command = [python, "-m", "uv", "pip", "install", "--python", python, *files]
    if call([python, "-c", "import uv"], held, stderr=subprocess.DEVNULL).returncode == 0:
        if call(command, held, env={**uv_settings(python), **os.environ}).returncode == 0:
            return True
        say("uv could not install them: trying again with pip, which takes longer.")
    return call([python, "-m", "pip", "install", *files], held).returncode == 0


def call(command: list, held: int, **options) -> subprocess.CompletedProcess:
    """Run a command that changes an environment, and that holds its lock on should this process be killed."""
    return subprocess.run(command, pass_fds=() if sys.platform == "win32" else (held,), **options)


def uv_settings(python: Path) -> dict[str, str]:
    """pip's settings for index and certificates as uv's environment variables: uv doesn't read pip's."""
    listing = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    pip = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment wins
        name, _, value = line.partition("=")
        pip[name.rpartition(".")[2]] = ast.literal_eval(value)
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "trusted-host": "UV_INSECURE_HOST",
        "no-index": "UV_NO_INDEX",
        "cert": "SSL_CERT_FILE",
        "proxy": "ALL_PROXY",
    }
    settings = {uv: " ".join(pip[name].split()) for name, uv in names.items() if name in pip}
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = settings["UV_FIND_LINKS"].replace(" ", ",")
    # pip takes the best match of all indexes, and waits longer.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_HTTP_TIMEOUT": "180", **settings}


def is_stamped(folder: Path, text: str, name: str = STAMP) -> bool:
    """Whether `folder` was finished for exactly this `text`, a pin's digest."""
    file = folder / name
    return file.is_file() and file.read_text() == text


def stamp(folder: Path, text: str, name: str = STAMP) -> None:
    partial = folder / f"{name}.partial"
    partial.write_text(text)
    partial.replace(folder / name)


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
