"""The world's characters: eight species in one cartoon style, with what they wear and hold."""

import torch
from torch import Tensor

from .attributes import VALUES, Attributes, select
from .shapes import Canvas, Colour, mix

COLOURS = torch.tensor(
    [
        [0.90, 0.24, 0.22],
        [0.98, 0.56, 0.14],
        [0.99, 0.84, 0.24],
        [0.36, 0.74, 0.34],
        [0.28, 0.52, 0.94],
        [0.60, 0.36, 0.82],
        [0.98, 0.58, 0.74],
        [0.62, 0.64, 0.68],
    ]
)
ACCENTS = torch.tensor(
    [
        [0.85, 0.16, 0.22],
        [1.0, 0.80, 0.12],
        [0.12, 0.56, 0.34],
        [0.16, 0.36, 0.80],
        [0.98, 0.98, 0.96],
        [0.15, 0.14, 0.19],
    ]
)
BLACK = (0.10, 0.09, 0.13)
WHITE = (1.0, 1.0, 1.0)
CREAM = (1.0, 0.96, 0.88)
BLUSH = (0.98, 0.50, 0.52)


class Figure:
    """Characters of the same kind on a canvas in their own coordinates: the feet at 0, 0, the crown near y = -1."""

    def __init__(self, canvas: Canvas, who: Attributes, activity: Tensor):
        self.canvas = canvas
        self.who = who
        self.activity = activity
        like = canvas.pictures
        self.fur: Tensor = COLOURS.to(like)[who["colour"]].view(-1, 3, 1, 1)
        self.dark = mix(self.fur, BLACK, 0.32, like)
        self.light = mix(self.fur, CREAM, 0.66, like)
        self.accent: Tensor = ACCENTS.to(like)[who["accent"]].view(-1, 3, 1, 1)
        self.accent_dark = mix(self.accent, (0.35, 0.33, 0.40), 0.35, like)

    def part(self, name: str, value: str) -> "tuple[Figure, Tensor] | None":
        """The figures that have a value of an attribute, on a copy of their pictures, and their indices."""
        values = self.activity if name == "activity" else self.who[name]
        index = (values == VALUES[name].index(value)).nonzero().flatten()
        if not len(index):
            return None
        return Figure(self.canvas.part(index), select(self.who, index), self.activity[index]), index

    def each(self, name: str, painters: dict) -> None:
        """Let every value's painter paint the figures that have it."""
        for value, paint in painters.items():
            found = self.part(name, value)
            if found:
                figure, index = found
                paint(figure)
                self.canvas.pictures[index] = figure.canvas.pictures

    def paint(self, distance: Tensor, colour: Colour) -> None:
        self.canvas.paint(distance, colour)

    def both(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """An ellipse on either side."""
        for side in (-1, 1):
            self.paint(self.canvas.ellipse(side * x, y, rx, ry), colour)


def pointed_ears(f: Figure, x: float, tip: float, width: float, inner: Colour, end: Colour | None) -> None:
    c = f.canvas
    for side in (-1, 1):
        corners = [(side * (x - width), -0.80), (side * (x + 0.04), tip), (side * (x + width), -0.70)]
        ordered = corners if side > 0 else corners[::-1]
        f.paint(c.polygon(*ordered), f.fur)
        if end is not None:
            top = [(side * (x - 0.02), tip + 0.1), (side * (x + 0.04), tip), (side * (x + 0.075), tip + 0.1)]
            f.paint(c.polygon(*(top if side > 0 else top[::-1])), end)
        small = [(side * (x - width * 0.4), -0.80), (side * (x + 0.03), tip + 0.13), (side * (x + width * 0.5), -0.76)]
        f.paint(c.polygon(*(small if side > 0 else small[::-1])), inner)


def behind_fox(f: Figure) -> None:
    c = f.canvas
    f.paint(c.line(-0.12, -0.16, -0.30, -0.20, 0.085), f.fur)
    f.paint(c.line(-0.30, -0.20, -0.37, -0.32, 0.085), f.fur)
    f.paint(c.circle(-0.385, -0.36, 0.078), CREAM)
    pointed_ears(f, 0.18, -1.06, 0.11, CREAM, BLACK)


def behind_cat(f: Figure) -> None:
    c = f.canvas
    for a, b in (((-0.1, -0.1), (-0.3, -0.12)), ((-0.3, -0.12), (-0.38, -0.28)), ((-0.38, -0.28), (-0.33, -0.4))):
        f.paint(c.line(*a, *b, 0.035), f.dark)
    pointed_ears(f, 0.17, -0.98, 0.1, BLUSH, None)


def behind_bear(f: Figure) -> None:
    f.both(0.21, -0.86, 0.095, 0.095, f.fur)
    f.both(0.21, -0.86, 0.05, 0.05, f.dark)


def behind_rabbit(f: Figure) -> None:
    c = f.canvas
    f.paint(c.circle(-0.2, -0.14, 0.075), CREAM)
    for side in (-1, 1):
        f.paint(c.line(side * 0.1, -0.82, side * 0.15, -1.2, 0.07), f.fur)
        f.paint(c.line(side * 0.105, -0.85, side * 0.145, -1.17, 0.033), BLUSH)


def behind_frog(f: Figure) -> None:
    f.both(0.14, -0.86, 0.1, 0.1, f.fur)


def behind_owl(f: Figure) -> None:
    pointed_ears(f, 0.2, -0.97, 0.08, f.dark, None)
    f.both(0.2, -0.3, 0.09, 0.17, f.dark)


def behind_mouse(f: Figure) -> None:
    c = f.canvas
    f.paint(c.line(-0.1, -0.08, -0.32, -0.06, 0.025), BLUSH)
    f.paint(c.line(-0.32, -0.06, -0.4, -0.2, 0.025), BLUSH)
    f.both(0.25, -0.86, 0.15, 0.15, f.fur)
    f.both(0.25, -0.86, 0.095, 0.095, BLUSH)


def behind_robot(f: Figure) -> None:
    c = f.canvas
    f.paint(c.line(0.0, -0.86, 0.0, -1.06, 0.016), f.dark)
    f.paint(c.circle(0.0, -1.08, 0.045), (0.98, 0.30, 0.26))
    f.paint(c.box(0.0, -0.66, 0.31, 0.07, 0.03), f.dark)


def body(f: Figure) -> None:
    """Legs, boots, trunk and resting arms."""
    c = f.canvas
    for side in (-1, 1):
        f.paint(c.line(side * 0.09, -0.16, side * 0.1, -0.06, 0.055), f.fur)
        f.paint(c.box(side * 0.11, -0.035, 0.085, 0.045, 0.035), f.accent)
    robot = (f.who["species"] == VALUES["species"].index("robot")).view(-1, 1, 1)
    trunk = torch.where(robot, c.box(0, -0.27, 0.18, 0.2, 0.04), c.ellipse(0, -0.28, 0.19, 0.23))
    f.paint(trunk, f.fur)
    belly = torch.where(robot, c.box(0, -0.25, 0.11, 0.1, 0.02), c.ellipse(0, -0.24, 0.12, 0.16))
    f.paint(belly, f.light)
    f.each("pattern", {"spotted": spotted, "striped": striped})
    f.paint(c.line(-0.16, -0.38, -0.25, -0.22, 0.05), f.fur)


def spotted(f: Figure) -> None:
    c = f.canvas
    for x, y, radius in (
        (-0.11, -0.38, 0.032),
        (0.12, -0.36, 0.036),
        (0.13, -0.2, 0.03),
        (-0.13, -0.22, 0.034),
        (0.0, -0.13, 0.03),
        (0.02, -0.3, 0.03),
    ):
        f.paint(c.circle(x, y, radius), f.dark)


def striped(f: Figure) -> None:
    c = f.canvas
    inside = c.ellipse(0, -0.28, 0.19, 0.23)
    for y in (-0.38, -0.28, -0.18, -0.1):
        f.paint(torch.maximum(inside, (c.y - y).abs() + 0 * c.x - 0.022), f.dark)


def head(f: Figure) -> None:
    c = f.canvas
    robot = (f.who["species"] == VALUES["species"].index("robot")).view(-1, 1, 1)
    f.paint(torch.where(robot, c.box(0, -0.66, 0.26, 0.22, 0.06), c.ellipse(0, -0.66, 0.28, 0.235)), f.fur)
    f.each("pattern", {"spotted": head_spots, "striped": head_stripes})


def head_spots(f: Figure) -> None:
    for x, y in ((-0.2, -0.74), (0.21, -0.73), (0.0, -0.83)):
        f.paint(f.canvas.circle(x, y, 0.036), f.dark)


def head_stripes(f: Figure) -> None:
    c = f.canvas
    for x, low in ((-0.07, -0.80), (0.0, -0.77), (0.07, -0.80)):
        f.paint(c.line(x, -0.87, x, low, 0.018), f.dark)
    for side in (-1, 1):
        f.paint(c.line(side * 0.26, -0.66, side * 0.19, -0.655, 0.016), f.dark)


def smile(f: Figure, y: float, width: float) -> None:
    """The lower half of a ring."""
    c = f.canvas
    ring = c.circle(0, y, width).abs() - 0.013
    f.paint(torch.maximum(ring, y + width * 0.25 - c.y + 0 * c.x), BLACK)


def face_fox(f: Figure) -> None:
    c = f.canvas
    for side in (-1, 1):
        corners = [(side * 0.02, -0.66), (side * 0.28, -0.64), (side * 0.02, -0.43)]
        f.paint(c.polygon(*(corners if side > 0 else corners[::-1])), CREAM)
    f.paint(c.ellipse(0, -0.54, 0.085, 0.09), CREAM)
    f.paint(c.ellipse(0, -0.57, 0.035, 0.026), BLACK)
    smile(f, -0.53, 0.05)


def face_cat(f: Figure) -> None:
    c = f.canvas
    f.both(0.05, -0.54, 0.07, 0.055, CREAM)
    for side in (-1, 1):
        for y in (-0.57, -0.52):
            f.paint(c.line(side * 0.12, y, side * 0.31, y * 1.14 + 0.075, 0.008), BLACK)
    f.paint(c.polygon((-0.03, -0.595), (0.03, -0.595), (0.0, -0.56)), BLUSH)
    smile(f, -0.545, 0.04)


def face_bear(f: Figure) -> None:
    c = f.canvas
    f.paint(c.ellipse(0, -0.55, 0.12, 0.095), f.light)
    f.paint(c.ellipse(0, -0.595, 0.05, 0.035), BLACK)
    smile(f, -0.55, 0.045)


def face_rabbit(f: Figure) -> None:
    c = f.canvas
    f.both(0.05, -0.545, 0.07, 0.06, CREAM)
    f.paint(c.box(0, -0.485, 0.034, 0.036, 0.01), WHITE)
    f.paint(c.box(0, -0.485, 0.005, 0.034), (0.7, 0.7, 0.75))
    f.paint(c.ellipse(0, -0.58, 0.03, 0.022), BLUSH)


def face_frog(f: Figure) -> None:
    c = f.canvas
    f.paint(c.ellipse(0, -0.54, 0.22, 0.1), f.light)
    ring = c.ellipse(0, -0.62, 0.19, 0.13).abs() - 0.014
    f.paint(torch.maximum(ring, -0.585 - c.y + 0 * c.x), BLACK)
    f.both(0.03, -0.62, 0.01, 0.01, f.dark)


def face_owl(f: Figure) -> None:
    c = f.canvas
    f.both(0.105, -0.68, 0.125, 0.135, CREAM)
    f.paint(c.polygon((-0.05, -0.615), (0.05, -0.615), (0.0, -0.50)), (1.0, 0.66, 0.16))


def face_mouse(f: Figure) -> None:
    c = f.canvas
    f.paint(c.ellipse(0, -0.53, 0.1, 0.08), CREAM)
    f.paint(c.circle(0, -0.575, 0.04), BLUSH)
    for side in (-1, 1):
        f.paint(c.line(side * 0.09, -0.54, side * 0.26, -0.55, 0.007), BLACK)
    smile(f, -0.53, 0.035)


def face_robot(f: Figure) -> None:
    c = f.canvas
    f.paint(c.box(0, -0.685, 0.21, 0.085, 0.05), (0.14, 0.18, 0.28))
    f.paint(c.box(0, -0.52, 0.11, 0.035, 0.01), f.light)
    for x in (-0.055, 0.0, 0.055):
        f.paint(c.box(x, -0.52, 0.008, 0.035), (0.14, 0.18, 0.28))


def eye_place(f: Figure) -> tuple[Tensor, Tensor]:
    """How far apart and how high a species' eyes are: [figures, 1, 1] each."""
    apart = torch.tensor([0.115, 0.12, 0.11, 0.11, 0.14, 0.105, 0.11, 0.1])
    high = torch.tensor([-0.70, -0.69, -0.69, -0.69, -0.86, -0.69, -0.69, -0.685])
    species = f.who["species"]
    return tuple(t.to(f.canvas.pictures)[species].view(-1, 1, 1) for t in (apart, high))  # type: ignore[return-value]


def eyes_round(f: Figure) -> None:
    c = f.canvas
    x, y = eye_place(f)
    for side in (-1, 1):
        f.paint(c.ellipse(side * x, y, 0.06, 0.068), WHITE)
        f.paint(c.circle(side * x, y + 0.008, 0.04), BLACK)
        f.paint(c.circle(side * x + 0.014, y - 0.012, 0.014), WHITE)


def eyes_sleepy(f: Figure) -> None:
    c = f.canvas
    x, y = eye_place(f)
    for side in (-1, 1):
        f.paint(c.ellipse(side * x, y, 0.06, 0.062), WHITE)
        f.paint(c.circle(side * x, y + 0.02, 0.036), BLACK)
        lid = torch.maximum(c.ellipse(side * x, y, 0.066, 0.068), c.y - y - 0.004)
        f.paint(lid, f.dark)


def eyes_glasses(f: Figure) -> None:
    c = f.canvas
    x, y = eye_place(f)
    for side in (-1, 1):
        f.paint(c.circle(side * x, y, 0.088), BLACK)
        f.paint(c.circle(side * x, y, 0.067), (0.92, 0.97, 1.0))
        f.paint(c.circle(side * x, y, 0.034), BLACK)
        f.paint(c.circle(side * x + 0.012, y - 0.012, 0.011), WHITE)
    f.paint(c.line(-x + 0.08, y, x - 0.08, y, 0.012), BLACK)


def scarf(f: Figure) -> None:
    c = f.canvas
    f.paint(c.line(0.11, -0.42, 0.14, -0.2, 0.065), f.accent_dark)
    f.paint(c.box(0, -0.43, 0.235, 0.07, 0.06), f.accent)


def bow_tie(f: Figure) -> None:
    c = f.canvas
    f.paint(c.polygon((-0.17, -0.50), (0.0, -0.41), (-0.17, -0.32)), f.accent)
    f.paint(c.polygon((0.17, -0.32), (0.0, -0.41), (0.17, -0.50)), f.accent)
    f.paint(c.circle(0, -0.41, 0.045), f.accent_dark)


def top_hat(f: Figure) -> None:
    c = f.canvas
    f.paint(c.box(0, -1.04, 0.135, 0.16, 0.02), f.accent)
    f.paint(c.box(0, -0.935, 0.136, 0.032), f.accent_dark)
    f.paint(c.box(0, -0.88, 0.225, 0.03, 0.03), f.accent)


def crown(f: Figure) -> None:
    c = f.canvas
    gold = (1.0, 0.82, 0.20)
    f.paint(c.box(0, -0.89, 0.16, 0.045), gold)
    for x in (-0.115, 0.0, 0.115):
        f.paint(c.polygon((x - 0.055, -0.92), (x, -1.06), (x + 0.055, -0.92)), gold)
        f.paint(c.circle(x, -0.9, 0.026), f.accent)


def beanie(f: Figure) -> None:
    c = f.canvas
    dome = torch.maximum(c.ellipse(0, -0.84, 0.22, 0.2), c.y + 0.82 + 0 * c.x)
    f.paint(dome, f.accent)
    f.paint(c.box(0, -0.83, 0.235, 0.045, 0.04), f.accent_dark)
    f.paint(c.circle(0, -1.06, 0.06), CREAM)


def party_hat(f: Figure) -> None:
    c = f.canvas
    cone = c.polygon((-0.14, -0.85), (0.0, -1.22), (0.14, -0.85))
    f.paint(cone, f.accent)
    for y in (-0.92, -1.04):
        f.paint(torch.maximum(cone, (c.y - y).abs() + 0 * c.x - 0.024), CREAM)
    f.paint(c.circle(0, -1.22, 0.045), (1.0, 0.82, 0.20))


def hand_down(f: Figure) -> None:
    f.paint(f.canvas.line(0.16, -0.38, 0.25, -0.22, 0.05), f.fur)


def hand_up(f: Figure) -> None:
    f.paint(f.canvas.line(0.16, -0.36, 0.30, -0.38, 0.05), f.fur)


def balloon(f: Figure) -> None:
    c = f.canvas
    f.paint(c.line(0.32, -0.36, 0.40, -0.86, 0.01), (0.35, 0.33, 0.40))
    f.paint(c.ellipse(0.41, -1.02, 0.13, 0.16), (0.95, 0.25, 0.42))
    f.paint(c.ellipse(0.37, -1.08, 0.03, 0.045), (1.0, 0.75, 0.80))
    hand_up(f)


def book(f: Figure) -> None:
    c = f.canvas
    f.paint(c.box(0.02, -0.27, 0.19, 0.125, 0.01), (0.20, 0.36, 0.66))
    for side in (-1, 1):
        f.paint(c.box(0.02 + side * 0.085, -0.28, 0.08, 0.11, 0.01), (0.99, 0.97, 0.90))
        for y in (-0.33, -0.28, -0.23):
            f.paint(c.box(0.02 + side * 0.085, y, 0.055, 0.008), (0.62, 0.62, 0.68))
    for x in (-0.18, 0.22):
        f.paint(c.circle(x, -0.24, 0.052), f.fur)


def umbrella(f: Figure) -> None:
    c = f.canvas
    f.paint(c.line(0.33, -0.28, 0.33, -1.02, 0.02), (0.40, 0.28, 0.20))
    dome = torch.maximum(c.ellipse(0.33, -0.94, 0.36, 0.28), c.y + 0.94 + 0 * c.x)
    f.paint(dome, (0.98, 0.76, 0.20))
    for x in (0.22, 0.44):
        f.paint(torch.maximum(dome, c.ellipse(x, -0.94, 0.05, 0.28).abs() - 0.016), (0.86, 0.40, 0.22))


def lantern(f: Figure) -> None:
    c = f.canvas
    for radius, strength in ((0.24, 0.18), (0.17, 0.25)):
        c.paint(c.circle(0.36, -0.2, radius), (1.0, 0.92, 0.50), strength)
    f.paint(c.box(0.36, -0.2, 0.07, 0.1, 0.02), (0.28, 0.24, 0.26))
    f.paint(c.box(0.36, -0.2, 0.048, 0.065, 0.01), (1.0, 0.88, 0.36))
    f.paint(c.box(0.36, -0.31, 0.035, 0.02), (0.28, 0.24, 0.26))
    hand_up(f)


def ice_cream(f: Figure) -> None:
    c = f.canvas
    f.paint(c.polygon((0.25, -0.46), (0.41, -0.46), (0.33, -0.24)), (0.90, 0.66, 0.36))
    f.paint(c.circle(0.28, -0.49, 0.062), (0.98, 0.66, 0.76))
    f.paint(c.circle(0.38, -0.49, 0.062), (0.99, 0.95, 0.82))
    f.paint(c.circle(0.33, -0.57, 0.062), (0.52, 0.34, 0.26))
    hand_up(f)


BEHIND = {name: globals()[f"behind_{name}"] for name in VALUES["species"]}
FACES = {name: globals()[f"face_{name}"] for name in VALUES["species"]}
EYES = {"round": eyes_round, "sleepy": eyes_sleepy, "glasses": eyes_glasses}
HEADWEAR = {"top hat": top_hat, "crown": crown, "beanie": beanie, "party hat": party_hat}
NECKWEAR = {"scarf": scarf, "bow tie": bow_tie}
OVERHEAD = {"umbrella": umbrella}
"""What is held over the head, painted before it: a hat shows in front of it."""
ACTIVITIES = {
    "standing": hand_down,
    "balloon": balloon,
    "book": book,
    "umbrella": hand_up,
    "lantern": lantern,
    "ice cream": ice_cream,
}


def paint_figures(canvas: Canvas, who: Attributes, activity: Tensor) -> None:
    """Paint one character on each picture; the canvas is in the figures' own coordinates."""
    f = Figure(canvas, who, activity)
    canvas.paint(canvas.ellipse(0, 0.0, 0.26, 0.045), BLACK, 0.22)
    f.each("activity", OVERHEAD)
    f.each("species", BEHIND)
    body(f)
    f.each("neckwear", NECKWEAR)
    paint_head(f)
    f.each("activity", ACTIVITIES)


def paint_head(f: Figure) -> None:
    head(f)
    f.each("species", FACES)
    f.both(0.2, -0.59, 0.045, 0.03, mix(f.fur, BLUSH, 0.5, f.canvas.pictures))
    f.each("eyes", EYES)
    f.each("headwear", HEADWEAR)


def paint_portraits(canvas: Canvas, who: Attributes) -> None:
    """Paint a framed picture of each character's head and shoulders around 0, -0.75."""
    c = canvas
    c.paint(c.box(0, -0.78, 0.48, 0.60, 0.03), (0.80, 0.60, 0.22))
    c.paint(c.box(0, -0.78, 0.42, 0.54, 0.02), (0.80, 0.90, 0.86))
    before = c.pictures.clone()
    f = Figure(canvas, who, torch.zeros_like(who["species"]))
    f.each("species", BEHIND)
    body(f)
    f.each("neckwear", NECKWEAR)
    paint_head(f)
    inside = (c.box(0, -0.78, 0.42, 0.54, 0.02) < 0).unsqueeze(1)
    c.pictures.copy_(torch.where(inside, c.pictures, before))
