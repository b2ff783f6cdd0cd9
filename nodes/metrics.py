import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io, ui

from ..pages.board import match_captions
from ..pages.similarity import cut_out, describe, mean_pairwise, mean_similarity, similarities
from ..pages.similarity_sheet import draw_similarity
from ..story.script import Story
from .cast import Cast, Member, count
from .types import CATEGORY, STORY, STORY_CAST, STORY_VECTORS

MODELS = ("clip_vision_model", "dinov2")
"""The kinds of vision model that answer with one vector for a whole picture, by ComfyUI's names."""


class OneStoryMetrics(io.ComfyNode):
    """Mean pairwise similarity of a story's frames by a vision model (CLIP-I with CLIP).

    The vector of a frame is what the model's own pooling gives: CLIP's image embedding, projected into the space that
    it shares with texts, or DINOv2's normalised CLS token. With a mask, everything outside fades to grey and the
    picture is cropped to the subject's bounding square, so that neither background nor place and size in the picture
    count; without one, a picture is cropped at its centre to a square as these models expect it.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryMetrics",
            display_name="Story Metrics",
            category=CATEGORY,
            description="Measure how alike a story's frames are in the eyes of a vision model (CLIP or DINOv2): the "
            "mean over all pairs of frames, a heat map, and every pair as text. To compare settings, keep everything "
            "else the same.",
            search_aliases=["story", "consistency", "similarity", "clip-i", "clip score", "dino", "metric", "evaluate"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The story's frames in order, from VAE Decode. Two or more."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="A CLIP or DINOv2 model, from Load CLIP Vision. CLIP judges what is shown, DINOv2 more "
                    "how it looks. Numbers of different models can't be compared.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the character is, white on black: one mask for each frame, or one for all. Outside "
                    "becomes grey and the picture is cropped to the character, so that the background does not count.",
                ),
                STORY.Input(
                    "story", optional=True, tooltip="The story, whose captions name the frames in the heat map."
                ),
                STORY_CAST.Input(
                    "cast",
                    optional=True,
                    tooltip="Who should look how, from Story Cast: the text then tells of each character how alike the "
                    "frames that show it are to its pictures. Needs the story.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="similarity",
                    tooltip="The mean cosine similarity over all pairs of frames; 1 for equal ones. With CLIP this is "
                    "CLIP-I.",
                ),
                io.Image.Output(display_name="heat_map", tooltip="The similarity of every frame to every other."),
                io.String.Output(display_name="text", tooltip="The mean and every pair, from the most alike down."),
                STORY_VECTORS.Output(
                    display_name="vectors", tooltip="What the model sees in each frame, for Pick Takes' suggestions."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        clip_vision: ClipVisionModel | None,
        mask: torch.Tensor | None = None,
        story: Story | None = None,
        cast: Cast = (),
    ) -> io.NodeOutput:
        check(images, clip_vision, mask)
        check_cast(images, story, cast)
        vectors = embed(clip_vision, subjects(images, mask))
        matrix = similarities(vectors)
        names = [""] * len(images)
        if story is not None:
            names = match_captions([frame.caption for frame in story.frames], len(images))
        likeness = [likeness_to(clip_vision, vectors, story, member) for member in cast] if story and cast else []
        mean, text = mean_pairwise(matrix), "\n".join([*likeness, describe(matrix, names)])
        heat_map = torch.from_numpy(draw_similarity(matrix, names))[None]
        shown = ui.PreviewImage(heat_map, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(mean, heat_map, text, vectors, ui=shown | {"similarity": (mean,)})


def check(images: torch.Tensor, clip_vision: ClipVisionModel | None, mask: torch.Tensor | None) -> None:
    """Raise `ValueError` with one sentence for what can't be measured, before any of it is."""
    if len(images) < 2:
        raise ValueError("Story Metrics has one frame only: wire two or more into `images`, as one batch.")
    if clip_vision is None:
        raise ValueError(
            "The clip_vision input is empty: this checkpoint has no vision model, so load one with Load CLIP Vision."
        )
    if clip_vision.model_type not in MODELS:
        raise ValueError(
            f"This vision model ({clip_vision.model_type}) gives no single vector for a picture in ComfyUI: load a "
            "CLIP or DINOv2 model."
        )
    if mask is not None and len(mask) not in (1, len(images)):
        raise ValueError(
            f"Story Metrics has {len(mask)} masks and {len(images)} frames: give one mask for each frame, or one for "
            "all."
        )


def check_cast(images: torch.Tensor, story: Story | None, cast: Cast) -> None:
    if cast and story is None:
        raise ValueError("Story Metrics has a cast and no story: wire `story` too, which says whom each frame shows.")
    if cast and story is not None and len(images) != len(story.frames):
        frames = f"{len(story.frames)} {'frame' if len(story.frames) == 1 else 'frames'}"
        raise ValueError(
            f"Story Metrics has {count(images)} and a cast for a story of {frames}: wire one picture for each frame, "
            "or no cast."
        )


def likeness_to(clip_vision: ClipVisionModel | None, vectors: np.ndarray, story: Story, member: Member) -> str:
    """A line on how alike the frames that show a member, of all `vectors` [frames, channels], are to its pictures."""
    who = member.name or "the character"
    shown = [j for j, frame in enumerate(story.frames) if member.name in frame.characters]
    if not shown:
        return f"{who}: in no frame"
    pictures = embed(clip_vision, subjects(member.images, member.mask, "picture", f" of {who}"))
    frames = "1 frame" if len(shown) == 1 else f"{len(shown)} frames"
    return f"{who}: {mean_similarity(vectors[shown], pictures):.4f} between {frames} and {count(member.images)}"


def subjects(images: torch.Tensor, mask: torch.Tensor | None, what: str = "frame", of: str = "") -> list[torch.Tensor]:
    """Each of `images` [frames, height, width, channels] as [1, height, width, 3]: whole, or its subject alone.

    `mask` [1 or frames, height, width] may have another size than the pictures. Raises `ValueError` for an empty one;
    `what` and `of` are what the sentence says before and after a picture's number.
    """
    images = images[..., :3].to("cpu", torch.float32)
    if mask is None:
        return list(images.split(1))
    mask = comfy.utils.common_upscale(
        mask.to("cpu", torch.float32)[:, None], images.shape[2], images.shape[1], "bilinear", "disabled"
    )[:, 0].clamp(0, 1)
    found = []
    for number, (image, own) in enumerate(zip(images, mask.expand(len(images), -1, -1)), 1):
        subject = cut_out(image.numpy(), own.numpy())
        if subject is None:
            raise ValueError(
                f"The mask of {what} {number}{of} is empty: paint the character white, or leave the picture out of "
                "the comparison."
            )
        found.append(torch.from_numpy(subject)[None])
    return found


def embed(clip_vision: ClipVisionModel, pictures: list[torch.Tensor]) -> np.ndarray:
    """The vision model's vector for each picture [1, height, width, 3]: [pictures, channels], float64."""
    progress = comfy.utils.ProgressBar(len(pictures))
    vectors = []
    for picture in pictures:
        comfy.model_management.throw_exception_if_processing_interrupted()
        vectors.append(clip_vision.encode_image(picture)["image_embeds"][0].double().cpu().numpy())
        progress.update(1)
    return np.stack(vectors)
