"""Stories as long as asked for, with the real tokenizers, and embeddings shaped like a text encoder's."""

import torch
from onestory.story.script import Story, parse_script
from onestory.svr.consolidate import consolidate
from onestory.svr.encoders import side_by_side
from onestory.svr.record import KEY, Attached, Record

IDENTITY = "A watercolor painting of a young red fox with a blue scarf"
PLACES = ["under an oak tree", "on a wooden boat", "by the window", "in deep snow", "at the market"]
CAST = ("Ada", "Bo", "Cy", "Di")
DEEDS = ["reading a book", "drinking hot tea", "painting a fence", "sleeping soundly"]


def story(frames: int, characters: int = 0) -> Story:
    """A story of so many different frames, of five to seven tokens each; with so many named characters, of whom each
    frame shows the next one."""
    names = [f"[{name}] " for name in CAST[:characters]] or [""]
    lines = [f"{names[i % len(names)]}{DEEDS[i % 4]} {PLACES[i % 5]}" for i in range(frames)]
    identity = "\n".join(f"{name}a young red fox" for name in names) if characters else IDENTITY
    return parse_script(identity, "\n".join(lines))


def prompt(frames: int) -> str:
    """The story's one prompt."""
    return " ".join([IDENTITY, *(frame.prompt for frame in story(frames).frames)])


def record(frames: int, family: str, characters: int = 0) -> Record:
    """Where things stand in the embedding of a story for "SD1.5" or "SDXL"."""
    from functools import partial

    import comfy.sd1_clip
    import comfy.sdxl_clip

    tokenizer = comfy.sdxl_clip.SDXLTokenizer() if family == "SDXL" else comfy.sd1_clip.SD1Tokenizer()
    tokenize = partial(tokenizer.tokenize_with_weights, return_word_ids=True)
    encoders = side_by_side("l", "g") if family == "SDXL" else side_by_side("l")
    return consolidate(story(frames, characters), tokenize, encoders)[2]


def embeddings(record: Record, seed: int = 0) -> torch.Tensor:
    """[rows, tokens, channels]: per encoder, tokens of norm 28 that mostly point one way.

    Rows of one prompt are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    windows = sorted({row.window for row in record.rows})
    parts = []
    for encoder in record.encoders:
        channels = encoder.channels.stop - encoder.channels.start
        own = torch.randn(len(windows), record.tokens, channels, generator=generator)
        shared = torch.randn(channels, generator=generator)
        own, shared = (torch.nn.functional.normalize(x, dim=-1) for x in (own, shared))
        parts.append(28 * (0.95 * shared + (1 - 0.95**2) ** 0.5 * own))
    return torch.cat(parts, dim=-1)[[windows.index(row.window) for row in record.rows]]


def conditioning(record: Record, pooled: int, seed: int = 0) -> list:
    """What Story Prompt gives for such embeddings."""
    embeds = embeddings(record, seed)
    return [[embeds, {"pooled_output": torch.zeros(len(embeds), pooled), KEY: Attached.to(embeds, record)}]]


def plain_conditioning(rows: int, channels: int, pooled: int, seed: int = 1) -> list:
    """A conditioning of CLIPTextEncode: one row, or `rows` of them, without a story."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(rows, 77, channels, generator=generator), {"pooled_output": torch.zeros(rows, pooled)}]]
