"""Random stories of the Story World, whose truth is known."""

import random
from typing import NamedTuple

from ...story.files import StoryText
from ...world.drawing.attributes import FRAME, IDENTITY, MOON, SAME, VALUES, WHITE
from ...world.drawing.captions import Picture, frame_prompt, identity_prompt
from .pair_graphs import LEFT, RIGHT

FRAMES = 5
SAID = ("activity", "scene", "time")
MENTIONED = ("colour", "pattern", "headwear", "neckwear", "eyes", "accent")
"""Identity attributes that a story may say or leave open; it always says the species."""
OPEN = 4
"""How many of them every story leaves open."""


PAIR_FRAMES = 2
PICTURE_FRAMES = 2


class WorldStory(NamedTuple):
    """A story's text and its truth: what the identity prompt says, and what each frame prompt says."""

    text: StoryText
    identity: dict[str, int]
    frames: tuple[dict[str, int], ...]


def world_stories(count: int, seed: int = 0) -> list[WorldStory]:
    """`count` stories of five frames in five scenes with five activities; the same for the same seed."""
    rng = random.Random(seed)
    return [one_story(rng, number) for number in range(1, count + 1)]


def one_story(rng: random.Random, number: int) -> WorldStory:
    look = some_look(rng)
    said = set(MENTIONED) - set(rng.sample(MENTIONED, OPEN))
    scenes = rng.sample(range(len(FRAME["scene"])), FRAMES)
    activities = rng.sample(range(len(FRAME["activity"])), FRAMES)
    frames = []
    for scene, activity in zip(scenes, activities, strict=True):
        night = VALUES["time"].index("night")
        time = night if scene == MOON else rng.randrange(len(FRAME["time"]))
        frames.append({"scene": scene, "activity": activity, "time": time})
    lines = "\n".join(frame_prompt(frame, set(SAID)) for frame in frames)
    text = StoryText(f"Story {number}", identity_prompt(look, said), lines)
    return WorldStory(text, {name: look[name] for name in said_of(look, said)}, tuple(frames))


class PairStory(NamedTuple):
    """A story of two characters, both in every frame: its text, what it says of each by side, each frame's scene."""

    text: StoryText
    sides: dict[str, dict[str, int]]
    frames: tuple[dict[str, int], ...]


def pair_stories(count: int, seed: int = 0) -> list[PairStory]:
    """`count` stories of two frames in two scenes; the same for the same seed.

    The two differ in species, colour and all else that is said of them; either may be described first.
    """
    rng = random.Random(seed)
    return [one_pair(rng, number) for number in range(1, count + 1)]


def one_pair(rng: random.Random, number: int) -> PairStory:
    values = {name: rng.sample(range(len(VALUES[name])), 2) for name in ("species", "colour")}
    values["headwear"] = rng.sample(range(1, len(VALUES["headwear"])), 2)
    said = ("species", "colour", rng.choice(("none", "headwear")))
    described = {}
    for n, side in enumerate((LEFT, RIGHT)):
        described[side] = {name: values[name][n] for name in said if name in values}
    names = [LEFT, RIGHT]
    rng.shuffle(names)
    lines = [f"[{name}] {identity_prompt(described[name], {*described[name]})}" for name in names]
    scenes = rng.sample(range(len(FRAME["scene"])), PAIR_FRAMES)
    frames = tuple({"scene": scene} for scene in scenes)
    both = " and ".join(f"[{name}]" for name in names)
    text = "\n".join(f"{both} {frame_prompt(frame, {'scene'})}" for frame in frames)
    return PairStory(StoryText(f"Pair {number}", "\n".join(lines), text), described, frames)


class PictureStory(NamedTuple):
    """A story of a character that a picture shows: its text, which says all of it, the picture, and each frame."""

    text: StoryText
    picture: dict[str, int]
    frames: tuple[dict[str, int], ...]


def picture_stories(count: int, seed: int = 0) -> list[PictureStory]:
    """`count` stories of two frames, in two scenes other than the picture's; the same for the same seed."""
    rng = random.Random(seed)
    return [one_picture(rng, number) for number in range(1, count + 1)]


def one_picture(rng: random.Random, number: int) -> PictureStory:
    look = some_look(rng)
    here, *scenes = rng.sample(range(len(FRAME["scene"])), 1 + PICTURE_FRAMES)
    standing, day = VALUES["activity"].index("standing"), VALUES["time"].index("day")
    frames = tuple({"scene": scene, "activity": rng.randrange(len(FRAME["activity"]))} for scene in scenes)
    lines = "\n".join(frame_prompt(frame, {"activity", "scene"}) for frame in frames)
    text = StoryText(f"Picture {number}", identity_prompt(look, set(MENTIONED)), lines)
    return PictureStory(text, {**look, "scene": here, "activity": standing, "time": day}, frames)


def some_look(rng: random.Random) -> Picture:
    look: Picture = {name: rng.randrange(len(values)) for name, values in IDENTITY.items()}
    if SAME.get(look["accent"]) == look["colour"]:
        look["accent"] = WHITE
    return look


def said_of(look: Picture, said: set[str]) -> list[str]:
    """The attributes that the identity prompt tells: a plain pattern and round eyes, say, have no word."""
    told = ["species"]
    wears = [name for name in ("headwear", "neckwear") if name in said and VALUES[name][look[name]] != "none"]
    for name in said:
        value = VALUES[name][look[name]]
        worded = name in ("colour", "accent") or name in wears
        if worded or (name == "pattern" and value != "plain") or (name == "eyes" and value != "round"):
            told.append(name)
    return sorted(told)
