"""A custom node pack of the tests' servers: a CLIP vision model of few layers, by a node and for ComfyUI's loader, and
a face analyser that finds a face at the same place in every picture, as insightface's FaceAnalysis hands its faces out.
"""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import comfy.clip_vision
import comfy.utils
import numpy as np
import torch
from comfy.clip_vision import ClipVisionModel

POINTS = [(10.0, 14.0), (22.0, 14.0), (16.0, 22.0), (11.0, 30.0), (21.0, 30.0)]
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3,
    "intermediate_size": 64, "hidden_act": "quick_gelu", "num_channels": 3, "patch_size": 14, "image_size": 56,
    "layer_norm_eps": 1e-6, "projection_dim": 24,
}  # fmt: skip


class Analyser:
    def get(self, picture):
        embedding = np.random.default_rng(int(picture.sum())).standard_normal(512).astype(np.float32)
        box, points = np.array([4, 4, 28, 40]), np.array(POINTS, dtype=np.float32)
        return [SimpleNamespace(bbox=box, kps=points, embedding=embedding)]


def new_vision():
    """ComfyUI takes a configuration as a file; before 0.24.0 not otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vision.json"
        file.write_text(json.dumps(VISION))
        return ClipVisionModel(str(file))


def small_vision():
    vision = new_vision()
    generator = torch.Generator().manual_seed(0)
    vision.model.float()
    for weight in vision.model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return vision


full_size = comfy.clip_vision.load


def load(path):
    """The loader knows models by their depth, and makes them in full size."""
    state = comfy.utils.load_torch_file(path)
    if f"vision_model.encoder.layers.{VISION['num_hidden_layers']}.layer_norm1.weight" in state:
        return full_size(path)
    vision = new_vision()
    vision.load_sd(state)
    return vision


comfy.clip_vision.load = load


def node(type_, make):
    """A node without inputs that gives what `make` makes."""
    members = {
        "INPUT_TYPES": classmethod(lambda cls: {"required": {}}),
        "RETURN_TYPES": (type_,),
        "FUNCTION": "make",
        "CATEGORY": "tests",
        "make": lambda self: (make(),),
    }
    return type(f"Test{type_}", (), members)


NODE_CLASS_MAPPINGS = {
    "TestFaceAnalyser": node("INSIGHTFACE", Analyser),
    "TestClipVision": node("CLIP_VISION", small_vision),
}
