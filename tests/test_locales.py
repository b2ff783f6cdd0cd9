"""The nodes' names, tooltips and help pages in the editor's languages."""

import asyncio
import json
import re

import pytest
from conftest import ROOT
from onestory.nodes import OneStoryExtension

DOCS = ROOT / "web" / "docs"
HAN = re.compile(r"[\u4e00-\u9fff]")


def read(language: str) -> dict[str, dict]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def texts(defs: dict, *path: str):
    """Every string with its path."""
    for key, value in defs.items():
        if isinstance(value, dict):
            yield from texts(value, *path, key)
        else:
            yield (*path, key), value


@pytest.fixture(scope="module")
def info() -> dict:
    """What the server says of each node."""
    nodes = asyncio.run(OneStoryExtension().get_node_list())
    return {node.GET_SCHEMA().node_id: node.GET_SCHEMA().get_v1_info(node) for node in nodes}


@pytest.fixture(scope="module")
def schemas(info) -> dict[str, dict]:
    """The schemas, as the English locale file has them."""
    defs = {}
    for type_, node in info.items():
        inputs = {
            name: spec[1] for group in ("required", "optional") for name, spec in node.input.get(group, {}).items()
        }
        outputs = zip(node.output_name, node.output_tooltips)
        defs[type_] = {
            "display_name": node.display_name,
            "description": node.description,
            "inputs": {
                name: {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
                for name, options in inputs.items()
            },
            "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
        }
    return defs


def test_english_is_what_the_schemas_say(schemas):
    assert read("en") == schemas


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_locale_has_all_texts_and_no_others(language, schemas):
    found = dict(texts(read(language)))
    assert list(found) == [path for path, _ in texts(schemas)]
    assert [path for path, text in found.items() if not (isinstance(text, str) and text.strip())] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_has_the_characters_that_vue_i18n_reads_as_syntax(language):
    assert [path for path, text in texts(read(language)) if re.search(r"[{}|@]", text)] == []


def test_chinese_is_chinese():
    english = dict(texts(read("en")))
    for path, text in texts(read("zh")):
        if path[-1] != "name":
            assert HAN.search(text), path
        # Option values, which the editor leaves as they are, and ids stay in the translation.
        quoted = re.findall(r"“([a-z ]+)”", english[path])
        assert [word for word in quoted if word not in text] == [], path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_help_page_explains_every_input(language, info):
    for type_, defs in read(language).items():
        page = DOCS / f"{type_}.md" if language == "en" else DOCS / type_ / f"{language}.md"
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {defs['display_name']}\n")
        rows = []
        for group in ("required", "optional"):
            for name, spec in info[type_].input.get(group, {}).items():
                advanced = bool(spec[1].get("advanced"))
                if language == "en":
                    rows.append(f"| `{name}`{' (advanced)' if advanced else ''} |")
                else:
                    rows.append(f"| `{name}`（{defs['inputs'][name]['name']}{'，高级' if advanced else ''}） |")
        assert re.findall(r"^\| `.+?\|(?= \S)", text, re.MULTILINE) == rows, type_


def test_chinese_pages_have_all_that_the_english_ones_have():
    assert sorted(path.parent.name for path in DOCS.glob("*/zh.md")) == sorted(path.stem for path in DOCS.glob("*.md"))
    for page in DOCS.glob("*/zh.md"):
        english = (DOCS / f"{page.parent.name}.md").read_text(encoding="utf-8")
        chinese = page.read_text(encoding="utf-8")
        assert HAN.search(chinese)
        for mark in (r"^# ", r"^## ", r"^- ", r"^- \*\*", r"^```", r"^\|", r"^\*.+\*$"):
            assert len(re.findall(mark, chinese, re.M)) == len(re.findall(mark, english, re.M)), (page, mark)
        numbers = [set(re.findall(r"\d+(?:\.\d+)?", text)) for text in (english, chinese)]
        assert numbers[0] <= numbers[1], page


def test_chinese_pages_call_the_inputs_by_their_names():
    """`strength` of another node is named as that node names it."""
    defs = read("zh")
    names = {(id_, spec["name"]) for node in defs.values() for id_, spec in node["inputs"].items()}
    for page in DOCS.glob("*/zh.md"):
        for id_, name in re.findall(r"`([a-z_]+)`（([^，）]+)", page.read_text(encoding="utf-8")):
            assert (id_, name) in names or id_ in ("latent_image",), page
