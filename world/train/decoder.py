"""The decoder's own training, on latents of pictures and then on those that the painter gives."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..drawing.attributes import draw
from ..drawing.captions import whole_caption
from ..drawing.render import SIDE, render
from .autoencoder import (
    CROP,
    Autoencoder,
    AutoencoderStage,
    disturbed,
    loss_of,
    part_corners,
    standardised,
)
from .loop import channels_last, trained_weights
from .painter import even_steps, looks, painter_of, signal, tokens
from .precision import autocast

CELLS = CROP // 8


class DecoderStage(AutoencoderStage):
    """The decoder learns on with all its blocks, while the encoder, and so every latent, stays as it is."""

    name = "decoder"
    rate = 2e-3

    def build(self) -> nn.Module:
        net = standardised(self.folder)
        net.taesd_encoder.requires_grad_(False)
        return channels_last(net)


class Guessed(NamedTuple):
    """Pictures [count, 3, side, side], and latents [count, 4, side / 8, side / 8] as the painter guesses them."""

    pictures: Tensor
    latents: Tensor


class MendingStage(DecoderStage):
    """The decoder learns to draw what is meant from latents as the painter gives them, in half of each batch.

    Pictures' latents are noised to some step and guessed from there in one go, with all of the caption. What the
    painter can't tell is blurred or half of one thing and half of another; the picture shows what it should be.
    """

    name = "mending"
    rate = 1e-3
    latest = 0.6
    """Guesses start from steps up to this share of all."""
    guessed: tuple[int, Guessed] | None = None

    def build(self) -> nn.Module:
        net = cast(Autoencoder, super().build())
        net.load_state_dict(trained_weights(self.folder, DecoderStage.name))
        self.painter = painter_of(self.folder, self.device)
        self.encoder = channels_last(standardised(self.folder).to(self.device)).eval()
        return net

    def guesses(self, step: int) -> Guessed:
        number = step // self.bank_steps
        if self.guessed is None or self.guessed[0] != number:
            self.guessed = number, self.guess(torch.Generator().manual_seed(7_883 * (self.seed + 1) + number))
        return self.guessed[1]

    @torch.no_grad()
    def guess(self, generator: torch.Generator) -> Guessed:
        """New pictures with the painter's guesses of their latents."""
        attributes = draw(self.bank_size, generator)
        pictures = render(attributes, device=self.device).clone()
        rows = [tokens(whole_caption(looks(attributes, index))) for index in range(self.bank_size)]
        steps = (even_steps(self.bank_size, generator) * self.latest).long()
        share = signal()[steps].to(self.device).view(-1, 1, 1, 1)
        with autocast(self.device):
            clean = self.encoder.encode(pictures.contiguous(memory_format=torch.channels_last)).float()
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
            found = self.painter(noisy, steps.to(self.device), torch.tensor(rows, device=self.device)).float()
        return Guessed(pictures, (noisy - (1 - share).sqrt() * found) / share.sqrt())

    def loss(self, net: nn.Module, step: int) -> Tensor:
        assert isinstance(net, Autoencoder)
        plain = super().loss(net, step)
        generator = torch.Generator().manual_seed(1_000_033 * self.seed + step)
        pictures, latents = guessed_crops(self.guesses(step), self.batch, generator)
        with autocast(self.device):
            drawn = net.decode(disturbed(latents, self.noise / 2, generator))
        return (plain + loss_of(drawn, pictures)) / 2


def guessed_crops(guessed: Guessed, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random parts of pictures [count, 3, 64, 64] and of their latents [count, 4, 8, 8]."""
    index = torch.randint(len(guessed.pictures), (count,), generator=generator).tolist()
    corners = part_corners(count, SIDE // 8 - CELLS, generator)
    pictures, latents = [], []
    for i, (y, x) in zip(index, corners, strict=True):
        pictures.append(guessed.pictures[i, :, 8 * y : 8 * y + CROP, 8 * x : 8 * x + CROP])
        latents.append(guessed.latents[i, :, y : y + CELLS, x : x + CELLS])
    return torch.stack(pictures), torch.stack(latents).contiguous(memory_format=torch.channels_last)
