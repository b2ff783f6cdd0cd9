"""Where the characters' descriptions stand in a prompt's tokens, by construction."""

from collections.abc import Sequence

from ..story.script import Frame, Story
from .pieces import Piece, Pieces
from .spans import Span

Part = tuple[str, str | None]
"""A piece of a text and the name of the character that it describes, if it does."""

Subjects = dict[str, tuple[tuple[str, Span], ...]]
"""For each encoder, which character is described where among the tokens of one text."""


def identity_parts(story: Story, frame: Frame) -> list[Part]:
    """The identity of `frame` in pieces."""
    words = {c.name: c.description for c in story.characters}
    parts: list[Part] = []
    for name in frame.characters:
        parts += [(" and ", None)] * bool(parts) + [(words[name], name)]
    return parts


def subjects_in(pieces: Pieces, parts: Sequence[Part], first: bool = True) -> Subjects:
    """Where the named parts stand among the tokens of the text that all parts are together.

    A part begins after as many tokens as the text before it has. Where brackets of a weight are open there, that counts
    them as text, so of the places with the part's own tokens the nearest is taken. `first`: see `Pieces.of`.
    """
    whole = pieces.of("".join(text for text, _ in parts), first)
    found: dict[str, list[tuple[str, Span]]] = {key: [] for key in whole}
    before = ""
    for text, name in parts:
        if name is not None:
            start, stop = pieces.of(before.rstrip(), first), pieces.of(before + text, first)
            own = [pieces.of(text, form) for form in (True, False)]
            for key, spans in found.items():
                counted = Span(len(start[key]), min(len(stop[key]), len(whole[key])))
                spans.append((name, nearest(whole, own, key, counted)))
        before += text
    return {key: tuple(spans) for key, spans in found.items()}


def slots_in(pieces: Pieces, parts: Sequence[Part], first: bool = True) -> Subjects:
    """Where the marked words of named parts stand among the tokens of the text that all parts are together."""
    found: Subjects = {}
    for key, spans in pieces.slots_of("".join(text for text, _ in parts), first).items():
        names = [name for text, name in parts for _ in pieces.slots_of(text)[key]]
        found[key] = tuple((name, span) for name, span in zip(names, spans) if name is not None)
    return found


def nearest(whole: Piece, own: Sequence[Piece], key: str, counted: Span) -> Span:
    """Where the tokens of `whole` are those of one of `own`, next to `counted`; that itself if nowhere."""
    tokens = [token for token, _ in whole[key]]
    places = []
    for form in own:
        part = [token for token, _ in form[key]]
        for start in range(len(tokens) - len(part) + 1):
            if part and all(same(a, b) for a, b in zip(part, tokens[start:])):
                places.append(Span(start, start + len(part)))
    return min(places, key=lambda span: abs(span.start - counted.start), default=counted)


def same(a: object, b: object) -> bool:
    """Whether two tokens are one: a word's number, or an embedding's vector."""
    return a == b if isinstance(a, int) and isinstance(b, int) else type(a) is type(b) and bool((a == b).all())  # type: ignore[attr-defined]
