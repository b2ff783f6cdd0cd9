"""What a caption's characters say: `Mia: "Hello!"`."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import regex

from .script import key
from .syntax import clean

QUOTES = {'"': '"', "“": "”", "„": "“”", "”": "”", "«": "»", "»": "«", "‹": "›", "「": "」", "『": "』", "＂": "＂"}
"""What a quotation that begins with a mark may end with."""

QUOTATION = "|".join(f"{opening}[^{closing}]+[{closing}]" for opening, closing in QUOTES.items())
BEGINS = rf"(?<=^\s*|\n\s*|[.!?。！？…{''.join(QUOTES.values())}]\s*)"
ONE_WORD = r"\p{L}[\p{L}\p{M}\p{N}'’-]*"


class Speech(NamedTuple):
    """What one character says, without quotation marks."""

    name: str
    text: str


def split_speech(caption: str, names: Sequence[str]) -> tuple[str, tuple[Speech, ...]]:
    """A caption without what the characters called `names` say in it, and that: `Mia: "Hello!"` is a `Speech`.

    The name begins a sentence, and quotation marks may be those of any language. Where a story names nobody (`names`
    has no name), any one word before the colon is a name. All other text stays in the caption, in its order.
    """
    pattern = spoken(tuple(name for name in names if name))
    known = {key(name): name for name in names}
    said = []
    for match in pattern.finditer(caption):
        name, text = clean(match[1]), clean(match[2][1:-1])
        if not text:
            return caption, ()
        said.append(Speech(known.get(key(name), name), text))
    if not said:
        return caption, ()
    lines = [clean(regex.sub(" {2,}", " ", line)) for line in pattern.sub(" ", caption).splitlines()]
    return "\n".join(filter(None, lines)), tuple(said)


@cache
def spoken(names: tuple[str, ...]) -> regex.Pattern[str]:
    name = "|".join(sorted(map(regex.escape, names), key=len, reverse=True)) or ONE_WORD
    return regex.compile(rf"{BEGINS}({name})\s*[:：]\s*({QUOTATION})", regex.IGNORECASE)
