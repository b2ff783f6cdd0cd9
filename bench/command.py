"""Measure the pack: `bench speed` its pieces against other ways to compute the same, `bench quality` the stories.

`bench vistory` draws a public benchmark's stories with their casts.
`bench actors` measures how many machines one `run.py make --ray` keeps busy.
"""

import argparse

from .actors import command as actors
from .quality import command as quality
from .speed import command as speed
from .vistory import command as vistory

# name: the module that has the suite's `add_arguments(parser)` and `run(args)`, what it measures
SUITES = {
    "speed": (speed, "how fast the pack's pieces are"),
    "quality": (quality, "how well stories keep character and prompts"),
    "vistory": (vistory, "ViStoryBench: characters from pictures, many shots"),
    "actors": (actors, "how many actors of a Ray one driver keeps busy"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    suites = parser.add_subparsers(metavar="SUITE", required=True)
    for name, (module, purpose) in SUITES.items():
        suite = suites.add_parser(name, help=purpose)
        module.add_arguments(suite)
        suite.set_defaults(measure=module.run)


def run(args: argparse.Namespace) -> int:
    return args.measure(args)
