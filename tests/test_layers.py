"""Who may import whom: what ships knows nothing of tools, and each room only of those below it.

.host/venv/bin/python tests/test_layers.py    prints each room: files, lines, what it imports of ours and of others
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("nodes", "story", "svr", "attention", "subjects", "pages", "tools", "bench", "world")

# What a room may import of this project, and of everything else but the standard library (None: anything).
RULES = {
    "story": (set(), {"yaml", "regex"}),
    "svr": ({"story"}, {"torch"}),
    "attention": ({"story", "svr"}, {"torch", "comfy"}),
    "subjects": (set(), {"torch"}),
    "pages": ({"story"}, {"numpy", "PIL", "regex"}),
    "nodes": ({"story", "svr", "attention", "subjects", "pages"}, None),
    "world": (set(), None),
    "tools": ({"story", "pages", "world"}, None),
    "bench": (set(ROOMS), None),
}
HOST_ROOMS = ("attention/runtime.py", "attention/runs.py", "attention/rows.py", "attention/architectures/")


def imports(path: Path) -> set[tuple[str, ...]]:
    """The modules that a file imports anywhere in it, absolute; the project's begin with their room."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = tuple((node.module or "").split(".")) if node.module else ()
            base = package[: len(package) - node.level + 1] if node.level else ()
            names = [(alias.name,) for alias in node.names] if not base + module else [()]
            found |= {base + module + name for name in names}
    return {module[1:] if module[0] == "onestory" else module for module in found if module != ("onestory",)}


def files(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", RULES)
def test_a_room_imports_only_what_it_may(room):
    own, libraries = RULES[room]
    assert files(room), "the room is there"
    for path in files(room):
        for module in imports(path):
            where = f"{path.relative_to(ROOT)} imports {'.'.join(module)}"
            if module[0] in ROOMS:
                assert module[0] == room or module[0] in own, where
            elif libraries is not None and module[0] not in sys.stdlib_module_names:
                assert module[0] in libraries, where


def test_only_a_few_files_of_attention_know_the_host():
    for path in files("attention"):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(HOST_ROOMS):
            assert not any(module[0] == "comfy" for module in imports(path)), name


def test_every_file_of_attention_is_read_in_one_sitting():
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 250 for path in files("attention"))


def picture() -> str:
    """A line for each room: its name, files and lines of code, the rooms that it imports, and its libraries."""
    lines = []
    for room in ROOMS:
        modules = {module[0] for path in files(room) for module in imports(path)} - {room}
        own = [name for name in ROOMS if name in modules]
        libraries = sorted(modules - {*ROOMS, *sys.stdlib_module_names} - {path.stem for path in files(room)})
        size = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files(room))
        lines.append(f"{room:10}{len(files(room)):3} files {size:5} lines -> {', '.join(own) or '-'}")
        lines.append(f"{'':10}{'libraries':>22} -> {', '.join(libraries) or '-'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(picture())
