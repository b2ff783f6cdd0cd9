"""Made-up stories: a record and embeddings shaped like a text encoder's, without tokenizer or model."""

import torch
from onestory.svr.record import Encoder, Record, Row, Span, Spans

SD15 = (("l", 768),)
SD2 = (("h", 1024),)
REFINER = (("g", 1280),)
SDXL = (("l", 768), ("g", 1280))


def windows(frames: int, width: int) -> list[tuple[int, ...]]:
    """Section 1: all frames in the given order, or `width` of them from the frame itself on, circular."""
    if width >= frames:
        return [tuple(range(frames))] * frames
    return [tuple((j + i) % frames for i in range(width)) for j in range(frames)]


def spans(identity: int, lengths: list[int], tokens: int) -> Spans:
    """SOT, `identity` tokens, then frame prompts of these lengths, then c_EOT up to `tokens`."""
    starts = [1 + identity]
    for length in lengths:
        starts.append(starts[-1] + length)
    assert starts[-1] < tokens, "the prompt must leave room for EOT"
    frames = tuple(Span(a, b) for a, b in zip(starts, starts[1:], strict=False))
    return Spans(Span(1, 1 + identity), frames, Span(starts[-1], tokens))


def record(lengths, width=None, encoders=SD15, identity=6, tokens=77, longer=(0, 0)) -> Record:
    """A story whose frame prompt `k` has `lengths[k]` tokens.

    Encoder `e` splits the identity prompt and every frame prompt of more than one token into `longer[e]`
    more tokens, so that two encoders need not agree on where things stand.
    """
    rows = []
    for j, window in enumerate(windows(len(lengths), width or len(lengths))):
        per_encoder = tuple(
            spans(identity + more, [lengths[k] + more * (lengths[k] > 1) for k in window], tokens)
            for _, more in zip(encoders, longer, strict=False)
        )
        rows.append(Row(j, window, per_encoder))
    named, start = [], 0
    for name, channels in encoders:
        named.append(Encoder(name, Span(0, tokens), Span(start, start + channels)))
        start += channels
    return Record(len(lengths), tuple(named), tuple(rows), ((),) * len(lengths))


def mixed(*records: Record) -> Record:
    """These stories' rows as one story's, each with the windows that it has; frames are numbered on."""
    rows, start = [], 0
    for record in records:
        rows += [Row(row.frame + start, tuple(k + start for k in row.window), row.spans) for row in record.rows]
        start += record.frames
    return records[0]._replace(frames=start, rows=tuple(rows), characters=((),) * start)


def embeddings(record: Record, seed=0, norm=28.0, common=0.95, appended=0, dtype=torch.float32) -> torch.Tensor:
    """[rows, record.tokens + appended, channels]: tokens of this norm that mostly point one way, per encoder.

    CLIP-L's are like that: with the defaults, the tokens of a padded prompt have a leading singular value near 200.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for encoder in record.encoders:
        channels = encoder.channels.stop - encoder.channels.start
        shape = len(record.rows), record.tokens + appended, channels
        own = torch.nn.functional.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
        shared = torch.nn.functional.normalize(torch.randn(channels, generator=generator, dtype=torch.float64), dim=-1)
        parts.append(norm * (common * shared + (1 - common**2) ** 0.5 * own))
    return torch.cat(parts, dim=-1).to(dtype)


def repeat_words(embeds: torch.Tensor, record: Record) -> torch.Tensor:
    """The same, where every frame prompt repeats its first token, and all frame prompts begin with the same one."""
    embeds = embeds.clone()
    for r, row in enumerate(record.rows):
        for encoder, at in zip(record.encoders, row.spans, strict=True):
            channels = slice(*encoder.channels)
            word = embeds[r, at.identity.start, channels].clone()
            for span in at.frames:
                embeds[r, span.start, channels] = word
                embeds[r, span.stop - 1, channels] = word
    return embeds
