"""Run every check: ruff, mypy, and the tests on a real ComfyUI. What follows `test` goes to pytest."""

import argparse
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tomllib

from . import host

WORKERS = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
"""The whole run uses two cores; a file's tests share its server and models. The longest files come first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.usage = "%(prog)s [pytest's arguments, such as -k svr or tests/test_demo.py]"
    parser.epilog = "Runs on a ComfyUI of its own, or on the one that COMFYUI_PATH names."
    parser.set_defaults(forwards=True)


def run(args: argparse.Namespace) -> int:
    """Run all checks, also after one that fails; returns the first failure's exit code."""
    this = (host.find() if os.environ.get("COMFYUI_PATH") else None) or host.set_up()
    host.install_dev_tools(this)
    host.random_checkpoint(this)
    # `-k svr` names no folder, although there is one.
    named = [Path(word.partition("::")[0]).resolve() for word in args.others]
    tests = [] if any(path.exists() and path.is_relative_to(host.ROOT / "tests") for path in named) else ["tests"]
    codes = [run_module(this, "ruff", "check"), run_module(this, "ruff", "format", "--check")]
    with checking_types(this) as types:
        codes += [run_module(this, "pytest", *(args.others or WORKERS), *tests), types()]
    return next((code for code in codes if code), 0)


@contextmanager
def checking_types(this: host.Host) -> Iterator[Callable[[], int]]:
    """Meanwhile run mypy on the files that pyproject.toml names, through a folder whose name can be a package's.

    Gives what waits for it, tells what it found and returns its exit code. Left earlier, mypy is stopped.
    """
    config = host.ROOT / "pyproject.toml"
    files = tomllib.loads(config.read_text(encoding="utf-8"))["tool"]["mypy"]["files"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", encoding="utf-8") as found:
        link = Path(folder) / host.PACK
        host.link_folder(link, host.ROOT)
        options = ["--config-file", str(config), "--cache-dir", str(host.ROOT / ".mypy_cache")]
        command: list = [this.python, "-m", "mypy", *options, *(f"{host.PACK}/{name}" for name in files)]

        def finish() -> int:
            code = process.wait()
            found.seek(0)
            host.say(f"== mypy {' '.join(files)}\n{found.read().strip()}")
            return code

        with subprocess.Popen(command, cwd=folder, stdout=found, stderr=found) as process:
            try:
                yield finish
            finally:
                process.kill()


def run_module(this: host.Host, *command: str, cwd: Path = host.ROOT) -> int:
    """Run a module of the host's Python to its end. Stopped itself, it lets the module end what that started."""
    host.say(f"== {' '.join(command)}")
    environment = {**os.environ, "COMFYUI_PATH": str(this.comfyui)}
    with subprocess.Popen([this.python, "-m", *command], cwd=cwd, env=environment) as process:
        try:
            return process.wait()
        except BaseException as end:
            if not isinstance(end, KeyboardInterrupt):  # Ctrl-C reaches the module without us
                process.send_signal(signal.SIGINT)
            process.wait()
            raise
