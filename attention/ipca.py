"""Identity-Preserving Cross-Attention (1Prompt1Story, arXiv 2501.13554, section 3.3) as a bias on the logits.

The method concatenates the identity prompt's keys and values to the frame's own. CLIP's encoder is causal, so they are
the keys and values of the frame's own identity span, and a key that stands twice is a key with log 2 added to its
logit: softmax(Q K^T / sqrt(d) + b) V with b = log(1 + strength) on SOT and the identity span. Where text and picture
are one sequence of keys, the bias is for the picture's queries only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..story.parts import EOT, IDENTITY, SOT
from ..svr.record import Record, Row, Span
from .batch import Batch, Cast, Report
from .blocks import Blocks
from .method import Call, Kind, Layer, Next, additive
from .own_keys import OwnKeys, check_alone
from .schedule import Place, seeded


@dataclass(frozen=True)
class IPCA:
    """One application of the method: `blocks` and the steps between the two percents get it."""

    strength: float
    variant: Literal["released", "paper", "own keys"]
    dropout: float
    blocks: Blocks
    start_percent: float
    end_percent: float
    seed: int

    name: ClassVar[str] = "IPCA"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"cross", "joint"})
    stacks: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    widens: ClassVar[bool] = False
    stories_first: ClassVar[bool] = False

    @property
    def reads_alone(self) -> bool:
        return self.variant == "own keys" and not self.off()

    def off(self) -> bool:
        return self.strength == 0

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        if not records:
            report.warn(
                "IPCA has nothing to do, because the sampler's conditioning carries no story: "
                "wire its positive input from Story Prompt."
            )
        if self.reads_alone:
            check_alone(records)

    def sources(self, cast: Cast) -> list[list[int]]:
        return [[] for _ in cast.characters]

    def prepare(self, batch: Batch) -> "Biases | OwnKeys | None":
        if self.off() or not any(chunk.placement for chunk in batch.chunks):
            return None
        if self.reads_alone:
            return OwnKeys(self.strength, self.dropout, self.seed, batch) if batch.alone else None
        return Biases(self, batch)


class Biases:
    """IPCA in one forward pass: a bias for every row, which all layers share unless some of it is dropped."""

    def __init__(self, ipca: IPCA, batch: Batch):
        self.ipca = ipca
        self.batch = batch._replace(chunks=tuple(chunk for chunk in batch.chunks if chunk.placement))
        self.rows = batch.rows
        self.shared = None if ipca.dropout else self.draw()

    def attend(self, call: Call, next: Next) -> Tensor:
        bias = self.draw(call.q.shape[-2], call.layer) if self.shared is None else self.shared
        bias = bias[call.rows.start : call.rows.stop].to(call.q)
        assert call.text is not None
        bias = among(bias, call.text, call.k.shape[-2])
        return biased_attention(call.attention_by(next), call.q, call.k, call.v, call.heads, bias, **call.options)

    @torch.compiler.disable
    def draw(self, queries: int = 1, layer: Layer | None = None) -> Tensor:
        """The bias of every row, [rows, 1 or queries, keys], 0 where a row has no story."""
        ipca, batch = self.ipca, self.batch
        zeros = ipca.variant == "paper"
        bias = torch.zeros(self.rows, queries, batch.tokens + zeros)
        if zeros:
            bias[:, :, -1] = -math.inf
        for start, _, placement in batch.chunks:
            assert placement is not None
            record, own, copies, _ = placement
            made: dict[Any, Tensor] = {}
            for i, row in enumerate(record.rows, start):
                at = i if ipca.dropout else row.spans
                if at not in made:
                    made[at] = identity_bias(
                        row,
                        record,
                        ipca.strength,
                        ipca.variant,
                        own_tokens=own,
                        repeats=len(copies),
                        dropout=ipca.dropout,
                        queries=queries,
                        generator=seeded(ipca.seed, batch.place.key, layer, row.frame) if ipca.dropout else None,
                    )
                length = own * len(copies)
                bias[i, :, copies[0] : copies[0] + length] = made[at][:, :length]
                bias[i, :, batch.tokens :] = made[at][:, length:]
        return bias.to(batch.dtype).to(batch.device, non_blocking=batch.device.type == "cuda")


def identity_bias(
    row: Row,
    record: Record,
    strength: float,
    variant: str,
    own_tokens: int,
    repeats: int = 1,
    dropout: float = 0.0,
    queries: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The bias of one row's logits, [1, tokens]; with `dropout`, [queries, tokens].

    `own_tokens` is the length of the row's conditioning, which ComfyUI repeats as a whole `repeats` times; positions
    after the record's own, that another node appended, get no bias. `variant` "paper" keeps the EOT set in the second
    copy too and sets the frame prompts there to zero keys and values, which still take softmax mass: the one key of
    zeros that all of them together are is the last of [1, tokens + 1]. With `dropout`, each query loses each duplicate
    with that probability, drawn from `generator`.
    """
    parts = (SOT, IDENTITY, EOT) if variant == "paper" else (SOT, IDENTITY)
    kept = [span for part in parts for span in record.columns(row, part)]
    bias = torch.zeros(1, own_tokens)
    for span in kept:
        bias[:, slice(*span)] = math.log1p(strength)
    if dropout:
        bias = bias * (torch.rand(queries, own_tokens, generator=generator) >= dropout)
    bias = bias.repeat(1, repeats)
    if variant == "paper":
        frames = record.frame_tokens(row)
        zeros = torch.full((1, 1), float(frames))
        if dropout:
            zeros = (torch.rand(queries, frames, generator=generator) >= dropout).sum(1, keepdim=True)
        bias = torch.cat([bias, torch.log(strength * repeats * zeros)], dim=1)
    return bias


def among(bias: Tensor, text: Span, keys: int) -> Tensor:
    """The bias [..., tokens of the text, then keys of zeros] in a call of so many keys, the text's at `text`."""
    tokens = text.stop - text.start
    if tokens == keys:
        return bias
    return torch.cat([F.pad(bias[..., :tokens], (text.start, keys - text.stop)), bias[..., tokens:]], dim=-1)


def biased_attention(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    bias: Tensor,
    mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`attention` with `bias` [rows, 1 or queries, keys] on its logits, after any mask that is there already.

    q, k, v: [rows, tokens, heads * channels], or whatever else ComfyUI's attention functions take. Keys that the bias
    has and k lacks are zero keys with zero values.
    """
    zeros = bias.shape[-1] - k.shape[-2]
    if zeros:
        k, v = F.pad(k, (0, 0, 0, zeros)), F.pad(v, (0, 0, 0, zeros))
    bias = bias[:, None]
    if mask is not None:
        bias = bias + F.pad(additive(mask, q.dtype), (0, zeros))
    return attention(q, k, v, heads, mask=bias, **options)
