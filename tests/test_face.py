"""A character's face through another pack's analyser, which is whatever object comes by wire."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from graphs import random
from onestory.nodes.face import OneStoryFace
from onestory.subjects.faces import SIDE, TEMPLATE, aligned

POINTS = np.array(TEMPLATE, dtype=np.float64)


def face(points, size=1.0, number=1, channels=512):
    """insightface's face, as far as it is read."""
    box = np.array([0, 0, 10 * size, 10 * size])
    return SimpleNamespace(bbox=box, kps=points.astype(np.float32), embedding=np.full(channels, number, np.float32))


class Analyser:
    """Finds these faces in every picture of at least so many pixels a side, and keeps the pictures."""

    def __init__(self, *faces, least=0):
        self.faces, self.least, self.seen = faces, least, []

    def get(self, picture):
        self.seen.append(picture)
        return list(self.faces) if min(picture.shape[:2]) >= self.least else []


def read(analyser, images):
    return OneStoryFace.execute(analyser, images).result


def test_the_largest_face_of_each_picture_is_given_in_its_picture_order():
    analyser = Analyser(face(POINTS, 2.0, 1), face(POINTS + 3, 3.0, 2), face(POINTS, 1.0, 3))
    embeddings, crops, norms = read(analyser, random([2, 120, 130, 3]))
    assert embeddings.shape == (2, 512) and (embeddings == 2).all(), "as ArcFace gave it, not normalised"
    assert crops.shape == (2, SIDE, SIDE, 3) and norms == pytest.approx([2 * 512**0.5] * 2)
    [first, second] = analyser.seen
    assert first.dtype == np.uint8 and first.shape == (120, 130, 3) and not np.array_equal(first, second)


def test_the_analyser_gets_bytes_with_blue_first():
    picture = torch.zeros(1, 8, 8, 3)
    picture[..., 0], picture[..., 1] = 1.0, 0.5
    analyser = Analyser(face(POINTS))
    read(analyser, picture)
    assert analyser.seen[0][0, 0].tolist() == [0, 128, 255] and analyser.seen[0].flags.c_contiguous


def test_a_face_that_fills_its_picture_is_found_with_a_border_around_it():
    picture = random([1, 60, 80, 3])
    analyser = Analyser(face(POINTS + 40), least=100)
    _, crops, _ = read(analyser, picture)
    assert [seen.shape[:2] for seen in analyser.seen] == [(60, 80), (140, 160)]
    want = aligned(picture[0], torch.tensor(POINTS))
    assert (crops[0] - want).abs().max() < 1e-4, "the picture itself; float32 has its points to 1e-5 of a pixel"


@pytest.mark.parametrize(("turn", "scale"), [(0.0, 1.0), (0.4, 0.7), (-2.5, 1.9)])
def test_a_face_is_turned_moved_and_scaled_to_arcfaces_template(turn, scale):
    """A picture that is linear in x and y reads at every place what that place is: the crop shows where it looks."""
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = np.array([150.0, 140.0])
    points = (POINTS - 56) @ rotation.T + centre
    y, x = torch.meshgrid(torch.arange(280.0), torch.arange(300.0), indexing="ij")
    crop = aligned(torch.stack([x, y, torch.ones_like(x)], dim=-1), torch.tensor(points))
    v, u = np.mgrid[0:SIDE, 0:SIDE]
    want = (np.stack([u, v], axis=-1) / 2 - 56) @ rotation.T + centre
    seen = crop[..., 2].numpy() > 0.999
    assert seen.mean() > 0.4 and (crop[..., 2].numpy()[~seen] < 1).all()
    assert np.abs(crop.numpy()[..., :2] - want)[seen].max() < 1e-3, "thousandths of a pixel: float32 at 300"


def test_points_that_fit_no_turn_come_as_near_as_they_can():
    """Against least squares over all transforms [[a, -b, c], [b, a, d]], by numpy's solver."""
    points = POINTS + np.random.default_rng(1).normal(0, 4, POINTS.shape)
    rows = [row for x, y in points for row in ([x, -y, 1, 0], [y, x, 0, 1])]
    a, b, c, d = np.linalg.lstsq(np.array(rows), 2 * POINTS.reshape(-1), rcond=None)[0]
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(120.0), indexing="ij")
    crop = aligned(torch.stack([x, y, torch.ones_like(x)], dim=-1), torch.tensor(points)).numpy()
    inner = crop[..., 2] > 0.999
    forth = crop[..., :2] @ np.array([[a, -b], [b, a]]).T + [c, d]
    v, u = np.mgrid[0:SIDE, 0:SIDE]
    assert np.abs(forth - np.stack([u, v], axis=-1))[inner].max() < 1e-3


@pytest.mark.parametrize(
    ("analyser", "said"),
    [
        ("buffalo", "got str as `analyser`, which finds no faces: wire a loader of insightface"),
        (Analyser(), "finds no face in picture 1 of 2: take one that shows the face clearly"),
        (Analyser(face(POINTS, channels=128)), "gives no ArcFace embedding of 512 numbers with five points"),
        (Analyser(SimpleNamespace(bbox=[0, 0, 1, 1], kps=POINTS, embedding=None)), "load one with a recognition model"),
    ],
)
def test_what_gives_no_face_is_a_sentence(analyser, said):
    with pytest.raises(ValueError, match=said):
        read(analyser, random([2, 32, 32, 3]))
