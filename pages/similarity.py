"""How alike a story's frames are: similarity of embeddings, subjects cut out of pictures, and the text of both."""

from collections.abc import Sequence
from math import ceil

import numpy as np

GREY = 0.5
INSIDE = 0.5
"""From this mask value on, a pixel belongs to the subject's bounding square."""
MOST_PAIRS = 200_000
"""A text of more pairs leaves out those in the middle: a thousand frames have half a million."""


def similarities(embeds: np.ndarray) -> np.ndarray:
    """Cosine similarity of every row of `embeds` [frames, channels] with every other: [frames, frames], -1..1, float64.

    Raises `ValueError` for fewer than two rows, and for one that is not finite or all zeros.
    """
    if len(embeds) < 2:
        raise ValueError("There is one frame only: a similarity needs two or more.")
    x = np.asarray(embeds, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    for number, norm in enumerate(norms[:, 0], 1):
        if not (np.isfinite(norm) and norm > 0):
            raise ValueError(f"The vision model's answer to frame {number} is no usable vector: try another model.")
    x = x / norms
    matrix = (x @ x.T).clip(-1, 1)
    np.fill_diagonal(matrix, 1)
    return matrix


def similar_to_first(vectors: np.ndarray, take: int) -> np.ndarray:
    """Cosine similarity of every frame of every take to the first frame of one `take`.

    `vectors` are [takes, frames, channels]; returns [takes, frames], -1..1, float64.
    """
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (unit @ unit[take, 0]).clip(-1, 1)


def mean_similarity(vectors: np.ndarray, others: np.ndarray) -> float:
    """The mean cosine similarity of all `vectors` [n, channels] to all `others` [m, channels]."""
    units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (vectors, others)]
    return float((units[0] @ units[1].T).mean())


def mean_pairwise(matrix: np.ndarray) -> float:
    """The mean over all pairs of two different frames, each pair once, of a symmetric [frames, frames] (CLIP-I)."""
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def cut_out(image: np.ndarray, mask: np.ndarray, ground: float = GREY) -> np.ndarray | None:
    """The subject of a picture alone, so that nothing around it counts.

    `image` is [height, width, 3], `mask` [height, width], both 0..1. Pixels fade to the `ground`, neutral grey, as the
    mask fades; what comes back is the subject's bounding square [side, side, 3], with the ground where that leaves the
    picture. None where no pixel of the mask reaches `INSIDE`.
    """
    inside = mask >= INSIDE
    if not inside.any():
        return None
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    side = max(height, width)
    alone = ground + (image - ground) * mask[..., None]
    padded = np.pad(alone, ((side, side), (side, side), (0, 0)), constant_values=ground)
    top, left = (side + first - (side - size) // 2 for first, size in ((rows[0], height), (columns[0], width)))
    return padded[top : top + side, left : left + side]


def describe(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A readable text: the mean, then every pair of frames from the most to the least alike.

    Of more than `MOST_PAIRS` pairs, the most and the least alike are listed.
    `names` are the frames' captions, "" for none.
    """
    n = len(matrix)
    digits = len(str(n))
    lines = [f"mean {mean_pairwise(matrix):.4f} over {n * (n - 1) // 2} {'pair' if n == 2 else 'pairs'} of {n} frames"]
    first, second = np.triu_indices(n, 1)
    order = np.argsort(-matrix[first, second], kind="stable")
    left_out = len(order) - MOST_PAIRS
    if left_out > 0:
        order = np.concatenate([order[: MOST_PAIRS // 2], order[-(MOST_PAIRS // 2) :]])
    for place, (i, j) in enumerate(zip(first[order].tolist(), second[order].tolist())):
        if left_out > 0 and place == MOST_PAIRS // 2:
            lines.append(f"… {left_out} pairs between")
        named = " – ".join(filter(None, (names[i], names[j])))
        lines.append(f"{i + 1:>{digits}} – {j + 1:<{digits}}  {matrix[i, j]:.4f}{f'  {named}' if named else ''}")
    return "\n".join(lines)


def steps_of(matrix: np.ndarray) -> tuple[float, float]:
    """The ends of a colour scale, in steps of 0.05, that holds every pair of a [frames, frames]."""
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    low, high = np.floor(pairs.min() * 20) / 20, ceil(pairs.max() * 20) / 20
    return float(low), float(max(high, low + 0.05))
