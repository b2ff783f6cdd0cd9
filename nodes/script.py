from comfy_api.latest import io

from ..story.script import parse_script
from .types import CATEGORY, STORY, show_story


class OneStoryScript(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryScript",
            display_name="Story Script",
            category=CATEGORY,
            description="Write a story: who it is about, and one line for each frame.",
            search_aliases=[
                "story",
                "consistent character",
                "same character",
                "same face",
                "character consistency",
                "1prompt1story",
                "storydiffusion",
                "comic",
            ],
            inputs=[
                io.String.Input(
                    "identity",
                    multiline=True,
                    dynamic_prompts=True,
                    default="A watercolor painting of a young red fox with a blue scarf",
                    tooltip="Who the story is about, and the style of its pictures: one description that every frame "
                    "shares. With several characters, one “[Name] description” line for each.",
                ),
                io.String.Input(
                    "frames",
                    multiline=True,
                    dynamic_prompts=True,
                    default="reading a book under an oak tree\n"
                    "running through deep snow\n"
                    "sailing a small wooden boat # At sea!\n"
                    "sleeping by the fire",
                    tooltip="One frame a line: what happens, where, when. A # after a space starts the caption "
                    "(without one the line itself is the caption); #1 is text, and “\\#” a plain #. Write [Name] to "
                    "show a described character, and [NC] in a frame that shows nobody.",
                ),
            ],
            outputs=[STORY.Output(display_name="story", tooltip="The story, for the other OneStory nodes.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, identity: str, frames: str) -> io.NodeOutput:
        story = parse_script(identity, frames)
        return io.NodeOutput(story, ui=show_story(cls, story))
