"""The world's twelve scenes, at three times of day."""

from collections.abc import Callable

import torch
from torch import Tensor

from .attributes import INDOORS, MOON, VALUES
from .shapes import Canvas, Colour

HORIZON = 0.66
SKIES = torch.tensor(
    [
        [[0.42, 0.74, 0.96], [0.86, 0.95, 1.00]],
        [[0.93, 0.45, 0.42], [1.00, 0.84, 0.56]],
        [[0.05, 0.06, 0.20], [0.20, 0.22, 0.46]],
    ]
)
"""[times, top and bottom, 3]."""
WATERS = torch.tensor(
    [
        [[0.20, 0.66, 0.86], [0.06, 0.33, 0.62]],
        [[0.62, 0.44, 0.66], [0.20, 0.20, 0.48]],
        [[0.05, 0.17, 0.36], [0.02, 0.07, 0.20]],
    ]
)
LIGHT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.82, 0.72], [0.42, 0.46, 0.70]])
"""What the ground is multiplied by, for each time of day."""
LAMP = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.86, 0.74], [0.62, 0.58, 0.72]])
"""What rooms are multiplied by."""


class Place:
    """A canvas of pictures that share a scene, with the time of day of each."""

    def __init__(self, canvas: Canvas, time: Tensor, sway: Tensor):
        self.canvas = canvas
        self.time = time
        self.sway = sway.view(-1, 1, 1)
        self.light = LIGHT.to(canvas.pictures)[time].view(-1, 3, 1, 1)

    def indoors(self) -> "Place":
        """The same place in the light of a room."""
        room = Place(self.canvas, self.time, self.sway.flatten())
        room.light = LAMP.to(self.canvas.pictures)[self.time].view(-1, 3, 1, 1)
        return room

    def paint(self, distance: Tensor, colour: Colour, lit: bool = True) -> None:
        """Paint a shape, in the light of the picture's time of day unless it has a light of its own."""
        self.canvas.paint(distance, self.in_light(colour) if lit else colour)

    def fill(self, colour: Colour) -> None:
        self.canvas.pictures.copy_(self.in_light(colour).expand_as(self.canvas.pictures))

    def in_light(self, colour: Colour) -> Tensor:
        return torch.as_tensor(colour, dtype=self.light.dtype, device=self.light.device).view(1, 3, 1, 1) * self.light

    def fade(self, colours: Tensor, bottom: float) -> None:
        """Fill the pictures from the top to `bottom` with each one's two colours, one fading into the other."""
        pair = colours.to(self.canvas.pictures)[self.time]
        share = (self.canvas.y / bottom).clamp(0, 1).unsqueeze(1)
        self.canvas.pictures.copy_(torch.lerp(pair[:, 0].view(-1, 3, 1, 1), pair[:, 1].view(-1, 3, 1, 1), share))

    def sky(self) -> None:
        """A sky with the sun high, the sun low, or the moon and stars."""
        self.fade(SKIES, HORIZON)
        self.sun(0.84, 0.16, 0.50)

    def sun(self, x: float, high: float, low: float) -> None:
        c = self.canvas
        for time, (y, radius, colour) in enumerate(
            ((high, 0.085, (1.0, 0.93, 0.42)), (low, 0.12, (1.0, 0.72, 0.30)), (high, 0.075, (0.96, 0.95, 0.84)))
        ):
            here = (self.time == time).view(-1, 1, 1).to(c.pictures)
            c.paint(c.circle(x, y, radius), colour, here)
            if time == VALUES["time"].index("night"):
                sky = SKIES.to(c.pictures)[time, 0].view(1, 3, 1, 1)
                c.paint(c.circle(x - 0.035, y - 0.02, 0.06), sky, here)
                self.stars(here)

    def stars(self, share: Tensor | float = 1.0) -> None:
        c = self.canvas
        for x, y, radius in ((0.1, 0.1, 0.011), (0.28, 0.2, 0.008), (0.42, 0.07, 0.01), (0.6, 0.16, 0.009)):
            c.paint(c.circle(x, y, radius), (1.0, 0.98, 0.86), share)
        for x, y in ((0.06, 0.32), (0.68, 0.05), (0.95, 0.34), (0.2, 0.04)):
            c.paint(c.circle(x, y, 0.007), (1.0, 0.98, 0.86), share)

    def ground(self, colour: Colour, curve: float = 0.0) -> None:
        c = self.canvas
        if curve:
            self.paint(c.ellipse(0.5, HORIZON + 1.0, 1.6, 1.0 + curve), colour)
        else:
            self.paint(HORIZON - c.y + 0 * c.x, colour)


def meadow(p: Place) -> None:
    c = p.canvas
    p.sky()
    for x, y in ((0.22, 0.2), (0.55, 0.12)):
        for dx, radius in ((-0.07, 0.045), (0.0, 0.065), (0.075, 0.05)):
            p.paint(c.circle(x + dx + 0.05 * p.sway, y, radius), (1.0, 1.0, 1.0))
    p.ground((0.45, 0.78, 0.36), 0.06)
    for x, y, colour in (
        (0.08, 0.76, (1.0, 0.45, 0.55)),
        (0.2, 0.9, (1.0, 0.88, 0.3)),
        (0.9, 0.78, (1.0, 0.88, 0.3)),
        (0.8, 0.92, (1.0, 0.45, 0.55)),
        (0.94, 0.93, (0.95, 0.95, 1.0)),
    ):
        p.paint(c.line(x, y, x, y + 0.05, 0.008), (0.2, 0.5, 0.2))
        p.paint(c.circle(x, y, 0.026), colour)
        p.paint(c.circle(x, y, 0.01), (1.0, 0.8, 0.2))


def forest(p: Place) -> None:
    c = p.canvas
    p.sky()
    p.ground((0.25, 0.52, 0.30))
    for x, foot, size in ((0.3, 0.68, 0.8), (0.72, 0.68, 0.8), (0.08, 0.76, 1.15), (0.93, 0.76, 1.15)):
        p.paint(c.box(x, foot - 0.05 * size, 0.022 * size, 0.06 * size), (0.45, 0.28, 0.16))
        for step, width in ((0.0, 0.14), (0.12, 0.115), (0.23, 0.085)):
            base = foot - (0.09 + step) * size
            crown = ((x - width * size, base), (x, base - 0.22 * size), (x + width * size, base))
            p.paint(c.polygon(*crown), (0.10, 0.42 + step / 2, 0.24))


def beach(p: Place) -> None:
    c = p.canvas
    p.sky()
    p.paint(0.52 - c.y + 0 * c.x, (0.16, 0.62, 0.80))
    for x in (0.15, 0.45, 0.8):
        p.paint(c.box(x + 0.05 * p.sway, 0.58, 0.07, 0.006, 0.006), (0.85, 0.97, 1.0))
    p.ground((0.97, 0.86, 0.60))
    p.paint(c.line(0.1, 0.82, 0.15, 0.36, 0.02), (0.62, 0.42, 0.22))
    for dx, dy in ((-0.15, 0.03), (0.15, 0.05), (-0.09, -0.09), (0.1, -0.08)):
        p.paint(c.line(0.15, 0.36, 0.15 + dx, 0.36 + dy, 0.024), (0.18, 0.62, 0.32))
    p.paint(c.circle(0.9, 0.9, 0.05), (0.95, 0.35, 0.35))
    p.paint(c.box(0.9, 0.9, 0.012, 0.049), (1.0, 1.0, 1.0))


def snow(p: Place) -> None:
    c = p.canvas
    p.sky()
    p.paint(c.ellipse(0.2, 0.78, 0.45, 0.25), (0.84, 0.91, 0.98))
    p.paint(c.ellipse(0.85, 0.8, 0.45, 0.22), (0.84, 0.91, 0.98))
    p.ground((0.96, 0.98, 1.0))
    for y, radius in ((0.72, 0.07), (0.62, 0.052), (0.54, 0.038)):
        p.paint(c.circle(0.1, y, radius), (1.0, 1.0, 1.0))
    p.paint(c.line(0.1, 0.545, 0.135, 0.55, 0.009), (1.0, 0.55, 0.15))
    p.paint(c.circle(0.09, 0.53, 0.007), (0.1, 0.1, 0.15))
    for x, y in ((0.2, 0.12), (0.38, 0.3), (0.55, 0.08), (0.68, 0.26), (0.93, 0.42), (0.05, 0.26), (0.3, 0.48)):
        p.paint(c.circle(x + 0.04 * p.sway, y, 0.014), (1.0, 1.0, 1.0), lit=False)


def city(p: Place) -> None:
    c = p.canvas
    p.sky()
    for x, top, half, colour in (
        (0.12, 0.28, 0.12, (0.55, 0.50, 0.62)),
        (0.88, 0.32, 0.12, (0.50, 0.53, 0.66)),
        (0.33, 0.42, 0.09, (0.66, 0.56, 0.60)),
        (0.68, 0.38, 0.09, (0.60, 0.58, 0.70)),
    ):
        p.paint(c.box(x, (top + 0.72) / 2, half, (0.72 - top) / 2), colour)
        for dx in (-half / 2, half / 2):
            for y in (top + 0.07, top + 0.19):
                p.paint(c.box(x + dx, y, half / 4, 0.03), (1.0, 0.90, 0.50), lit=False)
    p.ground((0.50, 0.50, 0.54))
    for x in (0.12, 0.5, 0.88):
        p.paint(c.box(x, 0.95, 0.1, 0.012), (0.95, 0.93, 0.80))


def desert(p: Place) -> None:
    c = p.canvas
    p.sky()
    p.paint(c.polygon((0.22, 0.68), (0.42, 0.40), (0.62, 0.68)), (0.86, 0.66, 0.38))
    p.paint(c.polygon((0.42, 0.40), (0.62, 0.68), (0.48, 0.68)), (0.74, 0.55, 0.30))
    p.ground((0.95, 0.76, 0.46), 0.03)
    for x, y, size in ((0.1, 0.84, 1.0), (0.92, 0.8, 0.8)):
        for ax, ay, bx, by in ((0, 0, 0, -0.34), (0, -0.1, -0.08, -0.1), (-0.08, -0.1, -0.08, -0.2)):
            p.paint(
                c.line(x + ax * size, y + ay * size, x + bx * size, y + by * size, 0.028 * size), (0.24, 0.58, 0.34)
            )
        p.paint(c.line(x, y - 0.16 * size, x + 0.07 * size, y - 0.16 * size, 0.022 * size), (0.24, 0.58, 0.34))
        p.paint(
            c.line(x + 0.07 * size, y - 0.16 * size, x + 0.07 * size, y - 0.25 * size, 0.022 * size), (0.24, 0.58, 0.34)
        )


def sea(p: Place) -> None:
    c = p.canvas
    p.fade(WATERS, 0.9)
    p.paint(c.ellipse(0.5, 1.08, 0.9, 0.34), (0.88, 0.78, 0.56))
    for x, height in ((0.07, 0.42), (0.16, 0.3), (0.93, 0.4), (0.85, 0.26)):
        for step in (0, 1, 2):
            y = 0.84 - step * height / 3
            lean = 0.02 if step % 2 else -0.02
            p.paint(c.line(x - lean, y, x + lean, y - height / 3, 0.02), (0.13, 0.60, 0.40))
    for at, y, turn in ((0.2, 0.2, 1), (0.82, 0.3, -1)):
        middle = at + 0.04 * p.sway
        tail = ((middle - 0.1 * turn, y - 0.04), (middle - 0.04 * turn, y), (middle - 0.1 * turn, y + 0.04))
        p.paint(c.polygon(*tail[::turn]), (1.0, 0.62, 0.25))
        p.paint(c.ellipse(middle, y, 0.065, 0.04), (1.0, 0.62, 0.25))
        p.paint(c.circle(middle + 0.03 * turn, y - 0.01, 0.009), (0.1, 0.1, 0.15))
    for x, y, radius in ((0.36, 0.12, 0.016), (0.4, 0.24, 0.012), (0.66, 0.1, 0.018), (0.62, 0.2, 0.011)):
        p.paint(c.circle(x, y, radius), (0.80, 0.95, 1.0), lit=False)


def mountains(p: Place) -> None:
    c = p.canvas
    p.sky()
    for x, top, half in ((0.2, 0.26, 0.36), (0.85, 0.34, 0.32), (0.52, 0.40, 0.26)):
        slope = half / (HORIZON + 0.04 - top)
        p.paint(c.polygon((x - half, HORIZON + 0.04), (x, top), (x + half, HORIZON + 0.04)), (0.48, 0.52, 0.64))
        cap = 0.1
        p.paint(c.polygon((x - cap * slope, top + cap), (x, top), (x + cap * slope, top + cap)), (0.97, 0.98, 1.0))
    p.ground((0.50, 0.68, 0.42), 0.04)
    for x, y in ((0.08, 0.86), (0.92, 0.82)):
        p.paint(c.ellipse(x, y, 0.06, 0.04), (0.62, 0.62, 0.66))


def window(p: Place, x: float, y: float) -> None:
    """A window with the sky of the hour."""
    c = p.canvas
    c.paint(c.box(x, y, 0.13, 0.15), (0.98, 0.97, 0.94))
    sky = SKIES.to(c.pictures)[p.time].mean(1).view(-1, 3, 1, 1)
    c.paint(c.box(x, y, 0.11, 0.13), sky)
    glow = torch.tensor([[1.0, 0.93, 0.42], [1.0, 0.66, 0.25], [0.96, 0.95, 0.84]]).to(c.pictures)[p.time]
    c.paint(c.circle(x + 0.03, y - 0.04, 0.04), glow.view(-1, 3, 1, 1))
    c.paint(c.box(x, y, 0.008, 0.13), (0.98, 0.97, 0.94))
    c.paint(c.box(x, y, 0.11, 0.008), (0.98, 0.97, 0.94))


def bedroom(p: Place) -> None:
    c, p = p.canvas, p.indoors()
    p.fill((0.98, 0.85, 0.80))
    for x in (0.1, 0.3, 0.5, 0.7, 0.9):
        p.paint(c.box(x, 0.35, 0.03, 0.40), (1.0, 0.90, 0.86))
    window(p, 0.8, 0.24)
    p.paint(0.7 - c.y + 0 * c.x, (0.78, 0.58, 0.42))
    p.paint(c.ellipse(0.55, 0.88, 0.4, 0.09), (0.70, 0.80, 0.92))
    p.paint(c.box(0.03, 0.60, 0.035, 0.22, 0.02), (0.55, 0.36, 0.24))
    p.paint(c.box(0.12, 0.72, 0.15, 0.09, 0.03), (0.46, 0.62, 0.86))
    p.paint(c.ellipse(0.09, 0.62, 0.075, 0.045), (1.0, 1.0, 0.98))


def library(p: Place) -> None:
    c, p = p.canvas, p.indoors()
    p.fill((0.58, 0.40, 0.28))
    covers = ((0.78, 0.28, 0.28), (0.92, 0.78, 0.42), (0.30, 0.52, 0.46), (0.32, 0.40, 0.66), (0.86, 0.82, 0.74))
    for row, y in enumerate((0.13, 0.36, 0.59)):
        p.paint(c.box(0.5, y, 0.6, 0.095), (0.36, 0.22, 0.15))
        for book in range(12):
            x, high = 0.045 + book / 12, 0.06 + 0.012 * ((book * 7 + row * 5) % 3)
            p.paint(c.box(x, y + 0.095 - high, 0.033, high), covers[(book * 3 + row * 2 + book // 4) % 5])
    window(p, 0.8, 0.24)
    p.paint(0.72 - c.y + 0 * c.x, (0.62, 0.30, 0.28))
    p.paint(c.ellipse(0.5, 0.9, 0.44, 0.09), (0.78, 0.62, 0.40))


def moon(p: Place) -> None:
    c = p.canvas
    c.pictures.copy_(torch.tensor([0.04, 0.03, 0.10]).to(c.pictures).view(1, 3, 1, 1).expand_as(c.pictures))
    p.stars()
    c.paint(c.circle(0.82, 0.2, 0.12), (0.24, 0.52, 0.90))
    c.paint(c.ellipse(0.79, 0.17, 0.05, 0.04), (0.36, 0.74, 0.42))
    c.paint(c.ellipse(0.87, 0.25, 0.04, 0.03), (0.36, 0.74, 0.42))
    c.paint(c.ellipse(0.5, HORIZON + 0.98, 1.5, 1.04), (0.76, 0.76, 0.80))
    for x, y, rx in ((0.12, 0.78, 0.09), (0.88, 0.84, 0.1), (0.3, 0.93, 0.07), (0.66, 0.74, 0.06)):
        c.paint(c.ellipse(x, y, rx, rx * 0.4), (0.60, 0.60, 0.66))


def farm(p: Place) -> None:
    c = p.canvas
    p.sky()
    p.ground((0.66, 0.80, 0.36))
    p.paint(c.box(0.22, 0.56, 0.15, 0.14), (0.80, 0.24, 0.22))
    p.paint(c.polygon((0.04, 0.43), (0.22, 0.28), (0.40, 0.43)), (0.46, 0.20, 0.20))
    p.paint(c.box(0.22, 0.61, 0.06, 0.09), (0.97, 0.93, 0.88))
    p.paint(c.circle(0.22, 0.39, 0.025), (0.97, 0.93, 0.88))
    for y in (0.66, 0.72):
        p.paint(c.box(0.78, y, 0.3, 0.011), (0.98, 0.95, 0.90))
    for x in (0.5, 0.64, 0.78, 0.92):
        p.paint(c.box(x, 0.69, 0.014, 0.07), (0.98, 0.95, 0.90))
    for x, y in ((0.08, 0.9), (0.92, 0.9)):
        for dx in (-0.03, 0.03, 0.0):
            p.paint(c.ellipse(x + dx, y, 0.035, 0.042), (0.96, 0.55 + abs(dx), 0.16))
        p.paint(c.box(x, y - 0.047, 0.009, 0.014), (0.30, 0.50, 0.22))


SCENES: tuple[Callable[[Place], None], ...] = (
    meadow,
    forest,
    beach,
    snow,
    city,
    desert,
    sea,
    mountains,
    bedroom,
    library,
    moon,
    farm,
)
assert [scene.__name__ for scene in SCENES] == list(VALUES["scene"])
assert SCENES[MOON] is moon and [SCENES[i] for i in INDOORS] == [bedroom, library]


def paint_scenes(canvas: Canvas, scene: Tensor, time: Tensor, sway: Tensor) -> None:
    """Fill every picture with its scene at its time of day. `scene`, `time`, `sway`: [pictures]."""
    for index, paint in enumerate(SCENES):
        here = (scene == index).nonzero().flatten()
        if len(here):
            part = canvas.part(here)
            paint(Place(part, time[here], sway[here]))
            canvas.pictures[here] = part.pictures
