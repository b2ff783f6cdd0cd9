"""The Story World's weights as compact assets, and their expansion into standard files.

    python asset.py ASSET FILE               the checkpoint, as one of Stable Diffusion 1.5
    python asset.py ADAPTER FILE VISION      the IP-Adapter, and the picture encoder that it reads, as a CLIP ViT-L

Weights are rounded to a fraction of their row's standard deviation and deflated: about five bits each. What CLIP has
and the world does not need (most layers, words outside the captions, copies of channels) is left out, and filled in
when expanding.
"""

import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ASSET = Path(__file__).parent / "story_world.safetensors"
ADAPTER = Path(__file__).parent / "story_world_adapter.safetensors"

LEVELS = {"unet": 6.0, "text": 8.0, "vae": 16.0, "vision": 8.0, "image_proj": 8.0, "ip_adapter": 8.0}
"""Levels per standard deviation, by the part of the weights."""

VOCABULARY = 49408
WIDTH = 768
HIDDEN = 3072
LAYERS = 12
LATENT_SCALE = 0.18215
"""Stable Diffusion 1.x multiplies latents by this; the file's `vae_scale` takes it back."""
VISION_WIDTH, VISION_COPIES, VISION_LAYERS = 128, 8, 24
"""Channels of the picture encoder, how many copies of them a ViT-L has, and its layers."""
VISION_EMBEDDING, CLIP_EMBEDDING = 128, 768
"""Numbers in the encoder's embedding of a picture, and in a ViT-L's."""
ADAPTER_TOKENS = 4


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


def adapter(path: Path = ADAPTER) -> dict[str, Tensor]:
    """The tensors of the IP-Adapter's file, in half precision: of a ViT-L's embedding it reads the first numbers."""
    weights, _ = unpack(path)
    found = {name: weight for name, weight in weights.items() if not name.startswith("vision.")}
    found["image_proj.proj.weight"] = padded(
        found["image_proj.proj.weight"], found["image_proj.proj.bias"].numel(), CLIP_EMBEDDING
    )
    return {name: weight.half().contiguous() for name, weight in found.items()}


def vision(path: Path = ADAPTER) -> dict[str, Tensor]:
    """A CLIP ViT-L that sees what the encoder sees, in half precision.

    Its channels are copies of the encoder's, so all norms are the same; its layers read the first copy and add to all.
    Heads, hidden channels and layers that the encoder lacks add nothing, and all share one block of zeros.
    """
    weights = {name[7:]: weight for name, weight in unpack(path)[0].items() if name.startswith("vision.")}
    width, hidden = VISION_WIDTH * VISION_COPIES, 4 * VISION_WIDTH * VISION_COPIES
    zeros = torch.zeros(hidden * width).half()
    shapes = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    found = {
        "visual_projection.weight": padded(weights["visual_projection.weight"], CLIP_EMBEDDING, width),
        **{
            f"vision_model.{name}": copied(weights[name], axis)
            for name, axis in (
                ("embeddings.class_embedding", 0),
                ("embeddings.patch_embedding.weight", 0),
                ("embeddings.position_embedding.weight", 1),
            )
        },
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        found |= {f"vision_model.{norm}.{end}": copied(weights[f"{norm}.{end}"], 0) for end in ("weight", "bias")}
    for layer in range(VISION_LAYERS):
        ours, theirs = f"layers.{layer}", f"vision_model.encoder.layers.{layer}"
        for norm in ("layer_norm1", "layer_norm2"):
            for end in ("weight", "bias"):
                weight = weights.get(f"{ours}.{norm}.{end}")
                found[f"{theirs}.{norm}.{end}"] = zeros[:width] if weight is None else copied(weight, 0)
        for name, (rows, columns) in shapes.items():
            weight, bias = (weights.get(f"{ours}.{name}.{end}") for end in ("weight", "bias"))
            if weight is None or bias is None:
                weight, bias = zeros[: rows * columns].view(rows, columns), zeros[:rows]
            elif name in ("self_attn.out_proj", "mlp.fc2"):
                weight, bias = copied(padded(weight, len(weight), columns), 0), copied(bias, 0)
            else:
                weight, bias = padded(weight, rows, columns), padded(bias[:, None], rows, 1)[:, 0]
            found |= {f"{theirs}.{name}.weight": weight, f"{theirs}.{name}.bias": bias}
    return {name: weight.half().contiguous() for name, weight in found.items()}


def copied(weight: Tensor, axis: int) -> Tensor:
    """The channels along an axis, as often as a ViT-L has them."""
    return torch.cat([weight] * VISION_COPIES, axis)


def padded(weight: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix in the corner of a larger one of zeros."""
    whole = torch.zeros(rows, columns)
    whole[: weight.shape[0], : weight.shape[1]] = weight
    return whole


def main(asset: str, path: str, eyes: str | None = None) -> None:
    """Write the checkpoint at `path`, or the adapter there and its encoder at `eyes`; each whole or not at all."""
    write(path, lambda partial: save_file(checkpoint(Path(asset)) if eyes is None else adapter(Path(asset)), partial))
    if eyes is not None:
        write(eyes, lambda partial: torch.save(vision(Path(asset)), partial))


def write(path: str, save: Callable[[Path], object]) -> None:
    partial = Path(path).with_suffix(".partial")
    save(partial)
    os.replace(partial, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
