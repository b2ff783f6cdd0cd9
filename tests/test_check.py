"""`run.py test`: what it hands to pytest."""

import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
from onestory.tools import check, host

WHERE = {
    "everything": ([], True),
    "a word that is also a folder": (["-k", "svr"], True),
    "a file": (["tests/test_svr_math.py", "-x"], False),
    "one test": (["tests/test_svr_math.py::test_x"], False),
}


@pytest.mark.parametrize("name", WHERE)
def test_pytest_gets_the_tests_unless_some_are_named(monkeypatch, name):
    words, all_tests = WHERE[name]
    ran = []
    monkeypatch.chdir(host.ROOT)
    monkeypatch.setenv("COMFYUI_PATH", "")
    for step in ("set_up", "install_dev_tools", "random_checkpoint"):
        monkeypatch.setattr(host, step, lambda *_: None)
    monkeypatch.setattr(check, "checking_types", lambda _: nullcontext(lambda: 0))
    monkeypatch.setattr(check, "run_module", lambda _, *command: ran.append(command) or 0)
    assert check.run(Namespace(others=words)) == 0
    assert ran[-1] == ("pytest", *(words or check.WORKERS), *(["tests"] if all_tests else []))


@pytest.mark.parametrize(("value", "code", "said"), [("1", 0, "Success: "), ("'one'", 1, "Incompatible types")])
def test_types_are_checked_meanwhile_and_told_at_the_end(monkeypatch, tmp_path, capsys, value, code, said):
    monkeypatch.setattr(host, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.mypy]\nfiles = ["svr"]\n')
    (tmp_path / "svr").mkdir()
    (tmp_path / "svr" / "__init__.py").write_text(f"one: int = {value}\n")
    with check.checking_types(host.Host(tmp_path, Path(sys.executable))) as types:
        assert "mypy" not in capsys.readouterr().err
        assert types() == code
    told = capsys.readouterr().err
    assert told.startswith("== mypy svr\n") and said in told
