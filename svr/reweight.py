"""Naive prompt reweighting and singular-value reweighting (1Prompt1Story, arXiv 2501.13554, section 3.2)."""

from typing import NamedTuple

import torch
from torch import Tensor

from .record import Record, Row, Span


def naive_reweight(embeds: Tensor, record: Record, express: float = 2.0, suppress: float = 0.5) -> Tensor:
    """c_Pj *= express and c_Pk *= suppress for every other frame k of the window; EOT is left as it is.

    embeds: [rows, tokens, channels]; a copy comes back.
    """
    out = embeds.clone()
    for i, row in enumerate(record.rows):
        for encoder, spans in zip(record.encoders, row.spans):
            for k, span in enumerate(spans.frames):
                factor = express if k == row.expressed else suppress
                out[i, slice(*span), slice(*encoder.channels)] *= factor
    return out


def singular_value_reweight(
    embeds: Tensor,
    record: Record,
    variant: str = "released",
    express_alpha: float = 0.01,
    express_beta: float = 1.0,
    suppress_alpha: float = 0.01,
    suppress_beta: float = 0.05,
    eot: str = "reweight",
) -> Tensor:
    """SVR+ on the frame each row draws (eq. 4) and SVR- on every other frame of its window (eq. 5), in float64.

    embeds: [rows, tokens, channels]; a copy in the same type comes back. `variant` "released" suppresses the others
    in the window's order and then expresses; "paper" expresses first. With `eot` "scale" the EOT set is multiplied by
    0.9 in every call instead of being reweighted. Raises `ValueError` when a row is not finite afterwards.
    """
    out = embeds.to(torch.float64, copy=True)
    largest = torch.finfo(embeds.dtype).max
    for e, encoder in enumerate(record.encoders):
        part = out[:, :, slice(*encoder.channels)]
        calls = [calls_of(row, e, variant) for row in record.rows]
        for step in range(max(map(len, calls))):
            rows = [i for i, call in enumerate(calls) if step < len(call)]
            express = [calls[i][step].express for i in rows]
            alpha = out.new_tensor([express_alpha if e else -suppress_alpha for e in express])
            beta = out.new_tensor([express_beta if e else suppress_beta for e in express])
            spans = [[calls[i][step].span] for i in rows]
            for i, span in zip(rows, spans):
                if eot == "scale":
                    part[i, slice(*record.rows[i].spans[e].eot)] *= 0.9
                else:
                    span.append(record.rows[i].spans[e].eot)
            peak = reweight(part, rows, spans, alpha, beta)
            for n, i in enumerate(rows):
                if not peak[n] <= largest:
                    parameters = (
                        {"express_alpha": express_alpha, "express_beta": express_beta}
                        if calls[i][step].express
                        else {"suppress_alpha": suppress_alpha, "suppress_beta": suppress_beta}
                    )
                    values = " or ".join(f"{name} ({value:g})" for name, value in parameters.items())
                    raise ValueError(
                        f"SVR makes frame {record.rows[i].frame + 1}'s embedding overflow: lower {values}; "
                        "the papers' values are express_alpha 0.01, express_beta 1, suppress_alpha 0.01, "
                        "suppress_beta 0.05."
                    )
    return out.to(embeds.dtype)


class Call(NamedTuple):
    """One SVR call on the tokens of one frame prompt and the EOT set."""

    span: Span
    express: bool


def calls_of(row: Row, encoder: int, variant: str) -> list[Call]:
    """The calls for one row in their order, which matters: every one of them rewrites the EOT set."""
    spans = row.spans[encoder].frames
    express = [Call(spans[row.expressed], True)]
    suppress = [Call(span, False) for k, span in enumerate(spans) if k != row.expressed]
    return suppress + express if variant == "released" else express + suppress


def reweight(x: Tensor, rows: list[int], spans: list[list[Span]], alpha: Tensor, beta: Tensor) -> Tensor:
    """s' = beta * exp(alpha * s) * s on the singular values s of X, each row's tokens in its spans, in place.

    With G = X X^T = U S^2 U^T, X' = U S' V^T = U diag(beta * exp(alpha * s)) U^T X, so no SVD is needed. Zero rows
    even out the lengths: they add a zero block to G and change nothing else.
    x: [rows, tokens, channels], alpha and beta: [rows]. Returns the largest absolute value of each X', NaN included.
    """
    positions = [[p for span in s for p in range(*span)] for s in spans]
    n = max(map(len, positions))
    index = torch.tensor([p + [0] * (n - len(p)) for p in positions], device=x.device)
    valid = torch.tensor([[True] * len(p) + [False] * (n - len(p)) for p in positions], device=x.device)
    row = torch.tensor(rows, device=x.device)[:, None].expand_as(index)

    X = x[row, index] * valid[:, :, None]
    squares, U = torch.linalg.eigh(X @ X.mT)
    gain = beta[:, None] * torch.exp(alpha[:, None] * squares.clamp(min=0).sqrt())
    X = (U * gain[:, None, :]) @ (U.mT @ X)
    x[row[valid], index[valid]] = X[valid]
    return X.abs().amax(dim=(1, 2))
