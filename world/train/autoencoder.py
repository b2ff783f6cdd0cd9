"""An autoencoder in TAESD's layout, and its training on the world."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..drawing.attributes import draw
from ..drawing.render import render
from .loop import Stage, channels_last, trained_weights

CROP = 64


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    """A convolution that keeps the size of what passes through it and a ReLU (He et al. 2015)."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, **options)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Three convolutions beside a shortcut; an idle one has learned nothing yet, and takes no time."""

    def __init__(self, idle: bool = False):
        super().__init__()
        self.idle = idle
        self.conv = nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 64))
        with torch.no_grad():
            for parameter in self.conv[4].parameters():
                parameter.mul_(0.0 if idle else 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x if self.idle else self.conv(x) + x)


class Bound(nn.Module):
    """Keeps latents within 3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Autoencoder(nn.Module):
    """Pictures [batch, 3, 8h, 8w] from 0 to 1, and latents [batch, 4, h, w]; parameters are named as in TAESD.

    Most of the encoder's blocks at high resolution stay idle, and with `light` the decoder's too: three times as fast.
    """

    def __init__(self, light: bool = False):
        super().__init__()
        down = [
            layer
            for level in range(3)
            for layer in (conv(64, 64, stride=2, bias=False), Block(), *blocks(2, idle=level == 0))
        ]
        self.taesd_encoder = nn.Sequential(conv(3, 64), Block(idle=True), *down, conv(64, 4))
        up = [
            layer
            for level in range(3)
            for layer in (
                Block(),
                *blocks(2, idle=light and level == 2),
                nn.Upsample(scale_factor=2),
                conv(64, 64, bias=False),
            )
        ]
        self.taesd_decoder = nn.Sequential(Bound(), conv(4, 64), nn.ReLU(), *up, Block(light), conv(64, 3))
        with torch.no_grad():
            for end, size in ((self.taesd_encoder[-1], 0.7), (self.taesd_decoder[-1], 0.5)):
                cast(nn.Conv2d, end).weight.mul_(size)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.taesd_encoder(pictures)

    def decode(self, latents: Tensor) -> Tensor:
        return self.taesd_decoder(latents)


def blocks(count: int, idle: bool) -> list[Block]:
    return [Block(idle) for _ in range(count)]


def crops(generator: torch.Generator, count: int, device: str) -> Tensor:
    """Random parts [count, 3, 64, 64] of new pictures, two of each."""
    pictures = render(draw(count // 2, generator), device=device).repeat(2, 1, 1, 1)
    corners = torch.randint(0, pictures.shape[-1] - CROP + 1, (count, 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + CROP, x : x + CROP] for p, (y, x) in zip(pictures, corners, strict=True)])


@torch.no_grad()
def standardise(net: Autoencoder) -> Autoencoder:
    """Give latents of the world's pictures mean 0 and deviation 1 in each channel, as diffusion wants them.

    The scale and shift go into the encoder's last layer and the decoder's first. Between these are the decoder's bound,
    and at the edges padding, so it has a little to learn again.
    """
    latents = net.encode(render(draw(64, torch.Generator().manual_seed(0))))
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last, first = cast(nn.Conv2d, net.taesd_encoder[-1]), cast(nn.Conv2d, net.taesd_decoder[1])
    assert last.bias is not None and first.bias is not None
    last.weight.div_(deviation.view(-1, 1, 1, 1))
    last.bias.sub_(mean).div_(deviation)
    first.bias.add_((first.weight.sum((2, 3)) * mean).sum(1))
    first.weight.mul_(deviation.view(1, -1, 1, 1))
    return net


def standardised(folder: Path) -> Autoencoder:
    """Stage 1's autoencoder with latents of unit scale."""
    net = Autoencoder()
    net.load_state_dict(trained_weights(folder, AutoencoderStage.name))
    return standardise(net)


def loss_of(net: Autoencoder, pictures: Tensor, noise: Tensor) -> Tensor:
    """Absolute error of the pictures and of their edges, with a light hand on the latents' size."""
    latents = net.encode(pictures)
    drawn = net.decode(latents + noise).float()
    edges = sum((drawn.diff(dim=axis) - pictures.diff(dim=axis)).abs().mean() for axis in (-1, -2))
    squares = (drawn - pictures).square().mean()
    return (drawn - pictures).abs().mean() + edges + 2 * squares + 1e-3 * latents.float().square().mean()


class AutoencoderStage(Stage):
    """Stage 1: encoder and decoder together, most of the costly blocks idle."""

    name = "autoencoder"
    rate = 5e-3
    noise = 0.03
    """The deviation of the noise on the latents."""
    average = 0.99

    def outside(self, name: str) -> bool:
        return name.startswith(("taesd_encoder.0.", "taesd_encoder.14.", "taesd_decoder.1.", "taesd_decoder.19."))

    def build(self) -> nn.Module:
        return channels_last(Autoencoder(light=True))

    def loss(self, net: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        pictures = crops(generator, self.batch, self.device).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(self.batch, 4, CROP // 8, CROP // 8, generator=generator).to(self.device)
        with torch.autocast(self.device, torch.bfloat16):
            return loss_of(cast(Autoencoder, net), pictures, self.noise * noise)


class DecoderStage(AutoencoderStage):
    """Stage 3: the decoder learns on with all its blocks, while the encoder, and so every latent, stays as it is."""

    name = "decoder"
    rate = 3e-3
    noise = 0.06

    def build(self) -> nn.Module:
        net = standardised(self.folder)
        net.taesd_encoder.requires_grad_(False)
        return channels_last(net)
