"""Text tokens that go through a model beside its own text: the identities encoded alone, for IPCA's “own keys”.

They stand after the text in what the model reads. No query of the text or of a reference sees them; the picture's do
where a method says so. They themselves see each other and the picture, as in a pass of the identity's prompt alone.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...svr.record import Span
from ..batch import Batch
from ..method import Call, additive, call_attention


class Beside(NamedTuple):
    """Where such tokens stand in the text, and what hides those that a row has not: [rows, 1, 1, tokens], if any."""

    at: Span
    hidden: Tensor | None

    @property
    def tokens(self) -> int:
        return self.at.stop - self.at.start


def beside_of(batch: Batch) -> Beside | None:
    if batch.alone is None:
        return None
    tokens = batch.alone.tokens.shape[1]
    counts = torch.tensor(batch.alone.counts)
    hidden = None
    # In rows without any, nobody reads what they become.
    if ((counts > 0) & (counts < tokens)).any():
        missing = torch.arange(tokens) >= counts[:, None]
        hidden = torch.zeros(missing.shape).masked_fill(missing, -math.inf)[:, None, None].to(batch.device, batch.dtype)
    return Beside(Span(batch.tokens, batch.tokens + tokens), hidden)


def attend_beside(call: Call, beside: Beside, attend: Callable[[Call], Tensor]) -> Tensor:
    """A call with such tokens among its keys, and in a joint one among its queries; `attend` does the rest of it.

    Its `text` and `picture` are places without them.
    """
    at, hidden = beside
    joint = call.layer.kind == "joint"
    k, v = without(call.k, at), without(call.v, at)
    alone = call.k[..., slice(*at), :], call.v[..., slice(*at), :]
    options = masked(call, at)
    main = call._replace(q=without(call.q, at) if joint else call.q, k=k, v=v, options=options, alone=alone)
    out = attend(main)
    if not joint:
        return out
    seen = slice(call.picture.start, None)
    pictures = k.shape[-2] - call.picture.start
    # Another patch may have split the batch: then nobody knows whose rows these are.
    mask = F.pad(hidden, (0, pictures)) if hidden is not None and len(hidden) == len(call.q) else None
    own = call._replace(
        q=call.q[..., slice(*at), :],
        k=torch.cat([alone[0], k[..., seen, :]], dim=-2),
        v=torch.cat([alone[1], v[..., seen, :]], dim=-2),
        options={**options, "mask": mask},
    )
    return torch.cat([out[..., : at.start, :], call_attention(own), out[..., at.start :, :]], dim=-2)


def without(x: Tensor, at: Span, dim: int = -2) -> Tensor:
    """`x` without the tokens `at`, which it has along `dim`."""
    return torch.cat([x.narrow(dim, 0, at.start), x.narrow(dim, at.stop, x.shape[dim] - at.stop)], dim=dim)


def masked(call: Call, at: Span) -> dict[str, Any]:
    """A call's options with its mask for the rest. ComfyUI's own masks don't know of these tokens."""
    mask = call.options.get("mask")
    if mask is None or mask.shape[-1] != call.k.shape[-2]:
        return call.options
    mask = without(additive(mask, call.q.dtype), at, -1)
    return {**call.options, "mask": mask if mask.shape[-2] == 1 else without(mask, at)}
