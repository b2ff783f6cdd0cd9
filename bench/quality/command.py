"""Run every story of a file in several ways through ComfyUI servers, and measure what came out.

The ways, each with the same seeds and the same noise for all frames: separate prompts (the usual way), the
consolidated prompt alone, naive reweighting, SVR (released), SVR with IPCA, and these with consistent self-attention.

Each server makes a whole story in all its ways, then takes the next one; one that fails is tried again after a pause.
What is in --out is not made again, so the run may be interrupted and run again; more stories, seeds and rows can be
added to it later.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from ...tools.demo import size, whole
from ...tools.failure import Failure
from . import servers, story_world
from .graphs import ALL_ROWS, KINDS, settable

EPILOG = """\
CLIP-T, CLIP-I, diversity and the maps are measured on this machine with models in folders as transformers'
save_pretrained writes them. 1Prompt1Story's table is made with --stories consistory+.yaml --steps 50 --eot scale,
--clip with CLIP ViT-B/32, --clip-image with CLIP ViT-B/16, and pictures whose background is replaced by noise for
CLIP-I and DreamSim: --remover has the servers find the characters, --masks takes what another tool found. The report
puts the printed figures beside those found, and says what differs. Nothing is downloaded, so models have to be there.
docs/quality-on-servers.md says what each number means.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "--server", metavar="URL", action="append", help="a running ComfyUI with the pack; may be given several times"
    )
    parser.add_argument("--checkpoint", metavar="NAME", help="the checkpoint's name on the servers")
    parser.add_argument("--stories", metavar="FILE", type=Path, help="the stories: see docs/story-files.md")
    parser.add_argument(
        "--rows",
        metavar="ROW",
        nargs="+",
        choices=ALL_ROWS,
        help="of "
        + "; ".join(
            f"{'' if kind == 'stories' else f'with --{kind} '}{', '.join(rows)}" for kind, rows in KINDS.items()
        ),
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--pairs",
        dest="kind",
        action="store_const",
        const="pairs",
        default="stories",
        help="the Story World's stories of two characters in each frame: whether each is where its region says, and "
        "what its words say",
    )
    kinds.add_argument(
        "--pictures",
        dest="kind",
        action="store_const",
        const="pictures",
        help="the Story World's stories of a character that a picture shows, by its IP-Adapter: how often frames have "
        "the picture's species, colour and pattern",
    )
    parser.add_argument(
        "--seeds", metavar="N", nargs="+", type=whole(0, 2**64 - 1), help="default: 42; without --server 1 2 3"
    )
    parser.add_argument(
        "--steps", metavar="N", type=whole(1, 10000), help="sampling steps (default: 30; without --server 16)"
    )
    parser.add_argument("--size", metavar="WxH", type=size, default=(1024, 1024), help="of a frame; default: 1024x1024")
    parser.add_argument(
        "--eot",
        choices=("reweight", "scale"),
        default="reweight",
        help="SVR's way with the end-of-text tokens; the authors' own benchmark has “scale” (default: reweight)",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        help="the U-Net computes in this (default: ComfyUI's choice; on CPUs without --server, the faster one)",
    )
    parser.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        type=change,
        nargs="+",
        action="extend",
        help="other values than the nodes' defaults in all rows, such as OneStorySVR.express_alpha=0.012",
    )
    parser.add_argument("--limit", metavar="N", type=whole(1, 10**6), help="only the file's first N stories")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where results are kept (default: a folder in out/)")
    parser.add_argument(
        "--clip-vision",
        metavar="NAME",
        help="a CLIP or DINOv2 model of the servers (ViT-L or larger), by which they measure how alike the frames are",
    )
    parser.add_argument(
        "--clip", metavar="DIR", type=Path, help="a CLIP model's folder, for CLIP-T, and for CLIP-I without another"
    )
    parser.add_argument(
        "--clip-image", metavar="DIR", type=Path, help="another CLIP model's folder, for CLIP-I and scene diversity"
    )
    parser.add_argument(
        "--dinov2",
        metavar="DIR",
        type=Path,
        help="a DINOv2 model's folder, for the map of frames (default: CLIP)",
    )
    parser.add_argument(
        "--remover",
        metavar="NAME",
        help="a background-removal model of the servers, which finds the characters for CLIP-I, DreamSim and diversity",
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        type=Path,
        help="instead a folder like --out, with each frame's mask, white on black, or its character cut out",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="where this machine measures (default: cuda if it can)"
    )
    parser.add_argument(
        "--dreamsim",
        metavar="DIR",
        type=Path,
        default=Path("models"),
        help="where the dreamsim package has its weights (default: models, as the package's own)",
    )


def change(text: str) -> tuple[str, Any]:
    """The input of a node and its value, from "NODE.INPUT=VALUE"."""
    name, _, given = text.partition("=")
    known = settable()
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name} is not to be set: choose one of {', '.join(known)}.")
    if isinstance(known[name], str):
        return name, given
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{name} is a number, and “{given}” is none.")
    return name, int(value) if value.is_integer() else value


def run(args: argparse.Namespace) -> int:
    """Measure a file's stories on servers, or without these the Story World's on ComfyUIs of its own."""
    own = not (args.server or args.checkpoint or args.stories)
    if args.kind != "stories" and not own:
        raise Failure(
            f"--{args.kind} has the Story World's own stories: leave --server, --checkpoint and --stories out."
        )
    fitting = KINDS[args.kind]
    for row in args.rows or ():
        if row not in fitting:
            (kind,) = (kind for kind, rows in KINDS.items() if row in rows)
            where = f"not for --{args.kind}" if kind == "stories" else f"for --{kind}"
            raise Failure(f"--rows {row} is {where}: choose of {', '.join(fitting)}.")
    return story_world.run(args) if own else servers.run(args)
