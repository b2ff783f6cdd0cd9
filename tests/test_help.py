"""The help page of every node, which the editor shows behind “i”."""

import asyncio
import re

import pytest
from conftest import ROOT
from onestory.nodes import OneStoryExtension
from onestory.tools.picture_sheets import HELP, HELP_WIDTH
from PIL import Image

DOCS = ROOT / "web" / "docs"
SCHEMAS = [node.define_schema() for node in asyncio.run(OneStoryExtension().get_node_list())]

PICTURE = re.compile(r"^!\[[^\]]{20,}\]\((\S+)\)$", re.MULTILINE)

every_node = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)


def page(schema) -> str:
    return (DOCS / f"{schema.node_id}.md").read_text(encoding="utf-8")


def test_every_page_has_a_node():
    assert sorted(path.stem for path in DOCS.glob("*.md")) == sorted(schema.node_id for schema in SCHEMAS)


@every_node
def test_page_bears_the_nodes_name(schema):
    assert page(schema).startswith(f"# {schema.display_name}\n")


@every_node
def test_page_explains_the_inputs_and_no_others(schema):
    table = re.findall(r"^\| `(\w+)`( \(advanced\))? \| \S", page(schema), re.MULTILINE)
    assert [(name, bool(mark)) for name, mark in table] == [(i.id, bool(i.advanced)) for i in schema.inputs]


@every_node
def test_graphs_are_as_wide_as_the_help_panel(schema):
    text, *_ = page(schema).split("## Inputs")
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        assert max(map(len, block.splitlines())) <= 46


def test_pictures_are_small_and_the_editor_finds_them(server):
    """It puts the folder of the pack's pages before a picture's name, whatever the language of the page."""
    for schema in SCHEMAS:
        chinese = (DOCS / schema.node_id / "zh.md").read_text(encoding="utf-8")
        name = f"{schema.node_id}.jpg"
        assert PICTURE.findall(page(schema)) == PICTURE.findall(chinese) == [name] * (schema.node_id in HELP)
    assert sorted(path.stem for path in DOCS.glob("*.jpg")) == sorted(HELP)
    pack = server.get("/object_info/OneStorySVR")["OneStorySVR"]["python_module"].removeprefix("custom_nodes.")
    for path in DOCS.glob("*.jpg"):
        with Image.open(path) as picture:
            assert picture.width <= HELP_WIDTH
        assert path.stat().st_size < 60_000
        assert server.request(f"/extensions/{pack}/docs/{path.name}") == path.read_bytes()
