"""Story script text to `Story`."""

import re
from typing import NamedTuple

NAME = re.compile(r"(?<!\\)\[([^\[\]]+)\]")
NOBODY = "NC"


class Character(NamedTuple):
    """`name` is "" for the one character of a story whose identity is a plain description."""

    name: str
    description: str


class Frame(NamedTuple):
    """One frame, with every character name already resolved.

    `identity` is the identity prompt P0 of the frame's group and `prompt` its frame prompt Pj (1Prompt1Story,
    section 3.1). `characters` are the names of those it shows, in the order they are described; frames with
    equal `characters` form one group.
    """

    identity: str
    prompt: str
    caption: str
    characters: tuple[str, ...]


class Story(NamedTuple):
    characters: tuple[Character, ...]
    frames: tuple[Frame, ...]
    warnings: tuple[str, ...] = ()


def parse_script(identity: str, frames: str) -> Story:
    """Parse the two texts of a Story Script.

    `identity` is one description, or one `[Name] description` line per character. `frames` holds one frame a
    line: blank lines are skipped, ` # ` starts the caption, `\\#` is a plain `#` and `\\[` a plain `[`.
    Raises `ValueError` with one sentence for the person at the graph.
    """
    lines = [split_caption(line) for line in frames.splitlines() if line.strip()]
    return build_story(parse_characters(identity), lines)


def parse_characters(identity: str) -> tuple[Character, ...]:
    lines = [line.strip() for line in identity.splitlines() if line.strip()]
    if not lines:
        raise ValueError(
            "The story's identity is empty: describe who it is about, for example “a watercolor of a young red fox”."
        )
    if not any(NAME.match(line) for line in lines):
        return (Character("", unescape(" ".join(lines))),)
    characters: list[Character] = []
    for line in lines:
        match = NAME.match(line)
        if not match:
            raise ValueError(
                f"The identity line “{line}” names no character: begin every line with a name in brackets, "
                f"such as “[Mia] {line}”, or use one description without names."
            )
        name, description = match[1].strip(), unescape(line[match.end() :].strip())
        if name == NOBODY:
            raise ValueError("A character can't be named [NC]: that marks frames that show nobody.")
        if not description:
            raise ValueError(f"The character [{name}] has no description: write it behind the name.")
        if name in (c.name for c in characters):
            raise ValueError(f"The character [{name}] is described twice: keep one of the two lines.")
        characters.append(Character(name, description))
    return tuple(characters)


def split_caption(line: str) -> tuple[str, str | None]:
    """Split a frame's line at the first ` # ` into prompt and caption (None without one)."""
    parts = re.split(r"(?:^|\s)#(?:\s|$)", line.strip(), maxsplit=1)
    return parts[0].strip(), parts[1].strip() if len(parts) > 1 else None


def build_story(characters: tuple[Character, ...], lines: list[tuple[str, str | None]]) -> Story:
    """A `Story` from its characters and one (prompt, caption) per frame; a caption None means the prompt's own text."""
    if not lines:
        raise ValueError("The story has no frames: write one frame a line, for example “reading a book by the fire”.")
    frames = tuple(build_frame(characters, j, text, caption) for j, (text, caption) in enumerate(lines, 1))
    warnings = []
    for character in characters:
        shown = sum(character.name in frame.characters for frame in frames)
        if character.name and shown < 2:
            times = "only one frame" if shown else "no frame"
            warnings.append(
                f"[{character.name}] appears in {times}, so there is nothing to keep the character consistent with."
            )
    if characters[0].name == "":
        for j, (text, _) in enumerate(lines, 1):
            warnings.extend(
                f"Frame {j} mentions [{name}], but no character of that name is described: the text is used as it is."
                for name in dict.fromkeys(names_in(text))
                if name != NOBODY
            )
    return Story(characters, frames, tuple(warnings))


def build_frame(characters: tuple[Character, ...], number: int, text: str, caption: str | None) -> Frame:
    described = {c.name: c.description for c in characters}
    one_identity = "" in described
    nobody = text.startswith(f"[{NOBODY}]")
    if nobody:
        text = text[len(NOBODY) + 2 :].strip()
    mentioned = set() if one_identity else set(names_in(text))
    for name in sorted(mentioned - set(described)):
        known = ", ".join(f"[{c.name}]" for c in characters)
        raise ValueError(
            f"Frame {number} mentions [{name}], but the identity describes only {known}: "
            f"add a line “[{name}] …” to the identity, or write \\[{name}] to keep the brackets as text."
        )
    if nobody:
        shown: tuple[Character, ...] = ()
    else:
        shown = characters if one_identity else tuple(c for c in characters if c.name in mentioned)

    prompt = text
    if not one_identity:
        if not nobody:
            prompt = re.sub(r"^(\s*(and|,|&)?\s*(?<!\\)\[[^\[\]]+\])+", "", prompt).strip()
        prompt = NAME.sub(lambda m: described[m[1].strip()], prompt)
    prompt = unescape(prompt)
    if not prompt:
        raise ValueError(
            f"Frame {number} (“{text or caption or ''}”) has no prompt: say what happens or where it is, "
            "before any caption."
        )
    if caption is None:
        caption = text if one_identity else NAME.sub(lambda m: m[1].strip(), text)
    return Frame(
        identity=" and ".join(c.description for c in shown),
        prompt=prompt,
        caption=unescape(caption),
        characters=tuple(c.name for c in shown),
    )


def names_in(text: str) -> list[str]:
    return [name.strip() for name in NAME.findall(text)]


def unescape(text: str) -> str:
    return text.replace("\\#", "#").replace("\\[", "[")
