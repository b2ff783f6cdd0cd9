"""What stands in a prompt besides words: white space nobody sees, brackets, weights, and tags of other programs."""

import re

OPENING, CLOSING = "[【［〔", "]】］〕"
BRACKETS = re.escape(OPENING + CLOSING)
SCHEDULED = r"(?:[^\[\]:|]*:[^\[\]:|]*:\s*\d*\.?\d+|[^\[\]:|]*:\s*\d*\.\d+|[^\[\]]*\|[^\[\]]*)\s*\]"
"""What follows the `[` of A1111's `[from:to:when]`, `[to:0.5]` and `[one|other]`."""

INVISIBLE = "\u00ad\u061c\u180e\u2800\u3164\ufeff\uffa0" + "".join(
    map(chr, [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)])
)
BLANK = INVISIBLE + "".join(c for c in map(chr, range(0x3001)) if c.isspace())
SEPARATORS = ",;:，；：、·・|/–—-"
STOPS = ".!?…。！？"

LORA = re.compile(r"<[A-Za-z][\w-]*:[^<>]*>")
WILDCARD = re.compile(r"__[^\W_][\w*/-]*__")
SWITCH = re.compile(rf"(?<!\\)\[{SCHEDULED}")
BREAK = re.compile(r"(?<![A-Z]\s)\bBREAK\b(?!\s[A-Z]{2})")
AND = re.compile(BREAK.pattern.replace("BREAK", "AND"))
FOREIGN = re.compile("|".join(tag.pattern for tag in (LORA, WILDCARD, SWITCH, BREAK, AND)))
"""Tags that only other programs know. Among words in capitals, AND and BREAK are words."""

EMBEDDING = re.compile(r"\(*\bembedding:[^\s,()]+\)*")
WEIGHT = re.compile(r"\(([^()]*):\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)|\(\(([^()]*)\)\)")


def clean(text: str) -> str:
    """`text` without byte-order marks, and without white space and invisible characters at its ends."""
    return text.replace("\ufeff", "").strip(BLANK)


def clean_lines(text: str) -> list[str]:
    """The lines of `text`, cleaned, the empty ones too. Unicode's line ends are line ends."""
    return [clean(line) for line in text.splitlines()]


def cut(pattern: re.Pattern[str], text: str) -> str:
    """`text` without what `pattern`, which has no groups, finds, nor the white space and commas left over by that."""
    kept, *others = pattern.split(text)
    if not others:
        return text
    for other in others:
        kept, other = kept.rstrip(BLANK), other.lstrip(BLANK)
        if not kept:
            other = other.lstrip(BLANK + SEPARATORS + STOPS)
        elif other[:1] in STOPS:
            kept = kept.rstrip(BLANK + SEPARATORS)
        elif kept[-1] in SEPARATORS:
            other = other.lstrip(BLANK + SEPARATORS)
        kept += other if not kept or other[:1] in SEPARATORS + STOPS else f" {other}"
    return kept.rstrip(BLANK + SEPARATORS)


def readable(text: str) -> str:
    """A prompt as a caption: its words without weights, embeddings, tags and backslashes."""
    text = text.replace(r"\(", "\0").replace(r"\)", "\1")
    for _ in range(8):  # weights stand in each other
        text = WEIGHT.sub(lambda match: match[1] or match[2] or "", text)
    text = SWITCH.sub(lambda match: (re.findall(r"[^\[\]:|]*[^\W\d][^\[\]:|]*", match[0]) or [""])[-1], text)
    for pattern in (LORA, WILDCARD, BREAK, EMBEDDING):
        text = cut(pattern, text)
    text = re.sub(r"\\([^\w\s])", r"\1", text)
    return text.replace("\0", "(").replace("\1", ")")
