"""Orders text that runs from right to left: the Unicode Bidirectional Algorithm (UAX #9) for one line.

Pillow's Raqm orders text of one font; a line that takes letters from several has to be ordered before it is drawn.
Explicit embeddings and isolates (rules X1 to X8) are left out: captions hold none after `lettering.clean`.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

# Bidirectional classes as one letter each: A for Arabic letters, E and N for European and Arabic numbers, s, t and c
# for separators and terminators of numbers, m for marks and joiners, and o for all that is neutral.
CLASSES = {"L": "L", "R": "R", "AL": "A", "EN": "E", "AN": "N", "ES": "s", "ET": "t", "CS": "c", "NSM": "m", "BN": "m"}


def is_right_to_left(text: str) -> bool:
    """Whether the first letter with a direction runs from right to left (rules P2 and P3)."""
    return next((c in "RA" for c in map(class_of, text) if c in "LRA"), False)


def levels(text: str, right_to_left: bool) -> list[int]:
    """The level of each character of a line: odd ones run from right to left (rules W1 to I2)."""
    line = "R" if right_to_left else "L"
    s = line + "".join(map(class_of, text)) + line
    s = re.sub("(.)m+", lambda m: m[1] * len(m[0]), s)  # W1
    s = re.sub("A[^LR]*", lambda m: m[0].replace("E", "N"), s).replace("A", "R")  # W2, W3
    s = re.sub("(?<=E)[sc](?=E)", "E", s)  # W4
    s = re.sub("(?<=N)c(?=N)", "N", s)
    s = re.sub("t+(?=E)|(?<=E)t+", lambda m: "E" * len(m[0]), s)  # W5
    s = re.sub("[stc]", "o", s)  # W6
    s = re.sub("L[^R]*", lambda m: m[0].replace("E", "L"), s)  # W7
    s = resolve_brackets(s, text, line)
    s = re.sub("(?<=L)o+(?=L)", lambda m: "L" * len(m[0]), s)  # N1
    s = re.sub("(?<=[REN])o+(?=[REN])", lambda m: "R" * len(m[0]), s)
    s = s.replace("o", line)  # N2
    step = {"L": 2, "R": 1, "E": 2, "N": 2} if right_to_left else {"L": 0, "R": 1, "E": 2, "N": 2}
    return [step[c] for c in s[1:-1]]  # I1, I2


def resolve_brackets(s: str, text: str, line: str) -> str:
    """Give both brackets of a pair one direction: the line's if it occurs between them, else by what is there (N0).

    `s` are the classes of `text` between two of the line's own.
    """
    resolved = list(s)
    for opening, closing in bracket_pairs(text, s):
        inside = {direction(c) for c in resolved[opening + 1 : closing]}
        before = next(d for d in map(direction, reversed(resolved[:opening])) if d)
        other = "L" if line == "R" else "R"
        if line not in inside and other not in inside:
            continue
        for i in (opening, closing):
            resolved[i] = line if line in inside else before
            while i < len(text) and class_of(text[i]) == "m":  # marks on the bracket, which is text[i - 1]
                i += 1
                resolved[i] = resolved[i - 1]
    return "".join(resolved)


def direction(kind: str) -> str:
    """The direction of a class, numbers as in Hebrew; "" for none."""
    return "R" if kind in "REN" else "L" if kind == "L" else ""


def bracket_pairs(text: str, s: str) -> list[tuple[int, int]]:
    """Where the bracket pairs of `text` stand in its classes `s`, by their openings (definition BD16)."""
    pairs, open_ones = [], []
    for i, character in enumerate(text, 1):
        if s[i] != "o" or not (partner := mirrored(character)):
            continue
        if unicodedata.category(character) == "Ps":
            open_ones.append((partner, i))
        elif unicodedata.category(character) == "Pe":
            at = next((j for j in range(len(open_ones) - 1, -1, -1) if open_ones[j][0] == character), None)
            if at is not None:
                pairs.append((open_ones[at][1], i))
                del open_ones[at:]
    return sorted(pairs)


def visual_order(levels: Sequence[int]) -> list[int]:
    """The indices of runs of these levels from left to right (rule L2)."""
    order = list(range(len(levels)))
    for level in range(max(levels, default=0), 0, -1):
        i = 0
        while i < len(order):
            j = i
            while j < len(order) and levels[order[j]] >= level:
                j += 1
            order[i:j] = order[i:j][::-1]
            i = max(j, i + 1)
    return order


def class_of(character: str) -> str:
    return CLASSES.get(unicodedata.bidirectional(character) or "L", "o")


@cache
def mirrored(character: str) -> str:
    """The character that looks like this one in a mirror, such as ) for (; "" for none (rule L4)."""
    if not unicodedata.mirrored(character):
        return ""
    name = unicodedata.name(character, "")
    for one, other in (("LEFT", "RIGHT"), ("RIGHT", "LEFT"), ("LESS", "GREATER"), ("GREATER", "LESS")):
        if one in name:
            try:
                return unicodedata.lookup(name.replace(one, other))
            except KeyError:
                return ""
    return ""


def joined(text: str) -> str:
    """`text` with the forms that Arabic letters take beside each other as characters of their own.

    For drawing without a shaping library. Letters that Unicode has no such forms of stay as they are.
    """
    forms = arabic_forms()
    letters = re.findall("ل[اآأإ]|.", text)
    shown = []
    for i, letter in enumerate(letters):
        before = next((c for c in reversed(letters[:i]) if unicodedata.category(c[-1]) != "Mn"), "")
        after = next((c for c in letters[i + 1 :] if unicodedata.category(c[0]) != "Mn"), "")
        right = joins(before, "initial") and joins(letter, "final")
        left = joins(letter, "initial") and joins(after, "final")
        form = {(0, 0): "isolated", (0, 1): "initial", (1, 0): "final", (1, 1): "medial"}[right, left]
        shown.append(forms.get((form, letter), letter))
    return "".join(shown)


def joins(letter: str, form: str) -> bool:
    return letter in ("ـ", "\u200d") or (form, letter) in arabic_forms()


@cache
def arabic_forms() -> dict[tuple[str, str], str]:
    """The compatibility characters for the forms of Arabic letters, and of lam with alef, by form and letters."""
    found = {}
    for code in (*range(0xFB50, 0xFBEA), *range(0xFBFC, 0xFC00), *range(0xFE80, 0xFEFD)):
        form, _, letters = unicodedata.decomposition(chr(code)).partition("> ")
        found[form[1:], "".join(chr(int(letter, 16)) for letter in letters.split())] = chr(code)
    return found
