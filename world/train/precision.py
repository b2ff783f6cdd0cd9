"""The number format that trains fastest here: not every processor that takes bfloat16 has instructions for it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import nn

FORMATS = (torch.bfloat16, torch.float32)
ROUNDS = 3


@cache
@torch.inference_mode(False)
@torch.enable_grad()
def fastest(device: str) -> torch.dtype:
    """Whichever of FORMATS takes a convolution and a product, there and back, in the shortest time.

    On a GPU so little work would time the launches of its kernels; there it is bfloat16 where it has units for it.
    """
    if torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return min(FORMATS, key=lambda dtype: duration(lambda: there_and_back(device, dtype)))


def duration(work: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that the shortest of a few rounds takes, after one that isn't counted."""
    work()
    taken = []
    for _ in range(ROUNDS):
        start = clock()
        work()
        taken.append(clock() - start)
    return min(taken)


def there_and_back(device: str, dtype: torch.dtype) -> None:
    """A forward and a backward pass of a small convolution and a small linear layer in `dtype`, waited for."""
    filters = nn.Conv2d(64, 64, 3, padding=1, device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    matrix = nn.Linear(64, 256, device=device)
    x = torch.randn(4, 64, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        y = matrix(filters(x).movedim(1, -1)).float().square().mean()
    y.backward()
    y.item()


def autocast(device: str) -> AbstractContextManager:
    """Mixed precision in the format that is fastest on the device."""
    dtype = fastest(device)
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)
