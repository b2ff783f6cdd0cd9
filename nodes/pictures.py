import torch
from torch.nn.functional import interpolate, pad


def fitted(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures [n, h, w, channels] whole and undistorted on white ones of this size."""
    if images.shape[1:3] == (height, width):
        return images
    scale = min(height / images.shape[1], width / images.shape[2])
    size = [max(1, round(side * scale)) for side in images.shape[1:3]]
    scaled = interpolate(images.movedim(-1, 1), size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    sides = (left, width - size[1] - left, top, height - size[0] - top)
    return pad(scaled, sides, value=1.0).movedim(1, -1)


def one_size(batches: list[torch.Tensor]) -> torch.Tensor:
    """One batch of all pictures, RGB and as large as the first ones."""
    height, width = batches[0].shape[1:3]
    return torch.cat([fitted(batch[..., :3], height, width) for batch in batches])
