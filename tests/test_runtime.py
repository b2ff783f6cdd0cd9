"""The run-time beside other packs' patches, and on every attention back end of the host."""

import comfy.ldm.modules.attention as host
import comfy.model_management
import pytest
import torch
from duplicates import FOX, FRAMES, duplicated, run
from families import QWEN_IMAGE
from graphs import empty, encode, ipca, positive, story
from noise import Bounds
from onestory.attention.architectures import back_ends, joint, unet
from onestory.attention.ipca import biased_attention, identity_bias
from reference import ONE_LAYER, identity_attention, plain_attention, relative_error
from stories import record


@pytest.fixture(scope="module")
def tale():
    return story(FOX, *FRAMES[:3])


@pytest.fixture(scope="module")
def latent(tale):
    return empty(tale, 32, 32)


@pytest.fixture(scope="module")
def bounds(sd, frames, negative, latent):
    return Bounds(sd.model, frames, negative, latent, run=run, error=relative_error)


# --- IP-Adapter -------------------------------------------------------------------------------------------------------

ADAPTED = [("input", 1), ("input", 3), ("middle", 0), ("output", 0), ("output", 3)]


def picture(q, k, seed):
    """Image keys and values for q: a few tokens, the same for every row."""
    generator = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(1, 4, q.shape[-1], generator=generator).to(q).expand(len(q), -1, -1) for _ in range(2))
    return key, value


def look_at_picture(q, k, extra_options, seed, weight):
    """IP-Adapter's decoupled cross-attention, for the positive rows alone."""
    out = host.attention_pytorch(q, *picture(q, k, seed), extra_options["n_heads"]) * weight
    owners = extra_options["cond_or_uncond"]
    rows = len(q) // len(owners)
    return out * torch.tensor([owners[i // rows] == 0 for i in range(len(q))])[:, None, None].to(q)


class Adapter:
    """Behaves as IP-Adapter's patch does: one object a block, that later applications add themselves to."""

    def __init__(self, passes_options):
        self.effects = []
        self.passes_options = passes_options

    def __call__(self, q, k, v, extra_options):
        options = {"transformer_options": extra_options} if self.passes_options else {}
        out = host.optimized_attention(q, k, v, extra_options["n_heads"], **options)
        for seed, weight in self.effects:
            out = out + look_at_picture(q, k, extra_options, seed, weight)
        return out


def adapt(model, seed=0, weight=0.7, blocks=ADAPTED, passes_options=False):
    model = model.clone()
    options = model.model_options["transformer_options"] = model.model_options["transformer_options"].copy()
    replace = options["patches_replace"] = options.get("patches_replace", {}).copy()
    layers = replace["attn2"] = replace.get("attn2", {}).copy()
    for block in blocks:
        if block in layers and type(layers[block]) is not Adapter:
            raise TypeError(f"{block} was replaced by {type(layers[block])}")
        adapter = Adapter(passes_options)
        adapter.effects = [*getattr(layers.get(block), "effects", []), (seed, weight)]
        layers[block] = adapter
    return model


def adapted(*effects, blocks=ADAPTED):
    """What it does to each layer's output."""

    def then(out, q, k, v, extra_options):
        for seed, weight in effects if extra_options["block"] in blocks else ():
            out = out + look_at_picture(q, k, extra_options, seed, weight)
        return out

    return then


ORDERS = {
    "before IPCA": (lambda m, **kw: ipca(adapt(m, **kw)), [(0, 0.7)]),
    "behind IPCA": (lambda m, **kw: adapt(ipca(m), **kw), [(0, 0.7)]),
    "on both sides of IPCA": (lambda m, **kw: adapt(ipca(adapt(m, **kw)), 1, 0.4, **kw), [(0, 0.7), (1, 0.4)]),
    "twice behind IPCA": (lambda m, **kw: adapt(adapt(ipca(m), **kw), 1, 0.4, **kw), [(0, 0.7), (1, 0.4)]),
    "between two IPCAs": (lambda m, **kw: ipca(adapt(ipca(m, strength=3.0), **kw)), [(0, 0.7)]),
}


@pytest.mark.parametrize("passes_options", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_ip_adapter_and_ipca_add_up_in_any_order(sd, frames, negative, latent, bounds, order, passes_options):
    wire, effects = ORDERS[order]
    want = run(duplicated(sd.model, frames, then=adapted(*effects)), frames, negative, latent)
    got = run(wire(sd.model, passes_options=passes_options), frames, negative, latent)
    assert relative_error(got, want) < bounds()


def test_ip_adapter_and_ipca_both_matter(sd, frames, negative, latent):
    both = run(ipca(adapt(sd.model)), frames, negative, latent)
    for model in (sd.model, ipca(sd.model), adapt(sd.model)):
        assert relative_error(run(model, frames, negative, latent), both) > 1e-3


def test_ip_adapter_in_one_block_leaves_the_others_to_ipca_alone(sd, frames, negative, latent, bounds):
    blocks = [("output", 0)]
    want = run(duplicated(sd.model, frames, then=adapted((0, 0.7), blocks=blocks)), frames, negative, latent)
    assert relative_error(run(ipca(adapt(sd.model, blocks=blocks)), frames, negative, latent), want) < bounds()


@pytest.mark.parametrize("changed", [{"strength": 0.0}, {"start_percent": 1.0}])
def test_ip_adapter_beside_ipca_that_is_off_is_bit_equal(sd, frames, negative, latent, changed):
    want = run(adapt(sd.model), frames, negative, latent)
    assert torch.equal(run(ipca(adapt(sd.model), **changed), frames, negative, latent), want)
    assert torch.equal(run(adapt(ipca(sd.model, **changed)), frames, negative, latent), want)


def test_a_patch_that_replaces_attention_for_one_transformer_is_met_too(sd, frames, negative, latent, bounds):
    """ComfyUI knows patches by (block, number) and by (block, number, transformer)."""
    want = run(duplicated(sd.model, frames, then=adapted((0, 0.7))), frames, negative, latent)
    model = adapt(sd.model, blocks=[(*block, 0) for block in ADAPTED])
    assert relative_error(run(ipca(model), frames, negative, latent), want) < bounds()


# --- other hooks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["before IPCA", "behind IPCA"])
def test_another_attention_override_is_still_called_for_every_layer(sd, frames, negative, latent, bounds, order):
    calls = []

    def override(func, *args, **kwargs):
        calls.append(func)
        return 0.5 * func(*args, **kwargs)

    def overridden(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    run(overridden(sd.model), frames, negative, latent)
    expected = len(calls)
    halved = duplicated(overridden(sd.model), frames, then=lambda out, *_: 0.5 * out)
    want = run(halved, frames, negative, latent)
    calls.clear()
    model = ipca(overridden(sd.model)) if order == "before IPCA" else overridden(ipca(sd.model))
    got = run(model, frames, negative, latent)
    assert len(calls) == expected > 0
    assert relative_error(got, want) < bounds()


@pytest.mark.parametrize("order", ["before IPCA", "behind IPCA"])
def test_a_patch_on_the_cross_attentions_inputs_and_output_composes(sd, frames, negative, latent, bounds, order):
    def patched(model):
        model = model.clone()
        model.set_model_attn2_patch(lambda n, context, value, extra_options: (n, context, 1.5 * value))
        model.set_model_attn2_output_patch(lambda n, extra_options: 0.9 * n)
        return model

    want = run(duplicated(patched(sd.model), frames), frames, negative, latent)
    model = ipca(patched(sd.model)) if order == "before IPCA" else patched(ipca(sd.model))
    assert relative_error(run(model, frames, negative, latent), want) < bounds()


def test_a_patch_that_lengthens_the_context_gets_plain_attention(sd, frames, negative, latent):
    """Where positions are no longer the record's, IPCA stands back."""

    def lengthened(model):
        model = model.clone()
        model.set_model_attn2_patch(
            lambda n, context, value, extra_options: (
                n, torch.cat([context[:, :5], context], 1), torch.cat([value[:, :5], value], 1)
            )
        )  # fmt: skip
        return model

    want = run(lengthened(sd.model), frames, negative, latent)
    for model in (ipca(lengthened(sd.model)), lengthened(ipca(sd.model))):
        assert torch.equal(run(model, frames, negative, latent), want)


# --- back ends --------------------------------------------------------------------------------------------------------

BACK_ENDS = ("attention_basic", "attention_split", "attention_sub_quad", "attention_pytorch")


@pytest.mark.parametrize("memory", ["plenty", "little"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("name", BACK_ENDS)
def test_every_back_end_takes_the_bias(monkeypatch, name, variant, dropout, memory):
    """One row without a story, two with; `little` memory makes the back ends cut the queries into pieces."""
    story, heads, queries = record([4, 1], tokens=30), 2, 1030
    if memory == "little":
        size = 3 * heads * queries * 31 * 4 * 3 // 3
        monkeypatch.setattr(
            comfy.model_management, "get_free_memory", lambda device=None, both=False: (size, size) if both else size
        )
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, heads * 16, generator=generator) for n in (queries, 30, 30))
    own = [
        identity_bias(row, story, 1.0, variant, 30, 1, dropout, queries, torch.Generator().manual_seed(row.frame))
        for row in story.rows
    ]
    none = torch.zeros_like(own[0])
    none[:, 30:] = -torch.inf
    bias = torch.stack([none, *own])
    got = biased_attention(getattr(host, name), q, k, v, heads, bias)
    assert relative_error(got[:1], plain_attention(q[:1], k[:1], v[:1], heads)) < ONE_LAYER
    if dropout:
        want = biased_attention(host.attention_basic, q.double(), k.double(), v.double(), heads, bias.double())[1:]
    else:
        want = identity_attention(q[1:], k[1:], v[1:], heads, story, 1.0, variant)
    assert relative_error(got[1:], want) < ONE_LAYER


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize("changed", [{}, {"variant": "paper"}])
def test_every_back_end_samples_the_same(sd, frames, negative, latent, bounds, monkeypatch, name, changed):
    want = run(ipca(sd.model, **changed), frames, negative, latent)
    plain = run(sd.model, frames, negative, latent)
    monkeypatch.setattr(host, "optimized_attention", getattr(host, name))
    monkeypatch.setattr(host, "optimized_attention_masked", getattr(host, name))
    scale = relative_error(plain, want)
    assert relative_error(run(ipca(sd.model, **changed), frames, negative, latent), want) < bounds() < scale / 10


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("changed", [{}, {"variant": "paper"}, {"dropout": 0.4}])
def test_flash_attention_is_not_handed_masks_that_it_refuses(
    sd, frames, negative, latent, bounds, monkeypatch, caplog, changed, adapter
):
    """ComfyUI's flash attention falls back with a line in the log for every call that has a mask."""

    def model():
        return ipca(adapt(sd.model) if adapter else sd.model, **changed)

    def flash(q, k, v, dropout_p=0.0, causal=False, softmax_scale=-1.0):
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    want = run(model(), frames, negative, latent)
    monkeypatch.setattr(host, "flash_attn_wrapper", flash)
    monkeypatch.setattr(host, "optimized_attention", host.attention_flash)
    monkeypatch.setattr(host, "optimized_attention_masked", host.attention_flash)
    caplog.clear()
    assert relative_error(run(model(), frames, negative, latent), want) < bounds()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == []


def flat_sage(q, k, v, is_causal=False, tensor_layout="HND", **forgotten):
    """SageAttention 2's signature: a mask is among what it forgets."""
    by_token = tensor_layout == "NHD"
    q, k, v = (x.transpose(1, 2) if by_token else x for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2) if by_token else out


def masked_sage(q, k, v, attn_mask=None, is_causal=False, tensor_layout="HND", **more):
    """SageAttention 1's."""
    by_token = tensor_layout == "NHD"
    q, k, v = (x.transpose(1, 2) if by_token else x for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    return out.transpose(1, 2) if by_token else out


@pytest.mark.parametrize("sage", [flat_sage, masked_sage])
def test_sage_attention_draws_the_same_with_masks_and_without(sd, frames, negative, latent, bounds, monkeypatch, sage):
    want = run(ipca(sd.model), frames, negative, latent)
    # As before ComfyUI 0.27, which asked no kernel whether it takes masks.
    for name, value in {"sageattn": sage, "SAGE_ATTENTION_SUPPORTS_MASK": True}.items():
        monkeypatch.setattr(host, name, value, raising=False)
    monkeypatch.setattr(back_ends, "MASKLESS", back_ends.maskless(host))
    monkeypatch.setattr(host, "optimized_attention", host.attention_sage)
    monkeypatch.setattr(host, "optimized_attention_masked", host.attention_sage)
    assert relative_error(run(ipca(sd.model), frames, negative, latent), want) < bounds()


class Container:
    """What ComfyUI 0.33 holds a tensor in that a kernel may free."""

    def __init__(self, tensor):
        self.tensor = tensor

    def take(self):
        tensor, self.tensor = self.tensor, None
        return tensor


@pytest.mark.parametrize("listener", [unet.Listener, joint.Listener])
def test_an_override_takes_containers_as_tensors(listener, sd, tale, frames, negative, latent, monkeypatch):
    def contained(self, func, q, k, v, heads, *args, **kwargs):
        held = [getattr(host, "AttentionTensorContainer", Container)(x) for x in (q, k, v)]
        calls.append(held)
        return override(self, func, *held, heads, *args, **kwargs)

    override, calls = listener.override, []
    if listener is joint.Listener:
        clip, model = QWEN_IMAGE.clip(), QWEN_IMAGE.model()
        graph = positive(clip, tale), encode(clip, "blurry"), latent
    else:
        model, graph = sd.model, (frames, negative, latent)
    want = run(ipca(model), *graph)
    monkeypatch.setattr(listener, "override", contained)
    assert torch.equal(run(ipca(model), *graph), want)
    assert calls and all(each.tensor is None for held in calls for each in held), "and leaves them empty"


@pytest.mark.skipif(not hasattr(host, "AttentionTensorContainer"), reason="this ComfyUI has no containers")
@pytest.mark.parametrize("listener", [unet.Listener, joint.Listener])
def test_comfyui_opens_its_containers_for_our_override(listener):
    assert not hasattr(listener({}, 4, None).override, "container_function")
