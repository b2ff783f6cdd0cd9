"""Story files to the texts of a Story Script: YAML, JSON, script text, and the two files of the papers' code."""

import difflib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .script import NAME, build_frame, parse_characters, split_caption
from .syntax import OPENING, clean, clean_lines

SUFFIXES = (".yaml", ".yml", ".json", ".txt")
MAX_BYTES = 2 * 1024 * 1024
STORY_KEYS = ("title", "identity", "frames")
NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
HEAD = 64 * 1024
STORY_KEY = re.compile(rb"""\b(identity|frames?|stories|combinations|settings)["']?\s*:""", re.IGNORECASE)
WORKFLOW_KEY = re.compile(rb'"class_type"\s*:|"nodes"\s*:\s*\[')
SPACE = re.compile(r"[ \t\n\r]*")
YAML_TAG = "tag:yaml.org,2002:"
YAML_TAGS = {YAML_TAG + t for t in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")}
YAML_TAGS.add("!")  # says that the value is a text
YAML_NULLS = {"", "~", "null", "Null", "NULL"}


class StoryText(NamedTuple):
    """A story as the two texts of a Story Script: `parse_script(text.identity, text.frames)` makes the `Story`."""

    title: str
    identity: str
    frames: str


class Node(NamedTuple):
    """A value of a YAML or JSON file; `where` says its line and path, such as `line 4 (stories[0].frames)`."""

    value: "str | float | bool | None | list[Node] | dict[str, Node]"
    where: str


class Line(NamedTuple):
    text: str
    where: str


def read_story_file(path: str | Path, index: int = 0) -> StoryText:
    """The story numbered `index`, from 0, of a story file. Raises as `read_stories` and `choose_story` do."""
    return choose_story(read_stories(path), index, Path(path).name)


def choose_story(stories: tuple[StoryText, ...], index: int, name: str) -> StoryText:
    """`stories[index]`. Raises `ValueError` with one sentence that says how many stories the file `name` has."""
    if 0 <= index < len(stories):
        return stories[index]
    if len(stories) == 1:
        raise ValueError(f"“{name}” holds one story, so there is no story {index}: set index to 0.")
    raise ValueError(
        f"“{name}” holds {len(stories)} stories, so there is no story {index}: "
        f"set index to a number from 0 to {len(stories) - 1}."
    )


def read_stories(path: str | Path) -> tuple[StoryText, ...]:
    """All stories of a `.yaml`, `.yml`, `.json` or `.txt` file, in its order, each checked down to its last frame.

    The formats are described in `docs/story-files.md`. Raises `ValueError` with one sentence that names the file,
    the line and what to change there.
    """
    path = Path(path)
    text = read_text(path)
    try:
        if path.suffix.lower() == ".txt":
            stories = list(script_stories(text))
        else:
            stories = list(tree_stories(json_tree(text) if path.suffix.lower() == ".json" else yaml_tree(text)))
    except RecursionError:
        raise ValueError(
            f"“{path.name}” is nested too deeply: a story is an identity and a list of frames, nothing deeper."
        ) from None
    except ValueError as error:
        raise ValueError(f"“{path.name}”, {error}") from None
    if not stories:
        raise ValueError(f"“{path.name}” holds no story: give it an identity and one frame or more.")
    titles = [path.stem] if len(stories) == 1 else [f"{path.stem} {i}" for i in range(len(stories))]
    return tuple(s if s.title else s._replace(title=t) for s, t in zip(stories, titles, strict=True))


def looks_like_story(path: str | Path) -> bool:
    """Whether a file with one of `SUFFIXES` may be meant as a story, going by its first 64 KB.

    YAML and JSON name a key of stories, mistakes in the rest aside, and are no workflow of ComfyUI; script text has
    more than one line, as captions of training pictures have not. True for a file that can't be opened.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD).replace(b"\0", b"")  # UTF-16 is to be seen here; reading it says what is wrong
    except OSError:
        return True
    if Path(path).suffix.lower() == ".txt":
        return len(head.strip().splitlines()) > 1
    return bool(STORY_KEY.search(head)) and not WORKFLOW_KEY.search(head)


def read_text(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"“{path.name}” is no story file: choose one that ends in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise ValueError(f"There is no story file “{path.name}”: check its name and folder.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"“{path.name}” can't be read ({error.strerror}): check its permissions.") from None
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"“{path.name}” is larger than {MAX_BYTES // 1024**2} MB: split it into several files, "
            "or check that it is a story file."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad, line = data[error.start], data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"“{path.name}”, line {line}: the byte {bad:#04x} is not UTF-8, so save the file with UTF-8 encoding."
        ) from None
    text = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")
    if match := NOT_TEXT.search(text):
        line = text.count("\n", 0, match.start()) + 1
        raise ValueError(
            f"“{path.name}”, line {line}: the character U+{ord(match[0]):04X} has no place in a text, so delete it."
        )
    if not clean(text):
        raise ValueError(f"“{path.name}” is empty: write a story's identity and its frames into it.")
    return text


# Script text


def script_stories(text: str) -> Iterator[StoryText]:
    """Stories divided by `---` lines; in each the identity, an empty line, then one frame a line."""
    block: list[Line] = []
    lines = [(line, i) for i, numbered in enumerate(text.split("\n"), 1) for line in clean_lines(numbered) or [""]]
    for line, number in [*lines, ("---", 0)]:
        if line != "---":
            block.append(Line(one_line(line), f"line {number}"))
            continue
        while block and not block[0].text:
            del block[0]
        if block:
            end = next((i for i, each in enumerate(block) if not each.text), len(block))
            identity = Line("\n".join(each.text for each in block[:end]), block[0].where)
            frames = [each for each in block[end:] if each.text]
            if not frames:
                raise problem(
                    block[0].where,
                    "the story that begins here has no frames: leave an empty line after its identity and write one "
                    "frame a line below.",
                )
            yield checked_story("", identity, frames)
        block = []


# YAML and JSON, as one tree


def tree_stories(root: Node) -> Iterator[StoryText]:
    top = mapping(root, "a story file holds “identity” and “frames”, or a list of such stories under “stories”")
    if "combinations" in top:
        for item in items(top["combinations"]):
            story = mapping(item, "a combination holds “id_prompt” and “frame_prompt_list”")
            frames = items(need(item, story, "frame_prompt_list"))
            yield checked_story("", plain(need(item, story, "id_prompt")), [plain(f) for f in frames])
    elif is_benchmark(top):
        for category, group in top.items():
            for i, item in enumerate(items(group)):
                story = mapping(item, "a benchmark entry holds “style”, “subject” and “settings”")
                style, subject = (plain(need(item, story, key)) for key in ("style", "subject"))
                frames = items(need(item, story, "settings"))
                identity = Line(f"{style.text} {subject.text}".strip(), subject.where)
                yield checked_story(f"{category}_{i}", identity, [plain(f) for f in frames])
    elif "stories" in top:
        only_keys(top, ("stories",))
        for item in items(top["stories"]):
            yield own_story(item)
    else:
        yield own_story(root)


def is_benchmark(top: dict[str, Node]) -> bool:
    lists = [group.value for group in top.values()]
    return all(isinstance(v, list) for v in lists) and any(
        isinstance(item.value, dict) and {"subject", "settings"} & item.value.keys()
        for group in lists
        if isinstance(group, list)
        for item in group[:1]
    )


def own_story(node: Node) -> StoryText:
    story = mapping(node, "a story holds “identity” and “frames”")
    only_keys(story, STORY_KEYS)
    title = one_line(text_of(story["title"])) if "title" in story else ""
    identity, frames = need(node, story, "identity"), need(node, story, "frames")
    return checked_story(title, own_identity(identity), own_frames(frames))


def own_identity(node: Node) -> Line:
    if not isinstance(node.value, dict):
        return Line("\n".join(one_line(line) for line in clean_lines(text_of(node))), node.where)
    lines = []
    for name, description in node.value.items():
        name = one_line(text_of(Node(name, description.where)))
        if not NAME.fullmatch(f"[{name}]"):
            raise problem(
                description.where, f"“{name}” is no name for a character: write it without brackets, “:” and “|”."
            )
        lines.append(f"[{name}] {one_line(text_of(description))}")
    return Line("\n".join(lines), node.where)


def own_frames(node: Node) -> list[Line]:
    if isinstance(node.value, str):
        return [Line(one_line(line), node.where) for line in clean_lines(text_of(node)) if line]
    return [own_frame(frame) for frame in items(node)]


def own_frame(node: Node) -> Line:
    if not isinstance(node.value, dict):
        return Line(one_line(text_of(node)), node.where)
    only_keys(node.value, ("prompt", "caption"), "; if this is one text with a colon in it, put it in quotes")
    prompt = re.sub(r"(?<!\\)([#＃])", r"\\\1", one_line(text_of(need(node, node.value, "prompt"))))
    if "caption" not in node.value:
        return Line(prompt, node.where)
    return Line(f"{prompt} # {one_line(text_of(node.value['caption']))}", node.where)


def checked_story(title: str, identity: Line, frames: list[Line]) -> StoryText:
    with located(identity.where):
        characters = parse_characters(identity.text)
    if not frames:
        raise problem(identity.where, "the story of this identity has no frames: write one or more.")
    for number, frame in enumerate(frames, 1):
        if not frame.text:
            raise problem(frame.where, f"frame {number} is empty: write what happens in it, or delete it.")
        with located(frame.where):
            build_frame(characters, number, *split_caption(frame.text))
    return StoryText(title, identity.text, "\n".join(frame.text for frame in frames))


def text_of(node: Node) -> str:
    if not isinstance(node.value, str):
        raise problem(node.where, f"here is {kind(node)}, where a text belongs: write the text in quotes.")
    if match := NOT_TEXT.search(node.value):
        raise problem(
            node.where, f"the escape for the character U+{ord(match[0]):04X} has no place in a text, so delete it."
        )
    return node.value


def plain(node: Node) -> Line:
    """A text in which brackets and `#` mean nothing, escaped as a script needs it."""
    return Line(re.sub(rf"([#＃{re.escape(OPENING)}])", r"\\\1", one_line(text_of(node))), node.where)


def items(node: Node) -> list[Node]:
    if not isinstance(node.value, list):
        raise problem(
            node.where,
            f"here is {kind(node)}, where a list belongs: write one item a line after “- ”, or all of them in “[ ]”.",
        )
    return node.value


def mapping(node: Node, holds: str) -> dict[str, Node]:
    if not isinstance(node.value, dict):
        raise problem(node.where, f"here is {kind(node)}, but {holds}.")
    return node.value


def need(node: Node, story: dict[str, Node], key: str) -> Node:
    if key not in story:
        raise problem(node.where, f"the key “{key}” is missing here: add it.")
    return story[key]


def only_keys(story: dict[str, Node], known: tuple[str, ...], hint: str = "") -> None:
    for key, node in story.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            instead = f"write “{close[0]}”" if close else "use " + " or ".join(f"“{k}”" for k in known)
            raise problem(node.where, f"there is no key “{key}” here: {instead}{hint}.")


def kind(node: Node) -> str:
    match node.value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "a set of keys"


def one_line(text: str) -> str:
    return clean(" ".join(text.split()))


def place(line: int, path: str) -> str:
    return f"line {line} ({path})" if path else f"line {line}"


def problem(where: str, sentence: str) -> ValueError:
    return ValueError(f"{where}: {sentence}")


@contextmanager
def located(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise problem(where, str(error)) from None


def unique(pairs: Iterable[tuple[str, Node]]) -> dict[str, Node]:
    out: dict[str, Node] = {}
    for key, node in pairs:
        if key in out:
            raise problem(node.where, f"the key “{key}” stands here a second time: keep one of the two.")
        out[key] = node
    return out


def json_tree(text: str) -> Node:
    decoder = json.JSONDecoder(parse_int=float)
    try:
        decoder.decode(text)
    except json.JSONDecodeError as error:
        raise problem(
            f"line {error.lineno}, column {error.colno}",
            f"the JSON can't be read here ({error.msg}): check the comma, bracket or quote before it.",
        ) from None
    starts = [match.end() for match in re.finditer("\n", text)]

    def skip(i: int) -> int:
        match = SPACE.match(text, i)
        return match.end() if match else i

    # The decoder gives values without their lines. The text is valid by now, so this only has to follow it.
    def read(i: int, path: str, line: int | None = None) -> tuple[Node, int]:
        where = place(line or bisect_right(starts, i) + 1, path)
        if text[i] not in "{[":
            value, i = decoder.raw_decode(text, i)
            return Node(value, where), i
        end = "}" if text[i] == "{" else "]"
        pairs: list[tuple[str, Node]] = []
        i = skip(i + 1)
        while text[i] != end:
            if end == "}":
                line = bisect_right(starts, i) + 1
                key, i = decoder.raw_decode(text, i)
                node, i = read(skip(skip(i) + 1), f"{path}.{key}" if path else key, line)
            else:
                key = ""
                node, i = read(i, f"{path}[{len(pairs)}]")
            pairs.append((key, node))
            i = skip(i)
            if text[i] == ",":
                i = skip(i + 1)
        return Node(unique(pairs) if end == "}" else [node for _, node in pairs], where), i + 1

    return read(skip(0), "")[0]


def yaml_tree(text: str) -> Node:
    """The tree of a YAML document. Its scalars are all texts; nothing is constructed, and aliases are refused."""
    try:
        import yaml
    except ImportError:
        raise ValueError(
            "line 1: reading YAML needs PyYAML, so run this with ComfyUI's Python or save the story as JSON or text."
        ) from None

    def check(event: Any, where: str) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise problem(
                place(event.start_mark.line + 1, ""),
                f"“*{event.anchor}” is a YAML alias, which story files don't use: "
                "write its text out, or put it in quotes if it is text.",
            )
        if event.tag and event.tag not in YAML_TAGS:
            tag = event.tag.replace(YAML_TAG, "!!")
            raise problem(where, f"the YAML tag “{tag}” has no use in a story: delete it, or put the text in quotes.")

    def read(event: Any, path: str, line: int) -> Node:
        where = place(line, path)
        check(event, where)
        if isinstance(event, yaml.ScalarEvent):
            is_null = (
                event.tag == YAML_TAG + "null" or not event.tag and event.implicit[0] and event.value in YAML_NULLS
            )
            return Node(None if is_null else event.value, where)
        if isinstance(event, yaml.SequenceStartEvent):
            nodes: list[Node] = []
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                nodes.append(read(event, f"{path}[{len(nodes)}]", event.start_mark.line + 1))
            return Node(nodes, where)
        pairs = []
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            check(event, place(line, path))
            if not isinstance(event, yaml.ScalarEvent):
                raise problem(place(line, path), "a list stands here as a key: write names without brackets.")
            key = event.value
            pairs.append((key, read(next(events), f"{path}.{key}" if path else key, line)))
        return Node(unique(pairs), where)

    # PyYAML with libyaml is several times as fast as without. libyaml refuses U+FEFF, which means nothing.
    events = yaml.parse(text.replace("\ufeff", ""), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    try:
        next(events)
        if isinstance(next(events), yaml.StreamEndEvent):
            raise problem("line 1", "there are only comments in this file: write a story's identity and its frames.")
        event = next(events)
        root = read(event, "", event.start_mark.line + 1)
        next(events)
        if isinstance(event := next(events), yaml.DocumentStartEvent):
            where = place(event.start_mark.line + 1, "")
            raise problem(where, "another YAML document begins here: put several stories in a list under “stories”.")
    except yaml.MarkedYAMLError as error:
        reason = error.problem or ""
        if "nesting depth" in reason:
            raise RecursionError from None
        mark = error.context_mark if "end of stream" in reason else error.problem_mark
        raise problem(
            place((mark or error.problem_mark).line + 1, ""),
            f"the YAML can't be read here ({reason}): "
            "put a text in quotes if it begins with “[” or another sign, or holds “: ” or “ #”.",
        ) from None
    return root
