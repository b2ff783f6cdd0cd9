"""IPCA and consistent self-attention where text and picture are one sequence: steps of SD3's and Flux's transformers.

Two blocks of each, in full width with --full or on a GPU, and as many tokens of text as the models read.
"""

from functools import partial

import full_size
import pytest
import stories
import torch
from onestory.svr.consolidate import consolidate
from onestory.svr.encoders import side_by_side, t5
from onestory.svr.record import KEY, Attached
from sampling import METHODS, patched, sample

FRAMES = 2
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
                "num_blocks": 2,
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
                "depth_single_blocks": 1,
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
    family, heads = request.param, {"SD3.5": 38, "Flux": 24}[request.param]
    whole = pytestconfig.getoption("full") or device.type == "cuda"
    heads, pixels = heads if whole else heads // 4, 1024 if device.type == "cuda" else 256
    given = conditioning(family, True), conditioning(family, False), torch.zeros(FRAMES, 16, pixels // 8, pixels // 8)
    name = f"one step of {family} with {heads} heads and 2 blocks, {FRAMES} frames of {pixels}"
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
