"""Train the Story World's checkpoint, or go on where the last run stopped.

    python -m world.train [--folder DIR] [--minutes M] [--stages NAME,...] [--device cuda] [--scale X]
                          [--batch X] [--start ASSET] [--samples] [--pack]

Runs from the repository's root with nothing but PyTorch, safetensors and Pillow. The folder holds every stage's state,
saved every few minutes, a log and a plot of its losses and a picture of samples; `--pack` writes the asset from them.
"""

import argparse
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from .. import asset
from .adapter import AdapterStage, adapter_weights
from .autoencoder import AutoencoderStage
from .decoder import DecoderStage, MendingStage
from .loop import Stage, trained_weights
from .painter import TOKENS, PainterStage, autoencoder
from .report import plot_losses, show_samples
from .vision import VisionStage

ROOT = Path(__file__).resolve().parents[2]


def stages(folder: Path, scale: float, batch: int, device: str, start: Path | None) -> list[Stage]:
    """All stages in order; `scale` multiplies the number of steps, `batch` the pictures of each, and `start` is the
    asset to go on from."""
    return [
        AutoencoderStage(folder, round(10000 * scale), 8 * batch, device=device, start=start),
        DecoderStage(folder, round(5000 * scale), 8 * batch, device=device),
        PainterStage(folder, round(3000 * scale), 32 * batch, device=device, start=start),
        MendingStage(folder, round(3000 * scale), 8 * batch, device=device),
        VisionStage(folder, round(3000 * scale), 32 * batch, device=device),
        AdapterStage(folder, round(600 * scale), 16 * batch, device=device),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="world.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".host" / "world-training", help="where the training's state is"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; run again to go on")
    parser.add_argument("--stages", help="train only these (default: all in order)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies every stage's steps; 1 suits two CPU cores"
    )
    parser.add_argument("--batch", type=int, default=1, help="multiplies the pictures of a step; 8 suits a GPU")
    parser.add_argument("--start", type=Path, help="an asset whose weights a new training begins with; kept in DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pack", action="store_true", help="write the assets from what is trained, and train nothing")
    parser.add_argument("--samples", action="store_true", help="draw with what is trained so far, and train nothing")
    args = parser.parse_args()
    start = args.folder / "start.safetensors"
    if args.start is not None and not start.is_file():
        if any(args.folder.glob("*.state.pt")):
            parser.error(
                f"--start {args.start}: the training in {args.folder} has begun without; choose a new --folder"
            )
        args.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.start, start)
    found = stages(args.folder, args.scale, args.batch, args.device, start if start.is_file() else None)
    if args.pack:
        for path, size in pack(args.folder):
            print(f"{size / 2**20:.1f} MB in {path.relative_to(ROOT)}")
        return
    if args.samples:
        plot_losses(args.folder)
        print(show_samples(*(stage for stage in found if isinstance(stage, PainterStage))))
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


def pack(folder: Path) -> Iterator[tuple[Path, int]]:
    """Write the assets from what is trained, as far as it is, and give their sizes in bytes: the checkpoint's, and the
    adapter's with what it sees by."""
    painted = trained_weights(folder, PainterStage.name)
    coded = {f"vae.{name}": value for name, value in autoencoder(folder, "cpu").state_dict().items()}
    yield asset.ASSET, asset.pack(painted | coded, TOKENS)
    if (folder / f"{AdapterStage.name}.state.pt").is_file():
        yield asset.ADAPTER, asset.pack(adapter_weights(folder), [], asset.ADAPTER)


if __name__ == "__main__":
    main()
