"""IPCA's variant “own keys”, for text encoders that are not causal (T5, UMT5).

There the identity's vectors in a story's prompt have read the frames, so a bias on their keys is not what the method
asks for: keys and values of the identity prompt alone, beside the frame's own (1Prompt1Story, arXiv 2501.13554, section
3.3). So the identity encoded alone goes through the model as further text. Only the picture's queries see it:
softmax(Q [K; K0]^T / sqrt(d) + [0; log(strength)]) [V; V0].
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..svr.encoders import name_of
from ..svr.record import Record
from .batch import Batch
from .method import Call, Layer, Next, additive
from .schedule import seeded


class OwnKeys:
    """The variant in one forward pass: a bias for every row, which all layers share unless some of it is dropped."""

    def __init__(self, strength: float, dropout: float, seed: int, batch: Batch):
        assert batch.alone is not None
        self.strength = strength
        self.dropout = dropout
        self.seed = seed
        self.batch = batch
        self.counts = batch.alone.counts
        self.tokens = batch.alone.tokens.shape[1]
        # Keys that count once, and all of them, need no bias: so back ends without masks serve too.
        self.plain = strength == 1 and not dropout and set(self.counts) == {self.tokens}
        self.shared = None if dropout or self.plain else self.draw()

    def attend(self, call: Call, next: Next) -> Tensor:
        assert call.alone is not None
        rows, keys = slice(*call.rows), call.k.shape[-2]
        k, v = (torch.cat([own, alone[rows]], dim=-2) for own, alone in zip((call.k, call.v), call.alone))
        mask = call.options.get("mask")
        if not self.plain:
            bias = self.draw(call.q.shape[-2], call.layer) if self.shared is None else self.shared
            bias = F.pad(bias[rows].to(call.q), (keys, 0))[:, None]
            mask = bias if mask is None else bias + F.pad(additive(mask, call.q.dtype), (0, self.tokens))
        elif mask is not None:
            mask = F.pad(additive(mask, call.q.dtype), (0, self.tokens))
        return next(call._replace(k=k, v=v, options={**call.options, "mask": mask}))

    @torch.compiler.disable
    def draw(self, queries: int = 1, layer: Layer | None = None) -> Tensor:
        """What is added to the logits of these keys, [rows, 1 or queries, tokens]: -inf where a row has none.

        With dropout, each query loses each of them with that probability.
        """
        batch = self.batch
        bias = torch.full((batch.rows, queries, self.tokens), -math.inf)
        for start, _, placement in batch.chunks:
            for i, row in enumerate(placement.record.rows if placement else (), start):
                bias[i, :, : self.counts[i]] = math.log(self.strength)
                if self.dropout:
                    generator = seeded(self.seed, batch.place.key, layer, row.frame)
                    dropped = torch.rand(queries, self.tokens, generator=generator) < self.dropout
                    bias[i].masked_fill_(dropped, -math.inf)
        return bias.to(batch.dtype).to(batch.device, non_blocking=batch.device.type == "cuda")


def check_alone(records: Sequence[Record]) -> None:
    """Raise `ValueError` where a story has no identity encoded alone, though it has identities."""
    for record in records:
        if all(encoder.causal for encoder in record.encoders):
            names = " and ".join(name_of(encoder.name) for encoder in record.encoders)
            raise ValueError(
                "IPCA's variant “own keys” is for T5 and UMT5, which read a prompt as a whole (SD3 with T5, Flux.1, "
                f"Chroma, Wan), and this story is encoded by {names}: set `variant` to “released”."
            )
        identities = any(spans.identity.start < spans.identity.stop for row in record.rows for spans in row.spans)
        if identities and not any(row.alone for row in record.rows):
            raise ValueError(
                "IPCA's variant “own keys” finds no identity encoded alone in the sampler's conditioning: run Story "
                "Prompt again without patches on `clip` such as NegPiP, or set `variant` to “released”."
            )
