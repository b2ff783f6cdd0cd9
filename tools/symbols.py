"""Which of ComfyUI's names the pack uses, and whether a ComfyUI has them and takes our calls.

Run by the Python of a ComfyUI, it needs nothing else: `python tools/symbols.py PATH` prints what does not hold there.
"""

import ast
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("nodes", "story", "svr", "attention", "subjects", "pages")
HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "node_helpers", "nodes", "server")

# What no import names: how ComfyUI calls us, and what we call on the objects that it hands out. The names are those
# of the first parameters, in this order; behind them ComfyUI may put others.
HOOKS = {
    "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE": None,
    "comfy.patcher_extension.WrappersMP.PREDICT_NOISE": None,
    "comfy.patcher_extension.WrappersMP.APPLY_MODEL": None,
    "comfy.samplers.CFGGuider.outer_sample": ("self", "noise", "latent_image", "sampler", "sigmas"),
    "comfy.samplers.CFGGuider.predict_noise": ("self", "x", "timestep", "model_options", "seed"),
    "comfy.model_base.BaseModel._apply_model": (
        *("self", "x", "t", "c_concat", "c_crossattn", "control", "transformer_options"),
    ),
    "comfy.model_base.BaseModel.get_dtype_inference": ("self",),
    "comfy.model_patcher.ModelPatcher.clone": ("self",),
    "comfy.model_patcher.ModelPatcher.add_wrapper_with_key": ("self", "wrapper_type", "key", "wrapper"),
    "comfy.model_patcher.ModelPatcher.remove_wrappers_with_key": ("self", "wrapper_type", "key"),
    "comfy.model_patcher.ModelPatcher.get_model_object": ("self", "name"),
    "comfy.ldm.modules.attention.wrap_attn": ("func",),
    "comfy.ldm.modules.attention.attention_pytorch": ("q", "k", "v", "heads", "mask"),
    "comfy.ldm.modules.attention.attention_flash": ("q", "k", "v", "heads", "mask"),
    "comfy.ldm.modules.attention.attention_sage": ("q", "k", "v", "heads", "mask"),
    "comfy.context_windows.IndexListContextHandler": ("context_schedule", "fuse_method", "context_length"),
    "comfy.sd.CLIP.encode_from_tokens_scheduled": ("self", "tokens"),
    "comfy.sd.CLIP.tokenize": ("self", "text"),
    "server.PromptServer.send_progress_text": ("self", "text", "node_id"),
}
OBJECT = "server.PromptServer.instance"  # there once a server runs: what we call on it is among the hooks


class Use(NamedTuple):
    """A call of ours: how many arguments, the names of the others, and whether more are handed on by stars."""

    where: str
    positional: int
    named: tuple[str, ...]
    partial: bool


def used(root: Path = ROOT) -> dict[str, list[Use]]:
    """Every name of ComfyUI's in the files that ship, and our calls of it."""
    found: dict[str, list[Use]] = {}
    paths = [root / "__init__.py", *(path for name in FOLDERS for path in sorted((root / name).rglob("*.py")))]
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = dict(imported(tree))
        for whole in names.values():
            found.setdefault(whole, [])
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (name := dotted(node, names)):
                found.setdefault(name, [])
            elif isinstance(node, ast.Call) and (name := dotted(node.func, names)):
                where = f"{path.relative_to(root).as_posix()}:{node.lineno}"
                plain = [each for each in node.args if not isinstance(each, ast.Starred)]
                named = tuple(each.arg for each in node.keywords if each.arg)
                partial = len(plain) < len(node.args) or len(named) < len(node.keywords)
                found.setdefault(name, []).append(Use(where, len(plain), named, partial))
    return found


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """A file's own names of ComfyUI's modules and their parts, with the full ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in HOST:
                    yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] in HOST:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """The full name of an expression like `io.Int.Input`, if it begins with one of `names`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    name = ".".join([names[node.id], *reversed(parts)])
    return None if name.startswith(OBJECT) else name


def find(name: str) -> Any:
    """What has this full name. Raises `AttributeError` or `ImportError`."""
    parts = name.split(".")
    value: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 1):
        if inspect.ismodule(value) and not hasattr(value, part):
            importlib.import_module(".".join(parts[: i + 1]))
        elif not hasattr(value, part) and part in getattr(value, "__annotations__", ()):
            return None  # there once an object is made
        value = getattr(value, part)
    return value


def faults(root: Path = ROOT) -> dict[str, str]:
    """The names that this Python's ComfyUI lacks or that it would not take our calls of, each with a sentence."""
    found = {}
    calls = used(root)
    for name in {**calls, **HOOKS}:
        try:
            value = find(name)
        except (AttributeError, ImportError) as error:
            found[name] = f"is not there: {error}"
            continue
        for use in calls.get(name, []):
            if complaint := refused(value, use):
                found[name] = f"does not take the call in {use.where}: {complaint}"
        if wanted := HOOKS.get(name):
            given = tuple(inspect.signature(value).parameters)[: len(wanted)]
            if given != wanted:
                found[name] = f"begins with {', '.join(given)} instead of {', '.join(wanted)}"
    return found


def refused(value: Any, use: Use) -> str | None:
    """Why a signature does not take a call; None when it does, or says nothing."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    bind = signature.bind_partial if use.partial else signature.bind
    try:
        bind(*[None] * use.positional, **dict.fromkeys(use.named))
    except TypeError as error:
        return str(error)
    return None


def enter(comfyui: Path) -> None:
    """Make this Python import that ComfyUI, on the CPU, and nothing that lies beside this file."""
    sys.path[0] = str(comfyui)
    sys.argv = [sys.argv[0], "--cpu"]
    importlib.import_module("utils")  # before a module of that name that some package brings
    importlib.import_module("comfy.options").enable_args_parsing()


if __name__ == "__main__":
    enter(Path(sys.argv[1]).resolve())
    print(json.dumps({"used": sorted({*used(), *HOOKS}), "faults": faults()}))
