"""ViStoryBench's measures of a story's characters that run without a network. Runs in a Python that has the models.

    python score.py [DEVICE]

Plans, tasks and answers are as in the quality bench's vision.py, whose kinds it has too. A task of "cast" has "shots",
each with its "file" and who is on "stage", "pictures" of every character, and the "detector"'s folder.
"""

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

sys.path.append(str(Path(__file__).resolve().parents[2]))

from onestory.bench.quality.vision import KINDS, Measure, Task, clip_embeds, clip_name, load_clip, main  # noqa: E402

CAPTION = "character."
BOX_THRESHOLD = 0.25
TEMPERATURE = 0.01
EPSILON = 1e-6

Detect = Callable[[Image.Image], list[tuple[int, int, int, int]]]
Embed = Callable[[Sequence[Image.Image]], np.ndarray]


def cast(folder: str, device: str) -> Measure:
    """Self and cross similarity, on-stage count and copy-paste, with CLIP's image embeddings for every character."""
    model, processor = load_clip(folder, device)

    def embed(pictures: Sequence[Image.Image]) -> np.ndarray:
        vectors = clip_embeds(model, processor, pictures).double().cpu().numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def measure(task: Task) -> dict[str, Any]:
        return {"name": clip_name(model), **score(task, detector(task["detector"], device), embed)}

    return measure


def score(task: Task, detect: Detect, embed: Embed) -> dict[str, Any]:
    """A story's scores (arXiv 2505.24862, section 3.3, and the benchmark's code).

    In a shot, each character on stage gets one of the boxes, so that the sum of the similarities to their pictures (the
    largest of a character's) is largest. `cross`: the mean cosine of a character's crops and pictures; `self`: of all
    pairs of its crops, 1 for a single one; both 0 for one that was found nowhere, and means over the characters.
    `on_stage`: 100 exp(-|boxes - characters| / characters), mean over the shots that show someone. `copy_paste`: how
    much closer crops are to a character's first picture than to its mirror image, by a softmax, 0.5 for equally close.
    """
    known: dict[str, np.ndarray] = {}
    mirrored: dict[str, np.ndarray] = {}
    for name, paths in task["pictures"].items():
        cut = [best_crop(Image.open(path).convert("RGB"), detect) for path in paths]
        known[name] = embed(cut)
        mirrored[name] = embed([cut[0], ImageOps.mirror(cut[0])])
    found: dict[str, list[np.ndarray]] = {name: [] for name in known}
    counts = []
    for shot in task["shots"]:
        stage = [name for name in shot["stage"] if name in known]
        if not shot["stage"]:
            continue
        picture = Image.open(shot["file"]).convert("RGB")
        crops = [picture.crop(box) for box in detect(picture)]
        counts.append(on_stage(len(crops), len(shot["stage"])))
        if crops and stage:
            vectors = embed(crops)
            for name, number in matched(stage, known, vectors):
                found[name].append(vectors[number])
    characters = {name: likeness(np.array(vectors), known[name]) for name, vectors in found.items()}
    copies = [copy_paste(np.array(vectors), mirrored[name]) for name, vectors in found.items() if vectors]
    return {
        "self": fmean(each["self"] for each in characters.values()) if characters else None,
        "cross": fmean(each["cross"] for each in characters.values()) if characters else None,
        "on_stage": fmean(counts) if counts else None,
        "copy_paste": fmean(copies) if copies else None,
        "characters": characters,
    }


def on_stage(boxes: int, characters: int) -> float:
    return 100 * math.exp(-abs(boxes - characters) / (EPSILON + characters))


def matched(stage: Sequence[str], known: dict[str, np.ndarray], vectors: np.ndarray) -> list[tuple[str, int]]:
    """Which crop [crops, channels] shows whom, at most one each."""
    from scipy.optimize import linear_sum_assignment

    similar = np.array([(vectors @ known[name].T).max(1) for name in stage])
    rows, columns = linear_sum_assignment(similar, maximize=True)
    return [(stage[row], int(column)) for row, column in zip(rows, columns)]


def likeness(crops: np.ndarray, pictures: np.ndarray) -> dict[str, float]:
    """Self and cross similarity of one character's crops [crops, channels]; 0 without any."""
    if not len(crops):
        return {"self": 0.0, "cross": 0.0}
    pairs = (crops @ crops.T)[np.triu_indices(len(crops), 1)]
    return {"self": float(pairs.mean()) if len(pairs) else 1.0, "cross": float((crops @ pictures.T).mean())}


def copy_paste(crops: np.ndarray, mirrored: np.ndarray) -> float:
    """The mean softmax of a picture's similarity against its mirror image's; `mirrored` are both [2, channels]."""
    first, other = (crops @ mirrored.T).clip(-1, 1).T
    return float((1 / (1 + np.exp((other - first) / TEMPERATURE))).mean())


def best_crop(picture: Image.Image, detect: Detect) -> Image.Image:
    """The surest box of a picture; all of it where there is none."""
    boxes = detect(picture)
    return picture.crop(boxes[0]) if boxes else picture


@cache
def detector(folder: str, device: str) -> Detect:
    """Grounding DINO in transformers' layout: finds a picture's characters, the surest first."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(folder, local_files_only=True)
    model.to(device).eval()
    processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def detect(picture: Image.Image) -> list[tuple[int, int, int, int]]:
        answer = model(**processor(images=picture, text=CAPTION, return_tensors="pt").to(device))
        return boxes_of(answer.logits[0].sigmoid().max(-1).values, answer.pred_boxes[0], picture.size)

    return detect


def boxes_of(sure: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The boxes above the threshold in pixels, left, top, right and bottom, the surest first.

    `boxes` [boxes, 4] are centre and size as shares of the picture's width and height.
    """
    found = []
    for number in sure.argsort(descending=True).tolist():
        if sure[number] > BOX_THRESHOLD:
            x, y, width, height = (int(v) for v in boxes[number].cpu() * torch.tensor([*size, *size]))
            left, top = max(0, int(x - width / 2)), max(0, int(y - height / 2))
            right, bottom = min(size[0], int(x + width / 2)), min(size[1], int(y + height / 2))
            if right > left and bottom > top:
                found.append((left, top, right, bottom))
    return found


KINDS["cast"] = cast

if __name__ == "__main__":
    main(*sys.argv[1:])
