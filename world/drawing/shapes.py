"""Antialiased shapes by their signed distance, for a batch of pictures at once."""

from typing import NamedTuple

import torch
from torch import Tensor

Number = float | Tensor
"""One value for all pictures, or a tensor [pictures, 1, 1] with one each."""

Colour = tuple[float, float, float] | Tensor
"""Red, green and blue from 0 to 1: one colour for all pictures, or [pictures, 3, 1, 1] with one each."""


class Canvas(NamedTuple):
    """Pictures being painted. Coordinates run from 0 to 1, to the right and down; a shape covers what is below 0."""

    pictures: Tensor
    """[pictures, 3, height, width]."""
    x: Tensor
    """[1, 1, width] or, in a figure's own coordinates, [pictures, 1, width]."""
    y: Tensor
    """[1, height, 1] or [pictures, height, 1]."""
    pixel: Number
    """A pixel's side in these coordinates."""

    def paint(self, distance: Tensor, colour: Colour, opacity: Number = 1.0) -> None:
        """Cover what lies within a shape: `clamp(0.5 - distance / pixel)` of a colour over what is there."""
        cover = (0.5 - distance / self.pixel).clamp(0, 1) * opacity
        self.pictures.lerp_(as_colour(colour, self.pictures), cover.unsqueeze(1))

    def moved(self, x: Number, y: Number, scale: Number) -> "Canvas":
        """The same pictures in coordinates with their origin at x, y and their unit `scale` long."""
        return Canvas(self.pictures, (self.x - x) / scale, (self.y - y) / scale, self.pixel / scale)

    def part(self, index: Tensor) -> "Canvas":
        """A copy of some of the pictures, to be painted by itself."""

        def rows(values: Number) -> Number:
            return values[index] if isinstance(values, Tensor) and len(values) > 1 else values

        return Canvas(self.pictures[index], rows(self.x), rows(self.y), rows(self.pixel))  # type: ignore[arg-type]

    def circle(self, x: Number, y: Number, radius: Number) -> Tensor:
        return torch.hypot(self.x - x, self.y - y) - radius

    def ellipse(self, x: Number, y: Number, rx: Number, ry: Number) -> Tensor:
        u, v = self.x - x, self.y - y
        inside = torch.hypot(u / rx, v / ry)
        return inside * (inside - 1) / torch.hypot(u / rx**2, v / ry**2).clamp(min=1e-6)

    def box(self, x: Number, y: Number, half_width: Number, half_height: Number, corner: Number = 0.0) -> Tensor:
        u = (self.x - x).abs() - half_width + corner
        v = (self.y - y).abs() - half_height + corner
        return torch.hypot(u.clamp(min=0), v.clamp(min=0)) + torch.maximum(u, v).clamp(max=0) - corner

    def line(self, ax: Number, ay: Number, bx: Number, by: Number, radius: Number) -> Tensor:
        u, v = self.x - ax, self.y - ay
        along_x, along_y = bx - ax, by - ay
        t = ((u * along_x + v * along_y) / (along_x**2 + along_y**2)).clamp(0, 1)
        return torch.hypot(u - along_x * t, v - along_y * t) - radius

    def polygon(self, *corners: tuple[Number, Number]) -> Tensor:
        """A convex polygon, its corners clockwise on the screen."""
        distance = None
        for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
            along_x, along_y = torch.as_tensor(bx - ax), torch.as_tensor(by - ay)
            side = ((self.x - ax) * along_y - (self.y - ay) * along_x) / torch.hypot(along_x, along_y)
            distance = side if distance is None else torch.maximum(distance, side)
        assert distance is not None
        return distance


def as_colour(colour: Colour, like: Tensor) -> Tensor:
    if isinstance(colour, Tensor):
        return colour
    return torch.tensor(colour, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def mix(one: Colour, other: Colour, share: float, like: Tensor) -> Tensor:
    """`share` of the other colour in the one."""
    return torch.lerp(as_colour(one, like).expand(len(like), 3, 1, 1), as_colour(other, like), share)
