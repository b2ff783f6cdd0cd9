"""What the registry ships: the archive that `comfy node pack` makes, and what pyproject.toml says of it."""

import ast
import json
import os
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
from PIL import Image

# ComfyUI's start up to its custom nodes, then its own loader on a folder, in a fresh process; prints what came by that.
LOAD = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import nodes
asyncio.run(nodes.init_builtin_extra_nodes())
modules, before = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS)
asyncio.run(nodes.load_custom_node(sys.argv[2], module_parent="custom_nodes"))
files = {name: getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - modules}
found = sorted(set(nodes.NODE_CLASS_MAPPINGS) - before), list(nodes.EXTENSION_WEB_DIRS.values())
print(json.dumps([*found, files, sorted({name.partition(".")[0] for name in modules})]))
"""

LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
HELP_PAGES = host.ROOT / "web" / "docs"
CODE = re.compile(r"```\n.*?```|`[^`\n]+`", re.DOTALL)

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
    needed = {"CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "pyproject.toml", "requirements.txt"}
    needed |= {"attention", "locales", "nodes", "pages", "story", "subjects", "svr", "web", "workflows"}
    assert top - {"subgraphs"} == needed
    kinds = {Path(name).suffix for name in files}
    assert kinds <= {".py", ".json", ".jpg", ".md", ".ttf", ".txt", ".toml", ""}
    assert sum((host.ROOT / name).stat().st_size for name in files) < 10_000_000


FORBIDDEN = {"subprocess", "socket", "urllib", "http", "requests", "pickle", "marshal", "ctypes", "importlib", "pip"}
"""Modules with which a pack could run or fetch what it does not bring; the registry's scan looks for their use."""


def test_the_archive_runs_and_fetches_nothing():
    for name in packed():
        if not name.endswith(".py"):
            continue
        tree = ast.parse((host.ROOT / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN, name
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] not in FORBIDDEN, name
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"), (
                    name
                )


def test_the_pack_loads_from_the_archive_and_writes_nothing_there(unpacked):
    """So a folder that can't be written to, as in read-only installs, is as good.

    Python is isolated, as in ComfyUI's portable build, and reads and prints ASCII unless told otherwise.
    """
    command = [sys.executable, "-I", "-B", "-X", "utf8=0", "-c", LOAD, str(COMFYUI), str(unpacked)]
    before = sorted(unpacked.rglob("*"))
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=unpacked.parent, capture_output=True, text=True, check=True, env=environment)
    assert sorted(unpacked.rglob("*")) == before
    nodes, web, files, packages = json.loads(done.stdout.splitlines()[-1])
    names = re.findall(r'node_id="(OneStory\w+)"', "".join(p.read_text() for p in (host.ROOT / "nodes").glob("*.py")))
    assert nodes == sorted(names)
    assert [Path(folder).resolve() for folder in web] == [(unpacked / "web").resolve()]
    own = str(unpacked)  # every other module that is new belongs to Python or to a package that ComfyUI uses itself
    others = {name for name, file in files.items() if not (name.startswith(own) or (file or own).startswith(own))}
    assert files and {name.partition(".")[0] for name in others} <= {*sys.stdlib_module_names, *packages}


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
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", project["urls"]["Repository"])
    assert all(VERSION.fullmatch(part.lstrip("<>=!~")) for part in comfy["requires-comfyui"].split(","))
    assert comfy["requires-comfyui"] == f">={host.SOURCES[-1].comfyui}"


def test_the_registry_reads_our_classifiers():
    """The ones that the registry and ComfyUI-Manager sort packs by; others it drops with a warning."""
    systems = {"Operating System :: OS Independent"}
    accelerators = {
        "GPU :: NVIDIA CUDA",
        "GPU :: AMD ROCm",
        "GPU :: Intel Arc",
        "NPU :: Huawei Ascend",
        "GPU :: Apple Metal",
    }
    found = set(PYPROJECT["project"]["classifiers"])
    assert systems < found <= systems | {f"Environment :: {name}" for name in accelerators}


def test_the_icon_is_a_small_square_picture_of_the_repository():
    address = PYPROJECT["project"]["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com")
    path = PYPROJECT["tool"]["comfy"]["Icon"].removeprefix(f"{address}/main/")
    with Image.open(host.ROOT / path) as icon:
        assert icon.format == "PNG" and icon.width == icon.height <= 400
    assert (host.ROOT / path).stat().st_size < 100_000


def anchors(page: str) -> set[str]:
    """The names by which links reach a Markdown page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def pages() -> list[Path]:
    """The Markdown that ships."""
    return [host.ROOT / name for name in packed() if name.endswith(".md")]


def test_every_link_of_the_archive_leads_somewhere():
    """To a file of the archive, or to one of the repository by its address; never to a file that is not shipped."""
    repository, shipped = PYPROJECT["project"]["urls"]["Repository"], set(packed())
    checked = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for picture, link in LINK.findall(text):
            path, _, anchor = link.partition("#")
            if path.startswith(repository):
                view, _, name = path.removeprefix(repository).strip("/").partition("/main/")
                target = host.ROOT / name
                assert not path.removeprefix(repository) or (view in ("blob", "raw") and target.is_file()), link
            elif "://" in path:
                continue
            else:
                # the editor looks for help pages' pictures beside the English ones
                folder = HELP_PAGES if picture and page.is_relative_to(HELP_PAGES) else page.parent
                target = (folder / path).resolve() if path else page
                assert target.relative_to(host.ROOT).as_posix() in shipped, (page.name, link)
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
            checked += 1
    assert checked > 10


def test_what_the_archive_lacks_is_named_with_the_repository_beside_it():
    tracked = subprocess.run(["git", "ls-files"], cwd=host.ROOT, capture_output=True, text=True, check=True).stdout
    lacking = {name.partition("/")[0] for name in tracked.split()} - {name.partition("/")[0] for name in packed()}
    lacking |= {".host"}
    assert {"run.py", "world", "docs", "tools"} <= lacking
    named = set()
    for section in re.split(r"^(?=#+ )", (host.ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE):
        words = set(re.findall(r"[\w.-]+(?=/)|[\w-]+\.py", " ".join(CODE.findall(section))))
        named |= words & lacking
        if words & lacking:
            assert f"[repository]({PYPROJECT['project']['urls']['Repository']})" in section, words & lacking
    assert {"run.py", ".host"} <= named
