"""The U-Net and the text encoder, trained together on the world's latents."""

import json
import math
import os
import random
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..asset import unpack
from ..drawing.attributes import OTHER, VALUES, Attributes, draw, select
from ..drawing.captions import caption
from ..drawing.render import SIDE, render
from .autoencoder import AUTOENCODERS, Autoencoder, standardised
from .loop import Stage, channels_last, trained_weights
from .precision import autocast
from .text_encoder import LENGTH, TextEncoder
from .unet import UNet

VOCABULARY: dict[str, int] = {
    word: ids[0]
    for word, ids in json.loads(
        (Path(__file__).parents[1] / "drawing" / "vocabulary.json").read_text(encoding="utf-8")
    ).items()
}
"""CLIP's token of every word of the captions; each is one token."""
START, END = 49406, 49407
TOKENS = sorted({*VOCABULARY.values(), START, END})
"""CLIP's numbers of the tokens in use, in the order of the text encoder's rows."""
ROWS = {token: row for row, token in enumerate(TOKENS)}

DESCRIBED = (*VALUES, *OTHER, "name", "other_name")
"""The attributes that captions tell of."""

STEPS = 1000
UNSAID_SHARE = 0.1
"""Captions left empty, for classifier-free guidance."""
HALF_STEPS = 1000
HALF_SHARE = 5 / 9
"""The first steps, but no larger share, see the pictures at half size: a third of the time, and words are learned."""
SHARD = 1000
FIRST_SHARDS = 3
STEPS_PER_SHARD = 80
"""One more shard of pictures joins every so many steps."""
SPREAD_FROM = 0.65
"""From this share of the steps on, the captions' embeddings are spread; before, they are as the encoder gives them.

A painter that goes on from an asset has learned both and sees pictures of full size and spread captions all the time.
"""
SILENT_SHARE = 0.75
"""Captions whose padding is the empty caption's, so that their words alone say something."""
UNEVEN_SHARE = 0.5
"""Captions whose padding, and others whose words, have other sizes than the encoder gives them."""
FAINT_SHARE = 0.25
"""Captions of which some words in a row are next to nothing."""
FAINT_WORDS = 0.5
"""The longest such row, as a share of the caption."""


def signal() -> Tensor:
    """The share of the picture's variance in a noisy latent at each step: Stable Diffusion's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def tokens(text: str) -> list[int]:
    """The rows of a caption's 77 tokens, padded with END as Stable Diffusion 1.x does."""
    words = text.lower().replace(",", " , ").split()
    numbers = [START, *(VOCABULARY[word] for word in words)][: LENGTH - 1]
    numbers += [END] * (LENGTH - len(numbers))
    return [ROWS[number] for number in numbers]


def looks(attributes: Attributes, index: int) -> dict[str, int]:
    """What captions tell of one of the pictures."""
    return {name: int(attributes[name][index]) for name in DESCRIBED}


class Painter(nn.Module):
    """Everything that turns words and noise into latents."""

    def __init__(self):
        super().__init__()
        self.text = TextEncoder(len(TOKENS))
        self.unet = UNet()

    def forward(self, latents: Tensor, steps: Tensor, rows: Tensor, spread: random.Random | None = None) -> Tensor:
        return self.unet(latents, steps, self.text(rows) if spread is None else self.spread(rows, spread))

    def spread(self, rows: Tensor, rng: random.Random) -> Tensor:
        """Embeddings [batch, 77, 768] whose sizes vary and whose padding may say nothing; empty captions stay as is.

        Left alone, so small a painter reads captions from the padding, where the causal encoder sums them up, and what
        is done to a caption's words (weights, reweighting) changes nothing. What varies has nothing to do with what a
        picture shows: which words become faint is not which frame prompt the picture leaves out.
        """
        empty = torch.tensor([tokens("")], device=rows.device)
        *said, unsaid = self.text(torch.cat([rows, empty])).split(1)
        ends = (rows == ROWS[END]).int().argmax(1).tolist()
        return torch.cat([self.spread_one(x, end, unsaid, rng) for x, end in zip(said, ends, strict=True)])

    @staticmethod
    def spread_one(embedding: Tensor, end: int, unsaid: Tensor, rng: random.Random) -> Tensor:
        if end == 1:
            return embedding
        if rng.random() < SILENT_SHARE:
            embedding = torch.cat([embedding[:, :end], unsaid[:, end:]], 1)
        sizes = torch.ones(LENGTH)
        if rng.random() < UNEVEN_SHARE:
            sizes[end:] = math.exp(rng.uniform(math.log(0.03), math.log(4)))
        if rng.random() < UNEVEN_SHARE:
            sizes[1:end] = torch.tensor([math.exp(rng.uniform(math.log(0.5), math.log(2.5))) for _ in range(1, end)])
        if rng.random() < FAINT_SHARE:
            first, words = rng.randrange(1, end), rng.randint(1, max(1, round(FAINT_WORDS * (end - 1))))
            sizes[first : min(end, first + words)] = rng.uniform(0, 0.1)
        return embedding * sizes.to(embedding).view(1, -1, 1)


class PainterStage(Stage):
    """Stage 2."""

    name = "painter"
    rate = 4e-3
    average = 0.99
    picture_batch = 50

    def __init__(self, folder: Path, steps: int, batch: int, **options):
        super().__init__(folder, steps, batch, **options)
        self.signal = signal()
        self.pool: dict[tuple[int, int], tuple[Tensor, Attributes]] = {}

    def build(self) -> nn.Module:
        net = Painter()
        if self.start is not None:
            net.load_state_dict(net.state_dict() | known_words(net, *unpack(self.start)))
        return channels_last(net)

    def outside(self, name: str) -> bool:
        # The text encoder and the steps' embedding too: there Muon costs more time than it saves.
        return name.startswith(("text.", "unet.time_embed.", "unet.input_blocks.0.", "unet.out."))

    def shard(self, index: int, side: int) -> tuple[Tensor, Attributes]:
        """Latents [pictures, 4, side / 8, side / 8] of unit scale and their attributes; made once, then read."""
        if (index, side) not in self.pool:
            path = self.folder / "latents" / f"{index:04}.{side}.safetensors"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                save_file(self.make_shard(index, side), path.with_suffix(".partial"))
                os.replace(path.with_suffix(".partial"), path)
            found = load_file(path)
            self.pool[index, side] = found.pop("latents").float(), found
        return self.pool[index, side]

    @torch.inference_mode()
    def make_shard(self, index: int, side: int) -> dict[str, Tensor]:
        net = autoencoder(self.folder, self.device)
        attributes = draw(SHARD, torch.Generator().manual_seed(7_919 * (self.seed + 1) + index))
        latents = []
        for start in range(0, SHARD, self.picture_batch):
            part = select(attributes, torch.arange(start, start + self.picture_batch))
            pictures = render(part, side, self.device).contiguous(memory_format=torch.channels_last)
            with autocast(self.device):
                latents.append(net.encode(pictures).half().cpu())
        return {"latents": torch.cat(latents).contiguous(), **attributes}

    def side(self, step: int) -> int:
        half = self.start is None and step < min(HALF_STEPS, HALF_SHARE * self.steps)
        return SIDE // 2 if half else SIDE

    def spreading(self, step: int) -> random.Random | None:
        if self.start is None and step < SPREAD_FROM * self.steps:
            return None
        return random.Random(f"{self.seed} {step}")

    def batch_of(self, step: int) -> tuple[Tensor, Tensor]:
        """Latents [batch, 4, height, width] of a step's pictures, and their captions' tokens [batch, 77]."""
        rng = random.Random(1_000_003 * self.seed + step)
        shards = FIRST_SHARDS + step // STEPS_PER_SHARD
        latents, rows = [], []
        for _ in range(self.batch):
            pool, attributes = self.shard(rng.randrange(shards), self.side(step))
            picture = rng.randrange(SHARD)
            latents.append(pool[picture])
            text = "" if rng.random() < UNSAID_SHARE else caption(looks(attributes, picture), rng)
            rows.append(tokens(text))
        clean = torch.stack(latents).to(self.device).contiguous(memory_format=torch.channels_last)
        return clean, torch.tensor(rows, device=self.device)

    def loss(self, net: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        clean, rows = self.batch_of(step)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        steps = even_steps(self.batch, generator)
        share = self.signal[steps].to(self.device).view(-1, 1, 1, 1)
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        with autocast(self.device):
            found = net(noisy, steps.to(self.device), rows, self.spreading(step))
        return (weights_of(share) * (found.float() - noise).square()).mean()


def weights_of(share: Tensor) -> Tensor:
    """A step's weight in the loss: one over the root of its signal-to-noise ratio (debiased, arXiv 2310.08442).

    Captions decide most where there is most noise, and there plain errors of the noise are smallest.
    """
    return ((1 - share) / share).sqrt()


def even_steps(count: int, generator: torch.Generator) -> Tensor:
    """One random step from each of `count` equal ranges of all: a batch's loss depends less on which steps it has."""
    return ((torch.arange(count) + torch.rand(count, generator=generator)) * (STEPS / count)).long()


def known_words(net: Painter, weights: dict[str, Tensor], known: list[int]) -> dict[str, Tensor]:
    """An asset's weights of the painter; words that its text encoder doesn't know stay as they are in `net`."""
    found = {name: weight for name, weight in weights.items() if not name.startswith("vae.")}
    words = net.text.token_embedding.weight.detach().clone()
    words[[ROWS[token] for token in known]] = found["text.token_embedding.weight"]
    return found | {"text.token_embedding.weight": words}


def painter_of(folder: Path, device: str) -> Painter:
    """The painter as far as it is trained; nothing of it learns."""
    net = Painter()
    net.load_state_dict(trained_weights(folder, PainterStage.name))
    return channels_last(net.to(device)).eval().requires_grad_(False)


@cache
def autoencoder(folder: Path, device: str) -> Autoencoder:
    """The autoencoder with latents of unit scale, its decoder as far as it is trained."""
    net = standardised(folder)
    for name in AUTOENCODERS:
        if (folder / f"{name}.state.pt").is_file():
            net.load_state_dict(trained_weights(folder, name))
            break
    return channels_last(net.to(device)).eval()


@torch.inference_mode()
def sample(net: Painter, texts: list[str], seed: int = 0, steps: int = 25, scale: float = 4.0) -> Tensor:
    """Latents for captions by DDIM (arXiv 2010.02502) with classifier-free guidance, to look at while training."""
    device = next(net.parameters()).device
    rows = torch.tensor([tokens(text) for text in texts] + [tokens("")] * len(texts), device=device)
    context = net.text(rows)
    x = torch.randn(len(texts), 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(seed)).to(device)
    shares = signal().to(device)
    times = torch.linspace(STEPS - 1, 0, steps + 1).long().tolist()
    for now, then in zip(times[:-1], times[1:], strict=True):
        with autocast(device.type):
            both = net.unet(x.repeat(2, 1, 1, 1), torch.full((2 * len(texts),), now, device=device), context).float()
        said, unsaid = both.chunk(2)
        noise = unsaid + scale * (said - unsaid)
        clean = (x - (1 - shares[now]).sqrt() * noise) / shares[now].sqrt()
        x = shares[then].sqrt() * clean + (1 - shares[then]).sqrt() * noise
    return clean
