"""A story of ViStoryBench as a workflow with its cast, and as its scorer wants to find it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...story.files import StoryText
from ...tools.client import Client, Workflow, WorkflowError
from ...tools.demo import slug
from ...tools.make import LOADER, SCRIPT, with_seed, with_story
from ...tools.pool import Server
from ...tools.results import RESULT, digest, is_kept, write_json
from ..quality.pair_graphs import node
from ..quality.picture_graphs import IMAGE_CHARACTERS
from .dataset import BenchStory, Character

CAST, ADAPTER = "OneStoryCast", "OneStoryImageAdapter"
FOLDER = "onestory_vistory"
"""Where the characters' pictures are in a server's input folder."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A story's shots in `folder`, as the benchmark reads them: ID/shots/shot_INDEX.png."""

    story: BenchStory
    text: StoryText
    seed: int
    folder: Path
    workflow: Workflow = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Why what was drawn could not be kept."""

    @property
    def title(self) -> str:
        return self.text.title

    @property
    def what(self) -> str:
        return f"{len(self.story.shots)} shots"

    @property
    def made(self) -> bool:
        """Raises `Failure` where another text has been drawn."""
        return is_kept(self.folder, self.text, self.title, "--run")

    def graph(self) -> Workflow:
        return with_cast(with_seed(with_story(self.workflow, self.text), self.seed), self.story)

    def keep(self, server: Server, outputs: dict[str, dict[str, Any]], seconds: float) -> None:
        saved = pictures_of(outputs, len(self.story.shots))
        if isinstance(saved, str):  # a Failure would have the server draw it again
            self.problems.append(f"{self.title}: {saved}")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for shot, image in zip(self.story.shots, saved, strict=True):
            self.file(shot.number).write_bytes(server.download(image))
        result = {"seconds": round(seconds, 2), "server": server.url, "text": digest(self.text)}
        write_json(self.folder / RESULT, result)

    def file(self, index: int) -> Path:
        return self.folder / f"shot_{index:02}.png"


def pictures_of(outputs: dict[str, dict[str, Any]], count: int) -> list[dict[str, str]] | str:
    """The pictures of the first node that saved so many, or a sentence where none did."""
    saved = [[each for each in output.get("images", []) if each["type"] == "output"] for output in outputs.values()]
    for images in saved:
        if len(images) == count:
            return images
    numbers = ", ".join(str(len(images)) for images in saved if images) or "none"
    return f"The workflow saved {numbers} pictures of a story of {count} shots: it has to save one for each."


def takes_cast(workflow: Workflow) -> bool:
    """Whether a workflow has a node that a cast goes into."""
    return any("cast" in each["inputs"] for each in workflow.values() if each["class_type"] != CAST)


def with_cast(workflow: Workflow, story: BenchStory) -> Workflow:
    """The workflow with a Story Cast for each character that has a picture, in the place of its own ones.

    A character's picture is its first, as in the benchmark's own prompts. A workflow that takes no cast stays as it is.
    Raises `WorkflowError` for a story without pictures.
    """
    workflow = copy.deepcopy(workflow)
    if not takes_cast(workflow):
        return workflow
    [teller] = [key for key, each in workflow.items() if each["class_type"] in (SCRIPT, LOADER)]
    workflow = {key: each for key, each in workflow.items() if each["class_type"] != CAST}
    consumers = [each["inputs"] for each in workflow.values() if "cast" in each["inputs"]]
    last: list[Any] | None = None
    for number, character in enumerate(cast_of(story)):
        picture, key = f"cast picture {number}", f"cast {number}"
        workflow[picture] = node("LoadImage", image=f"{FOLDER}/{picture_name(story, character)}")
        inputs: dict[str, Any] = {"story": [teller, 0], "images": [picture, 0], "character": character.name}
        workflow[key] = node(CAST, **inputs, **({"cast": last} if last else {}))
        last = [key, 0]
    for inputs in consumers:
        if last is None:
            raise WorkflowError("It has no pictures of its characters, which the workflow needs.")
        inputs["cast"] = last
    return workflow


def with_image_characters(workflow: Workflow, adapter: str, clip_vision: str | None) -> Workflow:
    """The workflow with Image Characters before every sampler, for `with_cast` to give it a cast."""
    workflow = copy.deepcopy(workflow)
    samplers = [each for each in workflow.values() if "Sampler" in each["class_type"] and "model" in each["inputs"]]
    vision = {}
    if clip_vision:
        workflow["clip vision"] = node("CLIPVisionLoader", clip_name=clip_vision)
        vision = {"clip_vision": ["clip vision", 0]}
    for number, sampler in enumerate(samplers):
        key = f"image characters {number}"
        workflow[key] = node(
            ADAPTER, model=sampler["inputs"]["model"], cast=None, adapter=adapter, **IMAGE_CHARACTERS, **vision
        )
        sampler["inputs"]["model"] = [key, 0]
    return workflow


def cast_of(story: BenchStory) -> list[Character]:
    """The characters that are on stage in any shot and have a picture."""
    on_stage = {key for shot in story.shots for key in shot.characters}
    return [character for character in story.characters if character.key in on_stage and character.pictures]


def picture_name(story: BenchStory, character: Character) -> str:
    return f"{story.id}_{slug(character.name)}{character.pictures[0].suffix.lower()}"


def upload_cast(server: Client, stories: Sequence[BenchStory]) -> None:
    """Put the characters' first pictures into a server's input folder."""
    for story in stories:
        for character in cast_of(story):
            file = (picture_name(story, character), character.pictures[0].read_bytes())
            server.request("/upload/image", files={"image": file}, data={"subfolder": FOLDER, "overwrite": "true"})
