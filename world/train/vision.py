"""A small picture encoder in CLIP ViT-L's layout, trained to read the characters that pictures show."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..asset import VISION_EMBEDDING, VISION_WIDTH
from ..drawing.attributes import IDENTITY, Attributes, draw
from ..drawing.render import SIDE, rendered
from .loop import Stage
from .precision import autocast
from .text_encoder import Layer

PATCH, PICTURE = 14, 224
"""CLIP ViT-L's: pixels of a patch's side and of a picture's."""
HIDDEN = 4 * VISION_WIDTH
LAYERS = 4
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SMALLEST = 0.8
"""The smallest part of a picture's side that the encoder learns from."""


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(VISION_WIDTH) * 0.5)
        self.patch_embedding = nn.Conv2d(3, VISION_WIDTH, PATCH, PATCH, bias=False)
        self.position_embedding = nn.Embedding((PICTURE // PATCH) ** 2 + 1, VISION_WIDTH)
        nn.init.normal_(self.position_embedding.weight, std=0.3)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.patch_embedding(pictures).flatten(2).mT
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([first, x], 1) + self.position_embedding.weight


class Vision(nn.Module):
    """Pictures [batch, 3, 224, 224] as CLIP takes them to embeddings [batch, 128]; parameters are named as in CLIP.

    An eighth of ViT-L's channels and four of its layers: eight copies of the channels have the same norms, so that
    `asset.vision` can make a ViT-L of it.
    """

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.pre_layrnorm = nn.LayerNorm(VISION_WIDTH)
        self.layers = nn.ModuleList(Layer(VISION_WIDTH, HIDDEN, causal=False) for _ in range(LAYERS))
        self.post_layernorm = nn.LayerNorm(VISION_WIDTH)
        self.visual_projection = nn.Linear(VISION_WIDTH, VISION_EMBEDDING, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(pictures))
        for layer in self.layers:
            x = layer(x)
        return self.visual_projection(self.post_layernorm(x[:, 0]))


def clip_pictures(pictures: Tensor) -> Tensor:
    """Pictures [batch, 3, side, side] from 0 to 1 as CLIP takes them."""
    pictures = F.interpolate(pictures, (PICTURE, PICTURE), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(each, device=pictures.device).view(3, 1, 1) for each in (MEAN, STD))
    return (pictures - mean) / std


class Reader(nn.Module):
    """The encoder, and what it says of a character's attributes."""

    def __init__(self):
        super().__init__()
        self.vision = Vision()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(VISION_EMBEDDING, len(values)) for name, values in IDENTITY.items()}
        )

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        seen = self.vision(clip_pictures(pictures))
        return {name: head(seen) for name, head in self.heads.items()}


class VisionStage(Stage):
    """Stage 5: the encoder learns who stands in a picture; what it is read by is thrown away."""

    name = "vision"
    rate = 4e-3
    average = 0.99
    bank: tuple[int, Tensor, Attributes] | None = None
    bank_steps = 16

    def build(self) -> nn.Module:
        return Reader()

    def outside(self, name: str) -> bool:
        return not name.startswith("vision.layers.")

    def pictures(self, step: int) -> tuple[Tensor, Attributes]:
        """The pictures of characters alone that a step's are taken from, and who they show."""
        number = step // self.bank_steps
        if self.bank is None or self.bank[0] != number:
            count = self.batch * self.bank_steps
            attributes = alone(count, torch.Generator().manual_seed(7_901 * (self.seed + 1) + number))
            self.bank = number, torch.cat([*rendered(attributes, device=self.device)]), attributes
        return self.bank[1:]

    def loss(self, net: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        pictures, attributes = self.pictures(step)
        index = torch.randint(len(pictures), (self.batch,), generator=generator)
        with autocast(self.device):
            found = net(disturbed_parts(pictures[index], generator))
        return torch.stack(
            [
                F.cross_entropy(logits.float(), attributes[name][index].to(self.device), label_smoothing=0.02)
                for name, logits in found.items()
            ]
        ).sum()


def alone(count: int, generator: torch.Generator) -> Attributes:
    """Attributes of random pictures with one character each."""
    attributes = draw(count, generator)
    return {**attributes, "company": torch.zeros_like(attributes["company"])}


def disturbed_parts(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures cut on one side and moved alike, in part softened, with a little noise: as a checkpoint draws them."""
    side = round(SIDE * (SMALLEST + (1 - SMALLEST) * torch.rand((), generator=generator).item()))
    top, left = (int(torch.randint(SIDE - side + 1, (), generator=generator)) for _ in range(2))
    pictures = pictures[..., top : top + side, left : left + side]
    if torch.rand((), generator=generator) < 0.5:
        pictures = F.interpolate(
            F.interpolate(pictures, scale_factor=0.5, mode="area"), size=(side, side), mode="bilinear"
        )
    seed = int(torch.randint(2**62, (), generator=generator))
    beside = torch.Generator(pictures.device).manual_seed(seed)
    return pictures + 0.02 * torch.randn(pictures.shape, generator=beside, device=pictures.device)
