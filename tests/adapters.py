"""Small random adapter files of every layout, and what they compute, restated in float64 from the formulas."""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

TEXT = 768
LAYERS = 7
"""The random checkpoint's transformers, all 320 wide."""


def weights_of(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Norms near 1, biases near 0, and matrices that keep the scale of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and name.endswith("weight")
        weights[name] = 1 + 0.2 * drawn if is_norm else drawn / shape[-1] ** 0.5 if len(shape) > 1 else 0.2 * drawn
    return weights


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def resampler(width: int, seen: int, out: int, prefix: str = "", depth: int = 2) -> dict[str, tuple[int, ...]]:
    shapes = linear(f"{prefix}proj_in", width, seen) | linear(f"{prefix}proj_out", out, width)
    shapes |= norm(f"{prefix}norm_out", out)
    for i in range(depth):
        layer = f"{prefix}layers.{i}"
        shapes |= norm(f"{layer}.0.norm1", width) | norm(f"{layer}.0.norm2", width) | norm(f"{layer}.1.0", width)
        shapes |= {f"{layer}.0.to_q.weight": (width, width), f"{layer}.0.to_kv.weight": (2 * width, width)}
        shapes |= {f"{layer}.0.to_out.weight": (width, width)}
        shapes |= {f"{layer}.1.1.weight": (4 * width, width), f"{layer}.1.3.weight": (width, 4 * width)}
    return shapes


def projector(kind: str, embedding: int = 24, seen: int = 32, text: int = TEXT, tokens: int = 4) -> dict:
    """Random weights of a layout's projector. "portrait" is FaceID with more tokens."""
    if kind == "base":
        return weights_of(linear("proj", tokens * text, embedding) | norm("norm", text))
    if kind == "plus":
        return weights_of({"latents": (1, 3, 128)} | resampler(128, seen, text))
    if kind == "full face":
        return weights_of(linear("proj.0", seen, seen) | linear("proj.2", text, seen) | norm("proj.3", text))
    if kind == "StoryMaker":
        shapes = {"pos_embed": (3, 7, text), "bg_embed": (1, 5, text), "resample.latents": (1, 3, 128)}
        shapes |= linear("proj.0", 64, 512) | linear("proj.2", 4 * text, 64) | norm("norm", text)
        shapes |= linear("proj_out", text, text) | norm("norm_out", text)
        shapes |= resampler(text, seen, text, "perceiver_resampler.", depth=1)
        return weights_of(shapes | resampler(128, seen, text, "resample.", depth=1))
    face = linear("proj.0", 1024, 512) | linear("proj.2", tokens * text, 1024) | norm("norm", text)
    if kind == "FaceID-Plus":
        face |= resampler(text, seen, text, "perceiver_resampler.", depth=1)
    return weights_of(face)


def layers(widths: list[int], text: int = TEXT, lora: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the attention layers, with a LoRA of this rank in all of them if it is not 0."""
    shapes: dict[str, tuple[int, ...]] = {}
    for n, width in enumerate(widths):
        shapes |= {f"{2 * n + 1}.to_{x}_ip.weight": (width, text) for x in "kv"}
        for m in (2 * n, 2 * n + 1) if lora else ():
            for part in ("q", "k", "v", "out"):
                inputs = text if part in "kv" and m % 2 else width
                shapes[f"{m}.to_{part}_lora.down.weight"] = (lora, inputs)
                shapes[f"{m}.to_{part}_lora.up.weight"] = (width, lora)
    # Values stand out beside the text's, and keys choose.
    return {name: 2 * weight for name, weight in weights_of(shapes, 1).items()}


def adapter(kind: str, widths: list[int] | None = None, lora: int = 0, **sizes) -> dict[str, dict]:
    """A whole file, nested as PyTorch saves it."""
    return {
        "image_proj_model" if kind == "StoryMaker" else "image_proj": projector(kind, **sizes),
        "ip_adapter": layers(widths or [320] * LAYERS, sizes.get("text", TEXT), lora),
    }


def flat(state: dict[str, dict]) -> dict[str, torch.Tensor]:
    """The same as safetensors have it."""
    return {f"{part}.{name}": weight for part, weights in state.items() for name, weight in weights.items()}


class Code:
    """A pickle that runs something when it is read."""

    def __reduce__(self):
        return print, ("this ran",)


def write_adapters(folder: Path) -> None:
    """Files of all layouts for the random checkpoint, and one with code in it: the base adapter reads a ViT-L, the
    others what has 32 channels."""
    folder.mkdir()
    save_file(flat(adapter("base", embedding=768)), folder / "base.safetensors")
    for name, kind, lora in (
        ("plus.bin", "plus", 0),
        ("full-face.bin", "full face", 0),
        ("faceid.bin", "FaceID", 2),
        ("faceid-plusv2.bin", "FaceID-Plus", 2),
        ("mask.bin", "StoryMaker", 2),
    ):
        torch.save(adapter(kind, lora=lora), folder / name)
    torch.save({"image_proj": Code(), "ip_adapter": {}}, folder / "code.bin")


# --- the formulas ----------------------------------------------------------------------------------------------------


class Exact:
    """A projector in float64, one picture and one head at a time."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.w = {name: weight.double() for name, weight in weights.items()}

    def line(self, x, name):
        out = x @ self.w[f"{name}.weight"].T
        return out + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else out

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def resample(self, latents, x, prefix="", head=64):
        x, i = self.line(x, f"{prefix}proj_in"), 0
        while f"{prefix}layers.{i}.0.to_q.weight" in self.w:
            at = f"{prefix}layers.{i}"
            own = self.norm(latents, f"{at}.0.norm2")
            both = torch.cat([self.norm(x, f"{at}.0.norm1"), own])
            q, (k, v) = self.line(own, f"{at}.0.to_q"), self.line(both, f"{at}.0.to_kv").chunk(2, -1)
            heads = []
            for h in range(0, q.shape[-1], head):
                part = slice(h, h + head)
                heads.append((q[:, part] @ k[:, part].T / head**0.5).softmax(-1) @ v[:, part])
            latents = latents + self.line(torch.cat(heads, -1), f"{at}.0.to_out")
            hidden = gelu(self.line(self.norm(latents, f"{at}.1.0"), f"{at}.1.1"))
            latents = latents + self.line(hidden, f"{at}.1.3")
            i += 1
        return self.norm(self.line(latents, f"{prefix}proj_out"), f"{prefix}norm_out")

    def tokens(self, kind, seen=None, face=None, shortcut=False, text=TEXT):
        """The tokens of one picture: `seen` [embedding] or [patches, channels], `face` [512]."""
        if kind == "base":
            return self.norm(self.line(seen.double(), "proj").reshape(-1, text), "norm")
        if kind == "plus":
            return self.resample(self.w["latents"][0], seen.double())
        if kind == "full face":
            return self.norm(self.line(gelu(self.line(seen.double(), "proj.0")), "proj.2"), "proj.3")
        unit = face.double() / max(face.double().norm().item(), 1e-12)
        x = self.norm(self.line(gelu(self.line(unit, "proj.0")), "proj.2").reshape(-1, text), "norm")
        if kind != "FaceID-Plus":
            return x
        looked = self.resample(x, seen.double(), "perceiver_resampler.")
        return x + looked if shortcut else looked

    def person(self, face, seen, body, place, text=TEXT):
        """StoryMaker's tokens of one person, [tokens, channels]: of its embedding [512], and of what CLIP sees in the
        face and in the body, [patches, channels]."""
        unit = face.double() / max(face.double().norm().item(), 1e-12)
        x = self.norm(self.line(gelu(self.line(unit, "proj.0")), "proj.2").reshape(4, text), "norm")
        own = x + self.resample(x, seen.double(), "perceiver_resampler.")
        whole = self.resample(self.w["resample.latents"][0], body.double(), "resample.")
        u = torch.cat([own, whole]) + self.w["pos_embed"][place]
        return self.norm(self.line(u, "proj_out"), "norm_out") + u


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2
