"""What an IP-Adapter makes of a story's drawn frames, for the pictures between them."""

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher

from ..attention.architectures import unet
from ..attention.between_images import BetweenImages
from ..attention.blocks import Blocks
from .image_adapter import blank_of, check_vision, load_adapter, see

NONE = "none"


def check_images(images: torch.Tensor | None, adapter: str, frames: int) -> None:
    """Raise `ValueError` unless both are there, one picture for each frame, or neither."""
    if images is None and adapter == NONE:
        return
    if images is None:
        raise ValueError(
            f"Story In-Betweens has the adapter “{adapter}” and no `images` for it to look at: wire the story's frames "
            f"as they were drawn before, or choose “{NONE}”."
        )
    if adapter == NONE:
        raise ValueError(
            "Story In-Betweens has `images` and no `adapter` that looks at them: choose an IP-Adapter file, or take "
            "the wire out."
        )
    if len(images) != frames:
        raise ValueError(
            f"Story In-Betweens has {len(images)} {'picture' if len(images) == 1 else 'pictures'} in `images` and a "
            f"story of {frames} frames: wire one picture for each frame, as they were drawn before."
        )


def between_images(
    model: ModelPatcher,
    images: torch.Tensor,
    adapter: str,
    scale: float,
    reach: tuple[Blocks, float, float],
    clip_vision: ClipVisionModel | None,
) -> BetweenImages:
    """The method for `images` [frames, height, width, channels]. Raises `ValueError` for what does not fit."""
    transformers = unet.transformers(model.model) if unet.blocks(model.model) else []
    if not transformers:
        raise ValueError(
            f"Story In-Betweens takes `images` for SD1.5 and SDXL, and this model is {type(model.model).__name__}: "
            "take the wire out."
        )
    own = load_adapter(adapter)
    own.check([(each.channels, each.text_channels) for each in transformers])
    if own.reads_face:
        raise ValueError(
            f"The adapter “{adapter}” reads faces, and Story In-Betweens gives it whole pictures: choose a base, plus "
            "or full-face one."
        )
    check_vision(own, clip_vision)
    assert clip_vision is not None
    device = comfy.model_management.get_torch_device()

    def project(seen: torch.Tensor) -> torch.Tensor:
        """[2, pictures, tokens, channels]."""
        tokens = own.tokens(seen.to(device, torch.float32), None, False)
        return own.keys_and_values(tokens.flatten(0, 1)).unflatten(1, tokens.shape[:2]).cpu()

    pictures = images[..., :3].to("cpu", torch.float32).split(1)
    seen = torch.cat([see(clip_vision, picture, own, "pad") for picture in pictures])
    blank, _ = blank_of(own, clip_vision)
    assert blank is not None
    return BetweenImages(project(seen), project(blank)[:, 0], unet.channel_spans(transformers), scale, *reach)
