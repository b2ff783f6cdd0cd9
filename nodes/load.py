import asyncio
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import folder_paths
from comfy_api.latest import io

from ..story.files import MAX_BYTES, SUFFIXES, StoryText, choose_story, looks_like_story, read_stories
from ..story.script import parse_script
from .types import CATEGORY, STORY, show_story

NO_FILES = "(no story files)"
# What the editor and ComfyUI's own nodes put into the input folder.
COMFYUI_FOLDERS = ("3d", "clipspace", "painter", "pasted", "threed", "webcam")


class OneStoryLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryLoad",
            display_name="Load Story",
            category=CATEGORY,
            description="Load a story from a file in ComfyUI's input folder: YAML, JSON or script text.",
            search_aliases=["story", "load story", "story file", "yaml", "json", "1prompt1story", "storydiffusion"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=story_files() or [NO_FILES],
                    tooltip="The story files (.yaml, .yml, .json, .txt) in ComfyUI's input folder and its subfolders; "
                    "press R to see new ones. A file that changed is read again at the next run.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=99999,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Which story of a file that holds many; the first is 0. Set the control to “increment” to "
                    "go to the next story with every run.",
                ),
            ],
            outputs=[
                STORY.Output(display_name="story", tooltip="The story, for the other OneStory nodes."),
                io.String.Output(
                    display_name="title",
                    tooltip="The story's title, or else its file's name, for example for Save Image's filename_prefix.",
                ),
                io.Int.Output(display_name="count", tooltip="How many stories the file holds."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def validate_inputs(cls, file: str | None = None, index: int | None = None) -> bool | str:
        """Reads in a thread, since ComfyUI asks this on its server's event loop. None comes from a node yet to run."""
        if file is None:
            return True
        try:
            stories = await asyncio.to_thread(read, file)
            if index is not None:
                choose_story(stories, index, file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, index: int | None = None) -> str:
        """When the file last changed; of all files where its name comes from another node."""
        if file is None:
            return repr(sorted(candidates()))
        try:
            return repr(find(file))
        except ValueError:
            return ""  # `execute` says why

    @classmethod
    def execute(cls, file: str, index: int) -> io.NodeOutput:
        stories = read(file)
        text = choose_story(stories, index, file)
        story = parse_script(text.identity, text.frames)
        return io.NodeOutput(story, text.title, len(stories), ui=show_story(cls, story, text.title))


class File(NamedTuple):
    """A file in the input folder, with what shows a change of it: its modification time in ns and its size in bytes."""

    path: str
    modified: int
    size: int


def read(file: str) -> tuple[StoryText, ...]:
    """All stories of a file in ComfyUI's input folder; no other path is touched. Raises `ValueError`."""
    if file == NO_FILES:
        raise ValueError(
            f"There is no story file yet: put one ({', '.join(SUFFIXES)}) into ComfyUI's input folder and press R."
        )
    return stories_of(find(file))


@lru_cache(maxsize=8)
def stories_of(file: File) -> tuple[StoryText, ...]:
    """A file's stories, parsed once for validation and all runs until it changes."""
    return read_stories(file.path)


def find(name: str) -> File:
    """The story file of this name, relative to the input folder. Raises `ValueError` unless there is one inside it."""
    root = folder_paths.get_input_directory()
    try:
        relative = Path(name)
        if not relative.anchor and ".." not in relative.parts and relative.suffix.lower() in SUFFIXES:
            file = file_at(os.path.join(root, name))
            if file and is_inside(root, file.path):
                return file
    except (OSError, TypeError, ValueError):  # no such file, no text, or a text that can't be a name
        pass
    raise ValueError(f"There is no story file “{name}” in ComfyUI's input folder: put it there, or choose another.")


def file_at(path: str) -> File | None:
    """None for what is no plain file. Raises `OSError` when it is gone."""
    found = os.stat(path)
    return File(path, found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None


def is_inside(root: str, path: str) -> bool:
    """Whether a path is in a folder when all links have been followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def story_files() -> list[str]:
    """The files that may be stories, named relative to the input folder with forward slashes."""
    root = folder_paths.get_input_directory()
    return sorted(Path(file.path).relative_to(root).as_posix() for file in candidates() if looks_right(file))


def candidates() -> Iterator[File]:
    """The input folder's files with a story file's ending and size, but for hidden ones, those in folders that ComfyUI
    fills itself, and those that a link leads out to."""
    root = folder_paths.get_input_directory()
    for folder, folders, names in os.walk(root):
        folders[:] = [each for each in folders if each[0] != "." and (folder != root or each not in COMFYUI_FOLDERS)]
        if not is_inside(root, folder):  # a junction, which Windows doesn't call a link
            folders.clear()
            continue
        for name in names:
            if name[0] == "." or not name.lower().endswith(SUFFIXES):
                continue
            path = os.path.join(folder, name)
            try:
                file = file_at(path)
            except OSError:  # a broken link, or deleted since
                continue
            if file and 0 < file.size <= MAX_BYTES and (not os.path.islink(path) or is_inside(root, path)):
                yield file


@lru_cache(maxsize=2**14)
def looks_right(file: File) -> bool:
    return looks_like_story(file.path)
