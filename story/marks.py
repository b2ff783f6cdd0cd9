"""Class words that pictures are put into: “a girl img with red hair”, as PhotoMaker and FastComposer write them."""

import re
from collections.abc import Mapping

from .script import Character, Frame, Story, quote

MARK = "img"
"""Behind the word that says what a character is; no part of the prompt."""
FOUND = re.compile(rf"(?<![^\W\d_]){MARK}(?![^\W\d_])", re.IGNORECASE)
"""A mark where CLIP's tokenizers see one: a word of these letters and no more."""
CLASS_WORD = re.compile(r"[\w)]\s*$")


def repeat_marks(story: Story, tokens: Mapping[str, int]) -> Story:
    """The story with every mark as often as its character has `tokens` of its pictures, by name.

    Marks of others stay. Raises `ValueError` where a character that a frame shows has pictures, and not one mark right
    behind a word.
    """
    shown = {name for frame in story.frames for name in frame.characters}
    words = {
        c.name: repeat_mark(c, tokens[c.name]) if c.name in tokens and c.name in shown else c.description
        for c in story.characters
    }
    characters = tuple(c._replace(description=words[c.name]) for c in story.characters)
    return story._replace(characters=characters, frames=tuple(described(frame, words) for frame in story.frames))


def repeat_mark(character: Character, tokens: int) -> str:
    found = list(FOUND.finditer(character.description))
    if len(found) == 1 and CLASS_WORD.search(character.description[: found[0].start()]):
        return FOUND.sub(" ".join([MARK] * tokens), character.description)
    who = f"[{character.name}]" if character.name else "the character"
    how_many = {0: "no word", 1: f"no word before “{MARK}”"}.get(len(found), f"{len(found)} words")
    raise ValueError(
        f"The cast has pictures of {who}, whose description {quote(character.description)} marks {how_many} for them: "
        f"write {MARK} once, behind the word that says what {who} is, such as “a girl {MARK} with red hair”."
    )


def described(frame: Frame, words: Mapping[str, str]) -> Frame:
    """The frame with these descriptions."""
    parts = tuple((text if name is None else words[name], name) for text, name in frame.parts)
    identity = " and ".join(words[name] for name in frame.characters)
    return frame._replace(
        identity=identity, prompt="".join(text for text, _ in parts) if parts else frame.prompt, parts=parts
    )
