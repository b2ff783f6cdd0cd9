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

VALUES = {**IDENTITY, **FRAME, "company": ("alone", "twin", "portrait")}
"""All attributes with a finite list of values. `company`: a twin beside, or a portrait of the same character above."""

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
NAMED_SHARE = 0.1
TWIN_SHARE = 0.4
PORTRAIT_SHARE = 0.5  # of the pictures indoors


def draw(count: int, generator: torch.Generator) -> Attributes:
    """Attributes of `count` random pictures, on the CPU; `name` is the index into NAMES, or -1."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    found = {name: torch.randint(len(VALUES[name]), (count,), generator=generator) for name in {**IDENTITY, **FRAME}}
    looks = list(NAMES.values())
    found["name"] = torch.randint(len(looks), (count,), generator=generator)
    found["name"][uniform(0, 1) >= NAMED_SHARE] = -1
    for index, look in enumerate(looks):
        for name, value in look.items():
            found[name][found["name"] == index] = value
    found["time"][found["scene"] == MOON] = VALUES["time"].index("night")
    indoors = torch.isin(found["scene"], torch.tensor(INDOORS))
    company = (uniform(0, 1) < TWIN_SHARE).long()
    found["company"] = torch.where(indoors & (uniform(0, 1) < PORTRAIT_SHARE), 2, company)
    found["x"] = uniform(-1, 1)
    found["y"] = uniform(-1, 1)
    found["size"] = uniform(-1, 1)
    found["sway"] = uniform(-1, 1)
    found["twin_activity"] = torch.randint(len(VALUES["activity"]), (count,), generator=generator)
    return found


def select(attributes: Attributes, index: torch.Tensor) -> Attributes:
    """The attributes of some of the pictures."""
    return {name: values[index] for name, values in attributes.items()}
