"""ComfyUI's attention functions, with the one that takes a mask where the chosen one refuses or forgets it."""

import inspect
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import comfy.ldm.modules.attention as host
from torch import Tensor


def attention_of(func: Callable[..., Tensor], override: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
    """ComfyUI's attention function `func`, by way of another pack's `override` if there is one.

    Calls with a mask go to PyTorch's attention where `func` takes none: flash attention complains at each of them, and
    before ComfyUI 0.27 a SageAttention that knows no masks drew without it.
    """
    return partial(attend, func, override)


def attend(
    func: Callable[..., Tensor],
    override: Callable[..., Tensor] | None,
    *args: Any,
    mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    if mask is not None and unwrapped(func) in MASKLESS:
        func = host.attention_pytorch
    if override is None:
        return func(*args, mask=mask, **options)
    return override(func, *args, mask=mask, **options)


def unwrapped(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function that ComfyUI hands to an override."""
    return getattr(func, "__wrapped__", func)


def maskless(module: ModuleType) -> frozenset[Callable[..., Tensor]]:
    """The functions of ComfyUI's attention `module` that a mask must not reach."""
    sage = getattr(module, "sageattn", None)
    forgets = sage is not None and "attn_mask" not in inspect.signature(sage).parameters
    names = ["attention_flash", *(["attention_sage"] if forgets else [])]
    return frozenset(unwrapped(getattr(module, name)) for name in names)


def held(*tensors: Any) -> tuple[Tensor, ...]:
    """An attention call's q, k and v: tensors, or ComfyUI's containers of one each, which this empties.

    ComfyUI 0.33 has containers, so that a kernel can free what it has read, and opens them for overrides that don't
    say by `container_function` that they can. Whoever calls an override directly may not.
    """
    return tuple(each if isinstance(each, Tensor) else each.take() for each in tensors)


MASKLESS = maskless(host)
