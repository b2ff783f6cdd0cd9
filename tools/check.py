"""Run every check: ruff, mypy, and the tests on a real ComfyUI. What follows `test` goes to pytest."""

import argparse
import os
import subprocess

from . import host

CHECKS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",))


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
    tests = [] if any(os.path.exists(word.partition("::")[0]) for word in args.others) else ["tests"]
    commands = [*CHECKS, ("pytest", *args.others, *tests)]
    codes = [run_module(this, *command) for command in commands]
    return next((code for code in codes if code), 0)


def run_module(this: host.Host, *command: str) -> int:
    host.say(f"== {' '.join(command)}")
    environment = {**os.environ, "COMFYUI_PATH": str(this.comfyui)}
    return subprocess.run([this.python, "-m", *command], cwd=host.ROOT, env=environment).returncode
