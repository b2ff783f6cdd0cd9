import logging
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..story.files import SUFFIXES, StoryText, choose_story, read_stories
from ..story.script import parse_script
from .types import CATEGORY, STORY

NO_FILES = "(no story files)"


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
                    tooltip="The .yaml, .yml, .json and .txt files in ComfyUI's input folder and its subfolders; press "
                    "R to see new ones. A file that changed is read again at the next run.",
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
        )

    # Both are None where they come from another node, which has not run yet.
    @classmethod
    def validate_inputs(cls, file: str | None = None, index: int | None = None) -> bool | str:
        if file is None:
            return True
        try:
            stories = read(file)
            if index is not None:
                choose_story(stories, index, file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, index: int | None = None) -> str:
        """When the file last changed; of all files where its name comes from another node."""
        stats = [(name, input_path(name).stat()) for name in ([file] if file else story_files())]
        return repr([(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats])

    @classmethod
    def execute(cls, file: str, index: int) -> io.NodeOutput:
        stories = read(file)
        text = choose_story(stories, index, file)
        story = parse_script(text.identity, text.frames)
        for warning in story.warnings:
            logging.warning("OneStory: “%s”: %s", text.title, warning)
        return io.NodeOutput(story, text.title, len(stories))


def read(file: str) -> tuple[StoryText, ...]:
    """All stories of a file that `story_files` lists; no other path is touched. Raises `ValueError`."""
    if file == NO_FILES:
        raise ValueError(
            f"There is no story file yet: put one ({', '.join(SUFFIXES)}) into ComfyUI's input folder and press R."
        )
    if file not in story_files():
        raise ValueError(f"There is no story file “{file}” in ComfyUI's input folder: put it there, or choose another.")
    return read_stories(input_path(file))


def story_files() -> list[str]:
    """Names relative to the input folder, with forward slashes. Links that lead out of the folder are left out."""
    root = input_path("")
    inside = root.resolve()
    paths = [
        Path(folder, name) for folder, _, names in os.walk(root) for name in names if name.lower().endswith(SUFFIXES)
    ]
    return sorted(p.relative_to(root).as_posix() for p in paths if p.is_file() and p.resolve().is_relative_to(inside))


def input_path(name: str) -> Path:
    return Path(folder_paths.get_input_directory(), name)
