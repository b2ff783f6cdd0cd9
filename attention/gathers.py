"""Which keys the frames of a batch look at, and attention over them: consistent self-attention's arithmetic.

Every token is projected once; keys and values are then gathered by flat position, row * tokens + token.
"""

import math
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .method import Characters

GATHERED = 2**27
GATHERED_ON_CPU = 2**23
"""Most bytes of keys and values gathered per call, at least one row: only a GPU needs many to be busy."""


class Gather(NamedTuple):
    """The batch's rows `start` to `stop` look at the keys at `keys` [rows, count], or at their own if None."""

    start: int
    stop: int
    keys: Tensor | None


def anchors_of(characters: Characters, anchors: int) -> dict[str, list[int]]:
    """The anchor frames of each character: the first that show it alone, or at all where none does."""
    found = {}
    for name in dict.fromkeys(name for shown in characters for name in shown):
        frames = [j for j, shown in enumerate(characters) if name in shown]
        alone = [j for j in frames if len(characters[j]) == 1]
        found[name] = (alone or frames)[:anchors]
    return found


def anchor_sources(characters: Characters, anchors: int) -> list[list[int]]:
    """For each frame, the frames whose samples it sees: the anchors of the characters it shows, except itself."""
    of = anchors_of(characters, anchors)
    return [sorted({a for name in shown for a in of[name]} - {j}) for j, shown in enumerate(characters)]


def tiles_of(characters: Characters, tile: int) -> list[list[int]]:
    """The tiles, each a list of frames: `tile` wide, sliding by one over the frames that show the same characters."""
    tiles = []
    for group in dict.fromkeys(shown for shown in characters if shown):
        frames = [j for j, shown in enumerate(characters) if shown == group]
        width = min(tile, len(frames))
        tiles += [frames[t : t + width] for t in range(len(frames) - width + 1)]
    return tiles


def sample(tokens: int, rate: float, generator: torch.Generator) -> Tensor:
    """round(rate * tokens) of the positions 0..tokens-1, without repetition, in order."""
    return torch.randperm(tokens, generator=generator)[: round(rate * tokens)].sort().values


def anchor_gathers(
    sources: list[list[int]],
    frames: list[int],
    starts: list[int],
    tokens: int,
    samples: Callable[[int], Tensor],
    device: torch.device,
) -> list[Gather]:
    """Variant "anchors" (the released code): own tokens and those sampled from each source frame.

    `frames` are the frames of one chunk's rows, `starts` each chunk's first row; `samples(frame)` are positions [n].
    Neighbouring rows with equally many sources share a gather.
    """
    row_of = {frame: i for i, frame in enumerate(frames)}
    sampled = {s: samples(s) + row_of[s] * tokens for s in sorted({s for frame in frames for s in sources[frame]})}
    own = torch.arange(tokens)
    runs: list[tuple[int, int, Tensor | None]] = []
    for count, run in groupby(range(len(frames)), key=lambda i: len(sources[frames[i]])):
        rows = list(run)
        keys = [torch.cat([own + i * tokens, *(sampled[s] for s in sources[frames[i]])]) for i in rows]
        runs.append((rows[0], rows[-1] + 1, torch.stack(keys) if count else None))
    return in_every_chunk(runs, starts, tokens, device)


def tile_gathers(
    tiles: list[list[int]],
    frames: list[int],
    starts: list[int],
    tokens: int,
    samples: Callable[[list[int]], Tensor],
    device: torch.device,
) -> list[Gather]:
    """Variant "tiles" (the paper's Algorithm 1): in each tile, tokens sampled from the whole tile, then own tokens.

    `samples(tile)` are positions [n] in the tile's len(tile) * tokens. Frames in no tile, and those in a tile of their
    own, look at themselves.
    """
    row_of = {frame: i for i, frame in enumerate(frames)}
    own = torch.arange(tokens)
    tiles = [tile for tile in tiles if len(tile) > 1]
    runs: list[tuple[int, int, Tensor | None]] = []
    for alone in neighbours([row_of[f] for f in frames if not any(f in tile for tile in tiles)]):
        runs.append((alone[0], alone[-1] + 1, None))
    for tile in tiles:
        position = samples(tile)
        shared = torch.tensor([row_of[f] for f in tile])[position // tokens] * tokens + position % tokens
        for rows in neighbours([row_of[f] for f in tile]):
            keys = torch.stack([torch.cat([shared, own + i * tokens]) for i in rows])
            runs.append((rows[0], rows[-1] + 1, keys))
    return in_every_chunk(runs, starts, tokens, device)


def neighbours(rows: list[int]) -> list[list[int]]:
    """The rows, cut where they don't follow each other."""
    return [[i for _, i in run] for _, run in groupby(enumerate(sorted(rows)), key=lambda item: item[1] - item[0])]


def in_every_chunk(
    runs: list[tuple[int, int, Tensor | None]], starts: list[int], tokens: int, device: torch.device
) -> list[Gather]:
    """The gathers of one chunk's runs of rows (first, last + 1, keys) for all chunks, with keys on the device."""
    gathers = []
    for first, stop, keys in runs:
        if keys is not None:
            keys = keys.to(device, non_blocking=device.type == "cuda")
        gathers.append([Gather(s + first, s + stop, keys if keys is None else keys + s * tokens) for s in starts])
    if len(gathers) == 1 and runs[0][2] is not None:
        whole = torch.cat([gather.keys for gather in gathers[0] if gather.keys is not None])
        return [Gather(gathers[0][0].start, gathers[0][-1].stop, whole)]
    return [gather for run in gathers for gather in run]


def consistent_attention(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, gathers: list[Gather], **kwargs: Any
) -> Tensor:
    """Attention of every row over its gathered keys and values; rows in several gathers get the average.

    q: [rows, queries, channels], k and v: [rows, tokens, channels]. `attention` is any of ComfyUI's functions.
    A few rows are gathered at a time.
    """
    flat_k, flat_v = k.flatten(0, 1), v.flatten(0, 1)
    times = Counter(row for gather in gathers for row in range(gather.start, gather.stop))
    once = max(times.values()) == 1
    out: Tensor | None = None
    for first, last, keys in gathers:
        size = last - first
        if keys is not None:
            limit = GATHERED_ON_CPU if k.device.type == "cpu" else GATHERED
            most = max(1, limit // (2 * keys.shape[1] * k.shape[2] * k.element_size()))
            size = math.ceil(size / math.ceil(size / most))
            spaces = [space_for(size * keys.shape[1], x) for x in (flat_k, flat_v)]
        for start in range(first, last, size):
            stop = min(start + size, last)
            if keys is None:
                seen = k[start:stop], v[start:stop]
            else:
                index = keys[start - first : stop - first]
                seen = gathered(flat_k, index, spaces[0]), gathered(flat_v, index, spaces[1])
            result = attention(q[start:stop], *seen, heads, **kwargs)
            if stop - start == len(q) and len(gathers) == 1:
                return result
            if out is None:
                out = (
                    result.new_empty(len(q), *result.shape[1:]) if once else result.new_zeros(len(q), *result.shape[1:])
                )
            if once:
                out[start:stop] = result
            else:
                out[start:stop] += result
            del result
    assert out is not None
    for row, count in times.items():
        if count > 1:
            out[row] /= count
    return out


def space_for(rows: int, like: Tensor) -> Tensor | None:
    """Memory that one gather after another may use, since fresh memory costs a CPU more than copying does."""
    return None if like.requires_grad else like.new_empty(rows, like.shape[1])


def gathered(flat: Tensor, index: Tensor, space: Tensor | None) -> Tensor:
    """The rows `index` [rows, count] of `flat`, [rows, count, channels], in `space` if there is any."""
    into = None if space is None else space[: index.numel()]
    return torch.index_select(flat, 0, index.flatten(), out=into).unflatten(0, index.shape)
