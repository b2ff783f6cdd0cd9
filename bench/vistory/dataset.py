"""The stories of ViStoryBench (arXiv 2505.24862): a numbered folder each, with `story.json` and characters' pictures.

01/story.json
01/image/Big Brown Rabbit/00.jpg
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...story.files import StoryText
from ...story.syntax import BRACKETS, OPENING
from ...tools.failure import Failure

LITE = tuple(f"{number:02}" for number in (1, 8, 9, 15, 17, 19, 24, 27, 28, 29, 32, 41, 52, 53, 55, 57, 60, 64, 68, 79))
"""The stories of ViStoryBench-Lite."""
LANGUAGES = ("en", "ch")
TEXTS = {
    "camera": "Shot Perspective Design",
    "plot": "Plot Correspondence",
    "script": "Static Shot Description",
    "scene": "Setting Description",
}
"""A shot's texts by the names that the benchmark's own code gives them, in the order of its prompts."""
ON_STAGE = "Characters Appearing"
SUFFIXES = (".jpg", ".jpeg", ".png")


class Character(NamedTuple):
    """`key` is the English name, `tag` one of realistic_human, unrealistic_human and non_human."""

    key: str
    description: str
    tag: str
    pictures: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The key without what a Story Script's names can't have."""
        return " ".join(re.sub(f"[{BRACKETS}:：|｜]", " ", self.key).split())


class Shot(NamedTuple):
    """`number` is the benchmark's index; `characters` are the keys of those on stage."""

    number: int
    texts: dict[str, str]
    characters: tuple[str, ...]


class BenchStory(NamedTuple):
    id: str
    characters: tuple[Character, ...]
    shots: tuple[Shot, ...]

    def on_stage(self, shot: Shot) -> list[Character]:
        """The characters of a shot that the story describes, in the story's order."""
        return [character for character in self.characters if character.key in shot.characters]


def read_dataset(folder: Path, language: str = "en", only: Sequence[str] = ()) -> list[BenchStory]:
    """The stories of a folder in their order, all or those with the ids in `only`. Raises `Failure`."""
    if not folder.is_dir():
        raise Failure(
            f"There is no folder {folder}: name a download of "
            "https://huggingface.co/datasets/ViStoryBench/ViStoryBench."
        )
    found = sorted((path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()), key=number_of)
    if not found:
        raise Failure(f"{folder} has no stories: it needs folders such as 01, each with a story.json.")
    missing = set(only) - {path.name for path in found}
    if missing:
        raise Failure(
            f"{folder} has no story {', '.join(sorted(missing))}: it has {found[0].name} to {found[-1].name}."
        )
    return [read_story(path, language) for path in found if not only or path.name in only]


def number_of(path: Path) -> int:
    return int(path.name)


def read_story(folder: Path, language: str) -> BenchStory:
    file = folder / "story.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
        characters = tuple(
            Character(key, one_line(each[f"prompt_{language}"]), str(each.get("tag", "")), pictures_of(folder, key))
            for key, each in data["Characters"].items()
        )
        shots = tuple(read_shot(each, language) for each in data["Shots"] if is_whole(each))
    except FileNotFoundError:
        raise Failure(f"{folder} has no story.json: download the data set again.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{file} cannot be read as a story of ViStoryBench in {language}: {error!r}.") from None
    if not shots:
        raise Failure(f"{file} has no whole shot: download the data set again.")
    return BenchStory(folder.name, characters, shots)


def is_whole(shot: dict[str, Any]) -> bool:
    """Whether a shot has all of its texts; the benchmark leaves the others out."""
    return all(key in shot for key in (*TEXTS.values(), ON_STAGE))


def read_shot(shot: dict[str, Any], language: str) -> Shot:
    texts = {name: one_line(shot[key][language]) for name, key in TEXTS.items()}
    return Shot(int(shot["index"]), texts, tuple(name.strip() for name in shot[ON_STAGE]["en"]))


def pictures_of(folder: Path, key: str) -> tuple[Path, ...]:
    place = folder / "image" / key
    return tuple(sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES))


def one_line(text: str) -> str:
    return " ".join(str(text).split())


def story_text(story: BenchStory, texts: Sequence[str] = ("script",), words: int | None = None) -> StoryText:
    """A story as a Story Script's two texts: those who are on stage in any shot, and the chosen texts of each shot.

    `words` is how many of every description and of every shot are kept; a text encoder of 77 tokens reads few.
    """
    seen = [character for character in story.characters if any(character.key in s.characters for s in story.shots)]
    identity = [f"[{character.name}] {escaped(cut(character.description, words))}" for character in seen]
    frames = []
    for shot in story.shots:
        names = " ".join(f"[{character.name}]" for character in story.on_stage(shot)) or "[NC]"
        said = "; ".join(shot.texts[name] for name in TEXTS if name in texts and shot.texts[name])
        frames.append(f"{names} {escaped(cut(said, words))}")
    return StoryText(f"Story {story.id}", "\n".join(identity) or "a story without characters", "\n".join(frames))


def cut(text: str, words: int | None) -> str:
    return text if words is None else " ".join(text.split()[:words]).rstrip(",;")


def escaped(text: str) -> str:
    """A text in which brackets and `#` mean nothing."""
    return re.sub(rf"([#＃{re.escape(OPENING)}])", r"\\\1", text)
