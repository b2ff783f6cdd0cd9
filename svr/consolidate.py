"""Prompt consolidation (1Prompt1Story, arXiv 2501.13554, section 3.1) with token spans found by construction."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from ..story.script import Story, quote
from .record import Encoder, Record, Row, Span, Spans

WIDTHS = {"l": 768, "h": 1024, "g": 1280}
NAMES = {"l": "CLIP-L", "h": "OpenCLIP-H", "g": "CLIP-G"}

Tokens = dict[str, list[list[tuple[Any, float]]]]
"""ComfyUI's tokens: for each encoder, chunks of (token id or embedding vector, weight)."""


Piece = dict[str, list[tuple[Any, float]]]
"""For each encoder, the tokens of one piece of a prompt, without SOT, EOT and padding."""

Tokenize = Callable[[str], dict[str, list[list[tuple[Any, float, int]]]]]
"""ComfyUI's `clip.tokenize` with `return_word_ids`: the word id 0 marks SOT, EOT and padding."""


class Prompt(NamedTuple):
    """One prompt to encode. `window` are the frames whose prompts it holds, in order."""

    window: tuple[int, ...]
    tokens: Tokens
    spans: tuple[Spans, ...]


def consolidate(
    story: Story, tokenize: Tokenize, encoders: tuple[str, ...], separate: bool = False, window: int = 0
) -> tuple[list[Prompt], list[int], Record]:
    """The prompts of a story, for each frame the number of its prompt, and the record of the frames' embedding.

    Frames that show the same characters share one prompt [P0; P1; ...; PN]. When it does not fit the encoder, frame j
    gets its own [P0; Pj; ...; Pj+w-1], circular, with the largest w for which every window fits (`window`, if not 0,
    limits w). `separate` gives every frame [P0; Pj]. A frame without characters always stands alone.
    Raises `ValueError` for a frame that has no tokens or does not fit alone.
    """
    empty = tokenize("")
    length = min(len(empty[name][0]) for name in encoders)
    texts = dict.fromkeys(text for f in story.frames for text in (f.identity, f.prompt))
    tokenized = {text: tokenize_piece(tokenize, text, encoders) for text in texts}
    identities = {f.identity: tokenized[f.identity] for f in story.frames}
    pieces = [tokenized[f.prompt] for f in story.frames]
    for j, (frame, piece) in enumerate(zip(story.frames, pieces)):
        check_fits(j, frame.prompt, piece, identities[frame.identity], length)

    prompts: list[Prompt] = []
    chosen: list[int] = []
    number: dict[tuple[int, ...], int] = {}
    windows: dict[int, tuple[int, ...]] = {}
    for j, frame in enumerate(story.frames):
        if j not in windows:
            alone = separate or not frame.characters
            group = [j] if alone else [k for k, f in enumerate(story.frames) if f.characters == frame.characters]
            windows.update(zip(group, choose_windows(group, pieces, identities[frame.identity], length, window)))
        order = windows[j]
        if order not in number:
            number[order] = len(prompts)
            prompts.append(join(order, identities[frame.identity], [pieces[k] for k in order], empty, length))
        chosen.append(number[order])

    start = 0
    layout = []
    for name in encoders:
        layout.append(Encoder(name, Span(0, length), Span(start, start + WIDTHS[name])))
        start += WIDTHS[name]
    rows = tuple(Row(j, prompts[p].window, prompts[p].spans) for j, p in enumerate(chosen))
    characters = tuple(frame.characters for frame in story.frames)
    return prompts, chosen, Record(len(story.frames), tuple(layout), rows, characters)


def tokenize_piece(tokenize: Tokenize, text: str, encoders: tuple[str, ...]) -> Piece:
    """The tokens of `text` alone: CLIP splits words at white space, so they are the same inside a joined prompt."""
    piece: Piece = {}
    tokenized = tokenize(text)
    for name in encoders:
        tokens = [(token, weight) for chunk in tokenized[name] for token, weight, word in chunk if word != 0]
        piece[name] = [t for t in tokens if isinstance(t[0], int) or t[0].shape[-1] == WIDTHS[name]]
        if len(piece[name]) < len(tokens):
            logging.warning(
                "OneStory: an embedding in %s is not made for %s, which ignores it.", quote(text), NAMES[name]
            )
    return piece


def check_fits(j: int, text: str, piece: Piece, identity: Piece, length: int) -> None:
    for name, tokens in piece.items():
        if not tokens:
            raise ValueError(
                f"Frame {j + 1} ({quote(text)}) has no tokens for the {NAMES[name]} text encoder: write its prompt in "
                "words the encoder knows, or check the embedding's name."
            )
        used, most = len(identity[name]) + len(tokens), length - 2
        if used > most:
            over = f"{used - most} token{'s' * (used - most > 1)}"
            raise ValueError(
                f"Frame {j + 1} is too long for {NAMES[name]} by {over}: {used} of at most {most} "
                f"({len(identity[name])} of the identity, {len(tokens)} of the frame {quote(text)}), so shorten the "
                "identity or this frame."
            )


def choose_windows(
    group: list[int], pieces: list[Piece], identity: Piece, length: int, limit: int
) -> list[tuple[int, ...]]:
    """For each frame of `group`, the frames whose prompts stand in its prompt, in order."""
    size = len(group)
    for width in range(min(size, limit or size), 0, -1):
        if width == size:
            windows = [tuple(group)] * size
        else:
            windows = [tuple(group[(own + i) % size] for i in range(width)) for own in range(size)]
        if all(
            len(identity[name]) + sum(len(pieces[k][name]) for k in window) <= length - 2
            for window in windows
            for name in identity
        ):
            return windows
    raise AssertionError("check_fits lets every frame fit alone")


def join(window: tuple[int, ...], identity: Piece, pieces: list[Piece], empty: Any, length: int) -> Prompt:
    """[SOT, P0, P..., EOT, padding] for each encoder, and where each part stands."""
    tokens: Tokens = {}
    spans = []
    for name in identity:
        sot, eot, padding = ((empty[name][0][i][0], 1.0) for i in (0, 1, -1))
        chunk = [sot, *identity[name]]
        frames = []
        for piece in pieces:
            frames.append(Span(len(chunk), len(chunk) + len(piece[name])))
            chunk += piece[name]
        spans.append(Spans(Span(1, 1 + len(identity[name])), tuple(frames), Span(len(chunk), length)))
        chunk.append(eot)
        tokens[name] = [chunk + [padding] * (len(empty[name][0]) - len(chunk))]
    return Prompt(window, tokens, tuple(spans))
