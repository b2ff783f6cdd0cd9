"""The map of a story's embedding: where a row has what, for any layout of text encoders; and what travels with it."""

import pytest
import stories
import torch
from onestory.story.parts import EOT, IDENTITY, SOT
from onestory.svr.record import Attached, Encoder, Record, Row, Span, Spans


def covered(spans):
    return sorted(t for span in spans for t in range(*span))


def test_every_token_belongs_to_one_part():
    record = stories.record([3, 1, 4], encoders=stories.SD15)
    for row in record.rows:
        parts = [covered(record.columns(row, part)) for part in (SOT, IDENTITY, *row.window, EOT)]
        assert sorted(sum(parts, [])) == list(range(record.tokens))


def test_encoders_that_share_their_tokens_have_to_agree():
    record = stories.record([3, 2], encoders=stories.SDXL, longer=(0, 1))
    for row in record.rows:
        clip_l, clip_g = row.spans
        for part, of in ((IDENTITY, lambda s: s.identity), (EOT, lambda s: s.eot), (1, lambda s: s.frames[1])):
            both = set(range(*of(clip_l))) & set(range(*of(clip_g)))
            assert covered(record.columns(row, part)) == sorted(both)


def test_encoders_that_stand_one_after_the_other_each_have_their_own():
    """SD3: CLIP-L and CLIP-G side by side, T5 after them; T5 has no start token and is not causal."""
    clip = Spans(Span(1, 4), (Span(4, 6),), Span(6, 10))
    t5 = Spans(Span(10, 14), (Span(14, 17),), Span(17, 26), Span(10, 10))
    record = Record(
        1,
        (
            Encoder("l", Span(0, 10), Span(0, 8)),
            Encoder("g", Span(0, 10), Span(8, 20)),
            Encoder("t5", Span(10, 26), Span(0, 32), causal=False),
        ),
        (Row(0, (0,), (clip, clip._replace(identity=Span(1, 3)), t5)),),
        (("",),),
    )
    assert record.tokens == 26
    row = record.rows[0]
    assert record.columns(row, IDENTITY) == (Span(1, 3), Span(10, 14))
    assert record.columns(row, 0) == (Span(4, 6), Span(14, 17))
    assert record.columns(row, EOT) == (Span(6, 10), Span(17, 26))
    assert record.columns(row, SOT) == (Span(0, 1),)


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 1, 2]])
def test_what_a_conditioning_carries_cuts_itself_to_rows(rows):
    record = stories.record([3, 1, 4])
    embeds = stories.embeddings(record)
    attached = Attached.to(embeds, record)
    cut = attached.select(rows)
    assert [row.frame for row in cut.record.rows] == rows and cut.record.frames == 3
    assert torch.equal(cut.norms, Attached.to(embeds[rows], cut.record).norms)
