"""`run.py test`: what it hands to pytest."""

from argparse import Namespace

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
    monkeypatch.setattr(check, "check_types", lambda _: 0)
    monkeypatch.setattr(check, "run_module", lambda _, *command: ran.append(command) or 0)
    assert check.run(Namespace(others=words)) == 0
    assert ran[-1] == ("pytest", *(words or check.WORKERS), *(["tests"] if all_tests else []))
