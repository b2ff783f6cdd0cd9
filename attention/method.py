"""What a method is to the run-time: left in a model by a node, prepared once per forward pass, asked at every call.

To add a method, write a file with two small classes and a node that calls `runtime.patch`. Methods compose as
middleware does: each gets the call and what comes after it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..svr.record import Record, Span
from .batch import Batch, Cast, Report
from .blocks import Block, Blocks
from .schedule import Place

Kind = Literal["self", "cross", "joint"]
"""Pictures among themselves, pictures that look at text, or both in one call."""


class Layer(NamedTuple):
    """One attention layer: a transformer of the block (name, number), by ComfyUI's names."""

    kind: Kind
    block: Block
    transformer: int


class Call(NamedTuple):
    """One call of an attention function.

    q, k, v: [rows, tokens, heads * channels], or [rows, heads, tokens, channels] where the option `skip_reshape` says
    so. The queries are those of the picture. `rows` says which rows of the batch these are; among the keys stand the
    conditioning's tokens at `text`, the picture's own at `picture` (None where they don't). `turn` gives keys of one
    picture the positions beside another; None in models whose keys carry no position. `attention` computes the call,
    with other packs' overrides; `unpatched` without them. `options` are its further arguments. `alone`: keys and values
    of the identities encoded alone, for all rows of the batch, if the model gets them; they are not among k and v.
    """

    layer: Layer
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    rows: Span
    text: Span | None
    picture: Span
    turn: Callable[[Tensor], Tensor] | None
    attention: Callable[..., Tensor]
    unpatched: Callable[..., Tensor]
    options: dict[str, Any]
    alone: tuple[Tensor, Tensor] | None = None

    def attention_by(self, next: "Next") -> Callable[..., Tensor]:
        """`next` as an attention function of other queries, keys, values and options."""

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
            return next(self._replace(q=q, k=k, v=v, options=options))

        return attention


Next = Callable[[Call], Tensor]


class Prepared(Protocol):
    """A method, ready for one forward pass."""

    def attend(self, call: Call, next: Next) -> Tensor:
        """What the call gives; `next(call)` is what it gives without this method."""


@runtime_checkable
class Watcher(Protocol):
    """A prepared method that learns from layers it does not change."""

    def watch(self, call: Call) -> None:
        """See a call of a layer with text, of whatever block, before any method has its turn at it."""


class Method(Protocol):
    """What a node asks of a model; immutable. `blocks` and the places between the two percents get it."""

    name: ClassVar[str]
    """What warnings call it."""
    kinds: ClassVar[frozenset[Kind]]
    """The kinds of layer that it works on."""
    stacks: ClassVar[bool]
    """Whether all of its kind count where they overlap; else the last applied one does."""
    adds: ClassVar[bool]
    """Whether it adds to what a call gives without changing the call, so that it comes before those that watch it."""
    widens: ClassVar[bool]
    """Whether it hands on other keys than it is given, or weighs them for each query, so that it comes after those that
    look at them."""

    @property
    def reads_alone(self) -> bool:
        """Whether it looks at the identities encoded alone, which the model then reads after the text."""

    @property
    def blocks(self) -> Blocks: ...
    @property
    def start_percent(self) -> float: ...
    @property
    def end_percent(self) -> float: ...

    @property
    def stories_first(self) -> bool:
        """Whether conditionings without a story need what those with one leave, and are evaluated in a turn after."""

    def off(self) -> bool:
        """Whether it does nothing but overrule earlier ones of its kind."""

    def check(self, records: list[Record], places: list[Place], report: Report) -> None:
        """Before a sampler starts on the stories of `records`, in steps at `places`, all between the two percents.

        Raises `ValueError` for a mistake in the graph; what can be drawn all the same is a warning.
        """

    def sources(self, cast: Cast) -> list[list[int]]:
        """For each frame of a story, the other frames that it looks at: none of them is drawn in a later pass."""

    def prepare(self, batch: Batch) -> Prepared | None:
        """Everything that differs between forward passes, since what follows may be compiled; None for nothing."""


def call_attention(call: Call) -> Tensor:
    """The end of every chain: the attention function itself."""
    return call.attention(call.q, call.k, call.v, call.heads, **call.options)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of any kind that ComfyUI's functions take as one to add to the logits: [rows, heads, queries, keys].

    Each of the first three may be 1.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)
    while mask.ndim < 4:
        mask = mask.unsqueeze(max(0, mask.ndim - 2))
    return mask


def one_hot(spans: Sequence[tuple[Span, ...]], tokens: int) -> Tensor:
    """1 where each list of spans has its tokens, else 0: [lists, tokens]."""
    columns = torch.zeros(len(spans), tokens)
    for column, own in zip(columns, spans):
        for span in own:
            column[slice(*span)] = 1
    return columns
