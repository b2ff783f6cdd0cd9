"""IPCA's “own keys”: the identity encoded alone beside a model's text, against float64 loops through whole samplings.

The reference model reads the same tokens as text of an ordinary conditioning, and its attention is computed row by row.
"""

from functools import cache

import pytest
import torch
from families import CHROMA_HD, COLUMNS, FLUX, PICTURE, QWEN_IMAGE, ROWS, WAN, Family
from graphs import empty, encode, in_runs, ipca, positive, sample, scaled_error, self_attention, story
from joint import attended, by_head, overridden
from noise import PROMISED, bound
from onestory.attention.gathers import anchor_sources
from onestory.attention.gathers import sample as draw
from onestory.attention.schedule import seeded
from onestory.nodes.attention_view import OneStoryAttentionRecorder
from onestory.nodes.prompt import OneStoryPrompt
from onestory.story.script import parse_script
from onestory.svr.record import KEY
from tiny import sd3, sd3_clip

TALE = story("a watercolor fox with a blue scarf", "reads under an oak", "runs through deep snow", "sleeps")
SD3 = Family("SD3.5 medium", lambda: sd3(medium=True), sd3_clip, 16, (), 1)
FAMILIES = (FLUX, CHROMA_HD, SD3, WAN)
END = {"l": 49407, "g": 49407, "t5xxl": 1, "umt5xxl": 1}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request):
    return request.param


def own(model, **changed):
    return ipca(model, variant="own keys", **changed)


@cache
def graph(family, tale=TALE, separate=False):
    clip = family.clip()
    conditioning = positive(clip, tale)
    if separate:
        conditioning = OneStoryPrompt.execute(clip, tale, "separate prompts", 0, "story").result[0]
    return conditioning, encode(clip, "red fox"), empty(tale, COLUMNS * family.pixels, ROWS * family.pixels)


def identity_alone(clip, text):
    """The vectors of a text without what its encoders put after it, [tokens, channels]."""
    [[embeds, _]] = encode(clip, text)
    tokens = clip.tokenize(text)
    count = {key: next(i for i, (token, _) in enumerate(tokens[key][0]) if token == END[key]) for key in tokens}
    if "g" in tokens:  # SD3: CLIP, then T5
        return torch.cat([embeds[0, : count["l"]], embeds[0, 77 : 77 + count["t5xxl"]]])
    return embeds[0, : count.get("t5xxl") or count.get("umt5xxl")]


class Apart:
    """An attention override for a text of `text` tokens, after which the identities alone stand in `counts` tokens.

    Row i of the story's prompt has `lengths[i]` tokens. In each other pass frames see each other only.
    """

    def __init__(self, family, text, counts, lengths, strength, sources=None):
        self.family, self.text, self.counts, self.lengths = family, text, counts, lengths
        self.strength, self.sources = strength, sources
        self.most = max(counts)
        self.calls = 0

    def __call__(self, func, q, k, v, heads, mask=None, **options):
        ready = options.get("skip_reshape", False)
        Q, K, V = (x.double() if ready else by_head(x.double(), heads) for x in (q, k, v))
        queries, keys = Q.shape[2], K.shape[2]
        whole = self.text + self.most
        alone = queries == keys == PICTURE
        crosses = queries == PICTURE and keys == whole
        told = crosses or (queries == keys and keys >= whole + PICTURE)
        if not (told or alone or (self.sources and queries == keys)):
            return func(q, k, v, heads, mask=mask, **options)
        self.calls += told
        start = 0 if alone else whole if told else keys - PICTURE
        frames = len(self.counts)
        sigma = float(options["transformer_options"]["sigmas"][0])
        out = []
        for row in range(len(Q)):
            chunk, frame = divmod(row, frames)
            rest = [*range(self.lengths[frame]), *range(whole, keys)] if told else [*range(keys)]
            mine = [*range(self.text, self.text + self.counts[frame])] if told else []
            seen_k, seen_v = [K[row][:, rest + mine * self.strength]], [V[row][:, rest + mine * self.strength]]
            for source in self.sources[frame] if self.sources and not crosses else []:
                other = chunk * frames + source
                at = start + draw(PICTURE, 0.5, seeded(0, f"{sigma:.5g}", PICTURE, source))
                seen_k.append(K[other][:, at] if self.family is SD3 else self.family.turn(K[other][:, at]))
                seen_v.append(V[other][:, at])
            result = attended(Q[row], K[row][:, rest], V[row][:, rest], 0)
            if told and not crosses:
                span = [*range(self.text, whole)]
                beside = mine + [*range(whole, keys)]
                result[:, span] = attended(Q[row][:, span], K[row][:, beside], V[row][:, beside], 0)
            picture = slice(0, queries) if crosses else slice(start, start + PICTURE)
            result[:, picture] = attended(Q[row][:, picture], torch.cat(seen_k, 1), torch.cat(seen_v, 1), 0)
            out.append(result)
        result = torch.stack(out)
        return (result if options.get("skip_output_reshape") else result.transpose(1, 2).flatten(2)).to(q)


def agree(family, given, tale=TALE, strength=1, cfg=1.0, both=False):
    [[embeds, options]], negative, latent = given
    clip, model = family.clip(), family.model()
    vectors = [identity_alone(clip, frame.identity) if frame.identity else embeds[0, :0] for frame in tale.frames]
    counts = [len(each) for each in vectors]
    beside = embeds.new_zeros(len(counts), max(counts), embeds.shape[2])
    for row, each in zip(beside, vectors):
        row[: len(each)] = each
    lengths = [max(spans.eot.stop for spans in row.spans) for row in options[KEY].record.rows]
    sources = anchor_sources(options[KEY].record.characters, 2) if both else None
    reference = Apart(family, embeds.shape[1], counts, lengths, strength, sources)
    plain = {name: value for name, value in options.items() if name != KEY and "mask" not in name}
    told = [[torch.cat([embeds, beside], 1), plain]]
    want = sample(overridden(model, reference), told, negative, latent, cfg=cfg)
    assert reference.calls >= 2
    ours = own(model, strength=float(strength))
    ours = self_attention(ours) if both else ours
    got = sample(ours, *given, cfg=cfg)
    assert scaled_error(got, want) < bound(model, *given, cfg=cfg)
    assert scaled_error(got, sample(model, *given, cfg=cfg)) > 1e-3


@pytest.mark.parametrize("strength, both", [(1, True), (3, False)])
def test_own_keys_equal_the_reference(family, strength, both):
    """Positive and negative are one batch but in Chroma, whose texts differ in length."""
    agree(family, graph(family), strength=strength, cfg=2.0 if both else 1.0, both=both)


def test_references_of_kontext_see_no_identity_and_are_seen_by_it():
    conditioning, negative, latent = graph(FLUX)
    reference = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(5))
    edited = [[[embeds, {**o, "reference_latents": [reference]}] for embeds, o in c] for c in (conditioning, negative)]
    agree(FLUX, (*edited, latent), cfg=1.0)


CAST = parse_script(
    "[Mia] a watercolor fox with a blue scarf\n[Otto] a red oak",
    "[Mia] reads under an oak\n[Otto] sleeps\n[Mia] and [Otto] sail through deep snow\n[NC] fire",
)


def test_identities_and_prompts_of_unequal_length_and_frames_without_anyone():
    given = graph(CHROMA_HD, CAST, separate=True)
    record = given[0][0][1][KEY].record
    assert len({row.alone for row in record.rows}) == 4 and record.rows[3].alone == 0
    agree(CHROMA_HD, given, CAST, strength=2)
    patched = self_attention(own(CHROMA_HD.model()), anchors=1)
    assert scaled_error(in_runs(patched, *given, 1, anchors=1), sample(patched, *given)) < PROMISED


@pytest.mark.parametrize("family", [FLUX, WAN], ids=lambda family: family.name)
def test_off_and_other_steps_are_bit_equal_and_what_is_dropped_or_elsewhere_is_not_seen(family):
    model, given = family.model(), graph(family)
    want = sample(model, *given)
    assert torch.equal(sample(own(model, strength=0.0), *given), want)
    assert torch.equal(sample(own(ipca(model), strength=0.0), *given), want)
    assert torch.equal(sample(own(model, start_percent=1.0), *given), want)
    assert torch.equal(sample(own(ipca(model, strength=0.5), start_percent=1.0), *given),
                       sample(ipca(model, strength=0.5), *given))  # fmt: skip
    assert scaled_error(sample(own(model, dropout=1.0), *given), want) < bound(model, *given)
    assert scaled_error(sample(own(model, blocks="double.0"), *given), want) > 1e-4
    half = sample(own(model, dropout=0.5), *given)
    assert min(scaled_error(half, other) for other in (want, sample(own(model), *given))) > 1e-4
    assert torch.equal(sample(model, *given), want)


@pytest.mark.parametrize("family", [FLUX, WAN], ids=lambda family: family.name)
def test_the_recorder_sees_the_identity_without_changing_the_picture(family):
    model, given = own(family.model()), graph(family)
    watched, recording = OneStoryAttentionRecorder.execute(model, "all", 0.0, 1.0).result
    assert torch.equal(sample(watched, *given), sample(model, *given))
    maps = recording.maps()
    assert maps.min() > 0 and maps.max() < 1
    plain, less = OneStoryAttentionRecorder.execute(family.model(), "all", 0.0, 1.0).result
    sample(plain, *given)
    assert maps.mean() > less.maps().mean()


def test_keys_that_count_once_need_no_mask():
    masks = []

    def override(func, *args, mask=None, **options):
        masks.append(mask)
        return func(*args, mask=mask, **options)

    sample(own(overridden(FLUX.model(), override)), *graph(FLUX), cfg=1.0)
    assert len(masks) > 6 and all(mask is None for mask in masks)


@pytest.mark.parametrize(
    "clip, model, said",
    [
        (lambda: sd3_clip("lg"), sd3, "is encoded by CLIP-L and CLIP-G: set `variant` to “released”"),
        (QWEN_IMAGE.clip, QWEN_IMAGE.model, "is encoded by Qwen2.5-VL: set `variant` to “released”"),
    ],
)
def test_causal_encoders_get_a_sentence(clip, model, said):
    given = positive(clip(), TALE), encode(clip(), "blurry"), empty(TALE, 64, 64)
    with pytest.raises(ValueError, match=said):
        sample(own(model()), *given)


def test_a_story_without_its_identity_alone_gets_a_sentence():
    [[embeds, options]], negative, latent = graph(FLUX)
    attached = options[KEY]
    rows = tuple(row._replace(alone=0) for row in attached.record.rows)
    earlier = attached._replace(record=attached.record._replace(rows=rows), alone=None)
    with pytest.raises(ValueError, match="no identity encoded alone"):
        sample(own(FLUX.model()), [[embeds, {**options, KEY: earlier}]], negative, latent)
    [[embeds, options]], *rest = graph(FLUX, parse_script("[Mia] a fox", "[NC] an oak\n[NC] fire"))
    assert options[KEY].alone is None
    assert sample(own(FLUX.model()), [[embeds, options]], *rest).isfinite().all()
