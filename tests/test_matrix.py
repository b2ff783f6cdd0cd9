"""The table of ComfyUI versions: what counts as a difference, a fault, a skip."""

import json
import math
import struct
from argparse import Namespace

import pytest
from onestory.tools import host, matrix, symbols
from onestory.tools.failure import Failure


def made(**changed) -> dict:
    """What a version did: one node, one workflow with one latent file and one picture."""
    workflow = {"latents": {"a": [0.0, 2.0, 4.0]}, "pictures": 1, **changed}
    names = {"used": ["comfy.sd.CLIP.tokenize", "server.PromptServer"], "faults": {}}
    return {"nodes": ["OneStoryScript"], "names": names, "workflows": {"Story": workflow}}


def test_the_numbers_of_a_latent_file_are_read():
    header = json.dumps({"latent_tensor": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}).encode()
    data = struct.pack("<Q", len(header)) + header + struct.pack("<2f", 0.5, -2.0)
    assert matrix.values(data).tolist() == [0.5, -2.0]


def test_a_difference_is_in_standard_deviations():
    assert matrix.difference([1.0, 3.0], [1.0, 3.5]) == pytest.approx(0.5 / 1.25)
    assert matrix.difference([1.0], [1.0, 3.0]) == math.inf


def test_equal_results_are_no_fault():
    assert matrix.judge(made(), made()) == (["1 of 1", "1 of 1", "none"], [])


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"latents": {"a": [0.0, 2.0, 4.1]}}, "latents differ by 6.1e-02"),
        ({"latents": {}}, "latents differ by inf"),
        ({"latents": {"a": [0.0, 2.0, math.nan]}}, "latents differ by nan"),
        ({"pictures": 2}, "Story: 2 pictures instead of 1"),
        ({"error": "no such sampler"}, "Story: no such sampler"),
    ],
)
def test_whatever_differs_is_a_fault(changed, fault):
    _, faults = matrix.judge(made(**changed), made())
    assert len(faults) == 1 and fault in faults[0]


def test_a_workflow_whose_core_nodes_are_missing_is_skipped(capsys):
    row, faults = matrix.judge(made(lacks=["NewNode"]), made())
    assert row[1] == "0 of 1" and faults == []
    assert "Story: this version has no NewNode" in capsys.readouterr().err


def test_a_missing_node_and_a_version_that_fails_are_faults():
    assert matrix.judge({**made(), "nodes": []}, made())[1] == ["the nodes OneStoryScript are missing"]
    assert matrix.judge({"error": "it ended with exit code 1"}, made())[1] == ["it ended with exit code 1"]


def test_a_name_that_does_not_hold_is_a_fault_and_its_versions_stand_on_the_page():
    old = row("0.9.1")
    old["names"] = {**old["names"], "faults": {"server.PromptServer": "is not there: no module"}}
    assert matrix.judge(old, made())[1] == ["server.PromptServer is not there: no module"]
    page = matrix.names_page([row("0.30.0"), old, {**row("0.8.0"), "error": "it did not start"}, row("0.10.0")])
    assert page.splitlines()[-2:] == [
        "| `comfy.sd.CLIP.tokenize` | 0.9.1 | 0.30.0 |",
        "| `server.PromptServer` | 0.10.0 | 0.30.0 |",
    ]


def test_the_page_has_the_names_that_the_pack_uses():
    page = matrix.NAMES.read_text(encoding="utf-8")
    named = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert named == {*symbols.used(), *symbols.HOOKS}, "run `python3 run.py matrix --write`"


def row(version: str, **changed) -> dict:
    return {"version": version, "how": "a ComfyUI folder", "date": "2026-11-26", **made(**changed)}


def test_the_table_says_how_and_when_each_version_was_tried_the_newest_first():
    newest = row("0.30.0")
    broken = {**row("0.9.1"), "error": "it did not start"}
    table, faults = matrix.tabulate([newest, broken, row("0.33.0", pictures=2)], newest)
    assert [line.split(" | ") for line in table.splitlines()[2:]] == [
        ["| 0.33.0", "a ComfyUI folder", "2026-11-26", "1 of 1", "1 of 1", "none |"],
        ["| 0.30.0", "a ComfyUI folder", "2026-11-26", "1 of 1", "1 of 1", "– |"],
        ["| 0.9.1", "a ComfyUI folder", "2026-11-26", "–", "–", "– |"],
    ]
    assert table.startswith(
        "| ComfyUI | how it was tried | date | nodes | workflows | largest difference from 0.30.0 |"
    )
    assert faults == ["ComfyUI 0.33.0: Story: 2 pictures instead of 1", "ComfyUI 0.9.1: it did not start"]


def test_the_table_replaces_the_rows_of_the_versions_that_were_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "page.md")
    head = "| ComfyUI | how it was tried | from 0.30.0 |\n| --- | --- | --- |\n"
    readme = "before\n<!-- matrix -->\n\n{}\n<!-- /matrix -->\nafter\n"
    old = "| 0.30.0 | the index, Python 3.11 | old |\n| 0.9.0 | the index | old |\n"
    matrix.PAGE.write_text(readme.format(head + old))
    matrix.write(f"{head}| 0.33.0 | a folder | new |\n| 0.30.0 | the index, Python 3.12 | new |\n")
    rows = "| 0.33.0 | a folder | new |\n| 0.30.0 | the index, Python 3.12 | new |\n| 0.9.0 | the index | old |\n"
    assert matrix.PAGE.read_text() == readme.format(head + rows)
    other = f"{head.replace('from 0.30.0', 'from 0.33.0')}| 0.33.0 | the index | – |\n"
    matrix.write(other)
    assert matrix.PAGE.read_text() == readme.format(other)
    matrix.PAGE.write_text("no marks")
    with pytest.raises(Failure, match="has no place for the table"):
        matrix.write("| new |\n")


def test_any_comfyui_folder_gets_a_row_and_is_tried_again_each_time(tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    (theirs / "comfy").mkdir(parents=True)
    (theirs / "main.py").touch()
    (theirs / "comfyui_version.py").write_text('__version__ = "0.45.1"\n')
    newest = {**made(), "runs_on": "Python 3.11.7, torch 2.11.0"}
    ran = []
    monkeypatch.setattr(matrix, "VERSIONS", tmp_path / "versions")
    monkeypatch.setattr(matrix, "write_models", lambda: tmp_path)
    monkeypatch.setattr(matrix, "result", lambda source, *_: {**row(source.comfyui), **newest})
    monkeypatch.setattr(matrix, "try_out", lambda this, *_: ran.append(this.comfyui) or newest)
    monkeypatch.setattr(matrix, "today", lambda: "2026-11-26")
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "page.md")
    matrix.PAGE.write_text("<!-- matrix -->\n<!-- /matrix -->\n")
    monkeypatch.setattr(matrix, "NAMES", tmp_path / "names.md")
    args = Namespace(comfyui=[str(theirs)], versions=["0.27.0"], write=True)
    assert matrix.run(args) == matrix.run(args) == 0
    assert ran == [theirs, theirs]
    cells = "| 0.45.1 | a ComfyUI folder, Python 3.11.7, torch 2.11.0 | 2026-11-26 | 1 of 1 | 1 of 1 | none |"
    assert cells in matrix.PAGE.read_text()
    assert "| `server.PromptServer` | 0.27.0 | 0.45.1 |" in matrix.NAMES.read_text()
    (theirs / "comfyui_version.py").unlink()
    with pytest.raises(Failure, match="theirs does not say its version"):
        matrix.run(args)


def test_every_version_is_pinned_once_and_the_newest_comes_first():
    versions = [tuple(map(int, source.comfyui.split("."))) for source in host.SOURCES]
    assert versions == sorted(versions, reverse=True)
    assert len({source.sha256 for source in host.SOURCES}) == len(versions)
