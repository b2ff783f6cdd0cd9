import logging

import torch
from comfy_api.latest import io, ui

from ..pages.board import CAPTION_POSITIONS, LAYOUTS, match_captions
from ..pages.book import draw_pages
from ..story.captions import replace_captions
from ..story.script import Story
from .types import CATEGORY, STORY


class OneStoryBoard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryBoard",
            display_name="Story Board",
            category=CATEGORY,
            description="Sets a story's frames and captions on pages: a grid, a strip, a comic page or four-panel "
            "strips, with speech bubbles and a title. Fonts for Latin, Greek, Cyrillic, Arabic, Hebrew, Chinese, "
            "Japanese and Korean text and emoji are built in; other scripts use the system's fonts, and a character "
            "that no font has becomes □.",
            search_aliases=[
                "story",
                "storyboard",
                "comic",
                "comic page",
                "comic book",
                "manga",
                "four-panel",
                "grid",
                "contact sheet",
                "caption",
                "speech bubble",
                "title",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The story's frames in order, from VAE Decode."),
                STORY.Input(
                    "story",
                    tooltip="The story whose captions are set. Several takes of the whole story in one batch repeat "
                    "them; with any other number of images, the node says so, and further images get no caption.",
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=200,
                    tooltip="How many frames stand side by side. 0 chooses a page of pleasing shape. On comic pages "
                    "this counts pages, with four-panel it counts strips; a strip takes no notice of it.",
                ),
                io.Boolean.Input("captions", default=True, tooltip="Set each frame's caption with its picture."),
                io.Combo.Input(
                    "layout",
                    optional=True,
                    options=list(LAYOUTS),
                    default="grid",
                    tooltip="grid: whole frames in rows. strip: one row. comic page: panels of varied size, "
                    "slightly cropped to fill them, up to eight a page. four-panel: strips of four, read downward.",
                ),
                io.Combo.Input(
                    "caption_position",
                    optional=True,
                    options=list(CAPTION_POSITIONS),
                    default="below",
                    advanced=True,
                    tooltip="below: under the picture. inside: in a box at the picture's lower left; a caption that "
                    "would hide more than half of its picture still goes below.",
                ),
                io.Float.Input(
                    "gutter",
                    optional=True,
                    default=4.0,
                    min=0.0,
                    max=50.0,
                    step=0.5,
                    advanced=True,
                    tooltip="The space between frames, in percent of a frame's shorter side. The margin follows it.",
                ),
                io.Int.Input(
                    "page_width",
                    optional=True,
                    default=0,
                    min=0,
                    max=16384,
                    advanced=True,
                    tooltip="The page's exact width in pixels; pictures are resized, text is set sharp at this size. "
                    "0 keeps the frames' own pixels (frames narrower than 256 grow by a whole factor, comic panels "
                    "are always fitted).",
                ),
                io.String.Input(
                    "own_captions",
                    optional=True,
                    default="",
                    multiline=True,
                    tooltip="Captions of this board's own, one a line, in the order of the frames. An empty line keeps "
                    "the story's caption, # alone means none. Changing them draws this board again and nothing else, "
                    "where a caption in Story Script samples the story again.",
                ),
                io.Boolean.Input(
                    "bubbles",
                    optional=True,
                    default=True,
                    tooltip="Set what characters say in a speech bubble: a caption such as Mia: “Hello!”. A frame with "
                    "no room for its bubbles keeps it in the caption.",
                ),
                io.String.Input(
                    "title", optional=True, default="", tooltip="Stands over the first page. Empty for none."
                ),
                io.Int.Input(
                    "frames_per_page",
                    optional=True,
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="How many frames stand on a page; each page is an image of its own, and Save Image saves "
                    "one file for each. 0 for one page with all frames.",
                ),
                io.Mask.Input(
                    "speaker_masks",
                    optional=True,
                    tooltip="Where the speaker is, white on black: one mask for each image, or one for all, such as "
                    "Attention View gives. Tails of bubbles point there; without it, and where several characters "
                    "speak in a frame, they point down from the picture's upper edge.",
                ),
            ],
            outputs=[io.Image.Output(is_output_list=True, tooltip="The page, or a list of them.")],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        story: Story,
        columns: int,
        captions: bool,
        layout: str = "grid",
        caption_position: str = "below",
        gutter: float = 4.0,
        page_width: int = 0,
        own_captions: str = "",
        bubbles: bool = True,
        title: str = "",
        frames_per_page: int = 0,
        speaker_masks: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        frames = len(story.frames)
        warning = ""
        if len(images) % frames:
            warning = (
                f"Story Board has {len(images)} {'image' if len(images) == 1 else 'images'} for a story of {frames} "
                "frames: to draw every frame once or several times, wire the same story into Story Latent and its "
                "latent into the sampler."
            )
            logging.warning("OneStory: %s", warning)
        texts = replace_captions([frame.caption for frame in story.frames], own_captions)
        pages = draw_pages(
            images.to("cpu", torch.float32).numpy(),
            match_captions(texts if captions else [""] * frames, len(images)),
            [character.name for character in story.characters] if bubbles else None,
            speakers(speaker_masks, len(images)),
            title,
            frames_per_page,
            layout=layout,
            columns=columns,
            caption_position=caption_position,
            gutter=gutter,
            page_width=page_width,
        )
        shown = ui.PreviewText(warning) if warning else None
        return io.NodeOutput([torch.from_numpy(page)[None] for page in pages], ui=shown)


def speakers(masks: torch.Tensor | None, images: int) -> list[tuple[float, float] | None]:
    """The middle of each of `masks` [1 or images, height, width], in parts of width and height; None for an empty one.

    Raises `ValueError` for another number of masks.
    """
    if masks is None:
        return [None] * images
    if len(masks) not in (1, images):
        raise ValueError(
            f"Story Board has {len(masks)} speaker_masks and {images} images: give one for each image, or one for all."
        )
    return [middle(mask) for mask in masks.to("cpu", torch.float32).expand(images, -1, -1)]


def middle(mask: torch.Tensor) -> tuple[float, float] | None:
    """The centre of what reaches half of the mask's highest value."""
    inside = mask.ge(mask.max() / 2) & mask.gt(0)
    if not inside.any():
        return None
    y, x = (at.float().mean().item() + 0.5 for at in inside.nonzero(as_tuple=True))
    return x / mask.shape[1], y / mask.shape[0]
