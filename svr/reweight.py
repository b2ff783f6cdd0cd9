"""Naive prompt reweighting and singular-value reweighting (1Prompt1Story, arXiv 2501.13554, section 3.2)."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .record import Record, Row, Span, Spans

Variant = Literal["released", "paper"]
EotMode = Literal["reweight", "scale"]

HIGHEST = 1e150
"""The square of it is still a number."""


def naive_reweight(embeds: Tensor, record: Record, express: float = 2.0, suppress: float = 0.5) -> Tensor:
    """c_Pj *= express and c_Pk *= suppress for every other frame k of the window; EOT is left as it is.

    embeds: [rows, tokens, channels]; a copy comes back. A row whose window holds its own frame alone stays as it is.
    """
    out = embeds.clone()
    for tokens in record.token_sets(out):
        for row, C in zip(record.rows, tokens):
            if len(row.window) == 1:
                continue
            for e, encoder in enumerate(record.encoders):
                for frame in row.window:
                    factor = express if frame == row.frame else suppress
                    C[slice(*row.span(frame, e)), slice(*encoder.channels)] *= factor
    return out


def singular_value_reweight(
    embeds: Tensor,
    record: Record,
    variant: Variant = "released",
    express_alpha: float = 0.01,
    express_beta: float = 1.0,
    suppress_alpha: float = 0.01,
    suppress_beta: float = 0.05,
    eot: EotMode = "reweight",
) -> Tensor:
    """SVR+ on the frame each row draws (eq. 4) and SVR- on every other frame of its window (eq. 5), in float64.

    embeds: [rows, tokens, channels]; a copy in the same type comes back. `variant` "released" suppresses the others
    in the window's order and then expresses; "paper" expresses first. With `eot` "scale" the EOT set is multiplied by
    0.9 in every call instead of being reweighted. A row whose window holds its own frame alone has nothing to be
    weighed against and stays as it is. Alpha is for vectors as long as CLIP's: other encoders' singular values count by
    their encoder's `scale`. Raises `ValueError` when a row is not finite afterwards.
    """
    express, suppress = Gain("express", express_alpha, express_beta), Gain("suppress", -suppress_alpha, suppress_beta)
    largest = min(torch.finfo(embeds.dtype).max, HIGHEST)
    C = embeds.to("cpu", torch.float64, copy=True)
    for parts in parts_of(C, record):
        calls = [calls_of(part, variant, eot, express, suppress) for part in parts]
        batch = Batch(parts)
        for step in zip_longest(*calls, fillvalue=NO_CALL):
            batch.multiply(step)  # one call for each row and encoder: X = A X, eq. 4 or 5
            n = batch.find_above(largest)
            if n is not None:
                raise ValueError(overflow(parts[n].row.frame, step[n].gain))
        batch.write_back()
    return C.to(embeds)


class Gain(NamedTuple):
    """s' = beta * exp(alpha * s) * s on singular values s: SVR+ (eq. 4), and SVR- (eq. 5), whose alpha is negative.

    In s' = beta * exp(alpha * scale * s) * s, `scale` s is a singular value as it would be with CLIP's norms.
    """

    name: str
    alpha: float
    beta: float
    scale: float = 1.0


def left_factor(G: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The A of X' = U S' V^T = A X, where X = U S V^T and s' = beta * exp(alpha * s) * s (eqs. 4 and 5).

    G = X X^T = U S^2 U^T: [calls, tokens, tokens], alpha and beta: [calls]. A = U diag(beta * exp(alpha * s)) U^T, so
    no SVD is needed.
    """
    squares, U = torch.linalg.eigh(G)
    s = squares.clamp(min=0).sqrt()
    return (U * (beta[:, None] * torch.exp(alpha[:, None] * s))[:, None, :]) @ U.mT


class Call(NamedTuple):
    """One SVR call: X is the tokens at `positions`. Those of `scaled` are multiplied by 0.9."""

    positions: tuple[int, ...]
    scaled: Span
    gain: Gain


NOTHING = Span(0, 0)
NO_CALL = Call((), NOTHING, Gain("none", 0.0, 1.0))


class Part(NamedTuple):
    """One row in one text encoder: a view C [tokens, channels] of the embedding, and what stands where in it."""

    row: Row
    spans: Spans
    C: Tensor
    scale: float


def parts_of(C: Tensor, record: Record) -> list[list[Part]]:
    """What SVR works on, of C [rows, tokens, channels]: every row that shares its window, in every encoder.

    Parts of equal length come together.
    """
    parts: dict[int, list[Part]] = {}
    for own in record.token_sets(C):
        for e, encoder in enumerate(record.encoders):
            for i, row in enumerate(record.rows):
                if len(row.window) > 1:
                    view = own[i, slice(*encoder.tokens), slice(*encoder.channels)]
                    part = Part(row, row.spans[e].shifted(-encoder.tokens.start), view, encoder.scale)
                    parts.setdefault(len(view), []).append(part)
    return list(parts.values())


def calls_of(part: Part, variant: Variant, eot: EotMode, express: Gain, suppress: Gain) -> list[Call]:
    """The calls for one part in their order, which matters: every one of them rewrites the EOT set."""
    spans, own = part.spans, part.row.expressed
    reweighted, scaled = (spans.eot, NOTHING) if eot == "reweight" else (NOTHING, spans.eot)
    express, suppress = (gain._replace(scale=part.scale) for gain in (express, suppress))
    calls = [Call((*range(*span), *range(*reweighted)), scaled, suppress) for span in spans.frames]
    expressing = calls.pop(own)._replace(gain=express)
    return [*calls, expressing] if variant == "released" else [expressing, *calls]


class Batch:
    """Parts that are multiplied from the left together, call after call.

    A call's A follows from X X^T alone. So the calls work on M, the product of the As so far, and on
    G = M C C^T M^T, both [tokens, tokens] for any encoder; C is needed at the ends only. Parts of equal C share their M
    and G, at `shared`, for as long as their calls are equal too.
    """

    def __init__(self, parts: list[Part]):
        self.parts = parts
        self.shared: list[int] = []
        firsts: list[Part] = []
        like: dict[tuple[Spans, tuple[int, ...]], list[int]] = {}
        for part in parts:
            same = like.setdefault((part.spans, part.row.window), [])
            equal = next((n for n in same if torch.equal(firsts[n].C, part.C)), None)
            if equal is None:
                equal = len(firsts)
                same.append(equal)
                firsts.append(part)
            self.shared.append(equal)
        # One token more than there are, a zero one, evens out the lengths of the calls.
        self.G = torch.stack([F.pad(part.C @ part.C.mT, (0, 1, 0, 1)) for part in firsts])
        self.M = torch.eye(self.G.shape[-1], dtype=self.G.dtype).repeat(len(firsts), 1, 1)

    def multiply(self, step: Sequence[Call]) -> None:
        """X = A X for the tokens X of each part's call."""
        branches = {branch: n for n, branch in enumerate(dict.fromkeys(zip(self.shared, step)))}
        self.shared = [branches[branch] for branch in zip(self.shared, step)]
        parents, calls = zip(*branches)
        G, M = self.G[list(parents)], self.M[list(parents)]

        longest = max(len(call.positions) for call in calls)
        index = torch.tensor([[*call.positions, *[-1] * (longest - len(call.positions))] for call in calls])
        n = torch.arange(len(calls))[:, None]
        alpha, beta = G.new_tensor([(call.gain.alpha * call.gain.scale, call.gain.beta) for call in calls]).T
        A = left_factor(G[n[:, :, None], index[:, :, None], index[:, None, :]], alpha, beta)
        G[n, index] = A @ G[n, index]
        G[n, :, index] = A @ G[n, :, index]
        M[n, index] = A @ M[n, index]
        for g, m, call in zip(G, M, calls):
            if call.scaled != NOTHING:
                for x in (g, g.mT, m):
                    x[slice(*call.scaled)] *= 0.9
        G[:, -1] = G[:, :, -1] = M[:, -1] = 0
        self.G, self.M = G, M

    def find_above(self, largest: float) -> int | None:
        """The first part that has a value above `largest`, or one that is no number."""
        norms = self.G.diagonal(dim1=1, dim2=2).amax(1).sqrt().tolist()
        for n, part in enumerate(self.parts):
            at = self.shared[n]
            # No value is larger than its token's norm.
            if not norms[at] <= largest and not (self.M[at, :-1, :-1] @ part.C).abs().amax() <= largest:
                return n
        return None

    def write_back(self) -> None:
        """C = M C, in place, on all tokens after the identity."""
        for at, part in zip(self.shared, self.parts):
            start = part.spans.identity.stop
            part.C[start:] = self.M[at, start:-1, start:-1] @ part.C[start:]


def overflow(frame: int, gain: Gain) -> str:
    return (
        f"SVR makes frame {frame + 1}'s embedding overflow: lower {gain.name}_alpha ({abs(gain.alpha):g}) or "
        f"{gain.name}_beta ({gain.beta:g}); the papers' values are express_alpha 0.01, express_beta 1, suppress_alpha "
        "0.01, suppress_beta 0.05."
    )
