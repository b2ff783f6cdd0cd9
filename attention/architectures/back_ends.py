"""ComfyUI's attention functions, with the one that takes a mask where the chosen one refuses it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host
from torch import Tensor


def attention_of(func: Callable[..., Tensor], override: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
    """ComfyUI's attention function `func`, by way of another pack's `override` if there is one.

    Flash attention takes no mask and complains at every call that has one: those go to PyTorch's attention.
    """
    return partial(attend, func, override)


def attend(
    func: Callable[..., Tensor],
    override: Callable[..., Tensor] | None,
    *args: Any,
    mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    if mask is not None and unwrapped(func) is FLASH:
        func = host.attention_pytorch
    if override is None:
        return func(*args, mask=mask, **options)
    return override(func, *args, mask=mask, **options)


def unwrapped(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function that ComfyUI hands to an override."""
    return getattr(func, "__wrapped__", func)


FLASH = unwrapped(host.attention_flash)
