"""What a caption says of a picture: an identity prompt, then frame prompts, as a story's prompt has them."""

import random

from .attributes import FRAME, NAMES, VALUES

MENTIONED = {"colour": 0.75, "pattern": 0.5, "headwear": 0.55, "neckwear": 0.5, "eyes": 0.5, "accent": 0.35}
"""How often a caption says an identity attribute; what it leaves out is open."""
STYLES = ("", "", "a cartoon of ", "a drawing of ", "a picture of ")
LISTED_SHARE = 0.3
"""Captions that list several frame prompts, of which the picture shows one."""

SCENE_WORDS = {
    "meadow": "in a meadow",
    "forest": "in the forest",
    "beach": "on the beach",
    "snow": "in the snow",
    "city": "in the city",
    "desert": "in the desert",
    "sea": "under the sea",
    "mountains": "in the mountains",
    "bedroom": "in a bedroom",
    "library": "in the library",
    "moon": "on the moon",
    "farm": "on a farm",
}
ACTIVITY_WORDS = {
    "standing": "standing",
    "balloon": "holding a balloon",
    "book": "reading a book",
    "umbrella": "under an umbrella",
    "lantern": "carrying a lantern",
    "ice cream": "eating an ice cream",
}
TIME_WORDS = {"day": "by day", "sunset": "at sunset", "night": "at night"}

Picture = dict[str, int]
"""One picture's attributes, as indices into their values."""


def identity_prompt(picture: Picture, said: set[str]) -> str:
    """The identity prompt with the attributes in `said`: "a spotted blue fox with a red scarf and a crown"."""

    def value(name: str) -> str:
        return VALUES[name][picture[name]]

    words = []
    if "eyes" in said and value("eyes") == "sleepy":
        words.append("sleepy")
    if "pattern" in said and value("pattern") != "plain":
        words.append(value("pattern"))
    if "colour" in said:
        words.append(value("colour"))
    words.append(value("species"))
    extras = [value(name) for name in ("headwear", "neckwear") if name in said and value(name) != "none"]
    if "accent" in said:
        extras = [f"{value('accent')} {extra}" for extra in extras if extra != "crown"] + [
            extra for extra in extras if extra == "crown"
        ]
        if not extras:
            extras = [f"{value('accent')} boots"]
    extras = [extra if extra.endswith("boots") else with_article(extra) for extra in extras]
    if "eyes" in said and value("eyes") == "glasses":
        extras.append("glasses")
    if extras:
        words.append("with " + " and ".join(extras))
    return with_article(" ".join(words))


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def frame_prompt(frame: Picture, said: set[str]) -> str:
    """A frame prompt with the frame attributes in `said`: "reading a book in the forest at night"."""
    words = []
    if "activity" in said:
        words.append(ACTIVITY_WORDS[VALUES["activity"][frame["activity"]]])
    if "scene" in said:
        words.append(SCENE_WORDS[VALUES["scene"][frame["scene"]]])
    if "time" in said:
        words.append(TIME_WORDS[VALUES["time"][frame["time"]]])
    return " ".join(words)


def some_frame(rng: random.Random) -> Picture:
    return {name: rng.randrange(len(values)) for name, values in FRAME.items()}


def said_of_frame(rng: random.Random) -> set[str]:
    said = {name for name, share in (("activity", 0.75), ("scene", 0.92), ("time", 0.4)) if rng.random() < share}
    return said or {"scene"}


def caption(picture: Picture, rng: random.Random) -> str:
    """A caption of a picture; what it says, and in which of the grammar's ways, is random."""
    said = {name for name, share in MENTIONED.items() if rng.random() < share}
    identity = identity_prompt(picture, said)
    if picture["name"] >= 0:
        identity = list(NAMES)[picture["name"]] if rng.random() < 0.7 else f"{list(NAMES)[picture['name']]} {identity}"
    company = VALUES["company"][picture["company"]]
    if company == "twin":
        identity += " and a twin"
    elif company == "portrait" and rng.random() < 0.7:
        identity += " and a portrait"
    frames = [frame_prompt(picture, said_of_frame(rng))]
    if rng.random() < LISTED_SHARE:
        frames += [frame_prompt(some_frame(rng), said_of_frame(rng)) for _ in range(rng.randint(1, 4))]
        rng.shuffle(frames)
    comma = "," if rng.random() < 0.2 else ""
    return rng.choice(STYLES) + f"{comma} ".join([identity, *frames])
