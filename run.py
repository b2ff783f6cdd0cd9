#!/usr/bin/env python3
"""OneStory's command line: python3 run.py demo, python3 run.py test."""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"OneStory needs Python 3.11 or newer; this is {sys.version.split()[0]}.")

import argparse
import difflib
import importlib
import io
import re
import signal

from onestory.tools import environment
from onestory.tools.failure import Failure

# name: the module that has the verb's `add_arguments(parser)` and `run(args)`, what it does; "" is not for people
VERBS = {
    "demo": ("tools.demo", "make a story's frames and board with ComfyUI"),
    "make": ("tools.make", "draw every story of a file by a workflow"),
    "test": ("tools.check", "run every check and test"),
    "bench": ("bench.command", "measure how fast the pack is"),
    "matrix": ("tools.matrix", "try the pack on every ComfyUI version"),
    "station": ("tools.station", ""),
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
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Windows gives a pipe a code page, which lacks some characters
    try:
        return run(sys.argv[1:])
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def run(words: list[str]) -> int:
    """Run the verb that comes first, whose module needs the tools' environment; without one only parse."""
    parser = Parser(prog="run.py", description=__doc__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, (module_name, purpose) in VERBS.items():
        verb = verbs.add_parser(name, help=purpose) if purpose else verbs.add_parser(name)
        if name in words[:1]:
            environment.enter(__file__)
            module = importlib.import_module(f"onestory.{module_name}")
            module.add_arguments(verb)
            verb.set_defaults(run=module.run)
    args, args.others = parser.parse_known_args(words)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
