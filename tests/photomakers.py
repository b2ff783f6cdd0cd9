"""Small random files of PhotoMaker's and FastComposer's layouts, and what they compute, restated in float64.

The vision transformers have few layers of one head, and pictures of 28 pixels; the words are as wide as SD1.5's, where
the published PhotoMakers' are SDXL's 2048.
"""

from pathlib import Path

import torch
from adapters import Code, Exact, flat, gelu, linear, norm, resampler, weights_of
from safetensors.torch import save_file

WIDTH, SIDE, PATCH, LAYERS = 64, 28, 14, 2
TEXT = 768
LORA_RANK = 2
LAYOUTS = ("PhotoMaker v1", "PhotoMaker v2", "FastComposer")
LORA_MODULE = "mid_block.attentions.0.transformer_blocks.0.attn2"
"""In diffusers' names, whose middle block the random checkpoint has too."""


def tower(width: int = WIDTH, layers: int = LAYERS, side: int = SIDE) -> dict[str, tuple[int, ...]]:
    """The shapes of a CLIP vision transformer in transformers' names."""
    inside = "vision_model"
    shapes = {
        f"{inside}.embeddings.class_embedding": (width,),
        f"{inside}.embeddings.patch_embedding.weight": (width, 3, PATCH, PATCH),
        f"{inside}.embeddings.position_embedding.weight": (1 + (side // PATCH) ** 2, width),
        **norm(f"{inside}.pre_layrnorm", width),
        **norm(f"{inside}.post_layernorm", width),
    }
    for layer in (f"{inside}.encoder.layers.{n}" for n in range(layers)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", width, width)
        shapes |= linear(f"{layer}.mlp.fc1", 4 * width, width) | linear(f"{layer}.mlp.fc2", width, 4 * width)
        shapes |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
    return shapes


def fusing(text: int) -> dict[str, tuple[int, ...]]:
    shapes = norm("layer_norm", text)
    for name, inputs in (("mlp1", 2 * text), ("mlp2", text)):
        shapes |= norm(f"{name}.layernorm", inputs)
        shapes |= linear(f"{name}.fc1", text, inputs) | linear(f"{name}.fc2", text, text)
    return shapes


def photomaker(layout: str, text: int = TEXT, seed: int = 0) -> dict[str, dict]:
    """A whole file, nested as PyTorch saves it; FastComposer's is flat, and here without its model."""
    shapes = tower()
    first = text if layout == "FastComposer" else text // 2
    shapes["visual_projection.weight"] = (first, WIDTH)
    if layout == "FastComposer":
        encoder, fuse = weights_of(shapes, seed), weights_of(fusing(text), seed + 1)
        return flat({"image_encoder": encoder, "postfuse_module": fuse})
    shapes["visual_projection_2.weight"] = (text - first, WIDTH)
    shapes |= {f"fuse_module.{name}": shape for name, shape in fusing(text).items()}
    if layout == "PhotoMaker v2":
        name = "qformer_perceiver"
        shapes |= linear(f"{name}.token_proj.0", 64, 512) | linear(f"{name}.token_proj.2", 2 * text, 64)
        shapes |= norm(f"{name}.token_norm", text)
        shapes |= resampler(text, WIDTH, text, f"{name}.perceiver_resampler.", depth=1)
    lora = {
        f"unet.{LORA_MODULE}.processor.to_{part}_lora.{side}.weight": shape
        for part, inputs in (("q", 320), ("v", TEXT))
        for side, shape in (("down", (LORA_RANK, inputs)), ("up", (320, LORA_RANK)))
    }
    return {"id_encoder": weights_of(shapes, seed), "lora_weights": weights_of(lora, seed + 2)}


def write_photomakers(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    save_file(flat(photomaker("PhotoMaker v1")), folder / "photomaker-v1.safetensors")
    torch.save(photomaker("PhotoMaker v2"), folder / "photomaker-v2.bin")
    torch.save(photomaker("FastComposer"), folder / "pytorch_model.bin")
    torch.save({"id_encoder": Code(), "lora_weights": {}}, folder / "code.bin")


# --- the formulas ----------------------------------------------------------------------------------------------------


class ExactPhotoMaker(Exact):
    """A file in float64, one picture, one head and one word at a time."""

    def __init__(self, layout: str, state: dict):
        self.layout = layout
        weights = state.get("id_encoder", state)
        for part in ("image_encoder.", "postfuse_module."):
            weights = {name.replace(part, "fuse_module." if "fuse" in part else ""): w for name, w in weights.items()}
        super().__init__(weights)

    def look(self, pixels):
        """[3, side, side] of one picture: the last layer's tokens and the normed first of them."""
        at = "vision_model.embeddings"
        patches = [
            (pixels[:, y : y + PATCH, x : x + PATCH].double() * self.w[f"{at}.patch_embedding.weight"]).sum((1, 2, 3))
            for y in range(0, pixels.shape[1], PATCH)
            for x in range(0, pixels.shape[2], PATCH)
        ]
        x = torch.stack([self.w[f"{at}.class_embedding"], *patches]) + self.w[f"{at}.position_embedding.weight"]
        x, n = self.norm(x, "vision_model.pre_layrnorm"), 0
        while f"vision_model.encoder.layers.{n}.mlp.fc1.weight" in self.w:
            layer = f"vision_model.encoder.layers.{n}"
            own = self.norm(x, f"{layer}.layer_norm1")
            q, k, v = (self.line(own, f"{layer}.self_attn.{part}_proj") for part in "qkv")
            heads = [slice(h, h + 64) for h in range(0, q.shape[-1], 64)]
            seen = torch.cat([(q[:, h] @ k[:, h].T / 8).softmax(-1) @ v[:, h] for h in heads], -1)
            x = x + self.line(seen, f"{layer}.self_attn.out_proj")
            hidden = self.line(self.norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
            x = x + self.line(hidden / (1 + torch.exp(-1.702 * hidden)), f"{layer}.mlp.fc2")
            n += 1
        return x, self.norm(x[0], "vision_model.post_layernorm")

    def image_tokens(self, pixels, faces):
        """[pictures, 3, side, side] and their faces [pictures, 512] as [tokens, channels]."""
        found = []
        for picture, face in zip(pixels, faces, strict=True):
            last, pooled = self.look(picture)
            if self.layout == "PhotoMaker v2":
                name, text = "qformer_perceiver", len(self.w["qformer_perceiver.token_norm.weight"])
                hidden = gelu(self.line(face.double(), f"{name}.token_proj.0"))
                x = self.norm(self.line(hidden, f"{name}.token_proj.2").reshape(2, text), f"{name}.token_norm")
                found.append(x + self.resample(x, last, f"{name}.perceiver_resampler.", head=128))
            else:
                names = ["visual_projection", "visual_projection_2"][: 1 + (self.layout == "PhotoMaker v1")]
                found.append(torch.cat([self.line(pooled, name) for name in names])[None])
        tokens = torch.cat(found)
        return tokens.mean(0)[None] if self.layout == "FastComposer" else tokens

    def fuse(self, word, token):
        """One word and one image token, [channels] both."""
        c, f = word.double(), "fuse_module"
        x = self.norm(torch.cat([c, token]), f"{f}.mlp1.layernorm")
        x = self.line(gelu(self.line(x, f"{f}.mlp1.fc1")), f"{f}.mlp1.fc2") + c
        own = self.norm(x, f"{f}.mlp2.layernorm")
        x = self.line(gelu(self.line(own, f"{f}.mlp2.fc1")), f"{f}.mlp2.fc2") + x
        return self.norm(x, f"{f}.layer_norm")
