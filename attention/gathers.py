"""Which keys the frames of a batch look at, by flat position: row * keys of a row + key."""

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from .batch import Characters


class Source(NamedTuple):
    """A frame that others look at, in the chunk that begins at the row `start`: all of it, or only `names` in it."""

    start: int
    frame: int
    names: tuple[str, ...] = ()


class Gather(NamedTuple):
    """The batch's rows `start` to `stop` look at the keys at `keys` [rows, count], or at their own if None.

    After these come the keys of `kept` frames, that an earlier pass has drawn. With `queries` [count], only these of
    each row's queries look there.
    """

    start: int
    stop: int
    keys: Tensor | None
    kept: tuple[Source, ...] = ()
    queries: Tensor | None = None

    @property
    def shared(self) -> bool:
        """Whether the rows look at any other."""
        return self.keys is not None or bool(self.kept)


class Keys(NamedTuple):
    """Where the picture's tokens stand among a row's keys: of `keys`, those from `first` on."""

    first: int
    keys: int


class Turned(NamedTuple):
    """What rows see of other rows with positions beside their own.

    `rows` are those others, whose turned keys stand after the batch's as further rows; `keys` has, for each gather,
    the positions to read keys at: values have no position and stay where they are.
    """

    rows: Tensor
    keys: list[Tensor | None]


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
    place: Keys | None = None,
) -> list[Gather]:
    """Variant "anchors" (the released code): own keys and picture tokens sampled from each source frame.

    `frames` are the frames of one chunk's rows, `starts` each chunk's first row; `samples(frame)` are positions [n]
    among the `tokens` of a picture, which are all of its keys unless `place` says otherwise. Sources that are none of
    `frames` were drawn in an earlier pass. Neighbouring rows with equally many sources share a gather.
    """
    first, keys_of_row = place or Keys(0, tokens)
    row_of = {frame: i for i, frame in enumerate(frames)}
    here = [[s for s in sources[frame] if s in row_of] for frame in frames]
    kept = [tuple(s for s in sources[frame] if s not in row_of) for frame in frames]
    sampled = {s: samples(s) + row_of[s] * keys_of_row + first for s in sorted({s for each in here for s in each})}
    own = torch.arange(keys_of_row)
    runs: list[Run] = []
    for (count, elsewhere), run in groupby(range(len(frames)), key=lambda i: (len(here[i]), kept[i])):
        rows = list(run)
        keys = [torch.cat([own + i * keys_of_row, *(sampled[s] for s in here[i])]) for i in rows]
        runs.append(Run(rows[0], rows[-1] + 1, torch.stack(keys) if count else None, elsewhere))
    return in_every_chunk(runs, starts, keys_of_row, device)


def tile_gathers(
    tiles: list[list[int]],
    frames: list[int],
    starts: list[int],
    tokens: int,
    samples: Callable[[list[int]], Tensor],
    device: torch.device,
    place: Keys | None = None,
) -> list[Gather]:
    """Variant "tiles" (the paper's Algorithm 1): in each tile, tokens sampled from the whole tile, then own keys.

    `samples(tile)` are positions [n] in the tile's len(tile) * tokens; `place` is as in `anchor_gathers`. Frames in no
    tile, and those in a tile of their own, look at themselves.
    """
    first, keys_of_row = place or Keys(0, tokens)
    row_of = {frame: i for i, frame in enumerate(frames)}
    own = torch.arange(keys_of_row)
    tiles = [tile for tile in tiles if len(tile) > 1 and row_of.keys() >= set(tile)]
    runs: list[Run] = []
    for alone in neighbours([row_of[f] for f in frames if not any(f in tile for tile in tiles)]):
        runs.append(Run(alone[0], alone[-1] + 1, None))
    for tile in tiles:
        position = samples(tile)
        rows_seen = torch.tensor([row_of[f] for f in tile])[position // tokens]
        shared = rows_seen * keys_of_row + first + position % tokens
        for rows in neighbours([row_of[f] for f in tile]):
            keys = torch.stack([torch.cat([shared, own + i * keys_of_row]) for i in rows])
            runs.append(Run(rows[0], rows[-1] + 1, keys))
    return in_every_chunk(runs, starts, keys_of_row, device)


def neighbours(rows: list[int]) -> list[list[int]]:
    """The rows, cut where they don't follow each other."""
    return [[i for _, i in run] for _, run in groupby(enumerate(sorted(rows)), key=lambda item: item[1] - item[0])]


class Run(NamedTuple):
    """Rows of a chunk, as `Gather` has those of the batch; `kept` are frames."""

    start: int
    stop: int
    keys: Tensor | None
    kept: tuple[int, ...] = ()


def in_every_chunk(runs: list[Run], starts: list[int], tokens: int, device: torch.device) -> list[Gather]:
    """The gathers of one chunk's runs for all chunks, with keys on the device."""
    gathers = []
    for first, stop, keys, kept in runs:
        if keys is not None:
            keys = keys.to(device, non_blocking=device.type == "cuda")
        gathers.append(
            [
                Gather(
                    s + first, s + stop, keys if keys is None else keys + s * tokens, tuple(Source(s, f) for f in kept)
                )
                for s in starts
            ]
        )
    if len(gathers) == 1 and runs[0].keys is not None and not runs[0].kept:
        whole = torch.cat([gather.keys for gather in gathers[0] if gather.keys is not None])
        return [Gather(gathers[0][0].start, gathers[0][-1].stop, whole)]
    return [gather for run in gathers for gather in run]


def turn_others(gathers: list[Gather], rows: int, keys_of_row: int) -> Turned:
    """The gathers of a batch of so many rows, with what each row sees of other rows taken from turned keys."""
    foreign = [g.keys[is_foreign(g, g.keys, keys_of_row)] for g in gathers if g.keys is not None]
    sources = (torch.cat(foreign) // keys_of_row).unique()
    further = torch.full((rows,), -1, device=sources.device)
    further[sources] = torch.arange(rows, rows + len(sources), device=sources.device)

    def turned(gather: Gather) -> Tensor | None:
        if gather.keys is None:
            return None
        beside = further[gather.keys // keys_of_row] * keys_of_row + gather.keys % keys_of_row
        return torch.where(is_foreign(gather, gather.keys, keys_of_row), beside, gather.keys)

    return Turned(sources, [turned(gather) for gather in gathers])


def is_foreign(gather: Gather, keys: Tensor, keys_of_row: int) -> Tensor:
    """Which of the keys at `keys` [rows, count] are other rows'."""
    return keys // keys_of_row != torch.arange(gather.start, gather.stop, device=keys.device)[:, None]
