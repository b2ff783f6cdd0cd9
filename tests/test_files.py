"""Story files: what they hold, and the sentence for what they can't."""

import asyncio
import json
import os
import re
import threading
from pathlib import Path

import pytest
import yaml
from onestory.story.files import MAX_BYTES, StoryText, looks_like_story, read_stories, read_story_file
from onestory.story.script import parse_script

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"

FOX = "A watercolor of a red fox"
MIA_REX = "[Mia] a girl in a yellow raincoat\n[Rex] a grey wolfhound"

EXAMPLES = json.dumps(
    {
        "combinations": [
            {"id_prompt": "A photo of a dog.", "frame_prompt_list": ["in a park", "on a beach"]},
            {"id_prompt": "[Mia] a girl #1", "frame_prompt_list": ["[NC] at sea # 2", "by [a] \\# tree", "asleep"]},
        ]
    },
    indent=4,
)
BENCHMARK = """\
animals:
- concept_token: phoenix
  settings:
  - rising from the ashes
  - singing a melody
  style: A majestic illustration of
  subject: A phoenix with orange feathers
- concept_token: zebra
  settings: [grazing by a river]
  style: A portrait of
  subject: A zebra
foods:
- concept_token: cake
  settings:
  - on a table
  style: 'A photo of '
  subject: a cake
"""


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def fails(folder: Path, name: str, text: str | bytes) -> str:
    with pytest.raises(ValueError) as error:
        read_stories(write(folder, name, text))
    return str(error.value)


STORIES = {
    "script": ("a.txt", f"{FOX}\n\nreading # By the oak\n\nsailing\n", [("a", FOX, "reading # By the oak\nsailing")]),
    "script of many": (
        "a.txt",
        f"\n{FOX}\nin a blue scarf\n\nreading\n---\n\n\n{MIA_REX}\n\n[Mia] waits\n[Rex] sleeps\n--- \n\n---\n",
        [("a 0", f"{FOX}\nin a blue scarf", "reading"), ("a 1", MIA_REX, "[Mia] waits\n[Rex] sleeps")],
    ),
    "BOM, CRLF, CR": ("a.txt", f"\ufeff{FOX}\r\n\r\nreading\rsailing", [("a", FOX, "reading\nsailing")]),
    "Unicode's line ends": (
        "a.txt",
        f"{FOX}\u2028in snow\n\u200b\nreading\u2028sailing\x85resting\n\u3000\u200b\u2060\n",
        [("a", f"{FOX}\nin snow", "reading\nsailing\nresting")],
    ),
    "invisible characters at the ends": (
        "a.txt",
        f"\u200b{FOX}\u200b\n\u00a0\n\u200ereading\u200d # Book\u200b\n\ufeff---\u200b\n\ufeff{FOX}\n\n\u2060sailing",
        [("a 0", FOX, "reading\u200d # Book"), ("a 1", FOX, "sailing")],
    ),
    "json with invisible characters and line ends": (
        "a.json",
        f'{{"identity": "\ufeff{FOX}\\u2028in snow", "frames": "reading\\u2028\\u200b\\n\\ufeffsailing"}}',
        [("a", f"{FOX}\nin snow", "reading\nsailing")],
    ),
    "yaml": (
        "a.yaml",
        f"title: The harbour\nidentity: {FOX}\nframes:\n- reading\n- prompt: sailing\n  caption: At sea!\n",
        [("The harbour", FOX, "reading\nsailing # At sea!")],
    ),
    "yaml in CRLF with a BOM": ("a.yml", f"\ufeffidentity: {FOX}\r\nframes:\r\n- reading\r\n", [("a", FOX, "reading")]),
    "yaml characters": (
        "A.YAML",
        "identity:\n  Mia: a girl in a yellow\n    raincoat\n  Rex: a grey wolfhound\nframes: |\n"
        "  [Mia] waits # Hm\n\n  [Rex] sleeps\n",
        [("A", MIA_REX, "[Mia] waits # Hm\n[Rex] sleeps")],
    ),
    "yaml identity as script": (
        "a.yaml",
        "identity: |\n  [Mia] a girl in a yellow raincoat\n  [Rex] a grey wolfhound\nframes: ['[Mia]  waits']\n",
        [("a", MIA_REX, "[Mia] waits")],
    ),
    "yaml scalars are texts": (
        "a.yaml",
        "identity: {No: 12, Yes: 2020-01-01}\nframes: ['[No] [Yes] here', 1984, off]\n",
        [("a", "[No] 12\n[Yes] 2020-01-01", "[No] [Yes] here\n1984\noff")],
    ),
    "yaml non-specific tag": (
        "a.yaml",
        f"identity: {FOX}\nframes: [! null, \ufeffat sea]\n",
        [("a", FOX, "null\nat sea")],
    ),
    "yaml folds": ("a.yaml", f"identity: {FOX}\nframes:\n- >\n  reading\n  a book\n", [("a", FOX, "reading a book")]),
    "yaml comment is no caption": ("a.yaml", f"identity: {FOX}\nframes:\n- reading # By\n", [("a", FOX, "reading")]),
    "stories": (
        "a.yaml",
        f"stories:\n- identity: {FOX}\n  title: Fox\n  frames: [reading]\n- identity: {FOX}\n  frames: [sailing]\n",
        [("Fox", FOX, "reading"), ("a 1", FOX, "sailing")],
    ),
    "json": (
        "a.json",
        '{"identity": {"Mia": "a girl \\ud83d\\ude00"},\n\t"frames": ["[Mia] waits # Hm",'
        ' {"prompt": "at #1 \\\\# # 2", "caption": ""}]}',
        [("a", "[Mia] a girl 😀", "[Mia] waits # Hm\nat \\#1 \\# \\# 2 # ")],
    ),
    "json stories": (
        "a.json",
        '{"stories":[{"frames":"reading\\nsailing","identity":"a fox"}]}',
        [("a", "a fox", "reading\nsailing")],
    ),
    "combinations": (
        "b.json",
        EXAMPLES,
        [
            ("b 0", "A photo of a dog.", "in a park\non a beach"),
            ("b 1", "\\[Mia] a girl \\#1", "\\[NC] at sea \\# 2\nby \\[a] \\\\# tree\nasleep"),
        ],
    ),
    "benchmark": (
        "b.yaml",
        BENCHMARK,
        [
            (
                "animals_0",
                "A majestic illustration of A phoenix with orange feathers",
                "rising from the ashes\nsinging a melody",
            ),
            ("animals_1", "A portrait of A zebra", "grazing by a river"),
            ("foods_0", "A photo of a cake", "on a table"),
        ],
    ),
}


@pytest.fixture(params=["libyaml", "PyYAML alone"])
def either_yaml(request, monkeypatch):
    """Twice: with PyYAML's parser in C, where it has one, and without."""
    if request.param == "libyaml" and not yaml.__with_libyaml__:
        pytest.skip("PyYAML has no libyaml here")
    if request.param == "PyYAML alone":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    return request.param


@pytest.mark.parametrize(("name", "text", "expected"), STORIES.values(), ids=STORIES)
def test_stories(tmp_path, name, text, expected, either_yaml):
    stories = read_stories(write(tmp_path, name, text))
    assert stories == tuple(StoryText(*each) for each in expected)
    for story in stories:
        parse_script(story.identity, story.frames)


def test_brackets_and_hashes_are_text_in_the_papers_files(tmp_path):
    text = read_story_file(write(tmp_path, "b.json", EXAMPLES), 1)
    story = parse_script(text.identity, text.frames)
    assert story.characters[0] == ("", "[Mia] a girl #1")
    assert [f.prompt for f in story.frames] == ["[NC] at sea # 2", "by [a] \\# tree", "asleep"]
    assert [f.caption for f in story.frames] == ["[NC] at sea # 2", "by [a] \\# tree", "asleep"]
    assert all(f.identity == "[Mia] a girl #1" for f in story.frames)
    assert story.warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "reading #By the oak\nranked #1 # 2nd",
        "reading ＃By the oak\n\u3000\n\u200bsailing \\＃2\u2028resting",
        "[nc] a street\n［ＮＣ］a lake\nby [a] tree",
    ],
)
def test_a_file_means_what_the_boxes_mean(tmp_path, text):
    boxes = parse_script(FOX, text)
    files = {
        "a.txt": f"{FOX}\n\n{text}",
        "a.json": json.dumps({"identity": FOX, "frames": text}),
        "b.json": json.dumps({"identity": FOX, "frames": [line for line in text.splitlines() if line.strip()]}),
    }
    for name, content in files.items():
        story = read_story_file(write(tmp_path, name, content))
        assert parse_script(story.identity, story.frames) == boxes, name


def test_what_the_papers_files_escape_is_text_in_the_boxes(tmp_path):
    frames = ["【a】 ＃b", "［NC］ #c", r"\\【d", "〔e〕"]
    content = json.dumps({"combinations": [{"id_prompt": "［Mia］ a girl ＃1", "frame_prompt_list": frames}]})
    story = read_story_file(write(tmp_path, "a.json", content))
    parsed = parse_script(story.identity, story.frames)
    assert parsed.characters == (("", "［Mia］ a girl ＃1"),)
    assert [f.prompt for f in parsed.frames] == frames
    assert parsed.warnings == ()


def test_prompt_and_caption_of_a_frame(tmp_path):
    frames = [
        {"prompt": "[Mia] at dock #5", "caption": "Dock # 5"},
        {"prompt": "[Mia] rests", "caption": ""},
        {"prompt": "[Mia] at dock ＃five #six", "caption": "＃"},
    ]
    text = read_story_file(
        write(tmp_path, "a.json", json.dumps({"identity": {"Mia": "a girl"}, "frames": frames})),
    )
    story = parse_script(text.identity, text.frames)
    assert [(f.prompt, f.caption) for f in story.frames] == [
        ("at dock #5", "Dock # 5"),
        ("rests", ""),
        ("at dock ＃five #six", "＃"),
    ]


def test_the_examples_in_the_docs_are_story_files(tmp_path):
    docs = (ROOT / "docs" / "story-files.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", docs, re.MULTILINE | re.DOTALL)
    stories = [read_stories(write(tmp_path, f"a.{kind or 'txt'}", text)) for kind, text in blocks]
    assert [[story.title for story in each] for each in stories] == [
        ["a 0", "a 1"],
        ["The harbour"],
        ["Rain", "a 1"],
        ["a"],
    ]
    for story in sum(stories, ()):
        assert parse_script(story.identity, story.frames).warnings == ()


QUOTES = "put a text in quotes if it begins with “[” or another sign, or holds “: ” or “ #”"
TOO_DEEP = "is nested too deeply: a story is an identity and a list of frames, nothing deeper."
MISTAKES = {
    "ending": ("a.md", "x", "“a.md” is no story file: choose one that ends in .yaml, .yml, .json, .txt."),
    "empty": ("a.yaml", "\n \n", "“a.yaml” is empty: write a story's identity and its frames into it."),
    "not UTF-8": (
        "a.txt",
        b"a fox\n\ncaf\xe9\n",
        "“a.txt”, line 3: the byte 0xe9 is not UTF-8, so save the file with UTF-8 encoding.",
    ),
    "UTF-16": (
        "a.txt",
        FOX.encode("utf-16"),
        "“a.txt”, line 1: the byte 0xff is not UTF-8, so save the file with UTF-8 encoding.",
    ),
    "control character": (
        "a.txt",
        "a fox\n\nread\0ing",
        "“a.txt”, line 3: the character U+0000 has no place in a text, so delete it.",
    ),
    "too large": (
        "a.txt",
        b"x" * (MAX_BYTES + 1),
        "“a.txt” is larger than 2 MB: split it into several files, or check that it is a story file.",
    ),
    "only dividers": (
        "a.txt",
        "---\n---\n",
        "“a.txt” holds no story: give it an identity and one frame or more.",
    ),
    "script without frames": (
        "a.txt",
        "a fox\n\nreading\n---\n\na wolf\nrunning\n",
        "“a.txt”, line 6: the story that begins here has no frames: leave an empty line after its identity and write "
        "one frame a line below.",
    ),
    "script frame": (
        "a.txt",
        "[Mia] a girl\n\n[Mia] waits\n\n[Rex] sleeps\n",
        "“a.txt”, line 5: Frame 2 mentions [Rex], but the identity describes only [Mia]: add a line “[Rex] …” to the "
        "identity, or write \\[Rex] to keep the brackets as text.",
    ),
    "script identity": (
        "a.txt",
        "\n[Mia] a girl\n[Mia] a woman\n\n[Mia] waits\n",
        "“a.txt”, line 2: The character [Mia] is described twice: keep one of the two lines.",
    ),
    "yaml syntax": (
        "a.yaml",
        "identity: a fox\nframes:\n- reading\n- [Mia] waits\n",
        f"“a.yaml”, line 4: the YAML can't be read here (…): {QUOTES}.",
    ),
    "yaml colon": (
        "a.yaml",
        "identity: a fox: red\nframes: [a]\n",
        f"“a.yaml”, line 1: the YAML can't be read here (…): {QUOTES}.",
    ),
    "yaml open quote": (
        "a.yaml",
        'identity: a fox\nframes:\n- "reading\n- sailing\n',
        f"“a.yaml”, line 3: the YAML can't be read here (…): {QUOTES}.",
    ),
    "yaml documents": (
        "a.yaml",
        "identity: a\nframes: [b]\n---\nidentity: a\nframes: [b]\n",
        "“a.yaml”, line 3: another YAML document begins here: put several stories in a list under “stories”.",
    ),
    "yaml comments": (
        "a.yaml",
        "# a fox\n",
        "“a.yaml”, line 1: there are only comments in this file: write a story's identity and its frames.",
    ),
    "yaml alias": (
        "a.yaml",
        "identity: &a fox\nframes:\n- *gasp\n",
        "“a.yaml”, line 3: “*gasp” is a YAML alias, which story files don't use: write its text out, or put it in "
        "quotes if it is text.",
    ),
    "yaml tag": (
        "a.yaml",
        "identity: !!python/object/apply:os.system [ls]\nframes: [a]\n",
        "“a.yaml”, line 1 (identity): the YAML tag “!!python/object/apply:os.system” has no use in a story: delete it, "
        "or put the text in quotes.",
    ),
    "yaml tag of a key": (
        "a.yaml",
        "identity: a fox\n!!binary frames: [a]\n",
        "“a.yaml”, line 2: the YAML tag “!!binary” has no use in a story: delete it, or put the text in quotes.",
    ),
    "yaml alias as key": (
        "a.yaml",
        "identity: &a fox\n*a : [a]\n",
        "“a.yaml”, line 2: “*a” is a YAML alias, which story files don't use: write its text out, or put it in quotes "
        "if it is text.",
    ),
    "yaml duplicate key": (
        "a.yaml",
        "identity: a fox\nframes: [a]\nidentity: a wolf\n",
        "“a.yaml”, line 3 (identity): the key “identity” stands here a second time: keep one of the two.",
    ),
    "json duplicate key": (
        "a.json",
        '{"identity": {"Mia": "a girl",\n "Mia": "a woman"}, "frames": ["a"]}',
        "“a.json”, line 2 (identity.Mia): the key “Mia” stands here a second time: keep one of the two.",
    ),
    "yaml list as key": (
        "a.yaml",
        "identity:\n  [Mia]: a girl\nframes: [a]\n",
        "“a.yaml”, line 2 (identity): a list stands here as a key: write names without brackets.",
    ),
    "json syntax": (
        "a.json",
        '{"identity": "a fox",\n "frames": ["a" "b"]}',
        "“a.json”, line 2, column 17: the JSON can't be read here (Expecting ',' delimiter): check the comma, bracket "
        "or quote before it.",
    ),
    "json deep": ("a.json", "[" * 200000, "“a.json” " + TOO_DEEP),
    "yaml deep": ("a.yaml", "[" * 1200 + "]" * 1200, "“a.yaml” " + TOO_DEEP),
    "json surrogate": (
        "a.json",
        '{"identity": "a fox",\n"frames": ["\\ud800"]}',
        "“a.json”, line 2 (frames[0]): the escape for the character U+D800 has no place in a text, so delete it.",
    ),
    "top": (
        "a.json",
        '["a fox"]',
        "“a.json”, line 1: here is a list, but a story file holds “identity” and “frames”, or a list of such stories "
        "under “stories”.",
    ),
    "unknown key": (
        "a.yaml",
        "identity: a fox\nframe: [a]\n",
        "“a.yaml”, line 2 (frame): there is no key “frame” here: write “frames”.",
    ),
    "another unknown key": (
        "a.yaml",
        "identity: a fox\nseed: 1\nframes: [a]\n",
        "“a.yaml”, line 2 (seed): there is no key “seed” here: use “title” or “identity” or “frames”.",
    ),
    "colon in a frame": (
        "a.yaml",
        "identity: a fox\nframes:\n- reading\n- a sign: closed\n",
        "“a.yaml”, line 4 (frames[1].a sign): there is no key “a sign” here: use “prompt” or “caption”; if this is one "
        "text with a colon in it, put it in quotes.",
    ),
    "key beside stories": (
        "a.json",
        '{"stories": [],\n"identity": "a fox"}',
        "“a.json”, line 2 (identity): there is no key “identity” here: use “stories”.",
    ),
    "missing key": (
        "a.json",
        '{"stories": [\n{"identity": "a", "frames": ["b"]},\n{"identity": "a"}]}',
        "“a.json”, line 3 (stories[1]): the key “frames” is missing here: add it.",
    ),
    "no stories": ("a.json", '{"stories": []}', "“a.json” holds no story: give it an identity and one frame or more."),
    "number": (
        "a.json",
        '{"identity": "a fox",\n"frames": [\n"a",\n12]}',
        "“a.json”, line 4 (frames[1]): here is a number, where a text belongs: write the text in quotes.",
    ),
    "true": (
        "a.json",
        '{"identity": true, "frames": ["a"]}',
        "“a.json”, line 1 (identity): here is true or false, where a text belongs: write the text in quotes.",
    ),
    "nothing": (
        "a.yaml",
        "identity: a fox\nframes:\n- a\n-\n",
        "“a.yaml”, line 4 (frames[1]): here is nothing, where a text belongs: write the text in quotes.",
    ),
    "list as frame": (
        "a.yaml",
        "identity: a fox\nframes:\n- a\n- [b]\n",
        "“a.yaml”, line 4 (frames[1]): here is a list, where a text belongs: write the text in quotes.",
    ),
    "frames of keys": (
        "a.yaml",
        "identity: a fox\nframes:\n  a: b\n",
        "“a.yaml”, line 2 (frames): here is a set of keys, where a list belongs: write one item a line after “- ”, "
        "or all of them in “[ ]”.",
    ),
    "no frames": (
        "a.yaml",
        "identity: a fox\nframes: []\n",
        "“a.yaml”, line 1 (identity): the story of this identity has no frames: write one or more.",
    ),
    "empty frame": (
        "a.json",
        '{"identity": "a fox", "frames": ["a", " "]}',
        "“a.json”, line 1 (frames[1]): frame 2 is empty: write what happens in it, or delete it.",
    ),
    "empty identity": (
        "a.json",
        '{"identity": "", "frames": ["a"]}',
        "“a.json”, line 1 (identity): The story's identity is empty: describe who it is about, for example “a "
        "watercolor of a young red fox”.",
    ),
    "no identities": (
        "a.json",
        '{"identity": {}, "frames": ["a"]}',
        "“a.json”, line 1 (identity): The story's identity is empty: describe who it is about, for example “a "
        "watercolor of a young red fox”.",
    ),
    "bracketed name": (
        "a.json",
        '{"identity": {"[Mia]": "a girl"}, "frames": ["a"]}',
        "“a.json”, line 1 (identity.[Mia]): “[Mia]” is no name for a character: write it without brackets, “:” "
        "and “|”.",
    ),
    "combination": (
        "a.json",
        '{"combinations": [\n{"id_prompt": "a dog"}]}',
        "“a.json”, line 2 (combinations[0]): the key “frame_prompt_list” is missing here: add it.",
    ),
    "benchmark": (
        "a.yaml",
        "animals:\n- style: a\n  subject: b\n  settings: c\n",
        "“a.yaml”, line 4 (animals[0].settings): here is a text, where a list belongs: write one item a line after “- "
        "”, or all of them in “[ ]”.",
    ),
}


@pytest.mark.parametrize(("name", "text", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_have_a_line_and_a_reason(tmp_path, name, text, sentence, either_yaml):
    found = re.sub(r"(the YAML can't be read here )\(.+?\):", r"\1(…):", fails(tmp_path, name, text))
    assert found == sentence


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML has no libyaml here")
def test_yaml_is_parsed_in_c(tmp_path, monkeypatch):
    """PyYAML's own scanner takes several times as long for a large file."""
    monkeypatch.delattr(yaml.scanner.Scanner, "fetch_more_tokens")
    name, text, expected = STORIES["yaml"]
    assert read_stories(write(tmp_path, name, text)) == (StoryText(*expected[0]),)


def test_alias_bomb_is_refused(tmp_path):
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
    assert "line 2: “*a0” is a YAML alias" in fails(tmp_path, "a.yaml", f"a0: &a0 lol\n{levels}\n")


def test_index(tmp_path):
    one, two = write(tmp_path, "one.txt", f"{FOX}\n\nreading"), write(tmp_path, "two.json", EXAMPLES)
    assert read_story_file(one).frames == "reading"
    assert read_story_file(two, 1).title == "two 1"
    with pytest.raises(ValueError, match="^“one.txt” holds one story, so there is no story 1: set index to 0.$"):
        read_story_file(one, 1)
    for index in (-1, 2):
        with pytest.raises(ValueError, match=f"holds 2 stories, so there is no story {index}: set .* from 0 to 1.$"):
            read_story_file(two, index)


def test_missing_file_and_folder(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for name in ("none.txt", "folder.txt"):
        with pytest.raises(ValueError, match=f"^There is no story file “{name}”: check its name and folder.$"):
            read_stories(tmp_path / name)


@pytest.mark.parametrize("name", ["example.yaml", "example.json", "example.txt"])
def test_files_near_the_limit_are_read_in_seconds(tmp_path, name):
    frame = "reading a book under an old oak tree"
    text = {
        "example.yaml": f"identity: {FOX}\nframes:\n" + f"- {frame}\n" * 5000,
        "example.json": json.dumps({"identity": FOX, "frames": [frame] * 5000}, indent=1),
        "example.txt": f"{FOX}\n\n" + f"{frame}\n" * 5000,
    }[name]
    assert read_story_file(write(tmp_path, name, text)).frames.count("\n") == 4999


@pytest.mark.skipif(not DATA.is_dir(), reason="the papers' files are not beside this checkout")
def test_the_papers_own_files():
    examples = read_stories(DATA / "story_examples.json")
    assert len(examples) == 14
    assert examples[0].identity == "A hyper-realistic digital painting of a 16 years old girl."
    assert examples[0].frames.splitlines()[2] == "in a city park with autumn leaves"
    benchmark = read_stories(DATA / "consistory_plus.yaml")
    assert len(benchmark) == 192
    assert benchmark[0].title == "animals_0"
    assert benchmark[0].identity == "A fiery and majestic illustration of A phoenix with bright orange feathers"
    assert benchmark[21].title == "fairy_tales_0"


def test_a_file_with_a_mistake_is_still_seen_as_a_story(tmp_path):
    """It is offered, so that running it says what is wrong with it."""
    files = {kind: write(tmp_path, f"{i}_{name}", text) for i, (kind, (name, text, _)) in enumerate(MISTAKES.items())}
    no_story = {"ending", "empty", "UTF-16", "too large", "yaml comments", "json deep", "yaml deep", "top"}
    assert {kind for kind, file in files.items() if not looks_like_story(file)} == no_story


# The node


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """An input folder with stories, and a folder beside it that no name may reach."""
    folder_paths = pytest.importorskip("folder_paths")
    folder = tmp_path / "input"
    (folder / "tales").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    write(folder, "two.json", EXAMPLES)
    write(folder, "picture.png", b"\x89PNG")
    write(folder / "tales", "Fox.TXT", f"{FOX}\n\nreading [Mia]\nsailing")
    write(tmp_path / "outside", "secret.txt", f"{FOX}\n\nreading")
    os.symlink(tmp_path / "outside" / "secret.txt", folder / "link.txt")
    os.symlink(tmp_path / "outside", folder / "linked")
    os.symlink(folder / "none.txt", folder / "broken.txt")
    os.symlink("loop.txt", folder / "loop.txt")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(folder))
    return folder


@pytest.fixture
def load():
    from onestory.nodes import load

    load.stories_of.cache_clear()
    return load


@pytest.fixture
def validate(load):
    """The node's validation, as ComfyUI awaits it."""
    return lambda *inputs: asyncio.run(load.OneStoryLoad.validate_inputs(*inputs))


@pytest.fixture
def parsed(load, monkeypatch):
    """The names of the files that are parsed, as they are."""
    names = []

    def read(path):
        names.append(Path(path).name)
        return read_stories(path)

    monkeypatch.setattr(load, "read_stories", read)
    return names


def listed(load) -> list[str]:
    return load.OneStoryLoad.define_schema().inputs[0].options


def test_the_picker_lists_the_story_files_inside_the_input_folder(inputs, load):
    assert listed(load) == ["tales/Fox.TXT", "two.json"]


WORKFLOW = {
    "id": "a",
    "nodes": [{"type": "OneStoryScript", "widgets_values": ["a fox", "a"]}],
    "links": [],
    "frames": 1,
}
API_WORKFLOW = {"1": {"inputs": {"identity": "a fox", "frames": "a"}, "class_type": "OneStoryScript"}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workflow.json", json.dumps(WORKFLOW)),
        ("api.json", json.dumps(API_WORKFLOW, indent=2)),
        ("pose.json", '{"people": [{"pose_keypoints_2d": [1, 2]}]}'),
        ("train.yaml", "model: sdxl\nsteps: 100\n"),
        ("001.txt", "a photo of sks dog, sitting\n"),
        ("empty.txt", ""),
        ("large.txt", f"{FOX}\n\n" + "a\n" * (MAX_BYTES // 2)),
        (".hidden.txt", f"{FOX}\n\nreading"),
        (".git/a.txt", f"{FOX}\n\nreading"),
        ("tales/.cache/a.txt", f"{FOX}\n\nreading"),
        *((f"{folder}/a.txt", f"{FOX}\n\nreading") for folder in ("3d", "clipspace", "painter", "pasted", "webcam")),
    ],
    ids=lambda value: value[:12],
)
def test_what_is_no_story_file_is_not_listed(inputs, load, name, text):
    (inputs / name).parent.mkdir(exist_ok=True)
    write(inputs, name, text)
    assert listed(load) == ["tales/Fox.TXT", "two.json"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", f"Identity: {FOX}\nframe: [a]\n"),
        ("utf-16.yaml", f"identity: {FOX}\nframes: [a]\n".encode("utf-16")),
        ("utf-16.txt", f"{FOX}\n\na\n".encode("utf-16")),
        ("quotes.json", json.dumps({"identity": "a", "frames": ['"class_type": "nodes": [']})),
        ("two lines.txt", f"{FOX}\nreading"),
        ("mac.txt", f"{FOX}\r\rreading"),
        ("tales/3d/a.txt", f"{FOX}\n\nreading"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_what_is_meant_as_a_story_is_listed(inputs, load, name, text):
    (inputs / name).parent.mkdir(exist_ok=True)
    write(inputs, name, text)
    assert listed(load) == sorted(["tales/Fox.TXT", "two.json", name])


def test_a_file_that_becomes_a_story_is_listed(inputs, load):
    write(inputs, "new.txt", FOX)
    assert "new.txt" not in listed(load)
    write(inputs, "new.txt", f"{FOX}\n\nreading")
    assert "new.txt" in listed(load)


def test_a_link_inside_the_input_folder_is_listed_and_read(inputs, load):
    os.symlink(inputs / "tales" / "Fox.TXT", inputs / "same.txt")
    assert listed(load) == ["same.txt", "tales/Fox.TXT", "two.json"]
    assert load.OneStoryLoad.execute("same.txt", 0).result[1] == "same"


def test_load(inputs, load, caplog):
    story, title, count = load.OneStoryLoad.execute("tales/Fox.TXT", 0).result
    assert [f.prompt for f in story.frames] == ["reading [Mia]", "sailing"]
    assert (title, count) == ("Fox", 1)
    assert "Frame 1 mentions [Mia], but no character of that name is described" in caplog.text
    assert load.OneStoryLoad.execute("two.json", 1).result[1:] == ("two 1", 2)


def test_a_file_is_parsed_once_until_it_changes(inputs, load, validate, parsed):
    for index in (0, 1):
        assert validate("two.json", index) is True
        load.OneStoryLoad.fingerprint_inputs("two.json", index)
        assert load.OneStoryLoad.execute("two.json", index).result[2] == 2
    assert parsed == ["two.json"]
    write(inputs, "two.json", EXAMPLES + "\n")
    assert validate("two.json", 1) is True
    load.OneStoryLoad.execute("two.json", 1)
    assert parsed == ["two.json"] * 2


def test_the_server_goes_on_while_a_file_is_parsed(inputs, load, monkeypatch):
    """ComfyUI validates on its event loop: what else runs there gets its turn before the parsing ends."""
    others_ran = threading.Event()

    def read(path):
        assert others_ran.wait(10)
        return read_stories(path)

    async def others():
        others_ran.set()

    async def server():
        return (await asyncio.gather(load.OneStoryLoad.validate_inputs("two.json", 0), others()))[0]

    monkeypatch.setattr(load, "read_stories", read)
    assert asyncio.run(server()) is True


def test_one_file_is_read_without_a_look_at_the_others(inputs, load, validate, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(os, "walk", fail)
    monkeypatch.setattr(os, "scandir", fail)
    assert validate("tales/Fox.TXT", 0) is True
    load.OneStoryLoad.fingerprint_inputs("tales/Fox.TXT", 0)
    assert load.OneStoryLoad.execute("tales/Fox.TXT", 0).result[1] == "Fox"


UNKNOWN = {
    "not there": "none.txt",
    "link out": "link.txt",
    "folder link out": "linked/secret.txt",
    "up and out": "../outside/secret.txt",
    "up and in": "tales/../two.json",
    "drive": "C:two.json",
    "drive and root": "C:\\two.json",
    "backslashes out": "..\\outside\\secret.txt",
    "broken link": "broken.txt",
    "link to itself": "loop.txt",
    "no story's ending": "picture.png",
    "folder": "tales",
    "in a file": "two.json/a.txt",
    "nothing": "",
    "NUL": "a\0.txt",
    "too long": "a" * 5000 + ".txt",
    "no text": 5,
}


@pytest.mark.parametrize("name", UNKNOWN.values(), ids=UNKNOWN)
def test_only_files_in_the_input_folder_are_opened(inputs, load, validate, name, parsed):
    sentence = f"There is no story file “{name}” in ComfyUI's input folder: put it there, or choose another."
    assert validate(name, 0) == sentence
    with pytest.raises(ValueError, match="There is no story file"):
        load.OneStoryLoad.execute(name, 0)
    load.OneStoryLoad.fingerprint_inputs(name, 0)
    assert not parsed


@pytest.mark.parametrize("name", ["outside/secret.txt", "input/two.json"])
def test_an_absolute_path_is_refused(inputs, validate, name):
    assert "There is no story file" in validate(str(inputs.parent / name), 0)


def test_a_file_that_vanishes_is_one_sentence(inputs, load, validate, monkeypatch):
    assert validate("two.json", 0) is True
    (inputs / "two.json").unlink()
    assert load.OneStoryLoad.fingerprint_inputs("two.json", 0) == ""
    with pytest.raises(ValueError, match="^There is no story file “two.json” in ComfyUI's input folder: [^.]*.$"):
        load.OneStoryLoad.execute("two.json", 0)


def test_a_file_that_vanishes_while_the_folder_is_listed_is_left_out(inputs, load, monkeypatch):
    walk = os.walk

    def walk_late(*arguments):
        found = list(walk(*arguments))
        (inputs / "two.json").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "walk", walk_late)
    assert listed(load) == ["tales/Fox.TXT"]
    write(inputs, "two.json", EXAMPLES)
    assert load.OneStoryLoad.fingerprint_inputs(None, 0)


def test_a_file_that_is_too_large_says_so(inputs, load, validate):
    write(inputs, "large.txt", "a" * (MAX_BYTES + 1))
    assert validate("large.txt", 0) == (
        "“large.txt” is larger than 2 MB: split it into several files, or check that it is a story file."
    )


def test_validation(inputs, validate):
    assert validate("two.json", 1) is True
    assert validate("two.json", 2) == (
        "“two.json” holds 2 stories, so there is no story 2: set index to a number from 0 to 1."
    )
    write(inputs, "bad.yaml", "identity: a fox\nframe: [a]\n")
    assert validate("bad.yaml", 0) == "“bad.yaml”, line 2 (frame): there is no key “frame” here: write “frames”."


def test_links_are_not_validated_before_they_have_run(inputs, validate):
    assert validate(None, None) is True
    assert validate(None, 5) is True
    assert validate("two.json", None) is True


def test_a_changed_file_is_noticed(inputs, load):
    fingerprint = load.OneStoryLoad.fingerprint_inputs
    one, linked = fingerprint("two.json", 0), fingerprint(None, 0)
    assert (fingerprint("two.json", 0), fingerprint(None, 0)) == (one, linked)
    write(inputs, "two.json", EXAMPLES + "\n")
    assert fingerprint("two.json", 0) != one
    assert fingerprint(None, 0) != linked


def test_an_empty_input_folder_says_what_to_do(tmp_path, load, validate, monkeypatch):
    monkeypatch.setattr(load.folder_paths, "get_input_directory", lambda: str(tmp_path))
    (only,) = listed(load)
    assert validate(only, 0) == (
        "There is no story file yet: put one (.yaml, .yml, .json, .txt) into ComfyUI's input folder and press R."
    )
