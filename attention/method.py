"""What a method is to the run-time: left in a model by a node, prepared once per forward pass, asked at every call.

To add a method, write a file with two small classes and a node that calls `runtime.patch`. Methods compose as
middleware does: each gets the call and what comes after it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..svr.record import Between, Record, Span
from .blocks import Block, Blocks
from .schedule import Place

Kind = Literal["self", "cross", "joint"]
"""Pictures among themselves, pictures that look at text, or both in one call."""

Characters = tuple[tuple[str, ...], ...]
"""For each frame of the story, who it shows."""


class Cast(NamedTuple):
    """The frames that a batch's rows draw, whom each frame of their story shows, and the last of its frames, which lie
    between others."""

    frames: tuple[int, ...]
    characters: Characters
    between: tuple[Between, ...] = ()

    def ends(self, frame: int) -> Between | None:
        """What a frame lies between, if it is no frame of the story itself."""
        n = frame - len(self.characters) + len(self.between)
        return self.between[n] if n >= 0 else None


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


class Placement(NamedTuple):
    """A conditioning's record, the number of tokens of its own tensor, and where in the batch's text they begin.

    There are several such `copies`, one after the other, where a text is repeated to the length of a longer one.
    `alone` is each row's identity encoded alone, as in `Attached`.
    """

    record: Record
    own_tokens: int
    copies: tuple[int, ...] = (0,)
    alone: Tensor | None = None

    def place(self, values: Tensor, tokens: int) -> Tensor:
        """`values` [..., own_tokens] at every copy in a text of so many tokens, 0 elsewhere: [..., tokens]."""
        repeated = values.repeat(*[1] * (values.ndim - 1), len(self.copies))
        first = self.copies[0]
        return F.pad(repeated, (first, tokens - first - repeated.shape[-1]))


class Chunk(NamedTuple):
    """The rows `start` to `stop` of a batch: one conditioning's."""

    start: int
    stop: int
    placement: Placement | None


Kept = dict[Any, tuple[Tensor, Tensor]]
"""Keys and values that the passes of one evaluation of the model leave for later ones, each method under keys of its
own. It lives as long as the evaluation."""


class Alone(NamedTuple):
    """The identity of each row encoded alone, [rows, tokens, channels]: of row i, `counts[i]` tokens, then zeros."""

    tokens: Tensor
    counts: tuple[int, ...]


class Turn(NamedTuple):
    """A part of one evaluation: `first` the stories' conditionings, then the others, which find in `left` what the
    passes of the first turn have left there, each method under keys of its own."""

    first: bool
    left: dict[Any, Any]


class Report(Protocol):
    """Where a sampling's warnings go: each once, however many steps and blocks there are."""

    def warn(self, text: str) -> None: ...

    def skip(self, reason: str, block: Block) -> None: ...


class Batch(NamedTuple):
    """One forward pass of the model.

    Each of `chunks` has a row for each of `frames`, numbered as in the story, whose `characters` says whom each frame
    shows. `tokens` is the text's length; latent pictures are `size` high and wide, those of the whole canvas
    `canvas`, and a layer with n tokens has the size `layer_size(n)`, None if it has none. `place` is where in the
    model's schedule the pass stands. `methods` are all that are on there, `asked` all that the graph asks for, there or
    elsewhere. `uuids` are the chunks' conditionings, and `positive` says of each whether it is none of the guider's
    negative ones. Where a story is drawn in several passes, `kept` has what earlier ones left. With `alone`, the model
    reads these tokens after the text's. `turn` is the evaluation's, if it has several. `between` is as in `Cast`.
    """

    chunks: tuple[Chunk, ...]
    frames: tuple[int, ...]
    characters: Characters
    tokens: int
    size: tuple[int, int]
    canvas: tuple[int, int]
    layer_size: Callable[[int], tuple[int, int] | None]
    place: Place
    dtype: torch.dtype
    device: torch.device
    report: Report
    methods: tuple["Method", ...] = ()
    uuids: tuple[Any, ...] = ()
    positive: tuple[bool, ...] = ()
    kept: Kept | None = None
    alone: Alone | None = None
    asked: tuple["Method", ...] = ()
    turn: Turn | None = None
    between: tuple[Between, ...] = ()

    @property
    def cast(self) -> Cast:
        return Cast(self.frames, self.characters, self.between)

    @property
    def rows(self) -> int:
        return self.chunks[-1].stop

    @property
    def whole(self) -> bool:
        """Whether every chunk has all the sampler's frames, not a part of them or several tiles of each."""
        return self.chunks[0].stop == len(self.frames)


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
