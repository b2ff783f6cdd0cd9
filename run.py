#!/usr/bin/env python3
"""OneStory's command line: python3 run.py demo, python3 run.py test."""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"OneStory needs Python 3.11 or newer; this is {sys.version.split()[0]}.")

import argparse
import signal
import types
from pathlib import Path

# The pack as the package that it is in ComfyUI, without its __init__.py, which needs ComfyUI.
sys.modules["onestory"] = types.ModuleType("onestory")
sys.modules["onestory"].__path__ = [str(Path(__file__).resolve().parent)]

from onestory.tools import bench, check, demo, matrix  # noqa: E402
from onestory.tools.failure import Failure  # noqa: E402

# name: the module that has the verb's `add_arguments(parser)` and `run(args)`, what it does
VERBS = {
    "demo": (demo, "make a story's frames and board with ComfyUI"),
    "test": (check, "run every check and test"),
    "bench": (bench, "measure how fast the pack is"),
    "matrix": (matrix, "try the pack on every ComfyUI version"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, (module, purpose) in VERBS.items():
        verb = verbs.add_parser(name, help=purpose)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    args, others = parser.parse_known_args()
    if others and not getattr(args, "forwards", False):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    args.others = others
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
    try:
        return args.run(args)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
