"""Prompt consolidation (1Prompt1Story, arXiv 2501.13554, section 3.1) with token spans found by construction."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..story.script import Story, quote
from .encoders import TextEncoder, Tokenize, Tokens, plain, slot_of
from .pieces import Piece, Pieces, Seat
from .record import Encoder, Record, Row, Span, Spans, shift
from .subjects import Part, Subjects, identity_parts, slots_in, subjects_in


class Prompt(NamedTuple):
    """One prompt to encode. `window` are the frames whose prompts it holds, in order; `subjects` and `slots` are as a
    `Row`'s."""

    window: tuple[int, ...]
    tokens: Tokens
    spans: tuple[Spans, ...]
    subjects: tuple[tuple[tuple[str, Span], ...], ...] = ()
    slots: tuple[tuple[tuple[str, Span], ...], ...] = ()

    @property
    def length(self) -> int:
        """The number of its tokens in the embedding; a longer prompt's row may have more."""
        return max(spans.eot.stop for spans in self.spans)


def consolidate(
    story: Story,
    tokenize: Tokenize,
    encoders: Sequence[TextEncoder],
    separate: bool = False,
    window: int = 0,
    width: int = 0,
    mark: str = "",
) -> tuple[list[Prompt], list[int], Record]:
    """The prompts of a story, for each frame the number of its prompt, and the record of the frames' embedding.

    Frames that show the same characters share one prompt [P0; P1; ...; PN]. When it does not fit the encoder, frame j
    gets its own [P0; Pj; ...; Pj+w-1], circular, with the largest w for which every window fits (`window`, if not 0,
    limits w). `separate` gives every frame [P0; Pj]. A frame without characters always stands alone. All prompts are
    padded to the longest, where an encoder evens them. `width` is the embedding's, if the encoders use less. `mark`
    is what stands behind class words, once for each token of a character's pictures.
    Raises `ValueError` for a frame that has no tokens or does not fit alone.
    """
    seats = [Seat(encoder, slot_of(tokenize, encoder)) for encoder in encoders]
    pieces = Pieces(tokenize, seats, mark)
    for j, frame in enumerate(story.frames):
        pieces_of = pieces.of(frame.identity), pieces.after(frame.identity, frame.prompt)
        check_fits(j, frame.prompt, *pieces_of, seats, bool(mark))

    orders: list[tuple[int, ...]] = []
    chosen: list[int] = []
    number: dict[tuple[int, ...], int] = {}
    windows: dict[int, tuple[int, ...]] = {}
    for j, frame in enumerate(story.frames):
        if j not in windows:
            alone = separate or not frame.characters
            group = [j] if alone else [k for k, f in enumerate(story.frames) if f.characters == frame.characters]
            prompts_of = {k: pieces.after(frame.identity, story.frames[k].prompt) for k in group}
            windows.update(zip(group, choose_windows(group, prompts_of, pieces.of(frame.identity), seats, window)))
        order = windows[j]
        if order not in number:
            number[order] = len(orders)
            orders.append(order)
        chosen.append(number[order])

    texts = [[story.frames[order[0]].identity, *(story.frames[k].prompt for k in order)] for order in orders]
    parts = [[pieces.of(first), *pieces.following(first, others)] for first, *others in texts]
    lengths = [max(length_of(seat, prompt) for prompt in parts) for seat in seats]
    named = [[named_in(story, order, pieces, where) for where in (subjects_in, slots_in)] for order in orders]
    prompts = [join(order, part, seats, lengths, *own) for order, part, own in zip(orders, parts, named)]
    read_further(prompts, texts, tokenize, encoders)
    layout = layout_of(seats, lengths)
    own_prompts = [prompts[p] for p in chosen]
    rows = tuple(Row(j, p.window, p.spans, (), p.subjects, slots=p.slots) for j, p in enumerate(own_prompts))
    characters = tuple(frame.characters for frame in story.frames)
    return prompts, chosen, Record(len(story.frames), layout, rows, characters, width=width)


def identities_alone(
    story: Story, tokenize: Tokenize, encoders: Sequence[TextEncoder], width: int = 0
) -> dict[str, tuple[Prompt, Record]]:
    """A prompt of each identity of a story and nothing else, and the record of its embedding [1, tokens, channels]."""
    seats = [Seat(encoder, slot_of(tokenize, encoder)) for encoder in encoders]
    pieces = Pieces(tokenize, seats)
    found = {}
    for text in dict.fromkeys(frame.identity for frame in story.frames if frame.identity):
        lengths = [length_of(seat, [pieces.of(text)]) for seat in seats]
        prompt = join((), [pieces.of(text)], seats, lengths)
        read_further([prompt], [[text]], tokenize, encoders)
        record = Record(0, layout_of(seats, lengths), (Row(0, (), prompt.spans),), (), width=width)
        found[text] = prompt, record
    return found


def read_further(
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    tokenize: Tokenize,
    encoders: Sequence[TextEncoder],
) -> None:
    """Encoders whose vectors don't stand in the embedding read the prompt as text, or only what is quoted in it."""
    own = {encoder.key for encoder in encoders}
    if any(encoder.templated for encoder in encoders) or set(tokenize("")) - own:
        for prompt, text in zip(prompts, texts):
            tokens = tokenize(" ".join(filter(None, text)))
            prompt.tokens.update({key: [plain(c) for c in chunks] for key, chunks in tokens.items() if key not in own})


def layout_of(seats: Sequence[Seat], lengths: Sequence[int]) -> tuple[Encoder, ...]:
    """Where the encoders stand in the embedding of prompts that have at most so many tokens for each."""
    return tuple(
        Encoder(e.key, Span(e.first, e.first + length - e.dropped), e.channels, e.causal, most=seat.most)
        for seat, length in zip(seats, lengths)
        for e in (seat.encoder,)
    )


def check_fits(
    j: int, text: str, identity: Piece, piece: Piece, seats: Sequence[Seat], with_pictures: bool = False
) -> None:
    for seat in seats:
        name, tokens = seat.encoder.name, piece[seat.encoder.key]
        if not tokens:
            raise ValueError(
                f"Frame {j + 1} ({quote(text)}) has no tokens for the {name} text encoder: write its prompt in "
                "words the encoder knows, or check the embedding's name."
            )
        alone = len(identity[seat.encoder.key])
        used, most = alone + len(tokens), seat.most
        if used > most and seat.encoder.is_clip:
            over = f"{used - most} token{'s' * (used - most > 1)}"
            fewer = ", or give its characters fewer pictures" if with_pictures else ""
            raise ValueError(
                f"Frame {j + 1} is too long for {name} by {over}: {used} of at most {most} "
                f"({alone} of the identity, {len(tokens)} of the frame {quote(text)}), so shorten the "
                f"identity or this frame{fewer}."
            )
        if used > most:
            logging.warning(
                "OneStory: frame %d has %d tokens for %s, and models that use it have learned from %d at most: what "
                "stands last may be ignored.", j + 1, used, name, most,
            )  # fmt: skip


def choose_windows(
    group: list[int], prompts: dict[int, Piece], identity: Piece, seats: Sequence[Seat], limit: int
) -> list[tuple[int, ...]]:
    """For each frame of `group`, the frames whose prompts stand in its prompt, in order."""
    size = len(group)
    for width in range(min(size, limit or size), 1, -1):
        if width == size:
            windows = [tuple(group)] * size
        else:
            windows = [tuple(group[(own + i) % size] for i in range(width)) for own in range(size)]
        if all(
            len(identity[seat.encoder.key]) + sum(len(prompts[k][seat.encoder.key]) for k in window) <= seat.most
            for window in windows
            for seat in seats
        ):
            return windows
    return [(own,) for own in group]


def length_of(seat: Seat, pieces: Sequence[Piece]) -> int:
    """The number of tokens of a prompt of these pieces, padded as it would be alone."""
    encoder, slot = seat
    text = sum(len(piece[encoder.key]) for piece in pieces)
    return max(slot.least if slot.padding else 0, len(slot.before) + text + len(slot.after))


def named_in(
    story: Story, order: Sequence[int], pieces: Pieces, where: Callable[[Pieces, Sequence[Part], bool], Subjects]
) -> list[Subjects]:
    """Who is `where` in the identity of these frames, and in each of their prompts."""
    frames = [story.frames[k] for k in order]
    first = frames[0].identity
    texts = [where(pieces, identity_parts(story, frames[0]), True)]
    return texts + [where(pieces, f.parts, not (first or n)) for n, f in enumerate(frames)]


def join(
    window: tuple[int, ...],
    pieces: Sequence[Piece],
    seats: Sequence[Seat],
    lengths: Sequence[int],
    subjects: Sequence[Subjects] = (),
    slots: Sequence[Subjects] = (),
) -> Prompt:
    """[SOT, P0, P..., EOT, padding] for each encoder, and where each part stands; `subjects` and `slots` have, for each
    of the pieces, who is described where in it, and whose class word stands where."""
    tokens: Tokens = {}
    spans = []
    named: list[list[tuple[tuple[str, Span], ...]]] = [[], []]
    for (encoder, slot), length in zip(seats, lengths):
        chunk = [*slot.before]
        start = encoder.first - encoder.dropped
        found = []
        for piece in pieces:
            begin = len(chunk)
            chunk += piece[encoder.key]
            found.append(Span(start + begin, start + len(chunk)))
        sot = Span(encoder.first, encoder.first + (len(slot.before) if encoder.is_clip else 0))
        if not (slot.padding and encoder.evened):
            length = length_of(Seat(encoder, slot), pieces)
        end = start + length
        spans.append(Spans(found[0], tuple(found[1:]), Span(start + len(chunk), end), sot))
        for all_of, texts in zip(named, (subjects, slots)):
            own = zip(found, texts)
            all_of.append(tuple((name, shift(at, part.start)) for part, at_ in own for name, at in at_[encoder.key]))
        chunk += slot.after
        if slot.padding:
            chunk += [slot.padding] * (length - len(chunk))
        tokens[encoder.key] = [chunk]
    return Prompt(window, tokens, tuple(spans), *map(tuple, named))
