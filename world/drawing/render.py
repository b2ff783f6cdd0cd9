"""From attributes to pictures: one batched function on any device."""

import torch
from torch import Tensor

from .attributes import VALUES, Attributes, select
from .figures import paint_figures, paint_portraits
from .scenes import paint_scenes
from .shapes import Canvas

SIDE = 128
TWIN = VALUES["company"].index("twin")
PORTRAIT = VALUES["company"].index("portrait")


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
    twin, portrait = who["company"] == TWIN, who["company"] == PORTRAIT
    both = twin.view(-1, 1, 1)
    unit = torch.where(both, 0.50 + 0.04 * size, 0.60 + 0.07 * size)
    feet = 0.90 + 0.03 * y
    middle = torch.where(both, 0.26 + 0.03 * x, 0.46 + 0.10 * x)

    index = portrait.nonzero().flatten()
    if len(index):
        part = canvas.part(index)
        paint_portraits(part.moved(0.24, 0.46, 0.31), select(who, index))
        pictures[index] = part.pictures
        middle = torch.where(portrait.view(-1, 1, 1), 0.58 + 0.06 * x, middle)
    paint_figures(canvas.moved(middle, feet, unit), who, who["activity"])
    index = twin.nonzero().flatten()
    if len(index):
        part = canvas.part(index)
        paint_figures(
            part.moved(middle[index] + 0.46, feet[index], unit[index]), select(who, index), who["twin_activity"][index]
        )
        pictures[index] = part.pictures
    return pictures.clamp_(0, 1)
