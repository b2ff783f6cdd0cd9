"""A face as ArcFace's networks take it (arXiv 1801.07698): its eyes, nose and mouth at fixed places."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 224
"""Pixels of a crop's side."""

TEMPLATE = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
"""Where ArcFace (arXiv 1801.07698) has eyes, nose and corners of the mouth: x and y in a crop of 112 pixels."""


def aligned(picture: Tensor, points: Tensor) -> Tensor:
    """The face of `picture` [height, width, 3] turned, moved and scaled so that its `points` [5, 2] come as near to
    ArcFace's template as they can (least squares; Umeyama, IEEE PAMI 13(4), 1991): [224, 224, 3], black outside.

    In the plane of complex numbers such a transform is z -> a z + b.
    """
    height, width, _ = picture.shape
    p = torch.view_as_complex(points.double().contiguous())
    q = torch.view_as_complex(torch.tensor(TEMPLATE, dtype=torch.float64)) * (SIDE / 112)
    a = ((p - p.mean()).conj() * (q - q.mean())).sum() / (p - p.mean()).abs().square().sum()
    b = q.mean() - a * p.mean()
    y, x = torch.meshgrid(torch.arange(SIDE).double(), torch.arange(SIDE).double(), indexing="ij")
    source = (torch.complex(x, y) - b) / a
    grid = torch.stack([(2 * source.real + 1) / width - 1, (2 * source.imag + 1) / height - 1], dim=-1)
    [crop] = F.grid_sample(picture.movedim(-1, 0)[None].double(), grid[None], align_corners=False)
    return crop.movedim(0, -1).float()
