"""A story frame by frame, for models that draw one picture at a time from a prompt and reference pictures."""

from typing import Any

import torch
from comfy_api.latest import io

from ..story.runs import parse_frames
from ..story.script import Story
from ..story.templates import fill, frame_values, picture_words
from .cast import Cast
from .pictures import one_size
from .types import CATEGORY, STORY, STORY_CAST

PLACES = 3
NOTHING, WHITE, ERROR = "nothing", "white picture", "error"
SIDE = 1024


class OneStoryFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryFrames",
            display_name="Story Frames",
            category=CATEGORY,
            description="Turn a story into lists with one item for each frame: a prompt, the pictures of those that "
            "the frame shows, a caption, a seed, a file name. ComfyUI runs the nodes behind it once for each frame, "
            "and Collect Frames puts the pictures together.",
            search_aliases=["story", "list", "edit", "kontext", "qwen image edit", "flux.2", "reference", "api"],
            inputs=[
                STORY.Input("story", tooltip="The story to draw."),
                io.String.Input(
                    "template",
                    default="{pictures} {identity}. {frame}",
                    multiline=True,
                    tooltip="A frame's prompt. It may have the placeholders pictures, identity, frame, caption and "
                    "characters, each in curly brackets; an empty one goes with the punctuation behind it.",
                ),
                io.String.Input(
                    "pictures",
                    default="Picture {number} is {name}",
                    tooltip="What the placeholder pictures says of each picture. It may have the placeholders number, "
                    "name and description.",
                ),
                io.Combo.Input(
                    "missing",
                    options=[WHITE, NOTHING, ERROR],
                    default=ERROR,
                    tooltip="What a frame gets in the place of a picture that it hasn't, as one that shows nobody: a "
                    "“white picture”, which suits every node; “nothing”, for nodes whose picture inputs are optional; "
                    "or an “error” where a frame has no picture at all, and else nothing.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The first frame's seed; each next frame has the next one.",
                ),
                io.Boolean.Input("same_seed", default=False, tooltip="Give every frame the same seed.", advanced=True),
                io.String.Input(
                    "file_prefix",
                    default="story",
                    tooltip="How the file names begin; the frame's number follows.",
                    advanced=True,
                ),
                STORY_CAST.Input("cast", optional=True, tooltip="Who looks how, from Story Cast."),
                io.String.Input(
                    "frames",
                    optional=True,
                    default="",
                    tooltip="The frames to draw, such as 3 or 2, 5-7; empty for all. Collect Frames takes the others "
                    "from its input `earlier`.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", is_output_list=True, tooltip="The frames' prompts."),
                io.Image.Output(
                    display_name="references",
                    is_output_list=True,
                    tooltip="All pictures of those that the frame shows, as one batch.",
                ),
                *(
                    io.Image.Output(
                        display_name=f"image_{place}",
                        is_output_list=True,
                        tooltip=f"The first picture of character {place} of the frame, at its own size.",
                    )
                    for place in range(1, PLACES + 1)
                ),
                io.String.Output(display_name="caption", is_output_list=True, tooltip="The frames' captions."),
                io.Int.Output(display_name="seed", is_output_list=True, tooltip="The frames' seeds."),
                io.String.Output(
                    display_name="file_name", is_output_list=True, tooltip="For Save Image's filename_prefix."
                ),
                io.Int.Output(
                    display_name="number", is_output_list=True, tooltip="The frames' numbers, for Collect Frames."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        story: Story,
        template: str,
        pictures: str,
        missing: str,
        seed: int,
        same_seed: bool,
        file_prefix: str,
        cast: Cast | None = None,
        frames: str = "",
    ) -> io.NodeOutput:
        members = {member.name: member.images for member in cast or ()}
        check_cast(story, members)
        items = []
        for j in parse_frames(frames, len(story.frames)):
            frame = story.frames[j]
            shown = tuple(name for name in frame.characters if name in members)
            if missing == ERROR and not shown:
                raise ValueError(
                    f"Story Frames has no picture for frame {j + 1}, which shows "
                    f"{' and '.join(filter(None, frame.characters)) or 'nobody of the cast'}: add a Story Cast, or "
                    f"choose what it gets in `missing`, such as “{WHITE}”."
                )
            blank = white(members) if missing == WHITE else None
            words = picture_words(pictures, story, shown)
            prompt = fill(template, {"pictures": words, **frame_values(story, frame)})
            if not prompt:
                raise ValueError(f"Story Frames has no prompt for frame {j + 1}: write {{frame}} into `template`.")
            places = [members[name][:1] for name in shown[:PLACES]]
            items.append(
                (
                    prompt,
                    one_size([members[name] for name in shown]) if shown else blank,
                    *places,
                    *[blank] * (PLACES - len(places)),
                    frame.caption,
                    (seed + (0 if same_seed else j)) % 2**64,
                    f"{file_prefix}_{j + 1:0{max(2, len(str(len(story.frames))))}}",
                    j + 1,
                )
            )
        return io.NodeOutput(*(list(output) for output in zip(*items, strict=True)))


class OneStoryCollectFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryCollectFrames",
            display_name="Collect Frames",
            category=CATEGORY,
            description="Put the pictures that were drawn frame by frame into one batch, in the story's order, for "
            "Story Board and all else that takes a whole story.",
            search_aliases=["story", "list", "batch", "list to batch", "redraw", "join"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The drawn pictures, one for each frame of Story Frames."),
                STORY.Input("story", tooltip="The story, which says how many frames there are."),
                io.Int.Input(
                    "number",
                    optional=True,
                    force_input=True,
                    min=1,
                    tooltip="Story Frames' numbers, where it draws only some frames. Without them, the pictures are "
                    "those of all frames in order.",
                ),
                io.Image.Input(
                    "earlier",
                    optional=True,
                    tooltip="The whole story as it was drawn before, for the frames that are not drawn again.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Every frame once, as large as the first one.")],
        )

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        story: list[Story],
        number: list[int] | None = None,
        earlier: list[torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        total = len(story[0].frames)
        pictures = [picture[None] for batch in images for picture in batch]
        numbers = number or list(range(1, total + 1))
        if len(pictures) != len(numbers):
            raise ValueError(
                f"Collect Frames has {len(pictures)} {'picture' if len(pictures) == 1 else 'pictures'} for "
                f"{len(numbers)} frames: draw one picture for each, and wire `number` from Story Frames where it draws "
                "only some."
            )
        found: dict[int, torch.Tensor] = {}
        if earlier is not None:
            before = [picture[None] for batch in earlier for picture in batch]
            if len(before) != total:
                raise ValueError(
                    f"Collect Frames' `earlier` has {len(before)} {'picture' if len(before) == 1 else 'pictures'} and "
                    f"the story {total} frames: wire all frames of the story."
                )
            found.update(enumerate(before, 1))
        for j, picture in zip(numbers, pictures):
            if not 1 <= j <= total:
                raise ValueError(
                    f"Collect Frames has number {j}, and the story has {total} frames: wire the same story into Story "
                    "Frames and here."
                )
            found[j] = picture
        twice = next((j for j in numbers if numbers.count(j) > 1), None)
        if twice:
            raise ValueError(
                f"Collect Frames has two pictures for frame {twice}: wire `number` from one Story Frames, and one "
                "picture for each of its items."
            )
        lacking = [j for j in range(1, total + 1) if j not in found]
        if lacking:
            raise ValueError(
                f"Collect Frames lacks frame {lacking[0]} of {total}: let Story Frames draw all, or wire the whole "
                "story as it was drawn before into `earlier`."
            )
        return io.NodeOutput(one_size([found[j] for j in range(1, total + 1)]))


def check_cast(story: Story, members: dict[str, Any]) -> None:
    """Raise `ValueError` for a cast of another story."""
    known = [character.name for character in story.characters]
    for name in members:
        if name not in known:
            who = f"[{name}]" if name else "a character without a name"
            raise ValueError(
                f"Story Frames has {who} in the cast and not in the story: wire the same story into Story Cast and "
                "here."
            )


def white(members: dict[str, torch.Tensor]) -> torch.Tensor:
    """A white picture [1, height, width, 3], as large as the cast's first."""
    height, width = next((images.shape[1:3] for images in members.values()), (SIDE, SIDE))
    return torch.ones(1, height, width, 3)
