"""What a conditioning has for each frame, and cutting all of it to the frames of a run, as one batch would use it.

ComfyUI repeats such values over a batch: row j takes entry j modulo their count. An inpaint model's picture and mask
are stretched over it instead.
"""

import copy
from collections.abc import Iterator
from typing import Any

import comfy.conds
import comfy.utils
import torch
from torch import Tensor

REPEATED = ("pooled_output", "cross_attn_controlnet", "noise_concat", "attention_mask")
STRETCHED = ("concat_latent_image", "concat_mask")


class Cut:
    """The rows `rows` of a batch of `total`."""

    def __init__(self, rows: tuple[int, ...], total: int):
        self.rows = rows
        self.total = total
        self.controls: dict[Any, Any] = {}
        self.running: dict[Any, Any] = {}

    def repeated(self, value: Tensor) -> Tensor:
        """`value` [entries, ...], for each of the rows its own entry; one entry for all stays one."""
        return value if len(value) == 1 else value[[j % len(value) for j in self.rows]]

    def stretched(self, value: Tensor) -> Tensor:
        if len(value) == 1:
            return value
        entries = comfy.utils.resize_to_batch_size(torch.arange(len(value)), self.total)
        return value[entries[list(self.rows)]]

    def entry(self, embeds: Tensor, options: dict[str, Any]) -> list[Any]:
        """A conditioning entry for these rows, without touching what other nodes own."""
        return [self.repeated(embeds), {name: self.value(name, value) for name, value in options.items()}]

    def value(self, name: str, value: Any) -> Any:
        if name == "control":
            return self.control(value)
        if name == "reference_latents":
            return [self.repeated(latent) for latent in value]
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        if name in STRETCHED:
            return self.stretched(pictures(name, value))
        if name == "mask":
            return self.repeated(value) if value.ndim > 2 else value
        # Of another pack's values, only those that clearly have an entry for each frame.
        return self.repeated(value) if name in REPEATED or len(value) == self.total else value

    def control(self, control: Any) -> Any:
        """A copy of a ControlNet with the hints of the rows. Positive and negative share it, so that ComfyUI can batch
        them."""
        if control not in self.controls:
            own = self.with_hints(control.copy(), control)
            if control.previous_controlnet is not None:
                own.set_previous_controlnet(self.control(control.previous_controlnet))
            self.controls[control] = own
        return self.controls[control]

    def with_hints(self, own: Any, control: Any) -> Any:
        """`own`, a copy of a ControlNet, with the rows' part of its hints."""
        if control.cond_hint_original is not None:
            own.cond_hint_original = self.repeated(control.cond_hint_original)
        own.extra_concat_orig = [self.repeated(extra) for extra in control.extra_concat_orig]
        return own

    def prepared(self, options: dict[str, Any]) -> dict[str, Any]:
        """A conditioning as a running sampler has it, for these rows."""
        return {name: self.running_value(name, value) for name, value in options.items()}

    def running_value(self, name: str, value: Any) -> Any:
        if name == "control":
            return self.running_control(value)
        if name == "model_conds":
            return {key: self.model_cond(cond) for key, cond in value.items()}
        return self.value(name, value)

    def model_cond(self, cond: Any) -> Any:
        """One of the model's inputs, a `CONDRegular` or a kind of it; constants hold for all rows."""
        value = getattr(cond, "cond", None)
        if isinstance(cond, comfy.conds.CONDConstant) or value is None:
            return cond
        if isinstance(value, Tensor) and value.ndim:
            return cond._copy_with(self.repeated(value))
        if isinstance(cond, comfy.conds.CONDList):
            return cond._copy_with([self.repeated(each) for each in value])
        return cond

    def running_control(self, control: Any) -> Any:
        """A ControlNet that a sampler has prepared, with the hints of the rows; as it is where one hint is for all."""
        if control is None or not any(count > 1 for _, count in hints(control)):
            return control
        if control not in self.running:
            own = self.with_hints(copy.copy(control), control)
            own.cond_hint = own.extra_concat = None
            own.previous_controlnet = self.running_control(own.previous_controlnet)
            clones = getattr(own, "multigpu_clones", {})
            own.multigpu_clones = {device: self.running_control(clone) for device, clone in clones.items()}
            self.running[control] = own
        return self.running[control]


def pictures(name: str, value: Tensor) -> Tensor:
    """A mask [height, width] as [1, height, width]; everything else has its entries in front already."""
    return value[None] if name == "concat_mask" and value.ndim == 2 else value


def entries(options: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """What of a conditioning's options has several entries, for frames: its name for a person, and how many."""
    for name, value in options.items():
        if name == "control":
            yield from ((what, count) for what, count in hints(value) if count > 1)
        elif name == "reference_latents":
            yield from (("a reference latent", len(latent)) for latent in value if len(latent) > 1)
        elif name in STRETCHED and len(pictures(name, value)) > 1:
            yield f"an inpaint {'mask' if name == 'concat_mask' else 'picture'}", len(value)
        elif name == "mask" and value.ndim > 2 and len(value) > 1:
            yield "a mask", len(value)


def hints(control: Any) -> Iterator[tuple[str, int]]:
    while control is not None:
        if control.cond_hint_original is not None:
            yield "a ControlNet", len(control.cond_hint_original)
        yield from (("a ControlNet's mask", len(extra)) for extra in control.extra_concat_orig)
        control = control.previous_controlnet


def check_run(branch: str, options: dict[str, Any], rows: int, frames: int) -> None:
    """What an entry of a run has for each frame has to be cut to the run. Raises `ValueError`."""
    for what, count in entries(options):
        if count not in (1, rows):
            raise ValueError(
                f"The {branch} conditioning has {what} with {count} entries, and this run draws {rows} of the story's "
                f"{frames} frames: wire it through Split Story too, after the node that adds it."
            )


def wrong_batch(latents: int, frames: int) -> str:
    """The sentence for a latent batch that is not a story's."""
    return (
        f"The latent batch has {latents} {'frame' if latents == 1 else 'frames'} and the story {frames}: use Story "
        "Latent, wired to the same story, as the latent image; or Repeat Latent Batch, where each frame is to start "
        "from a picture of yours."
    )
