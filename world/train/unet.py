"""A small U-Net in Stable Diffusion 1.5's layout (LDM's parameter names): two levels of 320 channels."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 320
TIME = 4 * CHANNELS
CONTEXT = 768
HEADS = 8


class ResBlock(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, CHANNELS, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(TIME, CHANNELS))
        last = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, CHANNELS), nn.SiLU(), nn.Dropout(0.0), almost_zero(last))
        self.skip_connection = nn.Identity() if inputs == CHANNELS else nn.Conv2d(inputs, CHANNELS, 1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        hidden = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class Attention(nn.Module):
    def __init__(self, context: int):
        super().__init__()
        self.to_q = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.to_k = nn.Linear(context, CHANNELS, bias=False)
        self.to_v = nn.Linear(context, CHANNELS, bias=False)
        self.to_out = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(CHANNELS, 8 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(Gated(), nn.Dropout(0.0), nn.Linear(4 * CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1 = Attention(CHANNELS)
        self.ff = FeedForward()
        self.attn2 = Attention(CONTEXT)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(CHANNELS) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(32, CHANNELS, eps=1e-6)
        self.proj_in = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])
        self.proj_out = almost_zero(nn.Conv2d(CHANNELS, CHANNELS, 1))

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        y = self.transformer_blocks[0](y, context)
        return x + self.proj_out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class First(nn.Conv2d):
    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class UNet(nn.Module):
    """Noisy latents [batch, 4, height, width], steps [batch] and embeddings [batch, tokens, 768] to the noise.

    The upper level has one transformer, in its last block; its size costs most of the time.
    """

    def __init__(self):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(CHANNELS, TIME), nn.SiLU(), nn.Linear(TIME, TIME))
        self.input_blocks = nn.ModuleList(
            nn.ModuleList(block)
            for block in (
                [First(4, CHANNELS, 3, padding=1)],
                [ResBlock(CHANNELS)],
                [Downsample()],
                [ResBlock(CHANNELS), SpatialTransformer()],
            )
        )
        self.middle_block = nn.ModuleList([ResBlock(CHANNELS), SpatialTransformer(), ResBlock(CHANNELS)])
        self.output_blocks = nn.ModuleList(
            nn.ModuleList(block)
            for block in (
                [ResBlock(2 * CHANNELS), SpatialTransformer()],
                [ResBlock(2 * CHANNELS), SpatialTransformer(), Upsample()],
                [ResBlock(2 * CHANNELS)],
                [ResBlock(2 * CHANNELS), SpatialTransformer()],
            )
        )
        last = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(32, CHANNELS), nn.SiLU(), almost_zero(last))

    def forward(self, x: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        time = self.time_embed(frequencies(steps))
        kept = []
        for block in self.input_blocks:
            assert isinstance(block, nn.ModuleList)
            x = through(block, x, time, context)
            kept.append(x)
        x = through(self.middle_block, x, time, context)
        for block in self.output_blocks:
            assert isinstance(block, nn.ModuleList)
            x = through(block, torch.cat([x, kept.pop()], 1), time, context)
        return self.out(x)


def through(block: Iterable[nn.Module], x: Tensor, time: Tensor, context: Tensor) -> Tensor:
    for layer in block:
        x = layer(x, time, context)
    return x


def almost_zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start a branch's last layer near zero, so that the branch starts as a shortcut."""
    with torch.no_grad():
        layer.weight.mul_(0.05)
        assert layer.bias is not None
        layer.bias.zero_()
    return layer


def frequencies(steps: Tensor) -> Tensor:
    """The sinusoidal embedding of diffusion steps: [batch, 320], cosines first."""
    half = CHANNELS // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, device=steps.device) / half)
    angles = steps[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], -1)
