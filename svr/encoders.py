"""Text encoders: what each puts around a prompt, and where its tokens stand in a conditioning's embedding."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .spans import Span

Token = tuple[Any, float]
"""A token id or an embedding's vector, and its weight."""

Tokens = dict[str, list[list[Token]]]
"""ComfyUI's tokens: for each encoder, chunks of tokens."""

Tokenize = Callable[[str], dict[str, list[list[tuple[Any, float, int]]]]]
"""ComfyUI's `clip.tokenize` with `return_word_ids`: the word id 0 marks what is no word, such as padding."""


class TextEncoder(NamedTuple):
    """What is known of a text encoder beforehand.

    `key` is ComfyUI's name of its tokens. Its token vectors have `width` channels and stand in the embedding from token
    `first` on, at `channels`: once, or several times, as several layers give them. A prompt takes `most` tokens of text
    where the model was trained on no more; with None, as many as the tokenizer leaves room for, and none further can be
    encoded. In a `causal` encoder a token has read those before it only. A `spaced` one takes each piece of a prompt
    after the first with a space in front. With `evened`, prompts are padded to the longest of a story. A `templated`
    one puts a template around the text, whose first `dropped` tokens its output leaves out.
    """

    key: str
    name: str
    width: int
    channels: Span
    first: int = 0
    most: int | None = None
    causal: bool = True
    evened: bool = True
    spaced: bool = False
    templated: bool = False
    dropped: int = 0

    @property
    def is_clip(self) -> bool:
        return self.most is None


NAMES = {
    "l": "CLIP-L",
    "h": "OpenCLIP-H",
    "g": "CLIP-G",
    "t5xxl": "T5-XXL",
    "umt5xxl": "UMT5-XXL",
    "qwen25_7b": "Qwen2.5-VL",
    "qwen3_4b": "Qwen3-4B",
    "qwen3_8b": "Qwen3-8B",
    "mistral3_24b": "Mistral-Small-24B",
    "gemma2_2b": "Gemma-2-2B",
}
WIDTHS = {"l": 768, "h": 1024, "g": 1280, "t5xxl": 4096, "umt5xxl": 4096}


def name_of(key: str) -> str:
    """What people call the text encoder that ComfyUI calls `key`."""
    return NAMES.get(key, key)


def clip_encoder(key: str, start: int = 0) -> TextEncoder:
    """One of CLIP's text encoders, its channels from `start` on."""
    return TextEncoder(key, NAMES[key], WIDTHS[key], Span(start, start + WIDTHS[key]))


def side_by_side(*keys: str) -> tuple[TextEncoder, ...]:
    """CLIP encoders whose vectors stand side by side at the same tokens."""
    encoders: list[TextEncoder] = []
    for key in keys:
        encoders.append(clip_encoder(key, encoders[-1].channels.stop if encoders else 0))
    return tuple(encoders)


def t5(first: int = 0, most: int = 512, evened: bool = True) -> TextEncoder:
    """T5-XXL, whose vectors stand after `first` tokens of other encoders."""
    width = WIDTHS["t5xxl"]
    return TextEncoder("t5xxl", NAMES["t5xxl"], width, Span(0, width), first, most, causal=False, evened=evened)


def umt5() -> TextEncoder:
    """UMT5-XXL, whose output is zero after the text's end."""
    return t5()._replace(key="umt5xxl", name=NAMES["umt5xxl"])


def language_model(key: str, width: int, templated: bool = True, dropped: int = 0) -> TextEncoder:
    """A causal language model, whose vocabulary counts the space before a word to the word.

    Models that read it have learned from 512 tokens or so.
    """
    return TextEncoder(
        key, NAMES[key], width, Span(0, width), most=512, spaced=True, templated=templated, dropped=dropped
    )


class Slot(NamedTuple):
    """What an encoder puts `before` and `after` a prompt's text. `padding` fills it up to `least` tokens, if any.

    Padding that a tokenizer puts after every text, however long, belongs to `after`.
    """

    before: tuple[Token, ...]
    after: tuple[Token, ...]
    padding: Token | None
    least: int


def slot_of(tokenize: Tokenize, encoder: TextEncoder) -> Slot:
    """An encoder's slot, seen from what its tokenizer does with no text and with a word."""
    [empty], [probe] = tokenize("")[encoder.key], tokenize("fox")[encoder.key]
    words = [i for i, (_, _, word) in enumerate(probe) if word]
    if encoder.templated:
        text, none = without_padding(probe), without_padding(empty)
        common = next(i for i, pair in enumerate(zip(text, none)) if pair[0] != pair[1])
        before, after, rest = none[:common], none[common:], plain(empty[len(none) :])
    else:
        before, rest = plain(probe[: words[0]]), plain(probe[words[-1] + 1 :])
        after = rest[:1]
        if len(rest) == 1:
            return Slot(tuple(before), tuple(after), None, len(empty))
        if not encoder.is_clip:
            # A text that needs no filling up shows what follows every text.
            [long] = tokenize(" ".join(["fox"] * (len(empty) // len(words) + 1)))[encoder.key]
            after = plain(long[1 + max(i for i, (_, _, word) in enumerate(long) if word) :])
    return Slot(tuple(before), tuple(after), rest[-1] if rest else None, len(empty))


def plain(tokens: list[tuple[Any, float, int]]) -> list[Token]:
    return [(token, weight) for token, weight, _ in tokens]


def without_padding(tokens: list[tuple[Any, float, int]]) -> list[Token]:
    """The tokens up to the last that is of a word."""
    return plain(tokens[: 1 + max((i for i, (_, _, word) in enumerate(tokens) if word), default=-1)])


def text_tokens(tokenize: Tokenize, text: str, encoder: TextEncoder, slot: Slot) -> list[Token]:
    """What the tokenizer makes of `text` alone, without what it puts around it."""
    chunks = tokenize(text)[encoder.key]
    if encoder.templated:
        tokens = without_padding([token for chunk in chunks for token in chunk])
        if tuple(tokens[: len(slot.before)]) != slot.before:
            raise ValueError(
                f"{encoder.name} takes the text “{text[:40]}” for a whole template of its own, since it begins with a "
                "template's mark: take that out and write the prompt alone."
            )
        return tokens[len(slot.before) : len(tokens) - len(slot.after)]
    return [(token, weight) for chunk in chunks for token, weight, word in chunk if word]
