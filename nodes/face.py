"""A character's face, as another pack's face analyser sees it. No analyser is imported: it comes by wire."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..subjects.faces import aligned
from .cast import FACE_CHANNELS
from .types import CATEGORY, STORY_FACE, show_text

ANALYSERS = [io.Custom("INSIGHTFACE"), io.Custom("FACEANALYSIS"), io.Custom("FACE_ANALYSIS")]
"""What packs call an object of insightface's class FaceAnalysis: IPAdapter_plus, InstantID, ComfyUI's own type."""


class OneStoryFace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryFace",
            display_name="Story Face",
            category=CATEGORY,
            description="Read a character's face from pictures with the face analyser of another pack, for Story Cast.",
            search_aliases=["story", "face", "insightface", "arcface", "faceid"],
            inputs=[
                io.MultiType.Input(
                    "analyser",
                    types=ANALYSERS,
                    tooltip="insightface's face analyser, from a loader such as IPAdapter InsightFace Loader or "
                    "InstantID Face Analysis.",
                ),
                io.Image.Input("images", tooltip="Pictures of the character. The largest face of each counts."),
            ],
            outputs=[
                STORY_FACE.Output(display_name="face", tooltip="An embedding of each picture's face, for Story Cast."),
                io.Image.Output(display_name="crops", tooltip="The faces upright, 224 x 224 pixels."),
                io.Float.Output(
                    display_name="norms",
                    is_output_list=True,
                    tooltip="The embeddings' lengths: the clearer a face, the longer.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, analyser: Any, images: torch.Tensor) -> io.NodeOutput:
        found = [largest_face(analyser, picture[..., :3], n, len(images)) for n, picture in enumerate(images, 1)]
        embeddings = torch.stack([embedding for embedding, _ in found])
        crops = torch.stack([aligned(picture[..., :3], points) for picture, (_, points) in zip(images, found)])
        norms = [embedding.norm().item() for embedding in embeddings]
        show_text(cls, "\n".join(f"Picture {n}: norm {norm:.1f}" for n, norm in enumerate(norms, 1)))
        return io.NodeOutput(embeddings, crops, norms)


def largest_face(analyser: Any, picture: torch.Tensor, number: int, of: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The embedding [512] and the five points [5, 2], x and y in pixels, of the largest face in `picture`
    [height, width, 3].

    A face that fills its picture is too large for detectors, so they get the picture with a border where they find
    nothing. Raises `ValueError` without a face, or for what is no analyser with a recognition model.
    """
    if not callable(getattr(analyser, "get", None)):
        raise ValueError(
            f"Story Face got {type(analyser).__name__} as `analyser`, which finds no faces: wire a loader of "
            "insightface, such as IPAdapter InsightFace Loader or InstantID Face Analysis."
        )
    for border in (0, max(picture.shape[:2]) // 2):
        padded = F.pad(picture, (0, 0, border, border, border, border))
        faces = analyser.get(as_bgr(padded))
        if faces:
            break
    else:
        raise ValueError(
            f"Story Face finds no face in picture {number} of {of}: take one that shows the face clearly and from the "
            "front, or leave it out."
        )
    face = max(faces, key=area)
    embedding, points = getattr(face, "embedding", None), getattr(face, "kps", None)
    if embedding is None or points is None or np.shape(embedding) != (FACE_CHANNELS,) or np.shape(points) != (5, 2):
        raise ValueError(
            f"Story Face's analyser gives no ArcFace embedding of {FACE_CHANNELS} numbers with five points: load one "
            "with a recognition model, such as insightface's buffalo_l or antelopev2."
        )
    return torch.as_tensor(embedding).float(), torch.as_tensor(points).float() - border


def as_bgr(picture: torch.Tensor) -> np.ndarray:
    """Bytes [height, width, 3], blue first, as insightface takes pictures."""
    return np.ascontiguousarray(picture.mul(255).round().clamp(0, 255).byte().cpu().numpy()[..., ::-1])


def area(face: Any) -> float:
    left, top, right, bottom = face.bbox[:4]
    return float((right - left) * (bottom - top))
