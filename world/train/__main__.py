"""Train the Story World's checkpoint, or go on where the last run stopped.

    python -m world.train [--folder DIR] [--minutes M] [--stages NAME,...] [--device cuda] [--scale X]

Runs from the repository's root with nothing but PyTorch and safetensors. After each run the folder holds every stage's
state, a log of its losses and a picture of samples; `--pack` writes the asset from them.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from .. import asset
from .autoencoder import AutoencoderStage, DecoderStage
from .loop import Stage
from .painter import TOKENS, PainterStage, autoencoder
from .report import plot_losses, show_samples

ROOT = Path(__file__).resolve().parents[2]


def stages(folder: Path, scale: float, device: str) -> list[Stage]:
    """All stages in order; `scale` multiplies the number of steps."""
    return [
        AutoencoderStage(folder, round(2600 * scale), 16, device=device),
        PainterStage(folder, round(1143 * scale), 64, device=device),
        DecoderStage(folder, round(1000 * scale), 16, device=device),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="world.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".host" / "train", help="where the training's state is")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; run again to go on")
    parser.add_argument("--stages", help="train only these (default: all in order)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies every stage's steps; 1 suits two CPU cores"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pack", action="store_true", help="write the asset from what is trained, and train nothing")
    args = parser.parse_args()
    found = stages(args.folder, args.scale, args.device)
    if args.pack:
        print(f"{pack(args.folder, found) / 2**20:.1f} MB in {asset.ASSET.relative_to(ROOT)}")
        return
    end = time.monotonic() + args.minutes * 60
    for stage in found:
        if args.stages is None or stage.name in args.stages.split(","):
            done = stage.train((end - time.monotonic()) / 60)
            plot_losses(args.folder)
            if isinstance(stage, PainterStage):
                show_samples(stage)
            if not done:
                return


def pack(folder: Path, found: list[Stage]) -> int:
    """Write the asset from painter and decoder as far as they are trained; returns its size in bytes."""
    (painter,) = (stage for stage in found if isinstance(stage, PainterStage))
    vae = autoencoder(folder, "cpu").state_dict()
    return asset.pack(painter.trained() | {f"vae.{name}": value for name, value in vae.items()}, TOKENS)


if __name__ == "__main__":
    main()
