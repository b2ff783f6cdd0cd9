"""ComfyUI's text encoders that Story Prompt knows, and what the embedding of each looks like."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from comfy.sd import CLIP
from comfy.sd1_clip import SD1ClipModel
from comfy.sdxl_clip import SDXLClipModel, SDXLRefinerClipModel
from comfy.text_encoders.flux import Flux2TEModel, FluxClipModel
from comfy.text_encoders.hunyuan_image import HunyuanImageTEModel
from comfy.text_encoders.lumina2 import LuminaModel
from comfy.text_encoders.pixart_t5 import PixArtT5XXL
from comfy.text_encoders.qwen_image import QwenImageTEModel
from comfy.text_encoders.sd2_clip import SD2ClipModel
from comfy.text_encoders.sd3_clip import SD3ClipModel
from comfy.text_encoders.wan import WanT5Model
from comfy.text_encoders.z_image import ZImageTEModel

from ..svr.encoders import TextEncoder, clip_encoder, language_model, side_by_side, t5, umt5
from ..svr.record import Span

Lengths = Literal["padded", "masked", "squared", "left", "equal"]


class TextModel(NamedTuple):
    """What a text encoder gives: the vectors of `encoders`, in an embedding of `width` channels, 0 if they use all.

    `lengths`: how rows of unequal length stand in one embedding. "padded": the encoder pads them; "masked": the model
    takes a mask of its tokens; "squared": it takes one of its tokens and the picture's for each of them; "left": it
    reads zeros before them; "equal": it has no place for them.
    """

    encoders: tuple[TextEncoder, ...]
    width: int = 0
    lengths: Lengths = "padded"


def text_model_of(clip: CLIP) -> TextModel:
    """What ComfyUI's `clip` gives. Raises `ValueError` for one that Story Prompt doesn't know."""
    model = clip.cond_stage_model
    if type(model) is SD1ClipModel:
        return TextModel(side_by_side("l"))
    # A class of ComfyUI's that inherits from one in another file is another model's text encoder.
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith("comfy.")]
    found = next((KNOWN[kind] for kind in kinds if kind in KNOWN and kind.__module__ == kinds[0].__module__), None)
    if found is not None:
        return found(model)
    name = type(model).__name__.rstrip("_")
    raise ValueError(
        f"The text encoder {name} is not supported: OneStory works with those of SD1.x (CLIP-L), SD2.x "
        "(OpenCLIP-H), SDXL base (CLIP-L and CLIP-G), the SDXL refiner (CLIP-G), SD3 and SD3.5, Flux.1, Chroma, "
        "Flux.2, Qwen-Image, Z-Image, Lumina 2, HunyuanImage and Wan."
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


QWEN_PREFIX = 34
"""How many tokens ComfyUI drops of what Qwen2.5-VL makes of Qwen-Image's template, all before the text."""


def language(model: Any, lengths: Lengths, templated: bool = True, dropped: int = 0) -> TextModel:
    """The one language model of a text encoder of ComfyUI's."""
    width = getattr(model, model.clip).transformer.model.config.hidden_size
    return TextModel((language_model(model.clip_name, width, templated, dropped),), lengths=lengths)


STACKED = 3
"""How many layers of its language model Flux.2 reads, one behind the other in a token's channels."""


def flux2(model: Any) -> TextModel:
    """Mistral, or Klein's Qwen3. SVR takes all layers for a token's one vector, as the model does."""
    text = language(model, "left")
    [encoder] = text.encoders
    return text._replace(encoders=(encoder._replace(channels=Span(0, STACKED * encoder.width)),))


def lumina2(model: Any) -> TextModel:
    if model.clip_name != "gemma2_2b":
        raise ValueError(
            f"The text encoder {model.clip_name} is not supported: Lumina 2 uses gemma_2_2b, so load that with Load "
            "CLIP, type lumina2."
        )
    return language(model, "equal", templated=False)


KNOWN: dict[type, Callable[[Any], TextModel]] = {
    SD2ClipModel: lambda model: TextModel(side_by_side("h")),
    SDXLClipModel: lambda model: TextModel(side_by_side("l", "g")),
    SDXLRefinerClipModel: lambda model: TextModel(side_by_side("g")),
    SD3ClipModel: sd3,
    FluxClipModel: lambda model: TextModel((t5(),)),
    Flux2TEModel: flux2,
    PixArtT5XXL: lambda model: TextModel((t5(evened=False),), lengths="squared"),
    QwenImageTEModel: lambda model: language(model, "masked", dropped=QWEN_PREFIX),
    ZImageTEModel: lambda model: language(model, "equal"),
    LuminaModel: lumina2,
    HunyuanImageTEModel: lambda model: language(model, "equal", dropped=QWEN_PREFIX),
    WanT5Model: lambda model: TextModel((umt5(),)),
}
