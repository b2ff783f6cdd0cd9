"""Since which version nodes, inputs and options are there. `released/X.Y.Z.json` holds what that version had."""

import asyncio
import json
import re
from pathlib import Path

import pytest
import tomllib
from conftest import ROOT
from onestory.nodes import OneStoryExtension

DOCS = ROOT / "web" / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SINCE = {"en": "Since {}.", "zh": "自 {} 起。"}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def found() -> dict[str, dict[str, list | None]]:
    """Our nodes' inputs and, of those with a fixed choice, the options."""
    schemas = [node.define_schema() for node in asyncio.run(OneStoryExtension().get_node_list())]
    return {
        schema.node_id: {each.id: each.options if each.get_io_type() == "COMBO" else None for each in schema.inputs}
        for schema in schemas
    }


FILES = sorted((Path(__file__).parent / "released").glob("*.json"), key=lambda path: numbers(path.stem))
RELEASED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
NOW = found()
FIRST = next(iter(RELEASED))


def since(type_: str, name: str | None = None) -> str:
    """The first version that has a node, or an input of it."""
    for version, nodes in RELEASED.items():
        if type_ in nodes and (name is None or name in nodes[type_]):
            return version
    return PROJECT["version"]


def test_the_version_is_newer_than_every_released_one_and_heads_the_changes():
    assert numbers(PROJECT["version"]) > numbers(FILES[-1].stem)
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes == [PROJECT["version"], *reversed(RELEASED)]


@pytest.mark.parametrize("version", RELEASED)
def test_saved_workflows_of_a_released_version_still_fit(version):
    """Nodes, inputs and options only grow, and what is new stands after what a saved workflow has values for."""
    for type_, inputs in RELEASED[version].items():
        assert list(NOW[type_])[: len(inputs)] == list(inputs), type_
        for name, options in inputs.items():
            assert set(options or ()) <= set(NOW[type_][name] or ()), (type_, name)


@pytest.mark.parametrize("language", SINCE)
def test_help_pages_say_since_when_a_node_and_an_input_are_there(language):
    mark = SINCE[language]
    said = re.compile(re.escape(mark).replace(r"\{\}", r"(\d+\.\d+\.\d+)"))
    for type_, inputs in NOW.items():
        page = DOCS / f"{type_}.md" if language == "en" else DOCS / type_ / f"{language}.md"
        text = page.read_text(encoding="utf-8")
        own = since(type_)
        opening = text.partition("```")[0]
        assert said.findall(opening) == ([own] if own != FIRST else []), type_
        rows = dict(re.findall(r"^\| `(\w+)`[^|]*(\|.*)$", text, re.MULTILINE))
        for name in inputs:
            version = since(type_, name)
            assert said.findall(rows[name]) == ([version] if version != own else []), (type_, name)


def test_the_shipped_workflows_name_the_version_whose_inputs_they_have():
    paths = [*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    versions = {found for text in texts for found in re.findall(r'"cnr_id": "onestory",\s+"ver": "(.*?)"', text)}
    assert versions == {PROJECT["version"]}
