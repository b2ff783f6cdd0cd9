"""Where a story's characters are to stand, written as text."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from .script import Character, Story, key, listed, quote
from .syntax import BRACKETS, clean, clean_lines


class Box(NamedTuple):
    """A part of a picture, in shares of its width and height from the top left."""

    left: float
    top: float
    right: float
    bottom: float


Layout = Mapping[str, Mapping[int, Box]]
"""For each character its box in each frame, from 0, that has one for it."""

HALF, THIRD = 1 / 2, 1 / 3
ACROSS = {"left": (0.0, HALF), "right": (HALF, 1.0)}
DOWN = {"top": (0.0, HALF), "bottom": (HALF, 1.0)}
THIRDS = {"left": (0.0, THIRD), "middle": (THIRD, 2 * THIRD), "right": (2 * THIRD, 1.0)}
BOXES = {
    "all": Box(0.0, 0.0, 1.0, 1.0),
    "middle": Box(0.25, 0.25, 0.75, 0.75),
    **{side + half: Box(a, 0.0, b, 1.0) for side, (a, b) in ACROSS.items() for half in ("", " half")},
    **{side + half: Box(0.0, a, 1.0, b) for side, (a, b) in DOWN.items() for half in ("", " half")},
    **{f"{side} third": Box(a, 0.0, b, 1.0) for side, (a, b) in THIRDS.items()},
    **{f"{y} {x}": Box(a, c, b, d) for x, (a, b) in ACROSS.items() for y, (c, d) in DOWN.items()},
}
"""What places may be called: a side alone is that half, two sides are a quarter."""

LINE = re.compile(r"(?:(?P<name>.*?)\s*(?:[@＠]\s*(?P<frames>[\d\s,–-]+))?[:：])?(?P<place>[^:：]*)")


def parse_layout(text: str, story: Story) -> Layout:
    """The boxes in lines such as `Mia: left`, `Otto: right half` or `Mia@3: 0.1 0.2 0.5 1.0`, left, top, right, bottom.

    A line with frames, `@3`, `@2-4` or `@1,5`, counts before those for all frames, and a later line before an earlier
    one. A story of one character needs no name. Only frames that show the character get a box. Raises `ValueError`.
    """
    general: dict[str, Box] = {}
    special: dict[str, dict[int, Box]] = {}
    for line in filter(None, clean_lines(text)):
        match = LINE.fullmatch(line)
        name, frames, place = match.groups() if match else (None, None, line)
        who = character_of(story, re.sub(f"^[{BRACKETS}]|[{BRACKETS}]$", "", clean(name or "")), line).name
        box = parse_box(place, line)
        if frames is None:
            general[who] = box
        else:
            special.setdefault(who, {}).update(dict.fromkeys(parse_frames(frames, who, story, line), box))
    return {
        who: {
            j: boxes[j] if j in (boxes := special.get(who, {})) else general[who]
            for j, frame in enumerate(story.frames)
            if who in frame.characters and (who in general or j in special.get(who, {}))
        }
        for who in dict.fromkeys([*general, *special])
    }


def character_of(story: Story, name: str, where: str) -> Character:
    """The character that is called so, or the only one for "". Raises `ValueError`."""
    if not name and len(story.characters) == 1:
        return story.characters[0]
    found = [c for c in story.characters if key(c.name) == key(name)]
    exact = [c for c in found if c.name == name]
    if len(exact or found) != 1:
        names = listed([f"{c.name}" for c in story.characters if c.name], "or")
        raise ValueError(
            f"Story Regions finds no character “{name}” in the story ({quote(where)}): "
            + (f"write {names}." if names else "leave the name out, since the story has one character without a name.")
        )
    return (exact or found)[0]


def parse_box(text: str, line: str) -> Box:
    words = " ".join(text.lower().split())
    if words in BOXES:
        return BOXES[words]
    numbers = re.findall(r"\d*\.?\d+", words)
    if len(numbers) == 4 and not re.sub(r"[\d.,\s]", "", words):
        box = Box(*map(float, numbers))
        if 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1:
            return box
    raise ValueError(
        f"Story Regions doesn't understand the place “{clean(text)}” in {quote(line)}: write "
        f"{listed(list(BOXES), 'or', 99)}, or left, top, right and bottom as shares from 0 to 1: 0.1 0.2 0.5 1."
    )


def parse_frames(text: str, who: str, story: Story, line: str) -> list[int]:
    """The frames, from 0, in a text such as "3", "2-4" or "1, 5", which counts from 1."""
    count = len(story.frames)
    frames: list[int] = []
    for part in filter(None, re.split(r"[\s,]+", re.sub(r"\s*[–-]\s*", "-", text))):
        first, _, last = part.partition("-")
        own = range(int(first or 0) - 1, int(last or first or 0))
        shown = [j for j in own if 0 <= j < count and who in story.frames[j].characters]
        if not shown or own[0] < 0 or own[-1] >= count:
            numbers = [str(j + 1) for j, frame in enumerate(story.frames) if who in frame.characters]
            raise ValueError(
                f"Story Regions has a place for frame {part} in {quote(line)}, and {who or 'the character'} is in "
                f"{listed(numbers, 'and', 20) or 'none'} of the story's {count} frames: write one of those."
            )
        frames += shown
    return frames
