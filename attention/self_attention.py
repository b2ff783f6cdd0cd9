"""Consistent Self-Attention (StoryDiffusion, arXiv 2405.01434, section 3.1).

Frames are rows of one batch. A frame attends to its own tokens and to tokens sampled from other frames of its group.
Every token is projected once; keys and values are then gathered by flat position, row * tokens + token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import Blocks

Characters = tuple[tuple[str, ...], ...]
"""For each frame of the story, who it shows."""


class SelfAttention(NamedTuple):
    """One application of the method: `blocks` and the steps between the two percents get it."""

    variant: str
    anchors: int
    tile: int
    sampling_rate: float
    blocks: Blocks
    start_percent: float
    end_percent: float
    probability: str
    seed: int


class Gather(NamedTuple):
    """One attention call: `rows` [n] of the batch look at the keys at `keys` [n, count], or at their own if None."""

    rows: Tensor
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


def probability(setting: str, step: int, steps: int) -> float:
    """How likely a call is to be consistent. The released code: never in the first step, 0.7 before 40%, 0.9 after."""
    if setting == "always":
        return 1.0
    if step == 0:
        return 0.0
    return 0.7 if step < 0.4 * steps else 0.9


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
    Rows with equally many sources share a call.
    """
    row_of = {frame: i for i, frame in enumerate(frames)}
    sampled = {s: samples(s).to(device) for s in {s for frame in frames for s in sources[frame]}}
    own = torch.arange(tokens, device=device)
    calls: dict[int, list[tuple[int, Tensor]]] = {}
    for i, frame in enumerate(frames):
        index = torch.cat([own + i * tokens] + [sampled[s] + row_of[s] * tokens for s in sources[frame]])
        calls.setdefault(len(sources[frame]), []).append((i, index))
    gathers = []
    for count, call in calls.items():
        rows = torch.tensor([start + i for start in starts for i, _ in call], device=device)
        index = torch.stack([index for _, index in call])
        gathers.append(Gather(rows, torch.cat([index + start * tokens for start in starts]) if count else None))
    return gathers


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
    own = torch.arange(tokens, device=device)
    gathers = []
    alone = [row_of[f] for f in frames if not any(f in tile for tile in tiles if len(tile) > 1)]
    if alone:
        gathers.append(Gather(torch.tensor([start + i for start in starts for i in alone], device=device), None))
    for tile in tiles:
        if len(tile) == 1:
            continue
        rows = torch.tensor([row_of[f] for f in tile], device=device)
        position = samples(tile).to(device)
        shared = rows[position // tokens] * tokens + position % tokens
        index = torch.cat([shared.expand(len(tile), -1), rows[:, None] * tokens + own], dim=1)
        gathers.append(
            Gather(
                torch.cat([rows + start for start in starts]), torch.cat([index + start * tokens for start in starts])
            )
        )
    return gathers


def consistent_attention(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, gathers: list[Gather], **kwargs: Any
) -> Tensor:
    """Attention of every row over its gathered keys and values; rows in several calls get the average.

    q: [rows, queries, channels], k and v: [rows, tokens, channels]. `attention` is any of ComfyUI's functions.
    """
    out: Tensor | None = None
    counts = torch.zeros(q.shape[0], device=q.device)
    flat_k, flat_v = k.flatten(0, 1), v.flatten(0, 1)
    for rows, keys in gathers:
        seen_k, seen_v = (k[rows], v[rows]) if keys is None else (flat_k[keys], flat_v[keys])
        result = attention(q[rows], seen_k, seen_v, heads, **kwargs)
        if out is None:
            out = torch.zeros(q.shape[0], *result.shape[1:], dtype=result.dtype, device=q.device)
        out.index_add_(0, rows, result)
        counts.index_add_(0, rows, torch.ones_like(rows, dtype=counts.dtype))
    assert out is not None
    return out / counts[:, None, None].to(out)
