"""The help page of every node, which the editor shows behind “?”."""

import re

import pytest
from conftest import ROOT

DOCS = ROOT / "web" / "docs"

pytest_plugins = ["studio"]


@pytest.fixture(scope="module")
def info(studio) -> dict[str, dict]:
    return {type_: node for type_, node in studio.get("/object_info").items() if type_.startswith("OneStory")}


def test_every_node_has_a_page_and_every_page_a_node(info):
    assert sorted(path.stem for path in DOCS.glob("*.md")) == sorted(info)


def test_pages_bear_the_nodes_names(info):
    for type_, node in info.items():
        assert (DOCS / f"{type_}.md").read_text(encoding="utf-8").startswith(f"# {node['display_name']}\n")


def test_pages_explain_the_inputs_and_no_others(info):
    for type_, node in info.items():
        text = (DOCS / f"{type_}.md").read_text(encoding="utf-8")
        advanced = {}
        for group in ("required", "optional"):
            for name, spec in node["input"].get(group, {}).items():
                advanced[name] = len(spec) > 1 and bool(spec[1].get("advanced"))
        table = re.findall(r"^\| `(\w+)`( \(advanced\))? \| \S", text, re.MULTILINE)
        assert {name: bool(mark) for name, mark in table} == advanced, type_


def test_the_server_hands_out_the_pages(studio, info):
    for type_ in info:
        assert studio.request(f"/extensions/onestory/docs/{type_}.md") == (DOCS / f"{type_}.md").read_bytes()
