"""Regions from what a model draws: the recorded attention on each character as masks.

ConsiStory (arXiv 2402.03286) cuts such maps with Otsu's threshold after each step. Here a first sampler's recording is
turned into masks for a second one, so that nothing is kept between steps and the masks can be looked at in between.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 0.02
"""The share of a picture below which a region is none."""
NEAREST = 0.1
"""The share of a picture's width by which two characters' centres are apart, or nothing tells them apart."""
LEVELS = 256


def otsu(values: Tensor) -> Tensor:
    """Thresholds [...] that split `values` [..., n] into the two classes farthest apart (Otsu 1979), of 256 bins."""
    values = values.double()
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    width = (high - low) / LEVELS
    bins = ((values - low) / width.clamp(min=1e-300)).long().clamp(max=LEVELS - 1)
    counts = torch.zeros(*values.shape[:-1], LEVELS, dtype=values.dtype, device=values.device)
    counts = counts.scatter_add(-1, bins, torch.ones_like(values))
    centres = low + width * (torch.arange(LEVELS, dtype=values.dtype, device=values.device) + 0.5)
    below = counts.cumsum(-1)[..., :-1]
    sums = (counts * centres).cumsum(-1)
    above = values.shape[-1] - below
    between = below * above * (sums[..., :-1] / below.clamp(min=1) - (sums[..., -1:] - sums[..., :-1]) / above) ** 2
    # Empty bins between the classes are equally good: the middle of them is taken.
    best = (between >= between.amax(-1, keepdim=True) * (1 - 1e-9)).double()
    middle = (best * torch.arange(1, LEVELS, dtype=values.dtype, device=values.device)).sum(-1) / best.sum(-1)
    return torch.where(high > low, low + width * middle[..., None], high)[..., 0]


def frame_masks(maps: Mapping[str, Tensor], grow: int) -> dict[str, Tensor] | None:
    """The soft masks of the characters that a frame shows, from their maps [height, width]; None where they don't come
    apart: one is too small, or two are in the same place.

    A token belongs to a character whose map is above its threshold and, each map divided by its mean, the largest.
    """
    shares = torch.stack([own / own.mean().clamp(min=1e-12) for own in maps.values()])
    largest = shares.argmax(0)
    places = [own > otsu(own.flatten()) for own in maps.values()]
    cores = [place & (largest == n) for n, place in enumerate(places)]
    if any(core.float().mean() < SMALLEST for core in cores):
        return None
    width = largest.shape[1]
    centres = [place.nonzero().float().mean(0) for place in places]
    if any((a - b).norm() < NEAREST * width for n, a in enumerate(centres) for b in centres[:n]):
        return None
    return {name: softened(core.float(), grow) for name, core in zip(maps, cores)}


def softened(core: Tensor, grow: int) -> Tensor:
    """A mask [height, width] of 0 and 1, wider by `grow` tokens on each side and with a soft edge, 1 at most."""
    grown = F.max_pool2d(core[None, None], 2 * grow + 1, 1, grow)
    kernel = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    smooth = F.conv2d(F.conv2d(F.pad(grown, (3, 3, 3, 3), mode="replicate"), kernel), kernel.mT)[0, 0]
    return smooth / smooth.max().clamp(min=1e-12)


def region_masks(
    maps: Mapping[str, Tensor], shown: tuple[tuple[str, ...], ...], grow: int
) -> tuple[dict[str, Tensor], list[int]]:
    """For each character its masks [frames, height, width], 0 in frames that don't show it, and the frames whose
    characters don't come apart, where the masks are 1. `maps` are [frames, height, width] each."""
    masks = {name: torch.zeros_like(own) for name, own in maps.items()}
    unclear = []
    for j, names in enumerate(shown):
        found = frame_masks({name: maps[name][j] for name in names}, grow) if names else {}
        if found is None:
            unclear.append(j)
        for name in names:
            masks[name][j] = 1 if found is None else found[name]
    return masks, unclear
