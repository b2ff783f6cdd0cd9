"""Live previews: all frames of a batch as one grid, where ComfyUI's own show the first alone."""

from time import perf_counter
from typing import Any

import comfy.utils
import latent_preview
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from PIL import Image
from torch import Tensor

from ..pages.preview import draw_preview

KEY = "onestory previews"
MOST = 36
"""Of a larger batch the first frames are shown."""
PAUSE = 20
"""A grid is decoded again after this many times the time that the last one took: at most a twentieth of sampling."""


def with_previews(model: ModelPatcher) -> ModelPatcher:
    """The `ModelPatcher`, that now shows its whole batch while sampling; once, however often it is called.

    A model without any wrapper of its own is left as it is: nothing of ours is on.
    """
    if model.wrappers.get(WrappersMP.OUTER_SAMPLE):
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    return model


def outer_sample(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    callback: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The sampler's callback gets its batch as ever, and after it the grid is sent, which is what the editor keeps.

    The callback also keeps the denoised latents of SamplerCustom, so it can't be handed anything else. Packs of several
    latents (video with sound) are flat here, [batch, 1, values], and get ComfyUI's preview alone.
    """
    if callback is not None and noise.shape[0] > 1 and noise.ndim in (4, 5):
        patcher = executor.class_obj.model_patcher
        previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
        if previewer is not None:
            callback = Preview(previewer, callback)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)


class Preview:
    """A sampler's callback that calls another and then sends the grid of one sampling."""

    def __init__(self, previewer: Any, callback: Any) -> None:
        self.previewer = previewer
        self.callback = callback
        self.bar: Any = None
        self.grid: Image.Image | None = None
        self.due = 0.0

    def __call__(self, step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        self.callback(step, x0, x, total_steps)
        start = perf_counter()
        if start >= self.due:
            self.grid = self.draw(x0)
            now = perf_counter()
            self.due = now + PAUSE * (now - start)
        if self.grid is not None:
            # Also where it is the last one again: else the callback's single frame would be seen in between.
            self.bar = self.bar or comfy.utils.ProgressBar(total_steps)
            self.bar.update_absolute(step + 1, total_steps, ("JPEG", self.grid, latent_preview.MAX_PREVIEW_RESOLUTION))

    def draw(self, x0: Tensor) -> Image.Image | None:
        """The grid of `x0` [frames, channels, (time,) height, width]; None for a previewer that makes no pictures."""
        frames = []
        for row in x0[:MOST].split(1):
            frame = self.previewer.decode_latent_to_preview(row)
            if not isinstance(frame, Image.Image):
                return None
            frames.append(frame)
        return draw_preview(frames, latent_preview.MAX_PREVIEW_RESOLUTION)
