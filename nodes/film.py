"""From a story's pictures to a film: what first-last-frame models draw between them, and all of it in a row."""

import torch
from comfy_api.latest import io

from ..story.runs import parse_cuts
from ..story.script import Story
from ..story.templates import fill
from .pictures import fitted
from .types import CATEGORY, STORY

NEIGHBOURS, SAME = "all neighbours", "same characters"


class OneStoryTransitions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryTransitions",
            display_name="Story Transitions",
            category=CATEGORY,
            description="Turn a story's pictures into lists of neighbours: a start, an end and a prompt for each pair. "
            "ComfyUI runs a first-last-frame video model behind it once for each pair, and Join Clips makes a film.",
            search_aliases=["story", "video", "film", "first last frame", "wan", "ltx", "interpolate", "transition"],
            inputs=[
                io.Image.Input("images", tooltip="The story's pictures, one for each frame."),
                STORY.Input("story", tooltip="The story that they show."),
                io.String.Input(
                    "template",
                    default="{identity}, {to}",
                    multiline=True,
                    tooltip="A clip's prompt. It may have the placeholders identity (that of the frame it ends with), "
                    "from and to (the two frames' prompts), from_identity, from_caption and to_caption, each in curly "
                    "brackets.",
                ),
                io.Combo.Input(
                    "pairs",
                    options=[NEIGHBOURS, SAME],
                    default=NEIGHBOURS,
                    tooltip="“all neighbours”: a clip from every frame to the next. “same characters”: only where both "
                    "show the same characters, and a cut elsewhere.",
                ),
                io.String.Input(
                    "cuts",
                    optional=True,
                    default="",
                    tooltip="The frames after which there is a cut as well, such as 2, 5, where the place changes.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="start", is_output_list=True, tooltip="What each clip begins with."),
                io.Image.Output(display_name="end", is_output_list=True, tooltip="What each clip ends with."),
                io.String.Output(display_name="prompt", is_output_list=True, tooltip="The clips' prompts."),
                io.Int.Output(
                    display_name="number",
                    is_output_list=True,
                    tooltip="The number of the frame that each clip begins with, for Join Clips.",
                ),
            ],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, story: Story, template: str, pairs: str, cuts: str = "") -> io.NodeOutput:
        frames = story.frames
        if len(images) != len(frames):
            raise ValueError(
                f"Story Transitions has {len(images)} {'picture' if len(images) == 1 else 'pictures'} and the story "
                f"{len(frames)} {'frame' if len(frames) == 1 else 'frames'}: wire one picture for each frame."
            )
        if len(frames) < 2:
            raise ValueError("Story Transitions has a story of 1 frame: a transition needs two, so write another one.")
        cut = parse_cuts(cuts, len(frames))
        if pairs == SAME:
            cut |= {j for j in range(len(frames) - 1) if frames[j].characters != frames[j + 1].characters}
        starts = [j for j in range(len(frames) - 1) if j not in cut]
        if not starts:
            raise ValueError(
                f"Story Transitions has a cut after every frame: choose “{NEIGHBOURS}” in `pairs`, write fewer `cuts`, "
                "or wire the pictures into Join Clips alone."
            )
        return io.NodeOutput(
            [images[j : j + 1] for j in starts],
            [images[j + 1 : j + 2] for j in starts],
            [fill(template, clip_values(story, j)) for j in starts],
            [j + 1 for j in starts],
        )


class OneStoryJoinClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryJoinClips",
            display_name="Join Clips",
            category=CATEGORY,
            description="Join clips into one film, without the doubled pictures where one ends as the next begins. "
            "Without clips, it makes a simple film of pictures that fade into each other. Create Video and Save Video "
            "save it.",
            search_aliases=["story", "video", "film", "concatenate", "cross-fade", "slideshow", "join"],
            is_input_list=True,
            inputs=[
                io.Int.Input(
                    "hold",
                    default=24,
                    min=1,
                    max=10000,
                    tooltip="How many pictures of the film a still one stands for.",
                ),
                io.Int.Input(
                    "fade",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="How many pictures of the film fade from one to the next where there is a cut. 0 for "
                    "a hard cut.",
                ),
                io.Image.Input(
                    "clips",
                    optional=True,
                    tooltip="The clips in the story's order, one batch of pictures each: what the video model drew for "
                    "Story Transitions.",
                ),
                io.Int.Input(
                    "number",
                    optional=True,
                    force_input=True,
                    min=1,
                    tooltip="Story Transitions' numbers, which say where there are cuts. Without them, every clip "
                    "begins as the one before it ends.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The story's pictures: those that no clip begins or ends with stand still.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The film as one batch, as large as the first clip.")],
        )

    @classmethod
    def execute(
        cls,
        hold: list[int],
        fade: list[int],
        clips: list[torch.Tensor] | None = None,
        number: list[int] | None = None,
        images: list[torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        clips = clips or []
        stills = [picture[None] for batch in images or [] for picture in batch]
        if not clips and not stills:
            raise ValueError("Join Clips has nothing to join: wire `clips`, or `images` for a film without them.")
        starts = [n - 1 for n in number] if number and clips else list(range(len(clips)))
        check_starts(starts, len(clips), len(stills))
        check_clips(clips)
        segments = {start: (start + 1, clip) for start, clip in zip(starts, clips)}
        for j, still in enumerate(stills):
            if j not in segments and j - 1 not in starts:
                segments[j] = (j, still.expand(hold[0], -1, -1, -1))
        height, width = (clips or stills)[0].shape[1:3]
        film: list[torch.Tensor] = []
        end = None
        for start, (stop, pictures) in sorted(segments.items()):
            pictures = fitted(pictures[..., :3], height, width)
            if start == end:
                pictures = pictures[1:]
            elif film and fade[0]:
                film.append(cross_fade(film[-1][-1], pictures[0], fade[0]))
            film.append(pictures)
            end = stop
        return io.NodeOutput(torch.cat(film))


def clip_values(story: Story, j: int) -> dict[str, str]:
    """What a transition from frame `j` to the next may say."""
    before, after = story.frames[j], story.frames[j + 1]
    return {
        "identity": after.identity,
        "from": before.prompt,
        "to": after.prompt,
        "from_identity": before.identity,
        "from_caption": before.caption,
        "to_caption": after.caption,
    }


def check_starts(starts: list[int], clips: int, frames: int) -> None:
    """Raise `ValueError` unless each clip has a start, in order and within the story's pictures, if any."""
    if len(starts) != clips:
        raise ValueError(
            f"Join Clips has {clips} {'clip' if clips == 1 else 'clips'} and {len(starts)} in `number`: wire both from "
            "the same Story Transitions."
        )
    if starts != sorted(set(starts)):
        raise ValueError(
            f"Join Clips has the numbers {', '.join(str(start + 1) for start in starts)}: wire `number` from one Story "
            "Transitions, whose numbers rise."
        )
    if frames and starts and starts[-1] + 1 >= frames:
        raise ValueError(
            f"Join Clips has a clip from frame {starts[-1] + 1} to the next and {frames} "
            f"{'picture' if frames == 1 else 'pictures'} in `images`: wire all pictures of the story."
        )


def check_clips(clips: list[torch.Tensor]) -> None:
    """Raise `ValueError` for a clip without two pictures, of which one is left where its first is another's last."""
    for number, clip in enumerate(clips, 1):
        if len(clip) < 2:
            raise ValueError(
                f"Join Clips has {len(clip)} {'picture' if len(clip) == 1 else 'pictures'} in clip {number} of "
                f"{len(clips)}: a clip begins and ends with one, so raise the length that the video model draws."
            )


def cross_fade(before: torch.Tensor, after: torch.Tensor, count: int) -> torch.Tensor:
    """`count` pictures between two [height, width, channels], linearly mixed; neither end is among them."""
    share = torch.arange(1, count + 1, dtype=before.dtype, device=before.device)[:, None, None, None] / (count + 1)
    return torch.lerp(before[None], after[None].to(before), share)
