"""The two maps of One-Prompt-One-Story (arXiv 2501.13554, section 3.1) by t-SNE: frame prompts, and frames.

Distances on a map mean little, so each panel's title says what it shows in numbers: the mean cosine of two points of
one story, and of two stories.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

SHOWN = 12
"""Stories on a map at most: more colours are not told apart."""
PANEL_INCHES, DPI, COLUMNS = 4.2, 110, 3


class Points(NamedTuple):
    """One panel: a title, vectors [points, channels], and each one's story."""

    title: str
    vectors: np.ndarray
    stories: np.ndarray


def embed(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008) of `vectors` [points, channels]: [points, 2], the same for the same seed.

    Distances are cosine's; the perplexity is 30, or a third of the other points where these are fewer than 90.
    """
    from sklearn.manifold import TSNE

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    # Squared distances of unit vectors are 2 (1 - cosine).
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(unit.astype(np.float64))


def within_and_between(vectors: np.ndarray, stories: np.ndarray) -> tuple[float | None, float | None]:
    """The mean cosine over all pairs of points of one story, and over all pairs of two stories; None without any."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    cosines, same = unit @ unit.T, stories[:, None] == stories[None]
    pair = np.triu(np.ones_like(same), 1)
    found = [cosines[pair & chosen] for chosen in (same, ~same)]
    within, between = (float(each.mean()) if each.size else None for each in found)
    return within, between


def draw(panels: Sequence[Points], titles: Sequence[str], path: Path) -> bool:
    """Draw the panels side by side with one t-SNE over all of them; a colour is a story, of the first `SHOWN`.

    `titles` are the stories'. Returns whether there was anything to draw: four points at least.
    """
    shown = [Points(p.title, p.vectors[p.stories < SHOWN], p.stories[p.stories < SHOWN]) for p in panels]
    sizes = [len(panel.vectors) for panel in shown]
    if sum(sizes) < 4:
        return False
    places = embed(np.concatenate([panel.vectors for panel in shown]))
    columns = min(len(shown), COLUMNS)
    rows = -(-len(shown) // columns)
    figure = Figure((PANEL_INCHES * columns + 1.6, PANEL_INCHES * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_visible(False)
    for ax, panel, own in zip(axes, shown, np.split(places, np.cumsum(sizes)[:-1])):
        ax.set_visible(True)
        ax.set_title(f"{panel.title}\n{in_numbers(panel)}", fontsize=10)
        for story in np.unique(panel.stories):
            ax.scatter(*own[panel.stories == story].T, s=36, color=COLOURS[story], edgecolors="white", linewidths=0.6)
    present = sorted({int(story) for panel in shown for story in panel.stories})
    handles = [axes[0].scatter([], [], s=36, color=COLOURS[story], label=shortened(titles[story])) for story in present]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path)
    return True


COLOURS = [
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#000000", "#7cfc9a",
]  # fmt: skip


def in_numbers(panel: Points) -> str:
    within, between = within_and_between(panel.vectors, panel.stories)
    said = [f"{name} {value:.3f}" for name, value in (("in a story", within), ("of two", between)) if value is not None]
    return f"cosine {', '.join(said)}" if said else ""


def shortened(title: str) -> str:
    return title if len(title) <= 22 else f"{title[:21]}…"
