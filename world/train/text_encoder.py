"""A causal text encoder in CLIP-L's layout, with two trained layers of its twelve."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 768
HEAD = 64
"""Channels of an attention head, in all of CLIP's."""
HIDDEN = 1024
"""The width of the trained layers' feed-forward part; the rest of CLIP-L's 3072 stays zero."""
LAYERS = 2
LENGTH = 77


class SelfAttention(nn.Module):
    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Layer(nn.Module):
    """A layer of CLIP's transformers, of its text encoder (causal) or of its vision model."""

    def __init__(self, width: int, hidden: int, causal: bool):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, causal)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """Tokens [batch, 77], as rows of the vocabulary in use, to embeddings [batch, 77, 768] of norm near 28 each.

    The last norm has unit gain and no bias of its own to learn: sqrt(768) is about 28, as CLIP-L's tokens have.
    """

    def __init__(self, vocabulary: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.position_embedding = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Layer(WIDTH, HIDDEN, causal=True) for _ in range(LAYERS))
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        nn.init.normal_(self.position_embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.position_embedding.weight
        for layer in self.layers:
            x = layer(x)
        return F.layer_norm(x.float(), (WIDTH,))
