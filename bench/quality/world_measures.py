"""What a story's frames show, as the probe reads them, against the story's truth."""

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from ...world.drawing.attributes import FRAME, IDENTITY, PAIR, VALUES
from .pair_graphs import LEFT, RIGHT
from .world_stories import PairStory, PictureStory, WorldStory

CONFIDENT = 0.8
SEEN_FIRST = ("species", "colour", "headwear")
"""What a person would name of a character."""
SAMPLES = 2000


def measures(story: WorldStory, found: dict[str, Tensor]) -> dict[str, float | None]:
    """A board's measures, from the probabilities [frames, values] of every attribute.

    `fidelity`: the share of what the frame prompts ask that their frames show; `scene`: of the scenes alone. `leak`:
    the share that shows what another frame's prompt asks instead. `earlier`, `later`: the share of the frames that show
    the scene of a frame before, of one behind them in the story. `prompt`: the share of what the identity prompt says
    that the frames show. `agreement`: the share of identity attributes that are equal in two frames, over all pairs;
    `open` counts only those that the prompt leaves open, `apart` only pairs that show two scenes (None without any),
    since a frame that repeats another agrees with it. `held`: 1 if the character's species, colour and headwear are
    the same in all frames and every frame shows its scene, else 0. `readable`: the share of readings that the probe is
    sure of (0.8).
    """
    values = {name: probabilities.argmax(-1).tolist() for name, probabilities in found.items()}
    right = {name: [values[name][j] == frame[name] for j, frame in enumerate(story.frames)] for name in FRAME}
    leaked = [
        values[name][j] != frame[name] and any(values[name][j] == other[name] for other in story.frames)
        for name in FRAME
        for j, frame in enumerate(story.frames)
    ]
    asked = [frame["scene"] for frame in story.frames]
    shown = [asked.index(seen) if seen in asked else None for seen in values["scene"]]
    pairs = list(combinations(range(len(story.frames)), 2))
    apart = [(i, j) for i, j in pairs if values["scene"][i] != values["scene"][j]]
    equal = {name: fmean(values[name][i] == values[name][j] for i, j in pairs) for name in IDENTITY}
    sure = torch.stack([found[name].max(-1).values > CONFIDENT for name in VALUES])
    said = story.identity.items()
    return {
        "fidelity": fmean(fmean(each) for each in right.values()),
        "scene": fmean(right["scene"]),
        "leak": fmean(leaked),
        "earlier": fmean(i is not None and i < j for j, i in enumerate(shown)),
        "later": fmean(i is not None and i > j for j, i in enumerate(shown)),
        "prompt": fmean(seen == value for name, value in said for seen in values[name]),
        "agreement": fmean(equal.values()),
        "apart": fmean(values[name][i] == values[name][j] for name in IDENTITY for i, j in apart) if apart else None,
        "open": fmean(equal[name] for name in IDENTITY if name not in story.identity),
        "held": float(all(right["scene"]) and all(equal[name] == 1 for name in SEEN_FIRST)),
        "readable": sure.float().mean().item(),
    }


def pair_measures(story: PairStory, found: dict[str, Tensor]) -> dict[str, float | None]:
    """The same of a story of two characters, one on each side of every frame.

    `place`: the share of what is said of each character that is seen at its side; `swapped`: that is seen at the
    other's; `whichever`: the larger of the two in each frame, for ways that leave the sides to the model. `species`:
    the share of characters of the right species at their side. `two`: the share of frames that show two different
    characters; `scene` and `readable` (of what is said) as above.
    """
    values = {name: probabilities.argmax(-1).tolist() for name, probabilities in found.items()}
    left, right = story.sides[LEFT], story.sides[RIGHT]

    def share(one: dict[str, int], other: dict[str, int], j: int, names: Sequence[str]) -> float:
        """What is said of `one` and seen on the left, and of `other` on the right."""
        return fmean(
            (values[name][j] == one[name]) / 2 + (values[f"other_{name}"][j] == other[name]) / 2 for name in names
        )

    frames, said = range(len(story.frames)), [*left]
    here = [share(left, right, j, said) for j in frames]
    there = [share(right, left, j, said) for j in frames]
    sure = torch.stack([found[side + name].max(-1).values > CONFIDENT for name in said for side in ("", "other_")])
    return {
        "place": fmean(here),
        "swapped": fmean(there),
        "whichever": fmean(map(max, here, there)),
        "species": fmean(share(left, right, j, ["species"]) for j in frames),
        "two": fmean(values["company"][j] == PAIR for j in frames),
        "scene": fmean(values["scene"][j] == frame["scene"] for j, frame in enumerate(story.frames)),
        "readable": sure.float().mean().item(),
    }


def picture_measures(story: PictureStory, found: dict[str, Tensor]) -> dict[str, float | None]:
    """The same of a story whose character a picture shows: the shares of the frames that have the picture's `species`,
    `colour` and `pattern`; `looks`, the mean over these and all else that it shows of the character."""
    values = {name: probabilities.argmax(-1).tolist() for name, probabilities in found.items()}
    same = {name: fmean(seen == story.picture[name] for seen in values[name]) for name in IDENTITY}
    sure = torch.stack([found[name].max(-1).values > CONFIDENT for name in VALUES])
    return {
        **{name: same[name] for name in ("species", "colour", "pattern")},
        "looks": fmean(same.values()),
        "scene": fmean(values["scene"][j] == frame["scene"] for j, frame in enumerate(story.frames)),
        "readable": sure.float().mean().item(),
    }


def frechet(one: Tensor, other: Tensor) -> float:
    """The Frechet distance of two sets of features [samples, width] (Heusel et al. 2017, equation 6), in float64."""
    means = [x.double().mean(0) for x in (one, other)]
    first, second = (torch.cov(x.double().T) for x in (one, other))
    root = symmetric_root(first)
    both = symmetric_root(root @ second @ root)
    return ((means[0] - means[1]).square().sum() + (first + second - 2 * both).trace()).item()


def symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def interval(by_story: Sequence[float], share: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """The mean over stories and its bootstrap interval (percentiles of the means of resampled stories)."""
    values = torch.tensor(by_story, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (SAMPLES, len(values)), generator=generator)
    means = values[index].mean(1)
    low, high = means.quantile(torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)).tolist()
    return values.mean().item(), low, high
