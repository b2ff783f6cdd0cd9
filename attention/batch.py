"""One forward pass of the model, as the methods see it: whose rows it has, and where they stand in the sampling."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..svr.record import Between, Record
from .blocks import Block
from .schedule import Place

if TYPE_CHECKING:
    from .method import Method

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
