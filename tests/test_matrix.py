"""The table of ComfyUI versions: what counts as a difference, a fault, a skip."""

import json
import math
import struct

import pytest
from onestory.tools import host, matrix
from onestory.tools.failure import Failure


def made(**changed) -> dict:
    """What a version did: one node, one workflow with one latent file and one picture."""
    workflow = {"latents": {"a": [0.0, 2.0, 4.0]}, "pictures": 1, **changed}
    return {"nodes": ["OneStoryScript"], "workflows": {"Story": workflow}}


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


def test_the_table_replaces_the_one_between_the_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "README", tmp_path / "README.md")
    matrix.README.write_text("before\n<!-- matrix -->\nold\n<!-- /matrix -->\nafter\n")
    matrix.write("| new |\n")
    assert matrix.README.read_text() == "before\n<!-- matrix -->\n\n| new |\n\n<!-- /matrix -->\nafter\n"
    matrix.README.write_text("no marks")
    with pytest.raises(Failure, match="has no place for the table"):
        matrix.write("| new |\n")


def test_every_version_is_pinned_once_and_the_newest_comes_first():
    versions = [tuple(map(int, source.comfyui.split("."))) for source in host.SOURCES]
    assert versions == sorted(versions, reverse=True)
    assert len({source.sha256 for source in host.SOURCES}) == len(versions)
