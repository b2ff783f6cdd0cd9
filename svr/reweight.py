"""Naive prompt reweighting and singular-value reweighting (1Prompt1Story, arXiv 2501.13554, section 3.2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .record import Record, Row, Span

HIGHEST = 1e150
"""The square of it is still a number."""


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

    A call multiplies tokens from the left, X' = A X, and A follows from X X^T alone. So the calls work on M, the
    product of the As so far, and on G = M C C^T M^T, both [tokens, tokens] for any encoder; C is needed at the ends
    only. Rows of equal C share their calls for as long as these are equal too.
    """
    C = embeds.to("cpu", torch.float64, copy=True)
    parts = {
        (e, i): C[i, : record.tokens, slice(*encoder.channels)]
        for e, encoder in enumerate(record.encoders)
        for i in range(len(record.rows))
    }
    calls = {(e, i): calls_of(record.rows[i], e, variant, eot) for e, i in parts}
    gains = {True: (express_alpha, express_beta), False: (-suppress_alpha, suppress_beta)}
    largest = min(torch.finfo(embeds.dtype).max, HIGHEST)

    equal = equal_rows(C, record)
    firsts = [(e, i) for e, i in parts if equal[i] == i]
    state = {(e, i): firsts.index((e, equal[i])) for e, i in parts}
    # One token more than there are, a zero one, evens out the lengths of the calls.
    G = torch.stack([F.pad(parts[at] @ parts[at].mT, (0, 1, 0, 1)) for at in firsts])
    M = torch.eye(record.tokens + 1, dtype=C.dtype).repeat(len(G), 1, 1)
    for step in range(max(map(len, calls.values()))):
        branches: dict[tuple[int, Call | None], list[tuple[int, int]]] = {}
        for at, own in calls.items():
            branches.setdefault((state[at], own[step] if step < len(own) else None), []).append(at)
        parents = [parent for parent, _ in branches]
        G, M = G[parents], M[parents]
        reweight(G, M, [call for _, call in branches], gains)
        norms = G.diagonal(dim1=1, dim2=2).amax(1).sqrt().tolist()
        for n, ((_, call), members) in enumerate(branches.items()):
            state.update(dict.fromkeys(members, n))
            # No value is larger than its token's norm.
            if call and not norms[n] <= largest and not (M[n, :-1, :-1] @ parts[members[0]]).abs().amax() <= largest:
                raise ValueError(overflow(record.rows[members[0][1]].frame, call.express, gains[call.express]))

    for (e, i), part in parts.items():
        start = record.rows[i].spans[e].identity.stop
        part[start:] = M[state[e, i], start:-1, start:-1] @ part[start:]
    return C.to(embeds)


class Call(NamedTuple):
    """One SVR call on the tokens at `positions`; those of `scaled` are multiplied by 0.9."""

    positions: tuple[int, ...]
    scaled: Span
    express: bool


def calls_of(row: Row, encoder: int, variant: str, eot: str) -> list[Call]:
    """The calls for one row in their order, which matters: every one of them rewrites the EOT set."""
    spans = row.spans[encoder]
    reweighted, scaled = (spans.eot, Span(0, 0)) if eot == "reweight" else (Span(0, 0), spans.eot)
    calls = [Call((*range(*span), *range(*reweighted)), scaled, False) for span in spans.frames]
    express = calls.pop(row.expressed)._replace(express=True)
    return [*calls, express] if variant == "released" else [express, *calls]


def equal_rows(embeds: Tensor, record: Record) -> list[int]:
    """For each row the first one that equals it, in its embedding and in where things stand; mostly itself or 0."""
    first: dict[tuple, int] = {}
    candidates = [first.setdefault(row.spans, i) for i, row in enumerate(record.rows)]
    return [j if torch.equal(embeds[i], embeds[j]) else i for i, j in enumerate(candidates)]


def reweight(G: Tensor, M: Tensor, calls: list[Call | None], gains: dict[bool, tuple[float, float]]) -> None:
    """s' = beta * exp(alpha * s) * s on the singular values s of X, a call's tokens: G' = A G A^T and M' = A M.

    With X X^T = U S^2 U^T, X' = U S' V^T = U diag(beta * exp(alpha * s)) U^T X = A X, so no SVD is needed. G and M:
    [calls, tokens, tokens], in place; the last token is zero and stays it. `gains`: alpha and beta by `Call.express`.
    """
    chosen = [(n, call) for n, call in enumerate(calls) if call]
    longest = max(len(call.positions) for _, call in chosen)
    index = torch.tensor([[*call.positions, *[-1] * (longest - len(call.positions))] for _, call in chosen])
    row = torch.tensor([n for n, _ in chosen])[:, None]
    alpha, beta = G.new_tensor([gains[call.express] for _, call in chosen]).T
    squares, U = torch.linalg.eigh(G[row[:, :, None], index[:, :, None], index[:, None, :]])
    gain = beta[:, None] * torch.exp(alpha[:, None] * squares.clamp(min=0).sqrt())
    A = (U * gain[:, None, :]) @ U.mT
    G[row, index] = A @ G[row, index]
    G[row, :, index] = A @ G[row, :, index]
    M[row, index] = A @ M[row, index]
    for n, call in chosen:
        for x in (G[n], G[n].mT, M[n]):
            x[slice(*call.scaled)] *= 0.9
    G[:, -1] = G[:, :, -1] = M[:, -1] = 0


def overflow(frame: int, express: bool, gain: tuple[float, float]) -> str:
    kind = "express" if express else "suppress"
    return (
        f"SVR makes frame {frame + 1}'s embedding overflow: lower {kind}_alpha ({abs(gain[0]):g}) or "
        f"{kind}_beta ({gain[1]:g}); the papers' values are express_alpha 0.01, express_beta 1, suppress_alpha 0.01, "
        "suppress_beta 0.05."
    )
