"""What a picture of the world shows: the attributes, their values, and how they are drawn at random."""

import torch

Attributes = dict[str, torch.Tensor]
"""For each attribute a tensor with one entry per picture: int64 indices into its values, or float32 for the layout."""

IDENTITY = {
    "species": ("fox", "cat", "bear", "rabbit", "frog", "owl", "mouse", "robot"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "gray"),
    "pattern": ("plain", "spotted", "striped"),
    "headwear": ("none", "top hat", "crown", "beanie", "party hat"),
    "neckwear": ("none", "scarf", "bow tie"),
    "eyes": ("round", "sleepy", "glasses"),
    "accent": ("red", "yellow", "green", "blue", "white", "black"),
}
"""Who it is. `accent` is the one colour of hat, scarf and boots."""

FRAME = {
    "scene": (
        "meadow",
        "forest",
        "beach",
        "snow",
        "city",
        "desert",
        "sea",
        "mountains",
        "bedroom",
        "library",
        "moon",
        "farm",
    ),
    "activity": ("standing", "balloon", "book", "umbrella", "lantern", "ice cream"),
    "time": ("day", "sunset", "night"),
}
"""What one frame shows."""

VALUES = {**IDENTITY, **FRAME, "company": ("alone", "twin", "portrait", "pair")}
"""All attributes with a finite list of values. `company`: a twin beside, a portrait of the same character above, or
another character to the right."""

OTHER = {f"other_{name}": values for name, values in {**IDENTITY, "activity": FRAME["activity"]}.items()}
"""Who stands to the right, and what they do; the same as to the left unless the picture shows a pair."""

NAMES = {
    "Mia": {"species": 1, "colour": 6, "pattern": 0, "headwear": 2, "neckwear": 2, "eyes": 0, "accent": 1},
    "Otto": {"species": 2, "colour": 4, "pattern": 0, "headwear": 1, "neckwear": 1, "eyes": 0, "accent": 0},
    "Ruby": {"species": 0, "colour": 0, "pattern": 0, "headwear": 0, "neckwear": 1, "eyes": 1, "accent": 3},
    "Leo": {"species": 4, "colour": 3, "pattern": 1, "headwear": 3, "neckwear": 0, "eyes": 2, "accent": 1},
    "Ivy": {"species": 5, "colour": 5, "pattern": 2, "headwear": 4, "neckwear": 0, "eyes": 0, "accent": 2},
    "Max": {"species": 7, "colour": 7, "pattern": 0, "headwear": 0, "neckwear": 2, "eyes": 0, "accent": 0},
}
"""Named characters, who always look the same."""

INDOORS = (VALUES["scene"].index("bedroom"), VALUES["scene"].index("library"))
MOON = VALUES["scene"].index("moon")
PAIR = VALUES["company"].index("pair")
TWIN = VALUES["company"].index("twin")
PORTRAIT = VALUES["company"].index("portrait")
NAMED_SHARE = 0.1
TWIN_SHARE = 0.15
PAIR_SHARE = 0.2
PORTRAIT_SHARE = 0.15  # of the pictures indoors
TOGETHER_SHARE = 0.5
"""The pairs that do the same."""
SAME = {
    VALUES["accent"].index(name): VALUES["colour"].index(name) for name in VALUES["accent"] if name in VALUES["colour"]
}
"""Accents that fur of the same colour would hide, and that are white then."""
WHITE = VALUES["accent"].index("white")


def draw(count: int, generator: torch.Generator) -> Attributes:
    """Attributes of `count` random pictures, on the CPU; `name` and `other_name` are indices into NAMES, or -1."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    found = {name: torch.randint(len(VALUES[name]), (count,), generator=generator) for name in FRAME}
    found["time"][found["scene"] == MOON] = VALUES["time"].index("night")
    chance, indoors = uniform(0, 1), torch.isin(found["scene"], torch.tensor(INDOORS))
    company = torch.where(chance < TWIN_SHARE, TWIN, 0)
    company[indoors & (uniform(0, 1) < PORTRAIT_SHARE)] = PORTRAIT
    company[chance > 1 - PAIR_SHARE] = PAIR
    found["company"] = company
    looks, others = draw_looks(count, generator), draw_looks(count, generator)
    others["activity"] = torch.randint(len(VALUES["activity"]), (count,), generator=generator)
    apart = company == PAIR
    others["name"][others["name"] == looks["name"]] = -1
    others["activity"] = torch.where(uniform(0, 1) < TOGETHER_SHARE, found["activity"], others["activity"])
    found |= looks
    found |= {f"other_{name}": torch.where(apart, other, found[name]) for name, other in others.items()}
    found |= {name: uniform(-1, 1) for name in ("x", "y", "size", "sway")}
    return found


def draw_looks(count: int, generator: torch.Generator) -> Attributes:
    """Who `count` characters are: `name` and the attributes of IDENTITY."""
    found = {name: torch.randint(len(values), (count,), generator=generator) for name, values in IDENTITY.items()}
    for accent, colour in SAME.items():
        found["accent"][(found["accent"] == accent) & (found["colour"] == colour)] = WHITE
    found["name"] = torch.randint(len(NAMES), (count,), generator=generator)
    found["name"][torch.rand(count, generator=generator) >= NAMED_SHARE] = -1
    for index, look in enumerate(NAMES.values()):
        for name, value in look.items():
            found[name][found["name"] == index] = value
    return found


def select(attributes: Attributes, index: torch.Tensor) -> Attributes:
    """The attributes of some of the pictures."""
    return {name: values[index] for name, values in attributes.items()}


def other_look(attributes: Attributes) -> Attributes:
    """The characters to the right as `IDENTITY` and "activity" name their attributes."""
    return {name.removeprefix("other_"): attributes[name] for name in OTHER}
