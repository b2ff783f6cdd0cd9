"""What a training run leaves to look at: the losses as a plot, and pictures for a few captions."""

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from .loop import channels_last
from .painter import Painter, PainterStage, autoencoder, sample

CAPTIONS = (
    "a red fox with a blue scarf reading a book in the forest",
    "a blue owl with a crown on the beach at sunset",
    "a green frog with a top hat holding a balloon in the city",
    "a gray robot with a bow tie on the moon",
    "a pink rabbit with glasses eating an ice cream in the snow",
    "a yellow cat with a party hat and a twin in a meadow",
    "an orange bear carrying a lantern in a bedroom at night",
    "a gray mouse with a red scarf on the left and a green frog with a crown on the right in the forest",
)
COLUMNS = 8
SEEDS = 3


def show_samples(stage: PainterStage) -> Path:
    """Draw a row of pictures per seed with the averaged weights as far as they are trained."""
    net = Painter()
    net.load_state_dict(stage.trained())
    net = channels_last(net.to(stage.device)).eval()
    decoder = autoencoder(stage.folder, stage.device)
    rows = []
    for seed in range(SEEDS):
        latents = sample(net, list(CAPTIONS), seed)
        with torch.inference_mode():
            rows.append(decoder.decode(latents).clamp(0, 1).cpu())
    return save_sheet(torch.cat(rows), stage.folder / f"{stage.name}.samples.png")


def save_sheet(pictures: torch.Tensor, path: Path) -> Path:
    """Pictures [count, 3, side, side] as one PNG, eight in a row."""
    side = pictures.shape[-1]
    sheet = Image.new("RGB", (COLUMNS * (side + 2), -(-len(pictures) // COLUMNS) * (side + 2)), "white")
    for index, picture in enumerate((pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()):
        row, column = divmod(index, COLUMNS)
        sheet.paste(Image.fromarray(picture), (column * (side + 2), row * (side + 2)))
    sheet.save(path)
    return path


def plot_losses(folder: Path, width: int = 900, height: int = 260) -> Path:
    """Every stage's loss over its steps, on a logarithmic scale, one below the other."""
    logs = sorted(folder.glob("*.log.jsonl"))
    sheet = Image.new("RGB", (width, height * max(1, len(logs))), "white")
    pen = ImageDraw.Draw(sheet)
    for place, path in enumerate(logs):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        losses = torch.tensor([line["loss"] for line in lines]).log()
        low, high = losses.min().item(), losses.max().item()
        top = place * height + 30
        points = [
            (
                10 + (width - 20) * line["step"] / lines[-1]["step"],
                top + (height - 50) * (high - y) / max(high - low, 1e-6),
            )
            for line, y in zip(lines, losses.tolist(), strict=True)
        ]
        last = lines[-1]
        pen.text(
            (10, top - 22), f"{path.name.partition('.')[0]}: loss {last['loss']} at step {last['step']}", fill="black"
        )
        if len(points) > 1:
            pen.line(points, fill=(40, 90, 200), width=2)
    sheet.save(folder / "losses.png")
    return folder / "losses.png"
