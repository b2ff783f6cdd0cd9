"""Random vision models: tiny ones of ComfyUI's own classes, and files that its CLIPVisionLoader recognises.

It recognises a model by its depth and fits it to a real one's sizes (24 layers of 1024 channels at least), so a file
here holds one layer's weights, once, under the names of all layers: 9 MB instead of 600.
"""

import json
import tempfile
from pathlib import Path

import torch
from comfy.clip_vision import ClipVisionModel
from conftest import COMFYUI
from safetensors.torch import save_file

CHANNELS, LAYERS = 1024, 24
TINY = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "hidden_act": "quick_gelu",
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 56,
    "layer_norm_eps": 1e-6,
}
TINY_CLIP = {**TINY, "model_type": "clip_vision_model", "projection_dim": 24}
TINY_SIGLIP = {**TINY, "model_type": "siglip_vision_model"}
TINY_DINO = {**TINY, "model_type": "dinov2", "use_swiglu_ffn": False, "image_mean": [0.5] * 3, "image_std": [0.2] * 3}


class Pool:
    """One block of seeded random numbers; a tensor of n numbers is its first n, which a file stores but once."""

    def __init__(self, size: int, scale: float):
        self.numbers = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * scale).half()
        self.ones = torch.ones(4 * CHANNELS).half()
        self.zeros = torch.zeros(4 * CHANNELS).half()

    def weight(self, *shape: int) -> torch.Tensor:
        return self.numbers[: torch.Size(shape).numel()].view(shape)

    def linear(self, name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": self.weight(outputs, inputs), f"{name}.bias": self.zeros[:outputs]}

    def norm(self, name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": self.ones[:CHANNELS], f"{name}.bias": self.zeros[:CHANNELS]}


def tiny(config: dict) -> ClipVisionModel:
    """A small model of ComfyUI's own class for `config`, with seeded random weights in float32."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vision.json"  # before 0.24.0 ComfyUI takes nothing but a file
        file.write_text(json.dumps(config))
        vision = ClipVisionModel(str(file))
    generator = torch.Generator().manual_seed(0)
    vision.model.float()
    for weight in vision.model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return vision


def write_small_clip(path: Path) -> None:
    """A model as `TINY_CLIP` says, which the tests' servers take by their pack `eyes`."""
    save_file(tiny(TINY_CLIP).get_sd(), path)


def write_clip(path: Path) -> None:
    """A CLIP ViT-L/14 for images of 224 pixels, in the layout of transformers."""
    pool = Pool(4 * CHANNELS**2, 0.04)
    inside = "vision_model"
    weights = {
        f"{inside}.embeddings.class_embedding": pool.weight(CHANNELS),
        f"{inside}.embeddings.patch_embedding.weight": pool.weight(CHANNELS, 3, 14, 14),
        f"{inside}.embeddings.position_embedding.weight": pool.weight(257, CHANNELS),
        "visual_projection.weight": pool.weight(768, CHANNELS),
        **pool.norm(f"{inside}.pre_layrnorm"),
        **pool.norm(f"{inside}.post_layernorm"),
    }
    for layer in (f"{inside}.encoder.layers.{i}" for i in range(LAYERS)):
        for part in "qkv":
            weights |= pool.linear(f"{layer}.self_attn.{part}_proj", CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.self_attn.out_proj", CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.mlp.fc1", 4 * CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.mlp.fc2", CHANNELS, 4 * CHANNELS)
        weights |= pool.norm(f"{layer}.layer_norm1") | pool.norm(f"{layer}.layer_norm2")
    torch.save(weights, path)


def write_dino(path: Path) -> None:
    """A DINOv2 ViT-L/14, in the layout of transformers."""
    pool = Pool(4 * CHANNELS**2, 0.04)
    weights = {
        "embeddings.position_embeddings": pool.weight(1, 1370, CHANNELS),
        "embeddings.cls_token": pool.weight(1, 1, CHANNELS),
        "embeddings.mask_token": pool.weight(1, CHANNELS),
        "embeddings.patch_embeddings.projection.weight": pool.weight(CHANNELS, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": pool.zeros[:CHANNELS],
        **pool.norm("layernorm"),
    }
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            weights |= pool.linear(f"{layer}.attention.{part}", CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.mlp.fc1", 4 * CHANNELS, CHANNELS)
        weights |= pool.linear(f"{layer}.mlp.fc2", CHANNELS, 4 * CHANNELS)
        weights |= pool.norm(f"{layer}.norm1") | pool.norm(f"{layer}.norm2")
        weights |= {f"{layer}.layer_scale{i}.lambda1": pool.ones[:CHANNELS] for i in (1, 2)}
    torch.save(weights, path)


def write_clip_folder(folder: Path, positions: int = 77) -> Path:
    """A tiny random CLIP as transformers saves it, with CLIP's own vocabulary and pictures of 32 pixels."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(3)  # its pictures and texts look in one direction, so that CLIP-T is not 0
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=dict(small, bos_token_id=49406, eos_token_id=49407, max_position_embeddings=positions),
        vision_config=dict(small, image_size=32, patch_size=8),
        projection_dim=16,
        initializer_factor=8.0,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(COMFYUI / "comfy" / "sd1_tokenizer")
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def write_dino_folder(folder: Path) -> Path:
    """A tiny random DINOv2 as transformers saves it, with pictures of 28 pixels."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(4)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def write_detector_folder(folder: Path) -> Path:
    """A tiny random Grounding DINO as transformers saves it, whose vocabulary has what it is asked for."""
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "character", "."]))
    ones = [1, 1, 1, 1]
    swin = SwinConfig(image_size=64, embed_dim=8, depths=ones, num_heads=ones, window_size=2, out_indices=[2, 3, 4])
    bert = {"model_type": "bert", "vocab_size": 1100, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config={**bert, "hidden_size": 16, "intermediate_size": 16},
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        num_queries=6,
        max_text_len=16,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    GroundingDinoProcessor(pictures, BertTokenizer(str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder
