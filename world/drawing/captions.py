"""What a caption says of a picture: an identity prompt, then frame prompts, as a story's prompt has them."""

import random

from .attributes import FRAME, IDENTITY, NAMES, VALUES

MENTIONED = {"colour": 0.8, "pattern": 0.6, "headwear": 0.65, "neckwear": 0.65, "eyes": 0.55, "accent": 0.5}
"""How often a caption says an identity attribute; what it leaves out is open."""
ANYBODY = "a cartoon"
"""What captions call a character of whom they say nothing."""
WHOLE_SHARE = 0.3
"""Captions that say everything of who and what a picture shows."""
STYLES = ("", "", "a cartoon of ", "a drawing of ", "a picture of ")
LISTED_SHARE = 0.25
"""Captions that list several frame prompts, of which the picture shows one."""
SIDES_SHARE = 0.75
"""Captions of two characters that say who is on the left and who on the right."""
LONGEST = 75
"""CLIP's prompt without its start and end."""

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
    said = {name for name, share in (("activity", 0.8), ("scene", 0.92), ("time", 0.45)) if rng.random() < share}
    return said or {"scene"}


def said_of_identity(rng: random.Random) -> set[str]:
    return {name for name, share in MENTIONED.items() if rng.random() < share}


def character(picture: Picture, rng: random.Random, said: set[str]) -> str:
    """A character as a caption has it: described, named, or both."""
    described = identity_prompt(picture, said)
    if picture["name"] < 0:
        return described
    name = list(NAMES)[picture["name"]]
    return name if rng.random() < 0.7 else f"{name} {described}"


def pair(picture: Picture, rng: random.Random, whole: bool) -> str:
    """Two characters, in any order, most often with their sides; with what each does where they do different things.

    "a blue cat reading a book on the right and a fox with a scarf holding a balloon on the left".
    """
    other = {name: picture[f"other_{name}"] for name in (*IDENTITY, "name", "activity")}
    apart = picture["activity"] != other["activity"] and (whole or rng.random() < 0.7)
    sides = whole or rng.random() < SIDES_SHARE
    found = []
    for who, side in ((picture, "left"), (other, "right")):
        words = [character(who, rng, set(MENTIONED) if whole else said_of_identity(rng))]
        if apart:
            words.append(ACTIVITY_WORDS[VALUES["activity"][who["activity"]]])
        found.append(" ".join([*words, f"on the {side}"] if sides else words))
    if sides and rng.random() < 0.5:
        found.reverse()
    return " and ".join(found)


def caption(picture: Picture, rng: random.Random) -> str:
    """A caption of a picture; what it says, and in which of the grammar's ways, is random."""
    identity, shown = parts(picture, rng, whole=rng.random() < WHOLE_SHARE)
    start, comma = rng.choice(STYLES), "," if rng.random() < 0.2 else ""
    frames = [shown]
    if rng.random() < LISTED_SHARE:
        frames += [frame_prompt(some_frame(rng), said_of_frame(rng)) for _ in range(rng.randint(1, 4))]
        while len(f"{start}{' , '.join([identity, *frames])}".split()) > LONGEST:
            frames.pop()
        rng.shuffle(frames)
    return start + f"{comma} ".join([identity, *frames])


def whole_caption(picture: Picture) -> str:
    """The caption that says everything, always in the same way."""
    return " ".join(parts(picture, random.Random(0), whole=True))


def parts(picture: Picture, rng: random.Random, whole: bool) -> tuple[str, str]:
    """An identity prompt and a frame prompt of a picture; all that there is to say, or a random part of it."""
    said = set(FRAME) if whole else said_of_frame(rng)
    company = VALUES["company"][picture["company"]]
    if company == "pair":
        if picture["activity"] != picture["other_activity"]:
            said = said - {"activity"} or {"scene"}
        return pair(picture, rng, whole), frame_prompt(picture, said)
    identity = character(picture, rng, set(MENTIONED) if whole else said_of_identity(rng))
    beside = {"twin": " and a twin", "portrait": " and a portrait"}.get(company, "")
    return identity + beside, frame_prompt(picture, said)
