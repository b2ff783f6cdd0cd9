"""Own words: each character's description as the text encoder reads it alone, where the story's prompt has it.

CLIP is causal: in “a red fox and a blue owl” the owl's words have read the fox's, and stand for a little of both.
Structured diffusion guidance (arXiv 2212.05032, section 3) puts separately encoded noun phrases into the whole prompt's
embedding; here they are the descriptions.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..story.script import Character, Frame, Story
from .consolidate import Prompt, consolidate
from .encoders import TextEncoder, Tokenize
from .record import Record, Spans


class Alone(NamedTuple):
    """A description's embedding [1, tokens, channels], and where it stands in it for each encoder."""

    embeds: Tensor
    spans: tuple[Spans, ...]


def description_prompts(
    story: Story, tokenize: Tokenize, encoders: Sequence[TextEncoder], mark: str = ""
) -> dict[str, Prompt]:
    """A prompt with nothing but its description for each character that a frame shows. `mark` as in `consolidate`."""
    shown = {name for frame in story.frames for name in frame.characters}
    described = (c for c in story.characters if c.name in shown)
    return {c.name: consolidate(alone(c), tokenize, encoders, mark=mark)[0][0] for c in described}


def alone(character: Character) -> Story:
    """A story of one frame, which shows nobody and says what the character looks like."""
    return Story((), (Frame("", character.description, "", ()),))


def put_own_words(embeds: Tensor, record: Record, own: Mapping[str, Alone]) -> Tensor:
    """`embeds` [rows, tokens, channels] with every description's token vectors from its embedding alone, encoder by
    encoder. One that has another number of tokens there stays as it is."""
    out = embeds.clone()
    for n, tokens in enumerate(record.token_sets(out)):
        for values, row in zip(tokens, record.rows):
            for e, (encoder, subjects) in enumerate(zip(record.encoders, row.subjects)):
                channels = slice(*encoder.channels)
                for name, span in subjects:
                    [source], spans = own[name]
                    words = source[n :: record.interleaved][slice(*spans[e].frames[0]), channels]
                    if len(words) == span.stop - span.start:
                        values[slice(*span), channels] = words
    return out
