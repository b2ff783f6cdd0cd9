"""A classifier that reads the Story World's attributes off a picture, trained on rendered pictures alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...world.drawing.attributes import OTHER, VALUES, Attributes, draw
from ...world.drawing.render import SIDE, rendered
from ...world.train.loop import Stage, channels_last
from ...world.train.precision import autocast

HELD_OUT_SEED = 10**6
SHIFT = 4
FEATURES = 256
READ = {**VALUES, **OTHER}
"""What it reads: the character, or the left one of two; the one to the right; the frame."""


class Probe(nn.Module):
    """Pictures [batch, 3, 128, 128] from 0 to 1 to features [batch, 256], and to logits for every attribute."""

    def __init__(self):
        super().__init__()
        widths = (3, 32, 64, 96, 128, 160)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            size = 5 if i == 0 else 3
            layers += [nn.Conv2d(inputs, outputs, size, 2, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(160 * (SIDE // 32) ** 2, FEATURES), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values)) for name, values in READ.items()})

    def forward(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.body(pictures * 2 - 1)
        return features, {name: head(features) for name, head in self.heads.items()}


class ProbeStage(Stage):
    """Its training: rendered pictures, shifted by a few pixels, in part softened, with a little noise and contrast."""

    name = "probe"
    rate = 5e-3
    average = 0.99
    pictures = 20_000
    pool: tuple[Tensor, Attributes] | None = None

    def __init__(self, folder: Path, steps: int = 2500, batch: int = 64, **options):
        super().__init__(folder, steps, batch, **options)

    def build(self) -> nn.Module:
        return channels_last(Probe())

    def loss(self, net: nn.Module, step: int) -> Tensor:
        if self.pool is None:
            self.pool = pictures_and_attributes(self.pictures, self.seed, self.device)
        pictures, attributes = self.pool
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        index = torch.randint(len(pictures), (self.batch,), generator=generator)
        batch = distort(pictures[index].to(self.device).float() / 255, generator)
        with autocast(self.device):
            _, logits = net(batch.contiguous(memory_format=torch.channels_last))
        losses = [
            F.cross_entropy(found.float(), attributes[name][index].to(self.device), label_smoothing=0.02)
            for name, found in logits.items()
        ]
        return torch.stack(losses).sum()


def distort(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """What a trained autoencoder and sampler do to pictures, roughly: shifts, softness, noise, contrast."""
    across, down = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    pictures = F.pad(pictures, (SHIFT,) * 4, mode="replicate")[
        ..., SHIFT + down : SHIFT + down + SIDE, SHIFT + across : SHIFT + across + SIDE
    ]
    if torch.rand((), generator=generator) < 0.5:
        pictures = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    noise = torch.randn(pictures.shape, generator=generator).to(pictures)
    contrast = 1 + 0.1 * torch.randn(len(pictures), 1, 1, 1, generator=generator).to(pictures)
    return ((pictures - 0.5) * contrast + 0.5 + 0.03 * noise).clamp(0, 1)


def pictures_and_attributes(count: int, seed: int, device: str = "cpu") -> tuple[Tensor, Attributes]:
    """Rendered pictures as uint8 [count, 3, 128, 128] on the CPU, and what they show."""
    attributes = draw(count, torch.Generator().manual_seed(seed))
    return torch.cat([(part * 255).round().byte().cpu() for part in rendered(attributes, device=device)]), attributes


def trained(folder: Path, device: str = "cpu") -> Probe:
    """The probe, trained first if need be."""
    stage = ProbeStage(folder, device=device)
    stage.train()
    net = cast(Probe, stage.build())
    net.load_state_dict(stage.trained())
    return net.to(device).eval()


@torch.inference_mode()
def read(net: Probe, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Features [pictures, 256] and probabilities [pictures, values] of every attribute, from pictures from 0 to 1."""
    device = next(net.parameters()).device
    features: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in READ}
    for part in pictures.split(200):
        some, logits = net(part.to(device))
        features.append(some.cpu())
        for name, values in logits.items():
            found[name].append(values.softmax(-1).cpu())
    return torch.cat(features), {name: torch.cat(parts) for name, parts in found.items()}


def held_out(net: Probe, count: int, device: str = "cpu") -> tuple[dict[str, float], Tensor]:
    """The accuracy of every attribute on `count` pictures that training never saw, and their features."""
    pictures, attributes = pictures_and_attributes(count, HELD_OUT_SEED, device)
    features, found = read(net, pictures.float() / 255)
    return dict(accuracies(found, attributes)), features


def accuracies(found: dict[str, Tensor], attributes: Attributes) -> Iterator[tuple[str, float]]:
    for name, probabilities in found.items():
        yield name, (probabilities.argmax(-1) == attributes[name]).float().mean().item()
