"""Flux, Qwen-Image, Z-Image, Lumina 2, HunyuanImage and Wan: story prompts, and their attention against float64."""

from types import SimpleNamespace

import pytest
import torch
from comfy_extras.nodes_cond import T5TokenizerOptions
from comfy_extras.nodes_rope import ScaleROPE
from families import (
    CHANNELS,
    CHROMA_HD,
    COLUMNS,
    FLUX,
    FLUX2,
    HUNYUAN_IMAGE,
    JOINT,
    LUMINA2,
    PICTURE,
    QWEN_IMAGE,
    RADIANCE,
    ROWS,
    WAN,
    Z_IMAGE,
    flux,
    hunyuan_clip,
    hunyuan_image,
    klein_clip,
    wan,
)
from graphs import SVR, empty, encode, in_runs, ipca, positive, sample, scaled_error, self_attention, story
from joint import Reference, attended, by_head, overridden
from noise import PROMISED, bound
from onestory.attention.architectures import Layers, layers_of
from onestory.attention.architectures import flux as flux_blocks
from onestory.attention.architectures.rotary import shift, turned
from onestory.attention.blocks import parse_blocks
from onestory.attention.gathers import anchor_sources
from onestory.attention.gathers import sample as draw
from onestory.attention.ipca import identity_bias
from onestory.attention.schedule import seeded
from onestory.nodes.attention_view import OneStoryAttentionRecorder
from onestory.nodes.encoders import text_model_of
from onestory.nodes.inspect import OneStoryInspect
from onestory.nodes.prompt import OneStoryPrompt
from onestory.nodes.reweight import OneStoryNaiveReweight, OneStorySVR
from onestory.nodes.self_attention import OneStorySelfAttention
from onestory.story.parts import IDENTITY
from onestory.svr.encoders import name_of
from onestory.svr.record import KEY, Span
from reference import ONE_ROUNDING, naive_reweight, relative_error, singular_value_reweight

import nodes

TALE = story("a watercolor fox with a blue scarf", "reads under an oak", "runs through deep snow", "sleeps")
FAMILIES = (*JOINT, WAN)


def by_name(families):
    return {"params": families, "ids": [family.name for family in families]}


@pytest.fixture(scope="module", **by_name(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="module", **by_name(JOINT))
def joint(request):
    return request.param


def graph(family, conditioning=None):
    clip = family.clip()
    latent = empty(TALE, COLUMNS * family.pixels, ROWS * family.pixels)
    return conditioning or positive(clip, TALE), encode(clip, "red fox"), latent


def columns(conditioning, first=0):
    record = conditioning[0][1][KEY].record
    return [[first + t for span in record.columns(row, IDENTITY) for t in range(*span)] for row in record.rows]


def sampled(sigma, frame, rate=0.5, seed=0):
    return draw(PICTURE, rate, seeded(seed, f"{sigma:.5g}", PICTURE, frame))


def separate(clip, tale):
    return OneStoryPrompt.execute(clip, tale, "separate prompts", 0, "story").result[0]


def numbered(options):
    """Whether a call is of a block, not of those that refine text or picture before."""
    return "block_index" in options


class References:
    """One reference for each text: calls are known by how many tokens they have."""

    def __init__(self, family, conditionings, further=0, **methods):
        self.of = {}
        for conditioning in conditionings:
            text = family.text(conditioning[0][0].shape[1])
            whole = text + family.padded(PICTURE) + further
            self.of[whole] = Reference(text, PICTURE, turn=family.turn, blocks=numbered, **methods)

    def __call__(self, func, q, k, v, heads, *args, **options):
        found = self.of.get(q.shape[-2])
        return (found or func)(*((func,) if found else ()), q, k, v, heads, *args, **options)

    @property
    def calls(self):
        return sum(reference.calls for reference in self.of.values())


def with_methods(family, conditioning, case):
    """The model with our methods, and what the reference has to know of them."""
    model, known = family.model(), {}
    if case != "self-attention":
        strength = 3 if case == "IPCA 3" else 1
        model = ipca(model, strength=float(strength))
        zeros = max(0, family.least - conditioning[0][0].shape[1])
        known |= {"columns": columns(conditioning, zeros), "strength": strength}
    if case in ("self-attention", "both"):
        model = self_attention(model)
        characters = conditioning[0][1][KEY].record.characters
        known |= {"sources": anchor_sources(characters, 2), "sampled": sampled}
    return model, known


def agree(family, case, given, cfg=1.0, further=0):
    model = family.model()
    ours, known = with_methods(family, given[0], case)
    references = References(family, given[:2], further, **known)
    want = sample(overridden(model, references), *given, cfg=cfg)
    assert references.calls > 0
    got = sample(ours, *given, cfg=cfg)
    assert scaled_error(got, want) < bound(model, *given, cfg=cfg)
    assert scaled_error(got, sample(model, *given, cfg=cfg)) > 1e-3
    return references.calls


# --- text -------------------------------------------------------------------------------------------------------------


def test_one_prompt_encodes_as_clip_text_encode_does_and_spans_hold_their_text(family):
    clip = family.clip()
    [[embeds, options]] = positive(clip, TALE, svr=False)
    texts = [TALE.frames[0].identity, *(frame.prompt for frame in TALE.frames)]
    [[want, wanted]] = nodes.CLIPTextEncode().encode(clip, " ".join(texts))[0]
    assert torch.equal(embeds, want.expand(3, -1, -1))
    assert options.keys() == {*wanted, KEY}
    record = options[KEY].record
    record.check(embeds, "A node")
    for row in record.rows:
        read = ["".join(row.texts[0][slice(*row.span(part, 0))]).strip() for part in (IDENTITY, 0, 1, 2)]
        assert read == texts
    if family is WAN:
        eot = record.rows[0].spans[0].eot
        assert embeds[:, eot.start].any() and not embeds[:, eot.start + 1 :].any(), "zeros after </s>"


def test_reweighting_equals_the_formulas_with_svrs_alpha_for_clips_norms(family):
    before = positive(family.clip(), TALE, svr=False)
    [[got, _]] = OneStorySVR.execute(before, **SVR).result[0]
    [[embeds, options]] = before
    record = options[KEY].record
    [[naive, _]] = OneStoryNaiveReweight.execute(before, 2.0, 0.5).result[0]
    assert relative_error(naive, naive_reweight(embeds, record)) < ONE_ROUNDING
    if family is WAN:  # the zeros after </s> change no singular value
        ends = record.rows[0].spans[0].eot.start + 1
        assert not got[:, ends:].any()
        rows = [row._replace(spans=(row.spans[0]._replace(eot=Span(ends - 1, ends)),)) for row in record.rows]
        record = record._replace(rows=tuple(rows), encoders=(record.encoders[0]._replace(tokens=Span(0, ends)),))
        got, embeds = got[:, :ends], embeds[:, :ends]
    assert relative_error(got, singular_value_reweight(embeds, record)) < ONE_ROUNDING
    row = record.rows[0].spans[0]
    text = torch.cat([embeds[0, slice(*at)] for at in (row.identity, *row.frames)]).double().norm(dim=-1).mean()
    assert record.encoders[0].scale == pytest.approx(28 / text.item())
    assert not torch.equal(got, embeds) and torch.equal(got[:, : row.identity.stop], embeds[:, : row.identity.stop])


@pytest.mark.parametrize("family", [Z_IMAGE, LUMINA2, HUNYUAN_IMAGE], ids=lambda family: family.name)
def test_one_length_models_say_so_before_anything_is_encoded(family):
    clip, uneven = family.clip(), story("a red fox", "runs", "reads under an oak")
    with pytest.raises(ValueError, match=r"Frame 1's prompt has \d+ tokens .* frame 2's \d+, .*: use the mode"):
        separate(clip, uneven)
    assert separate(clip, story("a red fox", "runs", "runs"))[0][0].shape[0] == 2


def test_chroma_takes_the_padding_that_t5_tokenizer_options_asks_for():
    clip = T5TokenizerOptions.execute(CHROMA_HD.clip(), 1, 20).result[0]
    for text in ("runs", "runs through the deepest snow of all the winters in a hundred years and more"):
        [[embeds, options]] = positive(clip, story("a red fox", text, text), svr=False)
        [[want, _]] = nodes.CLIPTextEncode().encode(clip, f"a red fox {text} {text}")[0]
        assert torch.equal(embeds, want.expand(2, -1, -1))
        identity, frames, eot, _ = options[KEY].record.rows[0].spans[0]
        assert eot == (frames[-1].stop, embeds.shape[1]) and eot.stop - eot.start >= 2


def test_a_text_that_brings_its_own_template_gets_a_sentence():
    with pytest.raises(ValueError, match=r"Qwen2.5-VL takes the text “<\|im_start\|>user"):
        positive(QWEN_IMAGE.clip(), story("<|im_start|>user a red fox", "runs"))


def test_words_in_quotes_reach_hunyuan_images_second_encoder():
    clip = hunyuan_clip(byt5=True)
    tale = story("a red fox", 'reads "HOME"', 'paints "FOX"')
    [[embeds, options]] = positive(clip, tale, svr=False)
    [[want, wanted]] = nodes.CLIPTextEncode().encode(clip, 'a red fox reads "HOME" paints "FOX"')[0]
    assert torch.equal(embeds, want.expand(2, -1, -1))
    assert torch.equal(options["conditioning_byt5small"], wanted["conditioning_byt5small"].expand(2, -1, -1))
    with pytest.raises(ValueError, match="words in quotes of different lengths"):
        separate(clip, story("a fox", '"HOME"', '"FOX"'))


def test_klein_reads_three_layers_of_a_prompt_that_is_padded_to_512():
    clip = klein_clip()
    [[embeds, options]] = positive(clip, TALE, svr=False)
    texts = [TALE.frames[0].identity, *(frame.prompt for frame in TALE.frames)]
    [[want, _]] = nodes.CLIPTextEncode().encode(clip, " ".join(texts))[0]
    assert embeds.shape == (3, 512, 3 * CHANNELS) and torch.equal(embeds, want.expand(3, -1, -1))
    record = options[KEY].record
    assert name_of(record.encoders[0].name) == "Qwen3-8B"
    for row in record.rows:
        assert ["".join(row.texts[0][slice(*row.span(p, 0))]).strip() for p in (IDENTITY, 0, 1, 2)] == texts
        assert row.spans[0].eot.stop == 512 and row.texts[0][row.spans[0].eot.start] == "<|im_end|>"
    uneven = separate(clip, story("a red fox", "runs", "reads under an oak"))
    assert [row.spans[0].identity for row in uneven[0][1][KEY].record.rows] == [Span(3, 6)] * 2


@pytest.mark.parametrize("module, kind", [("kandinsky5", "Kandinsky5TEModel"), ("pixeldit", "PixelDiTGemma2TE")])
def test_other_models_encoders_that_inherit_from_these_are_not_taken_for_them(module, kind):
    model = getattr(pytest.importorskip(f"comfy.text_encoders.{module}"), kind)
    clip = SimpleNamespace(cond_stage_model=model.__new__(model))
    with pytest.raises(ValueError, match=f"{kind} is not supported"):
        text_model_of(clip)


# --- attention --------------------------------------------------------------------------------------------------------


def test_off_other_steps_no_story_and_afterwards_are_bit_equal(family):
    model, given = family.model(), graph(family)
    want = sample(model, *given)
    assert torch.equal(sample(ipca(self_attention(model, sampling_rate=0.0), strength=0.0), *given), want)
    assert torch.equal(sample(ipca(model, start_percent=1.0), *given), want)
    plain = [[embeds, {name: value for name, value in o.items() if name != KEY}] for embeds, o in given[0]]
    assert torch.equal(sample(ipca(model), plain, *given[1:]), want)
    assert torch.equal(sample(model, *given), want)


@pytest.mark.parametrize("case, cfg", [("IPCA 3", 1.0), ("self-attention", 1.0), ("both", 2.0)])
def test_joint_attention_equals_the_reference(joint, case, cfg):
    agree(joint, case, graph(joint), cfg)


def test_positive_and_negative_in_one_batch_equal_the_reference(joint):
    conditioning, _, latent = graph(joint)
    texts = [TALE.frames[0].identity, *(frame.prompt for frame in reversed(TALE.frames))]
    negative = encode(joint.clip(), " ".join(texts))
    assert negative[0][0].shape[1] == conditioning[0][0].shape[1]
    assert agree(joint, "both", (conditioning, negative, latent), cfg=2.0) == 2 * 3, "each step once, three blocks"


def test_blocks_are_chosen_by_their_numbers(family):
    model, given = family.model(), graph(family)
    one = sample(ipca(model, blocks="double.0"), *given, cfg=1.0)
    rest = "single.0-1" if family in (FLUX, CHROMA_HD, FLUX2, HUNYUAN_IMAGE) else "double.1-2"
    other = sample(ipca(model, blocks=rest), *given, cfg=1.0)
    every = sample(ipca(model), *given, cfg=1.0)
    assert torch.equal(sample(ipca(model, blocks=f"double.0+{rest}"), *given, cfg=1.0), every)
    assert torch.equal(sample(ipca(model, blocks="late"), *given, cfg=1.0), other)
    assert min(scaled_error(a, b) for a, b in ((one, other), (one, every), (other, every))) > 1e-4


def numbers(name, first, last):
    return {(name, number) for number in range(first, last + 1)}


@pytest.mark.parametrize(
    ("double", "single", "late"),
    [
        (19, 38, numbers("single", 0, 37)),  # Flux.1, Chroma
        (8, 48, numbers("single", 0, 47)),  # Flux.2
        (60, 0, numbers("double", 20, 59)),  # Qwen-Image
        (38, 0, numbers("double", 12, 37)),  # SD3.5 large
    ],
)
def test_late_blocks_are_the_single_ones_or_the_last_two_thirds(double, single, late):
    blocks = [*(("double", i) for i in range(double)), *(("single", i) for i in range(single))]
    assert Layers(flux_blocks, blocks).selected(parse_blocks("late")) == late
    thirds = [Layers(flux_blocks, blocks).selected(parse_blocks(part)) for part in ("down", "mid", "up")]
    assert frozenset().union(*thirds) == set(blocks) and sum(map(len, thirds)) == len(blocks)


def test_new_self_attention_nodes_work_on_the_late_blocks(family):
    """Of a U-Net these are what older workflows call “up”."""
    (default,) = (i.default for i in OneStorySelfAttention.define_schema().inputs if i.id == "blocks")
    model = family.model()
    [method] = self_attention(model, blocks=default).model_options["transformer_options"][KEY]
    layers = layers_of(model.model)
    assert layers.selected(method.blocks) == set(layers.blocks[1:])


def test_late_blocks_of_a_unet_are_its_up_blocks(sd):
    late, up = (layers_of(sd.model.model).selected(parse_blocks(part)) for part in ("late", "up"))
    assert late == up != frozenset()


@pytest.mark.parametrize("frames_per_run", [1, 2])
def test_runs_equal_one_batch(family, frames_per_run):
    given, patched = graph(family), self_attention(ipca(family.model()), anchors=1)
    got = in_runs(patched, *given, frames_per_run, anchors=1)
    assert scaled_error(got, sample(patched, *given)) < PROMISED


@pytest.mark.parametrize("family", [QWEN_IMAGE, CHROMA_HD, FLUX2], ids=lambda family: family.name)
def test_rows_of_unequal_length_equal_each_row_alone(family):
    """Qwen-Image and Chroma mask what is missing behind the shorter row; Flux.2 reads zeros before it."""
    clip, model, tale = family.clip(), family.model(), story("a red fox", "runs", "reads under an old oak")
    [[embeds, options]] = conditioning = separate(clip, tale)
    own = [encode(clip, f"a red fox {frame.prompt}") for frame in tale.frames]
    lengths = [entry[0][0].shape[1] for entry in own]
    assert lengths[0] < lengths[1] == embeds.shape[1]
    masks = [[1] * n + [0] * (lengths[1] - n) for n in lengths]
    record = options[KEY].record
    if family is FLUX2:
        masks = [mask[::-1] for mask in masks]
        assert [row.spans[0].eot.stop for row in record.rows] == [lengths[1]] * 2
        read = ["".join(row.texts[0][slice(*row.span(IDENTITY, 0))]).strip() for row in record.rows]
        assert read == ["a red fox"] * 2
    if family is CHROMA_HD:
        keys = [[*mask, 1] for mask in masks]
        assert (options["attention_mask"].exp() == torch.tensor(keys)[:, None, :]).all()
    else:
        assert options["attention_mask"].tolist() == masks
    latent = empty(tale, COLUMNS * 16, ROWS * 16, noise="same")
    negative = encode(clip, "blurry")
    together = sample(model, conditioning, negative, latent)
    for row, entry in enumerate(own):
        alone = sample(model, entry, negative, {**latent, "samples": latent["samples"][:1], "batch_index": [0]})
        assert scaled_error(together[row : row + 1], alone) < PROMISED
    for row in record.rows:  # the paper's zero keys are as many as the row's own frame has tokens
        start, stop = row.spans[0].frames[0]
        zeros = identity_bias(row, record, 2.0, "paper", lengths[1])[0, -1]
        assert zeros.exp() == pytest.approx(2.0 * (stop - start))
    assert OneStoryInspect.execute(conditioning).result[0].isfinite().all()
    # The masked columns stay masked beside our bias, and for what frames see of each other.
    agree(family, "both", (conditioning, negative, latent), cfg=2.0)
    given, patched = (conditioning, negative, latent), self_attention(ipca(model), anchors=1)
    assert scaled_error(in_runs(patched, *given, 1, anchors=1), sample(patched, *given)) < PROMISED


def test_radiance_draws_pixels_as_chroma_draws_latents():
    tale = RADIANCE.clip(), TALE
    latent = {"samples": torch.zeros(3, 3, 16 * ROWS, 16 * COLUMNS), "batch_index": [0, 1, 2]}
    agree(RADIANCE, "both", (positive(*tale), encode(tale[0], "red fox"), latent), cfg=2.0)
    assert sample(RADIANCE.model(), *graph(RADIANCE), cfg=1.0).shape == latent["samples"].shape


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((QWEN_IMAGE, method) for method in ("index", "offset", "index_timestep_zero")),
        *((FLUX2, method) for method in ("index", "index_timestep_zero")),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_reference_pictures_neither_give_nor_take(family, method):
    """Qwen-Image-Edit, Flux.2: reference latents stand after the picture."""
    given = graph(family)
    size = (1, 128, 2, 3) if family is FLUX2 else (1, 16, 1, 4, 6)
    reference = torch.randn(size, generator=torch.Generator().manual_seed(5))
    # Klein takes no guidance. With it, ComfyUI's Flux can't draw a reference as of another time.
    edit = {"reference_latents": [reference], "reference_latents_method": method, "guidance": None}
    edited = [[[embeds, {**options, **edit}] for embeds, options in c] for c in given[:2]]
    agree(family, "both", (*edited, given[2]), further=2 * 3)


def test_references_of_z_image_stand_before_the_picture_and_hide_the_text(caplog):
    """Where the text stands among theirs can't be seen: what needs it is skipped, with one warning."""
    conditioning, negative, latent = graph(Z_IMAGE)
    reference = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5))
    given = [[[embeds, {**o, "reference_latents": [reference]}] for embeds, o in c] for c in (conditioning, negative)]
    model, sources = Z_IMAGE.model(), anchor_sources(conditioning[0][1][KEY].record.characters, 2)
    assert torch.equal(sample(ipca(model), *given, latent, cfg=1.0), sample(model, *given, latent, cfg=1.0))
    assert caplog.text.count("a reference picture changes the text, so IPCA is skipped there") == 1
    # Before the picture: padding in place of the reference's text, our text, the reference.
    before = 32 + Z_IMAGE.padded(conditioning[0][0].shape[1]) + 32
    whole = Reference(before, PICTURE, turn=Z_IMAGE.turn, blocks=numbered, sources=sources, sampled=sampled)
    got, want = (sample(m, *given, latent, cfg=1.0) for m in (self_attention(model), overridden(model, whole)))
    assert scaled_error(got, want) < bound(model, *given, latent, cfg=1.0)
    assert scaled_error(got, sample(model, *given, latent, cfg=1.0)) > 1e-3


def test_quoted_words_stand_between_text_and_picture():
    """HunyuanImage's second text encoder adds tokens that belong to no frame."""
    clip = hunyuan_clip(byt5=True)
    family = HUNYUAN_IMAGE._replace(model=lambda: hunyuan_image(byt5=True), clip=lambda: clip)
    tale = story("a red fox", 'reads "HOME"', "runs", "sleeps")
    given = graph(family, positive(clip, tale))
    tokens = given[0][0][1]["conditioning_byt5small"].shape[1]
    ours, known = with_methods(family, given[0], "both")
    text = given[0][0][0].shape[1] + tokens
    whole = Reference(text, PICTURE, turn=family.turn, blocks=numbered, **known)
    got, want = (sample(model, *given, cfg=1.0) for model in (ours, overridden(family.model(), whole)))
    assert scaled_error(got, want) < bound(family.model(), *given, cfg=1.0)
    assert scaled_error(got, sample(family.model(), *given, cfg=1.0)) > 1e-3


class ByTurns:
    """Wan's attention by the methods, in float64: of the picture, and of it to the text, which is padded to 512.

    The picture's tokens begin at `start`.
    """

    def __init__(self, columns, sources, start=0):
        self.columns, self.sources, self.start = columns, sources, start
        self.passed = 0

    def __call__(self, func, q, k, v, heads, *args, **options):
        at, crosses = options["transformer_options"], k.shape[1] == 512
        if not crosses and k.shape[1] != q.shape[1]:
            self.passed += 1
            return func(q, k, v, heads, *args, **options)
        Q, K, V = (by_head(x.double(), heads) for x in (q, k, v))
        frames = len(Q) // len(at["cond_or_uncond"])
        out = []
        for row in range(len(Q)):
            chunk, frame = divmod(row, frames)
            keys, values = [K[row]], [V[row]]
            if crosses and at["cond_or_uncond"][chunk] == 0:
                keys.append(K[row][:, self.columns[frame]])
                values.append(V[row][:, self.columns[frame]])
            for source in [] if crosses else self.sources[frame]:
                positions = self.start + sampled(float(at["sigmas"][0]), source)
                keys.append(WAN.turn(K[chunk * frames + source][:, positions]))
                values.append(V[chunk * frames + source][:, positions])
            plain = attended(Q[row, :, : self.start], K[row], V[row], 0)
            picture = attended(Q[row, :, self.start :], torch.cat(keys, 1), torch.cat(values, 1), 0)
            out.append(torch.cat([plain, picture], 1))
        return torch.stack(out).transpose(1, 2).flatten(2).to(q)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_wans_two_attentions_equal_the_reference(cfg):
    given, model = graph(WAN), WAN.model()
    characters = given[0][0][1][KEY].record.characters
    reference = ByTurns(columns(given[0]), anchor_sources(characters, 2))
    got = sample(self_attention(ipca(model)), *given, cfg=cfg)
    want = sample(overridden(model, reference), *given, cfg=cfg)
    assert scaled_error(got, want) < bound(model, *given, cfg=cfg)
    assert scaled_error(got, sample(model, *given, cfg=cfg)) > 1e-3


def test_wans_look_at_a_first_picture_stays_plain():
    """Image to video: a third attention, to the tokens of an image encoder."""
    conditioning, negative, latent = graph(WAN)
    seen = SimpleNamespace(
        penultimate_hidden_states=torch.randn(1, 257, 1280, generator=torch.Generator().manual_seed(3))
    )
    given = [[[embeds, {**o, "clip_vision_output": seen}] for embeds, o in c] for c in (conditioning, negative)]
    model = wan(image_to_video=True)
    characters = conditioning[0][1][KEY].record.characters
    reference = ByTurns(columns(conditioning), anchor_sources(characters, 2))
    got = sample(self_attention(ipca(model)), *given, latent, cfg=1.0)
    want = sample(overridden(model, reference), *given, latent, cfg=1.0)
    assert scaled_error(got, want) < bound(model, *given, latent, cfg=1.0)
    assert reference.passed == 2 * 3, "in every step and block"
    assert scaled_error(got, sample(model, *given, latent, cfg=1.0)) > 1e-3


def test_wans_reference_before_the_picture_neither_gives_nor_takes():
    conditioning, negative, latent = graph(WAN)
    picture = torch.randn(1, 16, 1, 2 * ROWS, 2 * COLUMNS, generator=torch.Generator().manual_seed(5))
    given = [[[embeds, {**o, "reference_latents": [picture]}] for embeds, o in c] for c in (conditioning, negative)]
    model = wan(in_dim_ref_conv=16)
    characters = conditioning[0][1][KEY].record.characters
    reference = ByTurns(columns(conditioning), anchor_sources(characters, 2), start=PICTURE)
    got = sample(self_attention(ipca(model)), *given, latent, cfg=1.0)
    want = sample(overridden(model, reference), *given, latent, cfg=1.0)
    assert scaled_error(got, want) < bound(model, *given, latent, cfg=1.0)
    assert scaled_error(got, sample(model, *given, latent, cfg=1.0)) > 1e-3


@pytest.mark.parametrize("family", [QWEN_IMAGE, HUNYUAN_IMAGE, WAN], ids=lambda family: family.name)
def test_blocks_keep_their_numbers_beside_one_that_is_left_out(family):
    model, given = family.model(), graph(family)
    kind = "single" if family is HUNYUAN_IMAGE else "double"
    skipped, same = model.clone(), model.clone()
    skipped.set_model_patch_replace(lambda args, extra: args, "dit", f"{kind}_block", 0)
    same.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", f"{kind}_block", 0)
    want = sample(skipped, *given, cfg=1.0)
    assert torch.equal(sample(ipca(skipped, blocks=f"{kind}.0"), *given, cfg=1.0), want)
    assert scaled_error(sample(ipca(skipped, blocks=f"{kind}.1"), *given, cfg=1.0), want) > 1e-4
    assert torch.equal(sample(ipca(same), *given, cfg=1.0), sample(ipca(model), *given, cfg=1.0))


def test_keys_turned_further_are_those_of_the_picture_to_the_right(family):
    embedder = embedder_of(family)
    axes = len(family.axes)
    at = torch.cartesian_prod(*[torch.tensor([3.0])] * (axes - 2), torch.arange(4.0), torch.arange(6.0))[None]
    at = at.roll(family.axis + 1, -1)  # the width's axis in its place
    beside = at.clone()
    beside[..., family.axis] += 6
    keys = torch.randn(2, 1, at.shape[1], sum(family.axes), generator=torch.Generator().manual_seed(0))
    here, there = (rotated(keys, embedder(ids)) for ids in (at, beside))
    assert relative_error(turned(here, shift(embedder, axes, family.axis, 6)), there) < ONE_ROUNDING
    assert relative_error(family.turn(here), there) < ONE_ROUNDING


def embedder_of(family):
    transformer = family.model().model.diffusion_model
    return getattr(transformer, "pe_embedder", None) or transformer.rope_embedder


def rotated(keys, pe):
    pairs = keys.unflatten(-1, (-1, 1, 2))
    return (pe * pairs).sum(-1).flatten(-2)


def test_shared_keys_stand_a_scaled_width_apart_beside_scale_rope():
    scaled = ScaleROPE.execute(LUMINA2.model(), 1.5, 0.0, 1.0, 0.0, 1.0, 0.0).result[0]
    agree(LUMINA2._replace(model=lambda: scaled, width=1.5 * COLUMNS), "self-attention", graph(LUMINA2))


def test_all_frames_of_wans_videos_look_at_the_identity():
    conditioning, negative, latent = graph(WAN)
    videos = {"samples": torch.zeros(3, 16, 2, 2 * ROWS, 2 * COLUMNS), "batch_index": [0, 1, 2]}
    reference = ByTurns(columns(conditioning), [[]] * 3)
    given = conditioning, negative, videos
    got = sample(ipca(WAN.model()), *given, cfg=1.0)
    want = sample(overridden(WAN.model(), reference), *given, cfg=1.0)
    assert scaled_error(got, want) < bound(WAN.model(), *given, cfg=1.0)
    assert (got - sample(WAN.model(), *given, cfg=1.0)).abs().amax((0, 1, 3, 4)).min() > 1e-3
    assert sample(self_attention(ipca(WAN.model())), *given, cfg=1.0).isfinite().all()


def test_recorder_sees_the_identity_without_changing_the_picture(family):
    model, given = family.model(), graph(family)
    watched, recording = OneStoryAttentionRecorder.execute(ipca(model), "all", 0.0, 1.0).result
    assert torch.equal(sample(watched, *given), sample(ipca(model), *given))
    maps = recording.maps()
    assert maps.shape == (3, ROWS, COLUMNS)
    assert maps.min() > 0 and maps.max() < 1


def test_a_model_of_fluxs_class_that_is_another_stays_unchanged(caplog):
    """LongCat-Image has Flux's blocks, but no pooled text, and text positions of its own."""
    model = flux(pooled=None)
    assert type(model.model).__name__ == "LongCatImage"
    assert KEY not in ipca(model).model_options["transformer_options"]
    assert "LongCatImage is no" in caplog.text and "Flux.1" in caplog.text
