"""The methods as the papers' code runs them, to be compared with: nothing here shares a line with the pack.

"1P1S" is 1Prompt1Story, arXiv 2501.13554; "StoryDiffusion" is arXiv 2405.01434.
"""

import torch
from torch import Tensor

# --- 1P1S: singular-value reweighting ---------------------------------------------------------------------------------


def singular_value_reweight(embeds: Tensor, record, alpha: float = 0.01, beta: float = 0.05) -> Tensor:
    """One full SVD for every frame, encoder and call: suppress every other frame of the prompt, then express its own.

    embeds: [frames, tokens, channels]. The released code takes all D x D singular vectors of a D x tokens matrix.
    """
    out = embeds.clone()
    for i, row in enumerate(record.rows):
        for encoder, spans in zip(record.encoders, row.spans):
            c = out[i, :, slice(*encoder.channels)]
            others = [span for k, span in zip(row.window, spans.frames) if k != row.frame]
            own = [span for k, span in zip(row.window, spans.frames) if k == row.frame]
            for span in others:
                reweight(c, [*range(*span), *range(*spans.eot)], -alpha, beta)
            reweight(c, [*range(*own[0]), *range(*spans.eot)], alpha, 1.0)
    return out


def reweight(c: Tensor, tokens: list[int], alpha: float, beta: float) -> None:
    X = c[tokens].double().T
    U, s, Vh = torch.linalg.svd(X)
    s = beta * torch.exp(alpha * s) * s
    c[tokens] = (U[:, : len(s)] @ torch.diag(s) @ Vh[: len(s)]).T.to(c)


# --- 1P1S: identity-preserving cross-attention ------------------------------------------------------------------------


class IdentityAttention:
    """One cross-attention layer over the two sampling passes: the first stores the identity prompt's keys and values.

    The batch is [unconditional rows, conditional rows]. The second pass appends the stored keys to those of the
    conditional rows, drops them by a mask over all 154, and spells the softmax out.
    """

    def __init__(self, heads: int, identity_tokens: int, dropout: float = 0.0):
        self.heads = heads
        self.identity_tokens = identity_tokens
        self.dropout = dropout
        self.stored: tuple[Tensor, Tensor] | None = None

    def store(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The first pass: the identity prompt alone makes a picture of its own, [2, tokens, channels]."""
        self.stored = k[1:].clone(), v[1:].clone()
        return torch.cat([explicit_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], self.heads) for i in range(2)])

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self.stored is not None
        frames = len(q) // 2
        plain = explicit_attention(q[:frames], k[:frames], v[:frames], self.heads)
        keys, values = (
            torch.cat([x[frames:], stored.expand(frames, -1, -1)], dim=1) for x, stored in zip((k, v), self.stored)
        )
        mask = torch.ones(frames, self.heads, q.shape[1], keys.shape[1], dtype=q.dtype, device=q.device)
        second = mask[..., k.shape[1] :]
        second[torch.rand_like(second) < self.dropout] = 0
        second[..., self.identity_tokens :] = 0
        return torch.cat([plain, explicit_attention(q[frames:], keys, values, self.heads, mask.log())])


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v with every score in memory; [rows, tokens, heads * d]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


# --- StoryDiffusion: consistent self-attention ------------------------------------------------------------------------


def full_mask(samples: list[Tensor], tokens: int) -> Tensor:
    """Who may look at whom over all tokens of all frames [frames * tokens, frames * tokens]: each frame at its own
    tokens and at the others' samples."""
    frames = len(samples)
    mask = torch.zeros(frames, tokens, frames, tokens, dtype=torch.bool, device=samples[0].device)
    for i in range(frames):
        for j in range(frames):
            mask[i, :, j, samples[j]] = True
        mask[i, :, i, :] = True
    return mask.reshape(frames * tokens, frames * tokens)


def full_mask_attention(attention, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor) -> Tensor:
    """All frames as one long row: the attention of every token over every token, behind the mask.

    q, k, v: [2 * frames, tokens, channels].
    """
    long_q, long_k, long_v = (x.reshape(2, -1, x.shape[-1]) for x in (q, k, v))
    return attention(long_q, long_k, long_v, heads, mask=mask).reshape(q.shape)


def reprojecting_attention(attention, hidden: Tensor, to_q, to_k, to_v, heads: int, samples: list[Tensor]) -> Tensor:
    """StoryDiffusion's low-memory code: one frame at a time, whose keys and values are projected from the hidden
    states of the others' samples and its own, again for every frame. hidden: [2 * frames, tokens, channels]."""
    frames = len(hidden) // 2
    out = []
    for branch in hidden.split(frames):
        for i in range(frames):
            seen = torch.cat([branch[j][samples[j]] for j in range(frames) if j != i] + [branch[i]])[None]
            out.append(attention(to_q(branch[i : i + 1]), to_k(seen), to_v(seen), heads))
    return torch.cat(out)
