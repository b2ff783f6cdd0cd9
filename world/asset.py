"""The Story World's checkpoint as a compact asset, and its expansion into a standard Stable Diffusion 1.5 file.

    python asset.py ASSET FILE

Weights are rounded to a fraction of their row's standard deviation and deflated: about five bits each. What CLIP-L has
and the world does not need (ten text layers, words outside the captions) is left out, and filled in when expanding.
"""

import os
import sys
import zlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ASSET = Path(__file__).parent / "story_world.safetensors"

LEVELS = {"unet": 6.0, "text": 8.0, "vae": 16.0}
"""Levels per standard deviation, by the part of the checkpoint."""

VOCABULARY = 49408
WIDTH = 768
HIDDEN = 3072
LAYERS = 12
LATENT_SCALE = 0.18215
"""Stable Diffusion 1.x multiplies latents by this; the file's `vae_scale` takes it back."""


def pack(weights: dict[str, Tensor], tokens: list[int], path: Path = ASSET) -> int:
    """Write the asset from weights named "unet...", "text...", "vae..."; returns its size in bytes.

    `tokens` are CLIP's numbers of the text encoder's rows; the autoencoder's latents have unit scale.
    """
    stored: dict[str, Tensor] = {"tokens": torch.tensor(tokens, dtype=torch.int32)}
    for name, weight in weights.items():
        if weight.dim() < 2:
            stored[name] = weight.half()
            continue
        rows = weight.float().flatten(1)
        step = (rows.std(1).clamp(min=1e-6) / LEVELS[name.partition(".")[0]]).half().float()
        levels = (rows / step[:, None]).round().clamp(-127, 127).to(torch.int8)
        deflated = entropy_coded(levels.numpy().tobytes())
        stored[f"{name}.levels"] = torch.frombuffer(bytearray(deflated), dtype=torch.uint8)
        stored[f"{name}.step"] = step.half()
        stored[f"{name}.shape"] = torch.tensor(weight.shape, dtype=torch.int32)
    partial = path.with_suffix(".partial")
    save_file(stored, partial)
    os.replace(partial, path)
    return path.stat().st_size


def entropy_coded(data: bytes) -> bytes:
    """Deflated without looking for repetitions, of which weights have none: 6% smaller than with."""
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def unpack(path: Path = ASSET) -> tuple[dict[str, Tensor], list[int]]:
    """What `pack` was given, as near as the asset holds it: weights in float32, and tokens."""
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tokens = stored.pop("tokens").tolist()
    weights = {}
    for name, value in stored.items():
        name, _, kind = name.rpartition(".")
        if kind == "levels":
            raw = bytearray(zlib.decompress(value.numpy().tobytes()))
            rows = torch.frombuffer(raw, dtype=torch.int8).float().view(len(stored[f"{name}.step"]), -1)
            shape = stored[f"{name}.shape"].tolist()
            weights[name] = (rows * stored[f"{name}.step"].float()[:, None]).view(shape)
        elif kind not in ("step", "shape"):
            weights[f"{name}.{kind}"] = value.float()
    return weights, tokens


def checkpoint(path: Path = ASSET) -> dict[str, Tensor]:
    """The tensors of the Stable Diffusion 1.5 checkpoint, in half precision."""
    weights, tokens = unpack(path)
    found = {}
    for name, weight in weights.items():
        part, _, rest = name.partition(".")
        if part == "unet":
            found[f"model.diffusion_model.{rest}"] = weight
        elif part == "vae":
            found[f"first_stage_model.{rest}"] = weight
    found["first_stage_model.vae_scale"] = torch.tensor(LATENT_SCALE)
    found["first_stage_model.vae_shift"] = torch.tensor(0.0)
    text = clip(weights, tokens)
    found |= {f"cond_stage_model.transformer.text_model.{name}": weight for name, weight in text.items()}
    return {name: weight.half().contiguous() for name, weight in found.items()}


def clip(weights: dict[str, Tensor], tokens: list[int]) -> dict[str, Tensor]:
    """CLIP-L's text model: the trained layers and words; every other layer passes through, other words are zeros."""
    embedding = torch.zeros(VOCABULARY, WIDTH)
    embedding[tokens] = weights["text.token_embedding.weight"]
    found = {
        "embeddings.token_embedding.weight": embedding,
        "embeddings.position_embedding.weight": weights["text.position_embedding.weight"],
        "final_layer_norm.weight": torch.ones(WIDTH),
        "final_layer_norm.bias": torch.zeros(WIDTH),
    }
    shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (HIDDEN, WIDTH), "mlp.fc2": (WIDTH, HIDDEN)}
    for layer in range(LAYERS):
        ours, theirs = f"text.layers.{layer}", f"encoder.layers.{layer}"
        for norm in ("layer_norm1", "layer_norm2"):
            found[f"{theirs}.{norm}.weight"] = weights.get(f"{ours}.{norm}.weight", torch.ones(WIDTH))
            found[f"{theirs}.{norm}.bias"] = weights.get(f"{ours}.{norm}.bias", torch.zeros(WIDTH))
        for name, shape in shapes.items():
            for end, size in (("weight", shape), ("bias", shape[:1])):
                whole = torch.zeros(size)
                trained = weights.get(f"{ours}.{name}.{end}")
                if trained is not None:
                    whole[tuple(slice(0, length) for length in trained.shape)] = trained
                found[f"{theirs}.{name}.{end}"] = whole
    return found


def main(asset: str, path: str) -> None:
    """Write the checkpoint at `path`, whole or not at all."""
    partial = Path(path).with_suffix(".partial")
    save_file(checkpoint(Path(asset)), partial)
    os.replace(partial, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
