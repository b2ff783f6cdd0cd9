"""Measure frames with a model that lies on this machine. Runs in a Python that has it; nothing is downloaded.

    python vision.py clip|dreamsim MODEL_FOLDER [DEVICE]

Reads a JSON list of {"frames": [paths], "prompts": [texts]} and writes one JSON object a line for each of them. What
went wrong is the last line on stderr.
"""

import json
import os
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import fmean

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"  # read when transformers is imported

import torch
from PIL import Image

PREFIX, WEIGHT = "A photo depicts ", 2.5
"""CLIPScore's own (arXiv 2104.08718, section 3), as 1Prompt1Story's authors use it."""

Measure = Callable[[list[Image.Image], list[str]], dict[str, object]]


def clip(folder: str, device: str) -> Measure:
    """CLIP-T: `WEIGHT` times the cosine of each frame with its own prompt, not below 0.

    CLIP-I: the mean cosine over all pairs of frames, None for a single one.
    """
    from transformers import CLIPModel, CLIPProcessor

    model: torch.nn.Module = CLIPModel.from_pretrained(folder, local_files_only=True)
    model.to(device).eval()
    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)

    def measure(frames: list[Image.Image], prompts: list[str]) -> dict[str, object]:
        inputs = processor(
            text=[PREFIX + prompt for prompt in prompts],
            images=frames,
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(device)
        found = model(**inputs)
        texts, pictures = (
            torch.nn.functional.normalize(x.double(), dim=-1) for x in (found.text_embeds, found.image_embeds)
        )
        own = WEIGHT * (texts * pictures).sum(-1).clamp(min=0)
        pairs = [float(a @ b) for a, b in combinations(pictures, 2)]
        return {"clip_t": own.tolist(), "clip_i": fmean(pairs) if pairs else None}

    return measure


def dreamsim(folder: str, device: str) -> Measure:
    """DreamSim's distance, the mean over all pairs; None for a single frame."""

    def refuse(*args: object, **kwargs: object) -> None:
        sys.exit(
            f"its weights are not in {folder}: let the package put them there, and name the folder with --dreamsim."
        )

    if not Path(folder).is_dir():  # the package would make it
        refuse()
    torch.hub.download_url_to_file = refuse
    from dreamsim import dreamsim as load

    model, preprocess = load(pretrained=True, device=device, cache_dir=folder)

    def measure(frames: list[Image.Image], prompts: list[str]) -> dict[str, object]:
        ready = [preprocess(frame).to(device) for frame in frames]
        pairs = [float(model(a, b)) for a, b in combinations(ready, 2)]
        return {"dreamsim": fmean(pairs) if pairs else None}

    return measure


def main(kind: str, folder: str, device: str = "") -> None:
    tasks = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr  # packages print there
    measure = {"clip": clip, "dreamsim": dreamsim}[kind](folder, device or best_device())
    with torch.inference_mode():
        for task in tasks:
            frames = [Image.open(Path(path)).convert("RGB") for path in task["frames"]]
            print(json.dumps(measure(frames, task["prompts"])), file=output, flush=True)


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main(*sys.argv[1:])
