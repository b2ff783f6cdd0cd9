"""ComfyUI's text encoders that Story Prompt knows, and what the embedding of each looks like."""

from collections.abc import Callable
from typing import Any, NamedTuple

from comfy.sd import CLIP
from comfy.sd1_clip import SD1ClipModel
from comfy.sdxl_clip import SDXLClipModel, SDXLRefinerClipModel
from comfy.text_encoders.flux import FluxClipModel
from comfy.text_encoders.sd2_clip import SD2ClipModel
from comfy.text_encoders.sd3_clip import SD3ClipModel

from ..svr.encoders import TextEncoder, clip_encoder, side_by_side, t5


class TextModel(NamedTuple):
    """What a text encoder gives: the vectors of `encoders`, in an embedding of `width` channels, 0 if they use all."""

    encoders: tuple[TextEncoder, ...]
    width: int = 0


def text_model_of(clip: CLIP) -> TextModel:
    """What ComfyUI's `clip` gives. Raises `ValueError` for one that Story Prompt doesn't know."""
    model = clip.cond_stage_model
    if type(model) is SD1ClipModel:
        return TextModel(side_by_side("l"))
    found = next((KNOWN[kind] for kind in type(model).__mro__ if kind in KNOWN), None)
    if found is not None:
        return found(model)
    name = type(model).__name__.rstrip("_")
    raise ValueError(
        f"The text encoder {name} is not supported: OneStory works with those of SD1.x (CLIP-L), SD2.x "
        "(OpenCLIP-H), SDXL base (CLIP-L and CLIP-G), the SDXL refiner (CLIP-G), SD3 and SD3.5, and Flux.1."
    )


def sd3(model: Any) -> TextModel:
    """CLIP-L and CLIP-G side by side, in channels that T5 has 4096 of, then T5's tokens; any of them may be missing."""
    clips = []
    if model.clip_l is not None:
        clips.append(clip_encoder("l"))
    if model.clip_g is not None:
        clips.append(clip_encoder("g", 768))
    if model.t5xxl is not None:
        clips.append(t5(first=77 if clips else 0))
    if not clips:
        raise ValueError(
            "This SD3 text encoder is empty: load CLIP-L, CLIP-G or T5 with Load CLIP, TripleCLIPLoader or a "
            "checkpoint that has them."
        )
    return TextModel(tuple(clips), 4096)


KNOWN: dict[type, Callable[[Any], TextModel]] = {
    SD2ClipModel: lambda model: TextModel(side_by_side("h")),
    SDXLClipModel: lambda model: TextModel(side_by_side("l", "g")),
    SDXLRefinerClipModel: lambda model: TextModel(side_by_side("g")),
    SD3ClipModel: sd3,
    FluxClipModel: lambda model: TextModel((t5(),)),
}
