"""A small IP-Adapter (arXiv 2308.06721) for the Story World: pictures say what captions leave out.

The painter stays as it is, and is the teacher: with a picture of a character and a caption that doesn't say how it
looks, the adapted painter learns to guess what the painter guesses from the whole caption.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..asset import ADAPTER_TOKENS, VISION_EMBEDDING
from ..drawing.attributes import IDENTITY, Attributes
from ..drawing.captions import ANYBODY, MENTIONED, frame_prompt, identity_prompt, said_of_frame, said_of_identity
from ..drawing.render import rendered
from .loop import Stage, trained_weights
from .painter import autoencoder, even_steps, looks, painter_of, signal, tokens, weights_of
from .precision import autocast
from .text_encoder import WIDTH
from .unet import CHANNELS, HEADS, Attention, SpatialTransformer, TransformerBlock, UNet
from .vision import Reader, Vision, VisionStage, alone, clip_pictures, disturbed_parts

ANYBODY_SHARE = 0.6
UNSEEN_SHARE = 0.1
"""Pictures that the adapter doesn't see, for classifier-free guidance."""
UNSAID_SHARE = 0.1
FITTED = 1024
"""Pictures that the tokens are fitted to captions with before training."""
PLACES = (20, 35, 50, 76)
"""The tokens after whole captions that a picture's tokens begin as: there a caption is summed up."""


class Projector(nn.Module):
    """Embeddings [pictures, 128] to tokens [pictures, 4, 768], as IP-Adapter's ImageProjModel."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(VISION_EMBEDDING, ADAPTER_TOKENS * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, seen: Tensor) -> Tensor:
        return self.norm(self.proj(seen).unflatten(-1, (ADAPTER_TOKENS, WIDTH)))


class Layer(nn.Module):
    """The keys and values of a picture's tokens in one cross-attention; they begin as those of text."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.to_k_ip = nn.Linear(WIDTH, CHANNELS, bias=False)
        self.to_v_ip = nn.Linear(WIDTH, CHANNELS, bias=False)
        self.to_k_ip.load_state_dict(attention.to_k.state_dict())
        self.to_v_ip.load_state_dict(attention.to_v.state_dict())


class Adapted(nn.Module):
    """A cross-attention that looks at a picture's tokens too, in a softmax of their own."""

    def __init__(self, attention: Attention, layer: Layer):
        super().__init__()
        self.attention = attention
        self.layer = layer

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`context` is the text's tokens, then the picture's."""
        text, picture = context[:, :-ADAPTER_TOKENS], context[:, -ADAPTER_TOKENS:]
        inside, beside = self.attention, self.layer
        q, k, v, k_ip, v_ip = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, y in (
                (inside.to_q, x),
                (inside.to_k, text),
                (inside.to_v, text),
                (beside.to_k_ip, picture),
                (beside.to_v_ip, picture),
            )
        )
        found = F.scaled_dot_product_attention(q, k, v) + F.scaled_dot_product_attention(q, k_ip, v_ip)
        return inside.to_out(found.transpose(1, 2).flatten(2))


class Adapter(nn.Module):
    """What is trained: the projector and every layer's keys and values."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.projector = Projector()
        self.layers = nn.ModuleList(Layer(cast(Attention, block.attn2)) for block in blocks(unet))

    def adapt(self, unet: UNet) -> None:
        """Have a U-Net's cross-attentions look at pictures."""
        for block, layer in zip(blocks(unet), self.layers, strict=True):
            block.attn2 = Adapted(cast(Attention, block.attn2), cast(Layer, layer))  # type: ignore[assignment]


def blocks(unet: UNet) -> Iterator[TransformerBlock]:
    """A U-Net's transformers as IP-Adapter's files number them: down, up, then the middle."""
    for part in (unet.input_blocks, unet.output_blocks, [unet.middle_block]):
        for layers in part:
            for layer in cast(nn.ModuleList, layers):
                if isinstance(layer, SpatialTransformer):
                    yield cast(TransformerBlock, layer.transformer_blocks[0])


class Shown(NamedTuple):
    """Characters: latents [count, 4, height, width] of a picture of each and its attributes, and the embedding
    [count, 128] of another picture of the same character."""

    latents: Tensor
    attributes: Attributes
    seen: Tensor


class AdapterStage(Stage):
    """Stage 6."""

    name = "adapter"
    rate = 2e-3
    average = 0.99
    bank_steps = 16
    shown: tuple[int, Shown] | None = None

    def outside(self, name: str) -> bool:
        return name.startswith("projector.")

    def build(self) -> nn.Module:
        self.teacher, adapted = (painter_of(self.folder, self.device) for _ in range(2))
        self.eyes = eyes_of(self.folder, self.device)
        self.coder = autoencoder(self.folder, self.device)
        net = Adapter(adapted.unet)
        net.adapt(adapted.unet)
        self.unet = adapted.unet
        self.fit(net.projector)
        return net

    @torch.no_grad()
    def fit(self, projector: Projector) -> None:
        """Begin with the tokens that are nearest, in squares, to those after whole captions of the characters."""
        attributes = alone(FITTED, torch.Generator().manual_seed(7_907 * (self.seed + 1)))
        seen = self.embeddings(attributes, torch.Generator().manual_seed(self.seed))
        rows = [tokens(identity_prompt(looks(attributes, index), set(MENTIONED))) for index in range(FITTED)]
        wanted = torch.cat(
            [self.teacher.text(part)[:, PLACES] for part in torch.tensor(rows, device=self.device).split(64)]
        )
        known = torch.cat([seen, torch.ones_like(seen[:, :1])], 1).double()
        found = torch.linalg.lstsq(known, wanted.flatten(1).double()).solution.float()
        projector.proj.weight.copy_(found[:-1].mT)
        projector.proj.bias.copy_(found[-1])

    @torch.no_grad()
    def embeddings(self, attributes: Attributes, generator: torch.Generator) -> Tensor:
        """What the encoder sees in pictures of these characters."""
        found = []
        for pictures in rendered(attributes, device=self.device):
            with autocast(self.device):
                found.append(self.eyes(clip_pictures(disturbed_parts(pictures.clone(), generator))).float())
        return torch.cat(found)

    def characters(self, step: int) -> Shown:
        """Those that a step's are taken from."""
        number = step // self.bank_steps
        if self.shown is None or self.shown[0] != number:
            self.shown = number, self.show(torch.Generator().manual_seed(7_919 * (self.seed + 1) + number))
        return self.shown[1]

    @torch.no_grad()
    def show(self, generator: torch.Generator) -> Shown:
        count = self.batch * self.bank_steps
        attributes, others = alone(count, generator), alone(count, generator)
        others |= {name: attributes[name] for name in IDENTITY}
        latents = []
        for pictures in rendered(attributes, device=self.device):
            seen = pictures.clone(memory_format=torch.channels_last)
            with autocast(self.device):
                latents.append(self.coder.encode(seen).float())
        return Shown(torch.cat(latents), attributes, self.embeddings(others, generator))

    def loss(self, net: nn.Module, step: int) -> Tensor:
        assert isinstance(net, Adapter)
        generator, rng = (
            torch.Generator().manual_seed(1_000_003 * self.seed + step),
            random.Random(f"{self.seed} {step}"),
        )
        shown = self.characters(step)
        index = torch.randint(len(shown.latents), (self.batch,), generator=generator)
        captions = [Captions.of(looks(shown.attributes, i), rng) for i in index.tolist()]
        blind = torch.tensor([caption.blind for caption in captions], device=self.device)
        clean, seen = shown.latents[index], shown.seen[index].masked_fill(blind[:, None], 0)
        steps = even_steps(self.batch, generator).to(self.device)
        share = signal().to(self.device)[steps].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        noisy = (share.sqrt() * clean + (1 - share).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        said, whole = (
            torch.tensor([tokens(text) for text in texts], device=self.device)
            for texts in zip(*((caption.said, caption.whole) for caption in captions), strict=True)
        )
        with autocast(self.device):
            with torch.no_grad():
                wanted = self.teacher(noisy, steps, whole).float()
                text = self.teacher.text(said)
            context = torch.cat([text, net.projector(seen).to(text)], 1)
            found = self.unet(noisy, steps, context).float()
        return (weights_of(share) * (found - wanted).square()).mean()


class Captions(NamedTuple):
    """What is said beside a picture, and what the teacher is told; whether the picture is not seen."""

    said: str
    whole: str
    blind: bool

    @classmethod
    def of(cls, picture: dict[str, int], rng: random.Random) -> "Captions":
        blind, silent = rng.random() < UNSEEN_SHARE, rng.random() < UNSAID_SHARE
        shown = "" if silent else f" {frame_prompt(picture, said_of_frame(rng))}"
        who = ANYBODY if rng.random() < ANYBODY_SHARE else identity_prompt(picture, said_of_identity(rng))
        said = "" if silent else f"{who}{shown}"
        return cls(said, said if blind else f"{identity_prompt(picture, set(MENTIONED))}{shown}", blind)


def eyes_of(folder: Path, device: str) -> Vision:
    """The encoder as far as it is trained."""
    net = Reader()
    net.load_state_dict(trained_weights(folder, VisionStage.name))
    return net.vision.to(device).eval().requires_grad_(False)


def adapter_weights(folder: Path) -> dict[str, Tensor]:
    """The adapter as far as it is trained, as IP-Adapter's files name it, and what it sees by, named "vision..."."""
    found = {f"vision.{name}": weight for name, weight in eyes_of(folder, "cpu").state_dict().items()}
    for name, weight in trained_weights(folder, AdapterStage.name).items():
        part, _, rest = name.partition(".")
        if part == "projector":
            found[f"image_proj.{rest}"] = weight
        else:
            index, _, rest = rest.partition(".")
            found[f"ip_adapter.{2 * int(index) + 1}.{rest}"] = weight
    return found
