"""From attributes to pictures: one batched function on any device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .attributes import PAIR, PORTRAIT, TWIN, Attributes, other_look, select
from .figures import paint_figures, paint_portraits
from .scenes import paint_scenes
from .shapes import Canvas

SIDE = 128


@torch.inference_mode()
def render(attributes: Attributes, side: int = SIDE, device: torch.device | str = "cpu") -> Tensor:
    """The pictures that attributes describe: float32 [pictures, 3, side, side] from 0 to 1."""
    who = {name: values.to(device) for name, values in attributes.items()}
    count = len(who["scene"])
    line = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    pictures = torch.empty(count, 3, side, side, device=device)
    canvas = Canvas(pictures, line.view(1, 1, side), line.view(1, side, 1), 1 / side)
    paint_scenes(canvas, who["scene"], who["time"], who["sway"])
    x, y, size = (who[name].view(-1, 1, 1) for name in ("x", "y", "size"))
    two = (who["company"] == TWIN) | (who["company"] == PAIR)
    both, portrait = two.view(-1, 1, 1), who["company"] == PORTRAIT
    unit = torch.where(both, 0.54 + 0.03 * size, 0.68 + 0.05 * size)
    feet = 0.93 + 0.02 * y
    middle = torch.where(both, 0.26 + 0.02 * x, 0.46 + 0.07 * x)

    index = portrait.nonzero().flatten()
    if len(index):
        part = canvas.part(index)
        paint_portraits(part.moved(0.2, 0.44, 0.31), select(who, index))
        pictures[index] = part.pictures
        middle = torch.where(portrait.view(-1, 1, 1), 0.62 + 0.04 * x, middle)
    paint_figures(canvas.moved(middle, feet, unit), who, who["activity"])
    index = two.nonzero().flatten()
    if len(index):
        part, other = canvas.part(index), other_look(select(who, index))
        paint_figures(part.moved(middle[index] + 0.47, feet[index], unit[index]), other, other["activity"])
        pictures[index] = part.pictures
    return pictures.clamp_(0, 1)


def rendered(attributes: Attributes, side: int = SIDE, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """The same of many attributes, as many pictures at a time as a device draws fastest."""
    for part in torch.arange(len(attributes["scene"])).split(1024 if torch.device(device).type == "cuda" else 64):
        yield render(select(attributes, part), side, device)
