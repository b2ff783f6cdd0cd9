from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..subjects.faces import align_face
from .types import CATEGORY, STORY_FACE

FACE_ANALYSERS = [io.Custom("INSIGHTFACE"), io.Custom("FACEANALYSIS")]
"""What other packs call InsightFace's analyser."""


class OneStoryFace(io.ComfyNode):
    """The largest face of each picture, as another pack's analyser finds it; this one has none of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryFace",
            display_name="Story Face",
            category=CATEGORY,
            description="Give Story Cast the faces in a character's pictures, for FaceID and portrait adapters. The "
            "face analyser comes from another pack, such as ComfyUI_IPAdapter_plus or ComfyUI_InstantID.",
            search_aliases=["story", "faceid", "insightface", "arcface", "face embedding", "align face"],
            inputs=[
                io.MultiType.Input(
                    "face_analysis",
                    types=FACE_ANALYSERS,
                    tooltip="InsightFace's analyser, from a loader node of another pack. FaceID adapters were trained "
                    "with its model buffalo_l.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="One or more pictures of the character. Of several faces in one, the largest counts.",
                ),
            ],
            outputs=[
                STORY_FACE.Output(display_name="face", tooltip="The face of each picture, for Story Cast."),
                io.Image.Output(
                    display_name="crops",
                    tooltip="Each face alone, upright, 224 x 224: the pictures that FaceID-Plus and plus-face want.",
                ),
            ],
        )

    @classmethod
    def execute(cls, face_analysis: Any, images: torch.Tensor) -> io.NodeOutput:
        faces = [largest_face(face_analysis, image, number) for number, image in enumerate(images[..., :3].cpu(), 1)]
        embeddings = np.stack([face.embedding for face in faces])
        crops = [align_face(image, torch.as_tensor(face.kps)) for image, face in zip(images[..., :3].cpu(), faces)]
        return io.NodeOutput(torch.from_numpy(embeddings).float(), torch.stack(crops))


def largest_face(face_analysis: Any, image: torch.Tensor, number: int) -> Any:
    """InsightFace's result for a picture [height, width, 3], with `embedding` [512], `kps` [5, 2] and `bbox` [4]."""
    pixels = (image * 255).round().clamp(0, 255).byte().numpy()
    faces = face_analysis.get(np.ascontiguousarray(pixels[..., ::-1]))
    if not faces:
        raise ValueError(
            f"Story Face finds no face in picture {number}: take one with a larger face that looks at the camera, with "
            "some room around it."
        )
    return max(faces, key=lambda face: (face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1]))
