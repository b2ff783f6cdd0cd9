"""IPCA and consistent self-attention where text and picture are one sequence: steps of SD3's and Flux's transformers.

Three blocks of each, two of which are late ones, as two thirds of the models' own are, and as many tokens of text as
they read; in full width with --full or on a GPU. The default's six and four heads, each as wide as the model's own,
with pictures of 256 are what one CPU thread draws often enough in two minutes. There a step's fixed costs weigh more,
ours among them.
"""

from collections.abc import Callable
from functools import partial

import full_size
import pytest
import stories
import torch
from onestory.svr.consolidate import consolidate
from onestory.svr.encoders import side_by_side, t5
from onestory.svr.record import KEY, Attached
from sampling import METHODS, overridden, patched, sample

FRAMES = 2
BLOCKS = 3
HEADS = {"SD3.5": (38, 6), "Flux": (24, 4)}
"""Of the whole model, and by default."""
POOLED = {"SD3.5": 2048, "Flux": 768}
GOALS = {"IPCA": 1.03}


def transformer(family, heads, device):
    """The `ModelPatcher` of a transformer so many heads wide."""
    import comfy.model_patcher
    import comfy.supported_models

    if family == "SD3.5":
        embedder = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * heads}}
        config = comfy.supported_models.SD3(
            {
                "in_channels": 16,
                "depth": heads,
                "num_blocks": BLOCKS,
                "input_size": None,
                "patch_size": 2,
                "adm_in_channels": 2048,
                "context_embedder_config": embedder,
                "num_patches": 192**2,
                "pos_embed_max_size": 192,
                "qk_norm": "rms",
            }
        )
    else:
        config = comfy.supported_models.Flux(
            {
                "image_model": "flux",
                "in_channels": 16,
                "out_channels": 16,
                "patch_size": 2,
                "vec_in_dim": 768,
                "context_in_dim": 4096,
                "hidden_size": 128 * heads,
                "mlp_ratio": 4.0,
                "num_heads": heads,
                "depth": 1,
                "depth_single_blocks": BLOCKS - 1,
                "axes_dim": [16, 56, 56],
                "theta": 10000,
                "qkv_bias": True,
                "guidance_embed": True,
                "txt_ids_dims": [],
            }
        )
    config.set_inference_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32, None)
    config.optimizations = {}
    model = config.get_model({}, device=device)
    full_size.fill(model.diffusion_model, device)
    return comfy.model_patcher.ModelPatcher(model, device, device)


def conditioning(family, story):
    """What Story Prompt gives, of random vectors; without a `story`, what CLIPTextEncode does."""
    from comfy.text_encoders.flux import FluxTokenizer
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    tokenizer, encoders = (
        (SD3Tokenizer(), (*side_by_side("l", "g"), t5(77))) if family == "SD3.5" else (FluxTokenizer(), (t5(),))
    )
    tokenize = partial(tokenizer.tokenize_with_weights, return_word_ids=True)
    record = consolidate(stories.story(FRAMES), tokenize, encoders, width=4096)[2]
    rows = FRAMES if story else 1
    embeds = torch.randn(rows, record.tokens, 4096, generator=torch.Generator().manual_seed(rows))
    options = {"pooled_output": torch.zeros(rows, POOLED[family])}
    return [[embeds, options | ({KEY: Attached.to(embeds, record)} if story else {})]]


@pytest.fixture(scope="module", params=["SD3.5", "Flux"])
def step(request, pytestconfig, device):
    """(name, model, what a sampler is given) of a family."""
    family = request.param
    whole, fewer = HEADS[family]
    heads = whole if pytestconfig.getoption("full") or device.type == "cuda" else fewer
    pixels = 1024 if device.type == "cuda" else 256
    given = conditioning(family, True), conditioning(family, False), torch.zeros(FRAMES, 16, pixels // 8, pixels // 8)
    name = f"one step of {family} with {heads} heads and {BLOCKS} blocks, {FRAMES} frames of {pixels}"
    return name, transformer(family, heads, device), given


@pytest.mark.parametrize("method", METHODS)
def bench_joint_step(compare, step, method):
    name, model, given = step
    ours = patched(model, method)
    compare(
        f"{name}, {method}",
        lambda: sample(ours, *given, 1),
        "unpatched",
        lambda: sample(model, *given, 1),
        goal=GOALS.get(method),
        memory=True,
        fewest_rounds=9,
    )


def bench_joint_floor(compare, step):
    """The floor: attention over keys and values that are gathered and turned already, for queries cut already."""
    name, model, given = step
    ours = patched(model, "self-attention")
    floor = overridden(model, Ready(attention_calls(ours, given)))
    # The first step finds out which calls belong together.
    sample(floor, *given, 1)
    compare(
        f"{name}, self-attention",
        lambda: sample(ours, *given, 1),
        "floor",
        lambda: sample(floor, *given, 1),
        goal=1.10,
        fewest_rounds=9,
    )


def attention_calls(model, given):
    """The queries, keys and values of all attention calls of a step, as the back end gets them."""
    calls = []

    def record(func: Callable[..., torch.Tensor], q, k, v, *args, **options):
        calls.append((q.clone(), k.clone(), v.clone()))
        return func(q, k, v, *args, **options)

    sample(overridden(model, record), *given, 1)
    return calls


class Ready:
    """An attention override that makes recorded calls in the place of the model's own, step after step.

    Of the calls that answer a model's call, those with as many queries and keys are one. What they give is as large as
    what the model gets, and is dropped: putting it together is no part of attention.
    """

    def __init__(self, recorded: list[tuple[torch.Tensor, ...]]):
        self.recorded = recorded[::-1]
        self.calls: list[tuple[list[tuple[torch.Tensor, ...]], torch.Tensor]] = []
        self.at = 0

    def __call__(self, func: Callable[..., torch.Tensor], q, k, v, heads, *args, **options):
        if self.recorded:
            self.calls.append((self.answering(q), func(q, k, v, heads, *args, **options)))
            return self.calls[-1][1]
        ready, out = self.calls[self.at]
        self.at = (self.at + 1) % len(self.calls)
        for call in ready:
            func(*call, heads, *args, **options)
        return out

    def answering(self, q: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """The next recorded calls, as many as answer each of the queries once."""
        missing = len(q) * q.shape[-2]
        alike: dict[tuple[int, int], list[tuple[torch.Tensor, ...]]] = {}
        while missing:
            call = self.recorded.pop()
            missing -= len(call[0]) * call[0].shape[-2]
            alike.setdefault((call[0].shape[-2], call[1].shape[-2]), []).append(call)
        return [tuple(torch.cat(parts) for parts in zip(*calls)) for calls in alike.values()]
