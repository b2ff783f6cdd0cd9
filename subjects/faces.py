"""A face as ArcFace's networks expect it (arXiv 1801.07698): turned, moved and scaled until eyes, nose and mouth are
at fixed points."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 112
POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Where a picture of SIDE pixels has the left eye, the right one, the tip of the nose and the corners of the mouth."""


def align_face(image: Tensor, points: Tensor, side: int = 2 * SIDE) -> Tensor:
    """The face with these five points (x, y) in a picture [height, width, 3], as a picture [side, side, 3], black where
    it leaves the other.

    It is the similarity transform w = a z + b, in complex numbers, with the least squares between points and POINTS.
    """
    z = torch.view_as_complex(points.double().contiguous())
    w = torch.view_as_complex(torch.tensor(POINTS, dtype=torch.float64) * side / SIDE)
    z_centred, w_centred = z - z.mean(), w - w.mean()
    a = (z_centred.conj() * w_centred).sum() / z_centred.abs().square().sum()
    b = w.mean() - a * z.mean()
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    source = torch.view_as_real((torch.complex(x, y) - b) / a)
    height, width = image.shape[:2]
    grid = 2 * source / (torch.tensor([width, height]) - 1) - 1
    picture = image.movedim(-1, 0)[None].double()
    return F.grid_sample(picture, grid[None], align_corners=True)[0].movedim(0, -1).to(image)
