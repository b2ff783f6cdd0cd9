"""Story script text to `Story`."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .syntax import (
    BLANK,
    BRACKETS,
    CLOSING,
    FOREIGN,
    INVISIBLE,
    OPENING,
    SCHEDULED,
    SEPARATORS,
    STOPS,
    clean,
    clean_lines,
    cut,
    readable,
)

BEFORE, AFTER = rf"(?<!\\)[{re.escape(OPENING)}]", f"[{re.escape(CLOSING)}]"
NAME = re.compile(rf"{BEFORE}(?!{SCHEDULED})([^{BRACKETS}]+){AFTER}")
NOBODY = re.compile(rf"{BEFORE}\s*[nｎ][cｃ]\s*{AFTER}", re.IGNORECASE)
CAPTION = re.compile(rf"(?:^|\s[{INVISIBLE}]*)[#＃](?!\d)")

CONJUNCTIONS = (
    "and plus | et | und u. | en | og och | ja | y e i ed u | a și si | ve ile | és | un ir | dhe eta | и й і та да | "
    "και κι | ו | و | और व एवं | และ กับ | và với | dan | 和 与 與 跟 及 同 以及 还有 還有 | と や そして | "
    "와 과 랑 이랑 하고 및"
)
"""“And” in the languages of the people who write stories. Between two names at the front it is dropped with them."""

COMMAS = r"\s,;，；、・·&＆+＋/"
WORDS = "|".join(sorted((re.escape(word) for word in CONJUNCTIONS.replace("|", " ").split()), key=len, reverse=True))
LEADING = re.compile(rf"[{COMMAS}]*(?:(?:{WORDS})[{COMMAS}]*)?{NAME.pattern}", re.IGNORECASE)
POSSESSIVE = re.compile(r"['’ʼ＇]|s\s|[-‐‑]\w|的|の|의")
"""What makes a name at the front a part of what follows: Mia's umbrella, Mias Schirm, a Mia-shaped balloon."""
LETTER = re.compile(rf"(?!s\s)[^\W_](?<=[\0-\u058f])|{BEFORE}")
"""What needs a space between itself and a name: a letter of a script that has spaces, or another name."""
PARTICLE = re.compile(r"^(?:[はがも](?=[^\u3041-\u309f])|[은는이가](?=\s))")
"""Japanese and Korean particles of a sentence's subject or topic; inside a word these characters stay."""


class Character(NamedTuple):
    """`name` is "" for the one character of a story whose identity is a plain description."""

    name: str
    description: str


class Frame(NamedTuple):
    """One frame, with every character name already resolved.

    `identity` is the identity prompt P0 of the frame's group and `prompt` its frame prompt Pj (1Prompt1Story,
    section 3.1). `characters` are the names of those it shows, in the order they are described; frames with
    equal `characters` form one group. `parts` are the prompt in pieces, each with the name that it describes or None;
    there are none where the prompt names nobody again.
    """

    identity: str
    prompt: str
    caption: str
    characters: tuple[str, ...]
    parts: tuple[tuple[str, str | None], ...] = ()


class Story(NamedTuple):
    characters: tuple[Character, ...]
    frames: tuple[Frame, ...]
    warnings: tuple[str, ...] = ()


def parse_script(identity: str, frames: str) -> Story:
    """Parse the two texts of a Story Script.

    `identity` is one description, or one `[Name] description` line per character. `frames` holds one frame a
    line: lines that look empty are skipped, and a `#` after white space starts the caption unless a digit follows.
    `\\#` is a plain `#` and `\\[` a plain `[`. Raises `ValueError` with one sentence for the person at the graph.
    """
    lines = [split_caption(line) for line in clean_lines(frames) if line]
    return build_story(parse_characters(identity), lines)


def parse_characters(identity: str) -> tuple[Character, ...]:
    lines = [line for line in clean_lines(identity) if line]
    if not lines:
        raise ValueError(
            "The story's identity is empty: describe who it is about, for example “a watercolor of a young red fox”."
        )
    if not any(NAME.match(line) for line in lines):
        return (Character("", unescape(" ".join(lines))),)
    characters: list[Character] = []
    for line in lines:
        match = NAME.match(line)
        if not match:
            raise ValueError(
                f"The identity line {quote(line)} names no character: begin every line with a name in brackets, "
                "such as “[Mia] a girl”, or use one description without names."
            )
        name, description = clean(match[1]), unescape(line[match.end() :].lstrip(BLANK + SEPARATORS))
        if NOBODY.match(line):
            raise ValueError(f"A character can't be named [{name}]: that marks frames that show nobody.")
        if not description:
            raise ValueError(f"The character [{name}] has no description: write it after the name.")
        if name in (c.name for c in characters):
            raise ValueError(f"The character [{name}] is described twice: keep one of the two lines.")
        characters.append(Character(name, description))
    return tuple(characters)


def split_caption(line: str) -> tuple[str, str | None]:
    """Split a frame's line at the first `#` that starts a caption into prompt and caption (None without one)."""
    prompt, *caption = CAPTION.split(clean(line), maxsplit=1)
    return clean(prompt), clean(caption[0]) if caption else None


def build_story(characters: tuple[Character, ...], lines: list[tuple[str, str | None]]) -> Story:
    """A `Story` from its characters and one (prompt, caption) per frame; a caption None means the prompt's own text."""
    if not lines:
        raise ValueError("The story has no frames: write one frame a line, for example “reading a book by the fire”.")
    frames = tuple(build_frame(characters, j, text, caption) for j, (text, caption) in enumerate(lines, 1))
    texts = [text for text, _ in lines]
    warnings = nameless(characters, frames, texts)
    for character in characters:
        shown = sum(character.name in frame.characters for frame in frames)
        if character.name and shown < 2:
            times = "only one frame" if shown else "no frame"
            warnings.append(
                f"[{character.name}] appears in {times}, so there is nothing to keep the character consistent with."
            )
    if characters[0].name == "":
        for j, text in enumerate(texts, 1):
            warnings.extend(
                f"Frame {j} mentions [{name}], but no character of that name is described: the text is used as it is."
                for name in dict.fromkeys(names_in(NOBODY.sub("", text)))
            )
    tags = [tag for text in (*(c.description for c in characters), *texts) for tag in FOREIGN.findall(text)]
    if tags:
        warnings.append(
            f"ComfyUI reads {listed(list(dict.fromkeys(tags)), 'and')} as plain words, since only other programs know "
            "such tags: delete them, and load a LoRA with a Load LoRA node."
        )
    return Story(characters, frames, tuple(warnings))


def nameless(characters: tuple[Character, ...], frames: tuple[Frame, ...], texts: list[str]) -> list[str]:
    """A warning for the frames of a story of several characters that name none, and don't say that this is meant."""
    numbers = [
        str(j)
        for j, (frame, text) in enumerate(zip(frames, texts), 1)
        if not frame.characters and not NOBODY.search(text)
    ]
    if not numbers:
        return []
    ways = f"write {listed([f'[{c.name}]' for c in characters], 'or')} where they belong, or [NC] if nobody is meant."
    if len(numbers) == 1:
        text = quote(texts[int(numbers[0]) - 1])
        return [f"Frame {numbers[0]} ({text}) mentions no character, so it shows nobody: {ways}"]
    return [f"Frames {listed(numbers, 'and', 20)} mention no character, so they show nobody: {ways}"]


def cast_list(story: Story) -> str:
    """Who is in which frame, a line for each cast: “Frames 1–3, 5: Mia”, “Frame 4: Mia, Otto”.

    Of a story of one nameless character, how many frames it has.
    """
    shown: dict[tuple[str, ...], list[int]] = {}
    for j, frame in enumerate(story.frames):
        shown.setdefault(frame.characters, []).append(j)
    if list(shown) == [("",)]:
        return f"{len(story.frames)} frame{'s' * (len(story.frames) > 1)}"
    return "\n".join(
        f"{numbered(frames)}: {', '.join(cast) if any(cast) else 'the character' if cast else 'nobody'}"
        for cast, frames in shown.items()
    )


def numbered(frames: Sequence[int]) -> str:
    """“Frame 4” or “Frames 1–3, 5”, of frames in order that are numbered from 0."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and runs[-1][-1] == frame - 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    spans = (f"{run[0] + 1}–{run[-1] + 1}" if len(run) > 1 else f"{run[0] + 1}" for run in runs)
    return f"Frame{'s' * (len(frames) > 1)} {', '.join(spans)}"


def build_frame(characters: tuple[Character, ...], number: int, text: str, caption: str | None) -> Frame:
    one_identity = characters[0].name == ""
    nobody = bool(NOBODY.search(text))
    text = cut(NOBODY, text)
    mentioned = {} if one_identity else {name: find(characters, number, name) for name in names_in(text)}
    if nobody and mentioned:
        name = next(iter(mentioned))
        raise ValueError(
            f"Frame {number} has [NC], which shows nobody, and mentions [{name}]: delete one of the two, or describe "
            f"{name} in words."
        )
    if nobody:
        shown: tuple[Character, ...] = ()
    elif len(characters) == 1:
        shown = characters
    else:
        shown = tuple(c for c in characters if c in mentioned.values())

    parts = described(mentioned, without_leading_names(text) if mentioned else text)
    prompt = "".join(part for part, _ in parts)
    if not prompt:
        raise ValueError(
            f"Frame {number} ({quote(text or caption or '')}) has no prompt: say what happens or where it is, "
            "before any caption."
        )
    if caption is None:
        caption = readable(put({name: c.name for name, c in mentioned.items()}, text))
    else:
        caption = unescape(caption)
    return Frame(
        identity=" and ".join(c.description for c in shown),
        prompt=prompt,
        caption=caption,
        characters=tuple(c.name for c in shown),
        parts=tuple(parts) if len(parts) > 1 or parts[0][1] is not None else (),
    )


def find(characters: tuple[Character, ...], number: int, name: str) -> Character:
    """The character of this name; case and width don't matter where only one fits."""
    alike = [c for c in characters if c.name == name] or [c for c in characters if key(c.name) == key(name)]
    if len(alike) == 1:
        return alike[0]
    names = [f"[{c.name}]" for c in alike or characters]
    if alike:
        raise ValueError(
            f"Frame {number} mentions [{name}], which may be {listed(names, 'or')}: write the name as the identity "
            "writes it."
        )
    close = difflib.get_close_matches(key(name), [key(c.name) for c in characters], n=1, cutoff=0.5)
    guess = next((f"did you mean [{c.name}]? If not, " for c in characters if key(c.name) in close), "")
    raise ValueError(
        f"Frame {number} mentions [{name}], but the identity describes only {', '.join(names)}: {guess}"
        f"add a line “[{name}] …” to the identity, or write \\[{name}] to keep the brackets as text."
    )


def key(name: str) -> str:
    return unicodedata.normalize("NFKC", " ".join(name.split())).casefold()


def without_leading_names(text: str) -> str:
    """A frame's text without the names that open it, as the identity prompt describes them already.

    They stay where they are part of what follows, as in `[Mia]'s umbrella`.
    """
    end = 0
    while match := LEADING.match(text, end):
        end = match.end()
    rest = text[end:]
    if not end or POSSESSIVE.match(rest):
        return text
    return PARTICLE.sub("", rest).lstrip(BLANK + SEPARATORS + STOPS)


def described(mentioned: dict[str, Character], text: str) -> list[tuple[str, str | None]]:
    """A frame's text in pieces, with descriptions in place of names: each with whom it describes, None for nobody."""
    parts: list[tuple[str, str | None]] = []
    for piece, name in pieces_of({name: c.description for name, c in mentioned.items()}, text):
        if piece:
            parts.append((unescape(piece), None if name is None else mentioned[name].name))
    return parts


def put(words: dict[str, str], text: str) -> str:
    """`text` with the words of each name in place of its brackets, apart from letters that touch them."""
    return "".join(piece for piece, _ in pieces_of(words, text))


def pieces_of(words: dict[str, str], text: str) -> Iterator[tuple[str, str | None]]:
    """The pieces of `put`: the words of a name with that name, and what stands between them with None."""
    end = 0
    for match in NAME.finditer(text) if words else ():
        name = clean(match[1])
        yield text[end : match.start()] + " " * bool(match.start() and LETTER.match(text, match.start() - 1)), None
        yield words[name], name
        end = match.end()
        if LETTER.match(text, end):
            yield " ", None
    yield text[end:], None


def names_in(text: str) -> list[str]:
    return [clean(name) for name in NAME.findall(text)]


def unescape(text: str) -> str:
    return re.sub(rf"\\([#＃{BRACKETS}])", r"\1", text)


def quote(text: str, most: int = 40) -> str:
    """The first words of `text`, in quotation marks."""
    if len(text) > most:
        text = (text[:most].rpartition(" ")[0] or text[:most]) + "…"
    return f"“{text}”"


def listed(items: Sequence[str], word: str, most: int = 6) -> str:
    """“a, b and c”, for `word` “and”; of more than `most` items, the first ones and how many more there are."""
    if len(items) > most:
        items = [*items[: most - 1], f"{len(items) - most + 1} more"]
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
