"""Measure frames with a model that lies on this machine. Runs in a Python that has it; nothing is downloaded.

    python vision.py [DEVICE]

Reads a JSON list of plans, each with a "kind" of `KINDS`, a "model"'s folder and "tasks", and writes one JSON object a
line for each task. A task has a story's "frames" (paths), their "prompts", "masks" of the character (paths, or null for
whole pictures) and "file", where vectors go that are too long for a line; a task of texts has "identity" and "prompts".
What went wrong is the last line on stderr.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"  # read when transformers is imported

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))

from onestory.bench.quality.backgrounds import (  # noqa: E402
    read_frame,
    read_mask,
    without_background,
    without_character,
)

PREFIX, WEIGHT = "A photo depicts ", 2.5
"""CLIPScore's own (arXiv 2104.08718, section 3), as 1Prompt1Story's authors use it."""
WIDTHS = {768: "B", 1024: "L", 1280: "H", 1408: "g", 1664: "bigG"}

Task = dict[str, Any]
Measure = Callable[[Task], dict[str, Any]]


def clip(folder: str, device: str) -> Measure:
    """CLIP-T: `WEIGHT` times the cosine of each frame with its own prompt, not below 0.

    `told_apart` is the share of frames that are no closer to another prompt of their story than to their own
    (R-precision at 1, Xu et al. 2018, arXiv 1711.10485): 1 / frames for frames that copy each other. None for one.
    """
    model, processor = load_clip(folder, device)

    def measure(task: Task) -> dict[str, Any]:
        texts = [PREFIX + prompt for prompt in task["prompts"]]
        words = processor(text=texts, return_tensors="pt", padding=True, truncation=True).to(device)
        towards = unit(model.text_projection(model.text_model(**words).pooler_output))
        cosines = unit(clip_embeds(model, processor, pictures(task))) @ towards.T
        own = cosines.diagonal()
        apart = (own >= cosines.max(1).values).double().mean().item() if len(own) > 1 else None
        return {"name": clip_name(model), "clip_t": (WEIGHT * own.clamp(min=0)).tolist(), "told_apart": apart}

    return measure


def clip_image(folder: str, device: str) -> Measure:
    """CLIP-I: the mean cosine over all pairs of frames, None for less than two; with masks of the characters on noise.

    With masks also `scenes`, scene diversity: 1 less the mean cosine over all pairs of backgrounds without characters.
    """
    model, processor = load_clip(folder, device)

    def mean_cosine(some: Sequence[Image.Image]) -> float | None:
        return fmean(pair_cosines(clip_embeds(model, processor, some))) if len(some) > 1 else None

    def measure(task: Task) -> dict[str, Any]:
        alone, found = characters(task), {}
        if task["masks"]:
            same = mean_cosine(backgrounds(task))
            found = {"scenes": None if same is None else 1 - same, "empty_masks": len(task["frames"]) - len(alone)}
        return {"name": clip_name(model), "clip_i": mean_cosine(alone), **found}

    return measure


def dreamsim(folder: str, device: str) -> Measure:
    """DreamSim's distance, the mean over all pairs, with masks of the characters on noise; None for less than two."""

    def refuse(*args: object, **kwargs: object) -> None:
        sys.exit(
            f"its weights are not in {folder}: let the package put them there, and name the folder with --dreamsim."
        )

    if not Path(folder).is_dir():  # the package would make it
        refuse()
    torch.hub.download_url_to_file = refuse
    from dreamsim import dreamsim as load

    model, preprocess = load(pretrained=True, device=device, cache_dir=folder)

    def measure(task: Task) -> dict[str, Any]:
        ready = [preprocess(frame).to(device) for frame in characters(task)]
        pairs = [float(model(a, b)) for a, b in combinations(ready, 2)]
        return {"dreamsim": fmean(pairs) if pairs else None}

    return measure


def features(folder: str, device: str) -> Measure:
    """Each frame's vector [frames, channels], with masks of the character on noise, as float32 into the task's file.

    The vector is CLIP's image embedding, or another model's first token of the last layer (DINOv2's CLS token).
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    if AutoConfig.from_pretrained(folder, local_files_only=True).model_type == "clip":
        clip_model, processor = load_clip(folder, device)

        def embed(some: Sequence[Image.Image]) -> Tensor:
            return clip_embeds(clip_model, processor, some)
    else:
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True)
        model.to(device).eval()
        reader: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

        def embed(some: Sequence[Image.Image]) -> Tensor:
            return model(**reader(images=list(some), return_tensors="pt").to(device)).last_hidden_state[:, 0]

    def measure(task: Task) -> dict[str, Any]:
        some = characters(task)
        vectors = embed(some).float().cpu().numpy() if some else np.zeros((0, 1), np.float32)
        save(Path(task["file"]), vectors)
        return {"frames": len(vectors)}

    return measure


def texts(folder: str, device: str) -> Measure:
    """A frame prompt's vector: the mean of its tokens' last hidden states, as float32 [2, frames, channels].

    The first are read from its own prompt, identity and frame; the second from one prompt of the whole story
    (1Prompt1Story, section 3.1). A story that is longer than the model reads has none: then there is no file.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    model: Any = CLIPTextModel.from_pretrained(folder, local_files_only=True)
    model.to(device).eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    limit = model.config.max_position_embeddings

    def parts_of(pieces: Sequence[str]) -> list[Tensor]:
        """The mean token of every piece of a prompt but the first, all pieces joined by a space."""
        ends = [len(tokenizer(" ".join(pieces[:n])).input_ids) - 1 for n in range(1, len(pieces) + 1)]
        ids = tokenizer(" ".join(pieces), return_tensors="pt").to(device)
        hidden = model(**ids).last_hidden_state[0]
        return [hidden[start:end].mean(0) for start, end in zip(ends, ends[1:])]

    def measure(task: Task) -> dict[str, Any]:
        identity, prompts = task["identity"], task["prompts"]
        if len(tokenizer(" ".join([identity, *prompts])).input_ids) > limit:
            return {"fits": False}
        alone = [part for prompt in prompts for part in parts_of([identity, prompt])]
        together = parts_of([identity, *prompts])
        save(Path(task["file"]), torch.stack([torch.stack(alone), torch.stack(together)]).float().cpu().numpy())
        return {"fits": True}

    return measure


@cache
def load_clip(folder: str, device: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
    return model.to(device).eval(), CLIPProcessor.from_pretrained(folder, local_files_only=True)


def clip_name(model: Any) -> str:
    """The usual name of a CLIP's vision tower, such as ViT-B/32."""
    vision = model.config.vision_config
    return f"ViT-{WIDTHS.get(vision.hidden_size, vision.hidden_size)}/{vision.patch_size}"


def clip_embeds(model: Any, processor: Any, some: Sequence[Image.Image]) -> Tensor:
    """CLIP's image embeddings [pictures, channels]."""
    pixels = processor.image_processor(images=list(some), return_tensors="pt").to(model.device)
    return model.visual_projection(model.vision_model(**pixels).pooler_output)


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.double(), dim=-1)


def pair_cosines(vectors: Tensor) -> list[float]:
    return [float(a @ b) for a, b in combinations(unit(vectors), 2)]


def pictures(task: Task) -> list[Image.Image]:
    return [Image.fromarray(read_frame(path)) for path in task["frames"]]


def characters(task: Task) -> list[Image.Image]:
    """The frames, with masks their characters on noise; without those whose mask shows none."""
    if not task["masks"]:
        return pictures(task)
    found = (without_background(frame, mask, n) for n, (frame, mask) in enumerate(masked(task), 1))
    return [Image.fromarray(each) for each in found if each is not None]


def backgrounds(task: Task) -> list[Image.Image]:
    """The frames' backgrounds, without those that have none."""
    found = (without_character(frame, mask) for frame, mask in masked(task))
    return [Image.fromarray(each) for each in found if each is not None]


def masked(task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each frame [height, width, 3] with its mask [height, width]."""
    frames = [read_frame(path) for path in task["frames"]]
    return [(frame, read_mask(path, frame.shape[1::-1])) for frame, path in zip(frames, task["masks"], strict=True)]


def save(file: Path, vectors: np.ndarray) -> None:
    """Write a file whole or not at all."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as opened:
        np.save(opened, vectors)
    partial.replace(file)


KINDS: dict[str, Callable[[str, str], Measure]] = {
    "clip": clip,
    "clip_image": clip_image,
    "dreamsim": dreamsim,
    "features": features,
    "texts": texts,
}


def main(device: str = "") -> None:
    plans = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr  # packages print there
    with torch.inference_mode():
        for plan in plans:
            measure = KINDS[plan["kind"]](plan["model"], device or best_device())
            for task in plan["tasks"]:
                print(json.dumps(measure(task)), file=output, flush=True)


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main(*sys.argv[1:])
