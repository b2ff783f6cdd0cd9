"""An autoencoder in TAESD's layout, and its training on the world."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..drawing.attributes import draw
from ..drawing.render import SIDE, render
from .loop import Stage, channels_last, trained_weights
from .precision import autocast

CROP = 64
CROPS = 4
"""Crops that are taken from a picture: drawing it takes as long as learning from it."""
AUTOENCODERS = "mending", "decoder"
"""The stages after the first that train the decoder, the last one first."""


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


def crops(pictures: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random parts [count, 3, 64, 64] of pictures."""
    index = torch.randint(len(pictures), (count,), generator=generator).tolist()
    corners = part_corners(count, SIDE - CROP, generator)
    parts = [pictures[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, corners, strict=True)]
    return torch.stack(parts).contiguous(memory_format=torch.channels_last)


def part_corners(count: int, last: int, generator: torch.Generator) -> list[list[int]]:
    """Where parts begin, down and across: 0 to `last`, both of these often, so that borders are seen as much."""
    places = torch.rand(count, 2, generator=generator) * 1.75 * (last + 1) - 0.375 * (last + 1)
    return places.floor().long().clamp(0, last).tolist()


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


def loss_of(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Absolute error of pictures and of their edges, and their squared error."""
    error = drawn.float() - pictures
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (-1, -2))
    return error.abs().mean() + edges + 2 * error.square().mean()


def disturbed(latents: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Latents with noise of up to `most` of each channel's deviation, another share in each: neighbours look alike."""
    shares = most * torch.rand(len(latents), 1, 1, 1, generator=generator)
    noise = shares * torch.randn(latents.shape, generator=generator)
    return latents + noise.to(latents) * latents.detach().std((0, 2, 3), keepdim=True)


class AutoencoderStage(Stage):
    """Stage 1: encoder and decoder together, most of the costly blocks idle."""

    name = "autoencoder"
    rate = 3e-3
    noise = 0.25
    """The most noise on the latents, as a share of their deviation."""
    average = 0.995
    bank: tuple[int, Tensor] | None = None
    bank_steps = 8

    @property
    def bank_size(self) -> int:
        """Pictures that the crops of `bank_steps` steps are taken from."""
        return -(-self.batch * self.bank_steps // CROPS)

    def outside(self, name: str) -> bool:
        return name.startswith(("taesd_encoder.0.", "taesd_encoder.14.", "taesd_decoder.1.", "taesd_decoder.19."))

    def build(self) -> nn.Module:
        net = Autoencoder(light=True)
        weights = self.shipped("vae.")
        if weights:
            net.load_state_dict(weights)
            forget_idle(net)
        return channels_last(net)

    def pictures(self, step: int) -> Tensor:
        """The pictures that a step's crops are from."""
        number = step // self.bank_steps
        if self.bank is None or self.bank[0] != number:
            generator = torch.Generator().manual_seed(7_877 * (self.seed + 1) + number)
            self.bank = number, render(draw(self.bank_size, generator), device=self.device).clone()
        return self.bank[1]

    def loss(self, net: nn.Module, step: int) -> Tensor:
        assert isinstance(net, Autoencoder)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        pictures = crops(self.pictures(step), self.batch, generator)
        with autocast(self.device):
            latents = net.encode(pictures).float()
            drawn = net.decode(disturbed(latents, self.noise, generator))
        return loss_of(drawn, pictures) + 1e-3 * latents.square().mean()


def forget_idle(net: Autoencoder) -> None:
    """Idle blocks start from nothing learned, whatever they did in the weights that were loaded."""
    for block in net.modules():
        if isinstance(block, Block) and block.idle:
            for parameter in block.conv[4].parameters():
                nn.init.zeros_(parameter)
