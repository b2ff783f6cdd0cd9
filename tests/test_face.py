"""Story Face with a stand-in for InsightFace's analyser."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from graphs import random
from onestory.nodes.face import OneStoryFace
from onestory.subjects.faces import POINTS, align_face


class Analyser:
    """It answers with a small and a large face in each picture, and with none in a black one."""

    def __init__(self, points):
        self.points = points
        self.seen = []

    def get(self, picture):
        self.seen.append(picture)
        if not picture.any():
            return []
        embeddings = np.random.default_rng(int(picture.sum())).normal(size=(2, 512)).astype(np.float32)
        boxes = [0, 0, 9, 9], [5, 5, 60, 60]
        return [
            SimpleNamespace(bbox=np.array(box), kps=self.points, embedding=embedding)
            for box, embedding in zip(boxes, embeddings)
        ]


def test_the_largest_face_of_each_picture_is_taken_with_its_length():
    images = random([2, 80, 100, 3])
    analyser = Analyser(np.array(POINTS, np.float32) / 2)
    face, crops = OneStoryFace.execute(analyser, images).result
    blue_first = (images[0] * 255).round().byte().numpy()[..., ::-1]
    assert np.array_equal(analyser.seen[0], blue_first) and analyser.seen[0].dtype == np.uint8
    want = [analyser.get(picture)[1].embedding for picture in analyser.seen[:2]]
    assert np.array_equal(face.numpy(), np.stack(want))
    assert crops.shape == (2, 224, 224, 3)


def test_a_turned_and_scaled_face_has_its_points_in_place():
    """In a picture whose colours are coordinates, a point of the crop tells where it came from."""
    height, width = 90, 120
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([x, y, torch.zeros_like(x)], -1).float()
    turn, move = np.exp(0.4j) * 0.55, 42 + 6j
    points = np.array(POINTS) @ [1, 1j] * turn + move
    crop = align_face(image, torch.tensor(np.stack([points.real, points.imag], 1)))
    for u, v in np.round(np.array(POINTS) * 2).astype(int):
        source = complex(u, v) / 2 * turn + move
        assert abs(complex(*crop[v, u, :2]) - source) < 1e-3
    assert not align_face(image + 1, torch.tensor(POINTS) + 1000).any(), "black outside of the picture"


def test_a_picture_without_a_face_gets_a_sentence():
    images = random([2, 80, 100, 3])
    images[1] = 0
    with pytest.raises(ValueError, match="Story Face finds no face in picture 2: take one with a larger face"):
        OneStoryFace.execute(Analyser(np.array(POINTS)), images)
