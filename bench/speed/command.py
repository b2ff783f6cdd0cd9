"""Time the pack's pieces on this machine against other ways to compute the same."""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from ...tools import host
from ...tools.failure import Failure
from . import report

BENCH = host.ROOT / "bench"
"""The folder of pytest's settings, in which it runs."""
OPTIONS = ("sizes", "device", "attention", "clock", "threads", "seconds")
FLAGS = ("quick", "full")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.usage = "%(prog)s [options] [pytest's arguments, such as -k svr]"
    parser.epilog = "Runs on a ComfyUI of its own, or on the one that COMFYUI_PATH names. docs/performance.md explains."
    parser.add_argument("--quick", action="store_true", help="a few minutes: few rounds and small shapes")
    parser.add_argument(
        "--full", action="store_true", help="the longest calls and whole U-Nets too; up to 16 GB of memory"
    )
    parser.add_argument("--sizes", metavar="NxSIDE,...", help="frames and picture size of the attention calls")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to measure (default: cpu)")
    parser.add_argument("--attention", choices=("pytorch", "split", "quad"), help="ComfyUI's attention back end")
    parser.add_argument("--clock", choices=("wall", "cpu"), help="cpu: CPU seconds, for a machine that others use too")
    parser.add_argument("--threads", metavar="N", type=int, help="torch's threads (default: its own choice)")
    parser.add_argument("--seconds", metavar="S", type=float, help="how long one comparison repeats (default: 4)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results here")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.set_defaults(forwards=True)


def run(args: argparse.Namespace) -> int:
    """Run the benchmarks, then print the table of what it measured, also when a part of it failed."""
    this = (host.find() if os.environ.get("COMFYUI_PATH") else None) or host.set_up()
    host.install_dev_tools(this)
    host.random_checkpoint(this)
    options = [f"--{name}={vars(args)[name]}" for name in OPTIONS if vars(args)[name]]
    options += [f"--{name}" for name in FLAGS if vars(args)[name]]
    with tempfile.TemporaryDirectory(prefix="onestory-") as folder:
        results = Path(folder) / "results.json"
        command = [this.python, "-m", "pytest", *options, f"--benchmark-json={results}", *args.others]
        environment = {**os.environ, "COMFYUI_PATH": str(this.comfyui)}
        code = subprocess.run([*command, "speed"], cwd=BENCH, env=environment).returncode
        if not results.is_file() or not results.stat().st_size:
            raise Failure("Nothing was measured: pytest's messages above say why.")
        found = report.read(results)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(report.machine(found), report.table(found, args.markdown), sep="\n\n")
    return code
