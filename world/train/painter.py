"""The U-Net and the text encoder, trained together on the world's latents."""

import json
import math
import os
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..asset import unpack
from ..drawing.attributes import OTHER, VALUES, Attributes, draw
from ..drawing.captions import caption
from ..drawing.render import SIDE, rendered
from .autoencoder import AUTOENCODERS, Autoencoder, standardised
from .loop import Stage, channels_last, sent, trained_weights
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
PICTURES_PER_SHARD = 5000
"""One more shard of pictures joins whenever training has seen so many."""
WORKERS, AHEAD = 4, 4
"""The processes that make steps' data ahead of a GPU, and the steps that each is ahead."""
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

    def forward(self, latents: Tensor, steps: Tensor, rows: Tensor, spread: "Spread | None" = None) -> Tensor:
        return self.unet(latents, steps, self.text(rows) if spread is None else self.spread(rows, spread))

    def spread(self, rows: Tensor, spread: "Spread") -> Tensor:
        """Embeddings [batch, 77, 768] whose sizes vary and whose padding may say nothing; empty captions stay as is."""
        empty = torch.tensor([tokens("")], device=rows.device)
        said, unsaid = self.text(torch.cat([rows, empty])).split([len(rows), 1])
        return torch.where(spread.silent[..., None], unsaid, said) * spread.sizes[..., None]


class Spread(NamedTuple):
    """What is done to the embeddings of captions in training, for each of a caption's 77 tokens.

    Left alone, so small a painter reads captions from the padding, where the causal encoder sums them up, and what
    is done to a caption's words (weights, reweighting) changes nothing. What varies has nothing to do with what a
    picture shows: which words become faint is not which frame prompt the picture leaves out.
    """

    sizes: Tensor
    """How large each token becomes [batch, 77]."""
    silent: Tensor
    """Which tokens become those of the empty caption [batch, 77]."""

    @classmethod
    def of(cls, rows: Tensor, rng: random.Random) -> "Spread":
        """A random one for captions [batch, 77]; nothing happens to empty ones."""
        sizes, silent = torch.ones(rows.shape), torch.zeros(rows.shape, dtype=torch.bool)
        for index, end in enumerate((rows == ROWS[END]).int().argmax(1).tolist()):
            if end > 1:
                silent[index, end:] = rng.random() < SILENT_SHARE
                spread_sizes(sizes[index], end, rng)
        return cls(sizes, silent)


def spread_sizes(sizes: Tensor, end: int, rng: random.Random) -> None:
    """Change the sizes [77] of a caption's tokens; its padding begins at `end`."""
    if rng.random() < UNEVEN_SHARE:
        sizes[end:] = math.exp(rng.uniform(math.log(0.03), math.log(4)))
    if rng.random() < UNEVEN_SHARE:
        sizes[1:end] = torch.tensor([math.exp(rng.uniform(math.log(0.5), math.log(2.5))) for _ in range(1, end)])
    if rng.random() < FAINT_SHARE:
        first, words = rng.randrange(1, end), rng.randint(1, max(1, round(FAINT_WORDS * (end - 1))))
        sizes[first : min(end, first + words)] = rng.uniform(0, 0.1)


class Lesson(NamedTuple):
    """Which pictures a step sees, as shard and place in it [batch, 2], and what is said of them."""

    pictures: Tensor
    rows: Tensor
    """Their captions' tokens [batch, 77]."""
    spread: Spread


class Lessons(Dataset[Lesson]):
    """Every step's, by its number."""

    def __init__(self, batch: int, seed: int):
        self.batch = batch
        self.seed = seed
        self.attributes: dict[int, Attributes] = {}

    def __getitem__(self, step: int) -> Lesson:
        rng = random.Random(1_000_003 * self.seed + step)
        shards = FIRST_SHARDS + step * self.batch // PICTURES_PER_SHARD
        chosen, rows = [], []
        for _ in range(self.batch):
            shard, place = rng.randrange(shards), rng.randrange(SHARD)
            text = "" if rng.random() < UNSAID_SHARE else caption(looks(self.shown(shard), place), rng)
            chosen.append((shard, place))
            rows.append(tokens(text))
        told = torch.tensor(rows)
        return Lesson(torch.tensor(chosen), told, Spread.of(told, random.Random(f"{self.seed} {step}")))

    def shown(self, shard: int) -> Attributes:
        """What a shard's pictures show."""
        if shard not in self.attributes:
            generator = torch.Generator().manual_seed(7_919 * (self.seed + 1) + shard)
            self.attributes[shard] = draw(SHARD, generator)
        return self.attributes[shard]


class PainterStage(Stage):
    """Stage 2."""

    name = "painter"
    rate = 4e-3
    average = 0.99

    def __init__(self, folder: Path, steps: int, batch: int, **options):
        super().__init__(folder, steps, batch, **options)
        self.signal = signal()
        self.pool: dict[tuple[int, int], Tensor] = {}
        self.lessons = Lessons(self.batch, self.seed)
        self.lesson: tuple[int, Iterator[Lesson]] | None = None

    def build(self) -> nn.Module:
        net = Painter()
        if self.start is not None:
            net.load_state_dict(net.state_dict() | known_words(net, *unpack(self.start)))
        return channels_last(net)

    def outside(self, name: str) -> bool:
        # The text encoder and the steps' embedding too: there Muon costs more time than it saves.
        return name.startswith(("text.", "unet.time_embed.", "unet.input_blocks.0.", "unet.out."))

    def shard(self, index: int, side: int) -> Tensor:
        """Latents [pictures, 4, side / 8, side / 8] of unit scale; made once, then read."""
        if (index, side) not in self.pool:
            path = self.folder / "latents" / f"{index:04}.{side}.safetensors"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                save_file({"latents": self.make_shard(index, side)}, path.with_suffix(".partial"))
                os.replace(path.with_suffix(".partial"), path)
            self.pool[index, side] = load_file(path)["latents"].float()
        return self.pool[index, side]

    @torch.inference_mode()
    def make_shard(self, index: int, side: int) -> Tensor:
        net, attributes = autoencoder(self.folder, self.device), self.lessons.shown(index)
        latents = []
        for pictures in rendered(attributes, side, self.device):
            with autocast(self.device):
                latents.append(net.encode(pictures.contiguous(memory_format=torch.channels_last)).half().cpu())
        return torch.cat(latents).contiguous()

    def side(self, step: int) -> int:
        half = self.start is None and step < min(HALF_STEPS, HALF_SHARE * self.steps)
        return SIDE // 2 if half else SIDE

    def spreading(self, step: int) -> bool:
        return self.start is not None or step >= SPREAD_FROM * self.steps

    def lesson_of(self, step: int) -> Lesson:
        """A step's; those that follow are made ahead by other processes where a GPU does the rest."""
        if self.lesson is None or self.lesson[0] != step:
            after = range(step, max(self.steps, step + 1))
            workers, ahead = (WORKERS, AHEAD) if self.device == "cuda" else (0, None)
            loader = DataLoader(self.lessons, None, sampler=after, num_workers=workers, prefetch_factor=ahead)
            self.lesson = step, iter(loader)
        _, lessons = self.lesson
        self.lesson = step + 1, lessons
        return next(lessons)

    def loss(self, net: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        chosen, rows, spread = self.lesson_of(step)
        side = self.side(step)
        seen = torch.stack([self.shard(shard, side)[place] for shard, place in chosen.tolist()])
        clean = sent(seen, self.device).contiguous(memory_format=torch.channels_last)
        noise = sent(torch.randn(clean.shape, generator=generator), self.device)
        steps = even_steps(self.batch, generator)
        share = sent(self.signal[steps], self.device).view(-1, 1, 1, 1)
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        told = Spread(*(sent(x, self.device) for x in spread)) if self.spreading(step) else None
        with autocast(self.device):
            found = net(noisy, sent(steps, self.device), sent(rows, self.device), told)
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
