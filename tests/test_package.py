"""What the registry ships: the archive that `comfy node pack` makes, and what pyproject.toml says of it."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from conftest import COMFYUI
from onestory.tools import host
from pathspec import PathSpec

# ComfyUI's own loader on a folder, in a fresh process; prints the nodes and the web folders that it found.
LOAD = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import nodes
before = set(nodes.NODE_CLASS_MAPPINGS)
asyncio.run(nodes.load_custom_node(sys.argv[2], module_parent="custom_nodes"))
print(json.dumps([sorted(set(nodes.NODE_CLASS_MAPPINGS) - before), list(nodes.EXTENSION_WEB_DIRS.values())]))
"""

PYPROJECT = tomllib.loads((host.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = re.compile(r"\d+\.\d+\.\d+(-[a-zA-Z0-9]+)?")


def packed() -> list[str]:
    """The files that the archive holds: git's, without those of .comfyignore, which reads like .gitignore."""
    if not (host.ROOT / ".git").exists():
        pytest.skip("which files belong to the pack is known only in a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=host.ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    left_out = PathSpec.from_lines("gitignore", (host.ROOT / ".comfyignore").read_text().splitlines())
    return sorted(name for name in files if name and (host.ROOT / name).exists() and not left_out.match_file(name))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("custom_nodes") / "onestory"
    for name in packed():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(host.ROOT / name, folder / name)
    return folder


def test_the_archive_holds_what_users_need_and_nothing_else():
    files = packed()
    top = {name.partition("/")[0] for name in files}
    needed = {"LICENSE", "README.md", "__init__.py", "pyproject.toml", "requirements.txt"}
    needed |= {"attention", "locales", "nodes", "story", "svr", "web", "workflows"}
    assert top - {"subgraphs"} == needed
    kinds = {Path(name).suffix for name in files}
    assert kinds <= {".py", ".json", ".jpg", ".md", ".ttf", ".txt", ".toml", ""}
    assert sum((host.ROOT / name).stat().st_size for name in files) < 10_000_000


def test_the_pack_loads_from_the_archive(unpacked):
    command = [sys.executable, "-c", LOAD, str(COMFYUI), str(unpacked)]
    done = subprocess.run(command, cwd=unpacked.parent, capture_output=True, text=True, check=True)
    nodes, web = json.loads(done.stdout.splitlines()[-1])
    names = re.findall(r'node_id="(OneStory\w+)"', "".join(p.read_text() for p in (host.ROOT / "nodes").glob("*.py")))
    assert nodes == sorted(names)
    assert [Path(folder).resolve() for folder in web] == [(unpacked / "web").resolve()]


def test_an_older_comfyui_is_told_which_one_the_pack_needs(monkeypatch):
    monkeypatch.setattr("comfyui_version.__version__", "0.3.76")
    needed = PYPROJECT["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    with pytest.raises(ImportError, match=f"OneStory needs ComfyUI {needed} or newer, and this is 0.3.76: update"):
        runpy.run_path(str(host.ROOT / "__init__.py"))


def test_the_pack_needs_no_package_that_comfyui_does_not_bring():
    assert (host.ROOT / "requirements.txt").read_text().strip() == ""
    assert PYPROJECT["project"]["dependencies"] == []


def test_pyproject_says_what_the_registry_asks_for():
    project, comfy = PYPROJECT["project"], PYPROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", project["name"])
    assert not project["name"].startswith("comfy")
    assert VERSION.fullmatch(project["version"])
    assert project["description"] and project["requires-python"]
    assert (host.ROOT / project["license"]["file"]).is_file()
    assert (host.ROOT / project["readme"]).is_file()
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"])
    assert comfy["DisplayName"]
    assert all(VERSION.fullmatch(part.lstrip("<>=!~")) for part in comfy["requires-comfyui"].split(","))
    assert comfy["requires-comfyui"] == f">={host.SOURCES[-1].comfyui}"
