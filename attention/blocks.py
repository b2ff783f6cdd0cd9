"""Which attention blocks of a model a node works on, written as text."""

import re
from collections.abc import Mapping, Sequence

Block = tuple[str, int]
"""A block by ComfyUI's name and number: ("output", 3) of a U-Net, ("double", 7) or ("single", 20) of a transformer."""

Blocks = tuple[tuple[str, int, int], ...]
"""Ranges of blocks: (a part of the model or ComfyUI's name, first number, last number)."""

Parts = Mapping[str, Sequence[Block]]
"""A model's blocks by every name that a range may have."""

EVERY = 9999
PARTS = ("all", "down", "mid", "up", "late")
NAMES = ("input", "middle", "output", "double", "single")


def parse_blocks(text: str) -> Blocks:
    """Parse a part of the model ("all", "down", "mid", "up", "late"), a block such as `output.3`, a range such as
    `single.3-5`, or a sum of these.

    The parts of a sum are separated by "+" or ",". Raises `ValueError`.
    """
    blocks: list[tuple[str, int, int]] = []
    for part in re.split(r"[+,]", text):
        part = part.strip().lower()
        match = re.fullmatch(rf"({'|'.join(NAMES)})(?:\.(\d+)(?:-(\d+))?)?", part)
        if part in PARTS:
            blocks.append((part, 0, EVERY))
        elif match:
            first = int(match[2] or 0)
            blocks.append((match[1], first, int(match[3] or match[2] or EVERY)))
        else:
            raise ValueError(
                f"blocks “{text}” is not understood at “{part}”: write {', '.join(PARTS)}, a block such as output.3 "
                "or single.3, a range such as output.3-5, or several of these joined by +."
            )
    return tuple(blocks)


def thirds(blocks: Sequence[Block]) -> Parts:
    """A transformer's blocks by depth, and as "late" those after the ones that lay out the picture.

    These are its single blocks, as in Flux.1 the last two thirds are; of a model without any all after the first third.
    """
    n = len(blocks)
    first, second = n // 3, 2 * n // 3
    late = [block for block in blocks if block[0] == "single"] or blocks[first:]
    return {"down": blocks[:first], "mid": blocks[first:second], "up": blocks[second:], "late": late}


def by_name(blocks: Sequence[Block]) -> Parts:
    return {name: [block for block in blocks if block[0] == name] for name in NAMES}


def selected(blocks: Blocks, parts: Parts) -> frozenset[Block]:
    """The blocks of a model that lie in any of the ranges."""
    return frozenset(
        block for part, first, last in blocks for block in parts.get(part, ()) if first <= block[1] <= last
    )


def describe(blocks: Blocks) -> str:
    """The text for `blocks`, as a person would write it."""
    return "+".join(
        name if last == EVERY else f"{name}.{first}" if first == last else f"{name}.{first}-{last}"
        for name, first, last in blocks
    )
