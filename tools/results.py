"""A folder of results that a run can go on with: its settings, and files that are written whole or not at all."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .failure import Failure

SETTINGS = "settings.json"
RESULT = "result.json"
"""What a work's folder has once it is made, two folders below the results'."""


def keep_settings(out: Path, settings: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Write the settings into the results' folder, or raise `Failure` when it holds results of other ones.

    `digests` says of settings that stand for contents what other ones are.
    """
    file = out / SETTINGS
    try:
        if not file.is_file() or not any(out.glob(f"*/*/{RESULT}")):
            out.mkdir(parents=True, exist_ok=True)
            write_json(file, settings)
        kept = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"The results cannot be kept in {out}: {error.strerror}.") from None
    except ValueError:
        raise Failure(f"{file} cannot be read: choose another --out.") from None
    for name, value in settings.items():
        if kept.get(name) != value:
            was = digests.get(name) or f"--{name} {as_given(kept.get(name))}, not {as_given(value)}"
            raise Failure(f"{out} holds results of {was}: choose another --out, or the same settings.")


def is_kept(folder: Path, text: Any, title: str, option: str) -> bool:
    """Whether a result of this text is in a folder. Raises `Failure` where it is of another, with the way out."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    if result["text"] != digest(text):
        raise Failure(f"{folder} holds {title} with another text: choose another {option}.")
    return True


def digest(data: Any) -> str:
    """The sha256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def as_given(value: Any) -> str:
    """A setting's value as text, in the form of its option."""
    return " ".join(f"{name}={each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


def write_json(file: Path, data: Any) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)
