"""Who looks how: the pictures of a story's characters, by name."""

from typing import NamedTuple

import torch
from comfy_api.latest import io

from ..story.script import Story
from ..story.templates import find_character
from .pictures import one_size
from .types import CATEGORY, STORY, STORY_CAST, STORY_FACE

FACE_CHANNELS = 512


class Member(NamedTuple):
    """A character's pictures [n, height, width, 3], where it is in them (mask [n, height, width], 0 to 1, or None), its
    face embeddings [faces, 512], and pictures of its face alone [faces, height, width, 3], or None. `name` is as in
    `Character`."""

    name: str
    images: torch.Tensor
    mask: torch.Tensor | None = None
    face: torch.Tensor | None = None
    crops: torch.Tensor | None = None


Cast = tuple[Member, ...]


class OneStoryCast(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryCast",
            display_name="Story Cast",
            category=CATEGORY,
            description="Say which pictures show which character of a story. One node for each character, one behind "
            "the other.",
            search_aliases=["story", "cast", "character", "reference image", "ip-adapter", "photomaker", "kontext"],
            inputs=[
                STORY.Input("story", tooltip="The story, which says who there is."),
                io.Image.Input("images", tooltip="One or more pictures of the character, of one size."),
                io.String.Input(
                    "character",
                    default="",
                    tooltip="The character's name as the story writes it, without brackets. Empty for a story with "
                    "only one.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the character is in its pictures, white on black and as large as they are: one mask "
                    "for all, or one for each.",
                ),
                STORY_FACE.Input(
                    "face",
                    optional=True,
                    tooltip="The character's face embeddings, for what needs them.",
                ),
                STORY_CAST.Input(
                    "cast",
                    optional=True,
                    tooltip="The cast so far, from another Story Cast. Pictures of the same character add up.",
                ),
                io.Image.Input(
                    "face_pictures",
                    optional=True,
                    tooltip="The character's face upright and alone, from Story Face's `crops`, for StoryMaker.",
                ),
            ],
            outputs=[STORY_CAST.Output(display_name="cast", tooltip="The cast with this character.")],
        )

    @classmethod
    def execute(
        cls,
        story: Story,
        images: torch.Tensor,
        character: str = "",
        mask: torch.Tensor | None = None,
        face: torch.Tensor | None = None,
        cast: Cast = (),
        face_pictures: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        name = find_character(story, character, "Story Cast").name
        check_face(face)
        crops = None if face_pictures is None else face_pictures[..., :3]
        member = Member(name, images[..., :3], fit_mask(mask, images), face, crops)
        return io.NodeOutput(add_member(cast or (), member))


def fit_mask(mask: torch.Tensor | None, images: torch.Tensor) -> torch.Tensor | None:
    """One mask for each picture. Raises `ValueError` for another count or size."""
    if mask is None:
        return None
    mask = mask.reshape(-1, *mask.shape[-2:])
    if len(mask) not in (1, len(images)):
        raise ValueError(
            f"Story Cast has {len(mask)} masks and {count(images)}: give one mask for all pictures, or one for each."
        )
    if mask.shape[1:] != images.shape[1:3]:
        raise ValueError(
            f"Story Cast has a mask of {mask.shape[2]} x {mask.shape[1]} and pictures of {images.shape[2]} x "
            f"{images.shape[1]}: give a mask of the pictures' size, or none."
        )
    return mask.expand(len(images), -1, -1)


def check_face(face: torch.Tensor | None) -> None:
    if face is not None and (face.ndim != 2 or face.shape[1] != FACE_CHANNELS):
        shape = " x ".join(map(str, face.shape))
        raise ValueError(f"Story Cast has a face of {shape} numbers: an embedding has {FACE_CHANNELS} for each face.")


def add_member(cast: Cast, member: Member) -> Cast:
    """The cast with this member last, or with its pictures added to those that the character has."""
    if member.name not in [other.name for other in cast]:
        return (*cast, member)
    return tuple(merged(other, member) if other.name == member.name else other for other in cast)


def merged(member: Member, more: Member) -> Member:
    """All pictures of two members; where only one has masks, the other's pictures show the character everywhere."""
    if member.images.shape[1:] != more.images.shape[1:]:
        sizes = [f"{part.images.shape[2]} x {part.images.shape[1]}" for part in (member, more)]
        who = f"[{member.name}]" if member.name else "the character"
        raise ValueError(
            f"Story Cast has pictures of {who} of {sizes[0]} and of {sizes[1]}: resize them to one size first."
        )
    mask = None
    if member.mask is not None or more.mask is not None:
        mask = torch.cat([everywhere(part) if part.mask is None else part.mask for part in (member, more)])
    faces = [part.face for part in (member, more) if part.face is not None]
    crops = [part.crops for part in (member, more) if part.crops is not None]
    return Member(
        member.name,
        torch.cat([member.images, more.images]),
        mask,
        torch.cat(faces) if faces else None,
        one_size(crops) if crops else None,
    )


def everywhere(member: Member) -> torch.Tensor:
    return member.images.new_ones(member.images.shape[:3])


def count(images: torch.Tensor) -> str:
    return f"{len(images)} {'picture' if len(images) == 1 else 'pictures'}"
