#!/usr/bin/env python3
"""OneStory's command line: python3 run.py demo, python3 run.py test."""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"OneStory needs Python 3.11 or newer; this is {sys.version.split()[0]}.")

import argparse
import difflib
import re
import signal

from onestory.bench import command as bench  # noqa: E402
from onestory.tools import check, demo, matrix  # noqa: E402
from onestory.tools.failure import Failure  # noqa: E402

# name: the module that has the verb's `add_arguments(parser)` and `run(args)`, what it does
VERBS = {
    "demo": (demo, "make a story's frames and board with ComfyUI"),
    "test": (check, "run every check and test"),
    "bench": (bench, "measure how fast the pack is"),
    "matrix": (matrix, "try the pack on every ComfyUI version"),
}


class Parser(argparse.ArgumentParser):
    """Answers arguments that it does not know with its own usage, also as a verb's parser."""

    def parse_known_args(self, args=None, namespace=None):
        found, others = super().parse_known_args(args, namespace)
        if others and not getattr(found, "forwards", False):
            options = re.findall(r"--[\w-]+", self.format_usage())
            near = [name for word in others for name in difflib.get_close_matches(word.partition("=")[0], options, 1)]
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(others)}{hint}")
        return found, others


def main() -> int:
    parser = Parser(prog="run.py", description=__doc__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, (module, purpose) in VERBS.items():
        verb = verbs.add_parser(name, help=purpose)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    args, args.others = parser.parse_known_args()
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
