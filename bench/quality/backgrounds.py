"""A frame's character without its background, and the background without the character, by a mask of the character."""

from pathlib import Path

import numpy as np
from PIL import Image

GREY = 130
"""What a pixel that is partly background fades to, as in the pictures of the remover that 1Prompt1Story's authors used
(CarveKit)."""
FAINT = 0.02
"""Below this mask value a pixel is background, and above 1 - this it is the character."""


def read_frame(path: str | Path) -> np.ndarray:
    """A picture as uint8 [height, width, 3]."""
    return np.asarray(Image.open(path).convert("RGB"))


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """A mask as float64 [height, width] from 0 to 1; `size` is (width, height).

    A picture with transparency is the character cut out, so its alpha is the mask; else white is the character.
    """
    picture: Image.Image = Image.open(path)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA").getchannel("A")
    picture = picture.convert("L")
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(picture, np.float64) / 255


def without_background(frame: np.ndarray, mask: np.ndarray, number: int) -> np.ndarray | None:
    """The character on noise, uint8 [height, width, 3]; None where the mask shows none.

    As 1Prompt1Story's authors measure CLIP-I and DreamSim (their issues 4, 12 and 15): the character fades to `GREY`,
    and what is background alone becomes uniform noise. The noise is the same for frames of the same `number` in their
    story, so that ways and runs compare, and another one for another number.
    """
    background = mask < FAINT
    if background.all():
        return None
    found = blend(frame, mask, np.full(3, GREY))
    noise = np.random.default_rng(number).integers(0, 256, frame.shape, np.uint8)
    found[background] = noise[background]
    return found


def without_character(frame: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """The background with its own mean colour where the character is; None where the mask leaves no background.

    Noise would stand in every picture like a thing of its own, and its shape would be the character's.
    """
    if (mask > 1 - FAINT).all():
        return None
    return blend(frame, 1 - mask, np.average(frame, (0, 1), np.broadcast_to(1 - mask[..., None], frame.shape)))


def blend(frame: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """`frame` where the mask is 1, `colour` [3] where it is 0."""
    share = mask[..., None]
    return (frame * share + colour * (1 - share)).round().astype(np.uint8)
