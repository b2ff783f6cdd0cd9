"""Which attention blocks of a U-Net a node works on, written as text."""

import re

Blocks = tuple[tuple[str, int, int], ...]
"""Ranges of blocks by ComfyUI's names: (input, middle or output, first number, last number)."""

EVERY = 9999
NAMED: dict[str, Blocks] = {
    "all": (("input", 0, EVERY), ("middle", 0, EVERY), ("output", 0, EVERY)),
    "down": (("input", 0, EVERY),),
    "mid": (("middle", 0, EVERY),),
    "up": (("output", 0, EVERY),),
}


def parse_blocks(text: str) -> Blocks:
    """Parse "all", "down", "mid", "up", a block such as `output.3`, a range `output.3-5`, or a sum of these.

    The parts of a sum are separated by "+" or ",". Raises `ValueError`.
    """
    blocks: list[tuple[str, int, int]] = []
    for part in re.split(r"[+,]", text):
        part = part.strip().lower()
        match = re.fullmatch(r"(input|middle|output)(?:\.(\d+)(?:-(\d+))?)?", part)
        if part in NAMED:
            blocks += NAMED[part]
        elif match:
            first = int(match[2] or 0)
            blocks.append((match[1], first, int(match[3] or match[2] or EVERY)))
        else:
            raise ValueError(
                f"blocks “{text}” is not understood at “{part}”: write all, down, mid, up, a block such as output.3, "
                "a range such as output.3-5, or several of these joined by +."
            )
    return tuple(blocks)


def selects(blocks: Blocks, block: tuple) -> bool:
    """Whether `block`, which begins with ComfyUI's (name, number), is one of `blocks`."""
    return any(name == block[0] and first <= block[1] <= last for name, first, last in blocks)


def describe(blocks: Blocks) -> str:
    """The text for `blocks`, as a person would write it."""
    return "+".join(
        name if last == EVERY else f"{name}.{first}" if first == last else f"{name}.{first}-{last}"
        for name, first, last in blocks
    )
