"""Prompts made from a story's frame and a template with placeholders."""

import re
from collections.abc import Mapping

from .script import Character, Frame, Story, key, listed
from .syntax import BLANK, SEPARATORS, STOPS, clean

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
LOOSE = f"{BLANK}{SEPARATORS}{STOPS}"


def fill(template: str, values: Mapping[str, str], name: str = "template") -> str:
    """`template` with the value of each `{placeholder}`; an empty one goes with the punctuation behind it.

    Raises `ValueError` for a placeholder that has no value; `name` is what the sentence calls the template.
    """
    for found in PLACEHOLDER.findall(template):
        if found not in values:
            known = listed([f"{{{value}}}" for value in values], "and")
            raise ValueError(f"{name} has {{{found}}}, which is not a placeholder: it may have {known}.")
    empty = [re.escape(f"{{{value}}}") for value, text in values.items() if not text]
    if empty:
        template = re.sub(rf"(?:{'|'.join(empty)})[{re.escape(LOOSE)}]*", "", template)
    text = PLACEHOLDER.sub(lambda match: values[match[1]], template)
    text = re.sub(rf"[{re.escape(BLANK)}]+", " ", text).strip(BLANK).lstrip(LOOSE)
    return text.rstrip(SEPARATORS + BLANK) if empty else text


def find_character(story: Story, name: str, node: str) -> Character:
    """The story's character of this name, or its only one for "". Raises `ValueError` for `node`'s person."""
    wanted = clean(name).strip("[]［］")
    if not wanted and len(story.characters) == 1:
        return story.characters[0]
    names = [f"[{character.name}]" for character in story.characters]
    if not wanted:
        raise ValueError(f"{node} needs to know whose pictures these are: write {listed(names, 'or')} in `character`.")
    alike = [c for c in story.characters if c.name == wanted]
    alike = alike or [c for c in story.characters if c.name and key(c.name) == key(wanted)]
    if len(alike) == 1:
        return alike[0]
    if story.characters[0].name == "":
        raise ValueError(
            f"{node} has “{wanted}” as `character`, and the story's one character has no name: leave `character` empty."
        )
    raise ValueError(
        f"{node} has “{wanted}” as `character`, and the story has {listed(names, 'and')}: write one of them."
    )


def picture_words(template: str, story: Story, names: tuple[str, ...]) -> str:
    """What tells an edit model who is in which picture: “Picture 1 is Mia, picture 2 is Otto.”

    `names` are the characters of the pictures in order. A character without a name is called by its description.
    """
    described = {character.name: character.description for character in story.characters}
    parts = [
        fill(template, {"number": str(n), "name": name or described[name], "description": described[name]}, "pictures")
        for n, name in enumerate(names, 1)
    ]
    parts = [part for part in parts if part]
    text = ", ".join(part if n == 0 else part[0].lower() + part[1:] for n, part in enumerate(parts))
    return text + "." * bool(text and text[-1] not in STOPS)


def frame_values(story: Story, frame: Frame) -> dict[str, str]:
    return {
        "identity": frame.identity,
        "frame": frame.prompt,
        "caption": frame.caption,
        "characters": ", ".join(name for name in frame.characters if name),
    }
