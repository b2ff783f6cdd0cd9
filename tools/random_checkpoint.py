"""Write a small random checkpoint in SD1.5's layout, for tests and for the demo.

    python random_checkpoint.py COMFYUI_FOLDER FILE

Runs in ComfyUI's own Python. ComfyUI's CheckpointLoaderSimple loads the file like any other SD1.5 checkpoint:
a U-Net of two levels with attention in its input, middle and output blocks, CLIP-L, and a VAE in TAESD's layout.
The pictures are texture, but they depend on every word of the prompt and latents keep a trained model's scale.
"""

import os
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "num_heads": 8,
    "context_dim": 768,
    "use_spatial_transformer": True,
    "legacy": False,
}
CLIP_L = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}

# Standard deviation of a layer's output over that of its input; 1 where nothing here ends the name.
# Keys above 1 make attention choose among tokens, and what the prompt adds has to stand out against the noise.
GAINS = {
    "token_embedding.weight": 1.0,
    "position_embedding.weight": 0.5,
    "self_attn.q_proj.weight": 2.0,
    "self_attn.out_proj.weight": 1.5,
    "mlp.fc2.weight": 0.5,
    "attn2.to_k.weight": 2.0,
    "attn2.to_out.0.weight": 2.0,
    "attn1.to_out.0.weight": 0.5,
    "out_layers.3.weight": 0.5,
    "conv.4.weight": 0.3,
    "taesd_decoder.19.weight": 0.5,
}


def random_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights for a module: norms 1, biases 0, the rest drawn from a generator seeded by the tensor's name."""
    weights = {}
    for name, meta in module.state_dict().items():
        if meta.dim() < 2:
            weights[name] = torch.zeros(meta.shape) if name.endswith("bias") else torch.ones(meta.shape)
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        gain = next((value for end, value in GAINS.items() if name.endswith(end)), 1.0)
        fan_in = 1 if "embedding" in name else meta[0].numel()
        weights[name] = torch.randn(meta.shape, generator=generator) * (gain / fan_in**0.5)
    return weights


def follow_noise(unet: dict[str, torch.Tensor], share: float) -> None:
    """Make the U-Net answer with its input plus `share` of what its random network says.

    The input of an epsilon model is close to the noise in it, so a sampler ends at latents of unit scale, not at the
    noise's. The input travels as +x and -x in channels 0 to 7, a group of their own in the last norm, since
    SiLU(x) - SiLU(-x) = x.
    """
    channels = UNET["model_channels"]
    group = slice(0, channels // 32)
    first, out = unet["input_blocks.0.0.weight"], unet["out.2.weight"]
    skip = unet["output_blocks.3.0.skip_connection.weight"]
    for rows in (first, skip, unet["output_blocks.3.0.out_layers.3.weight"], unet["output_blocks.3.1.proj_out.weight"]):
        rows[group] = 0
    out *= share
    out[:, group] = 0
    for latent in range(4):
        for channel, sign in ((2 * latent, 1.0), (2 * latent + 1, -1.0)):
            first[channel, latent, 1, 1] = sign
            skip[channel, channels + channel] = 1.0
            out[latent, channel, 1, 1] = sign * 0.8**0.5  # 8 of the norm's 10 channels carry something


def state_dict() -> dict[str, torch.Tensor]:
    """The checkpoint's tensors, in half precision; the shapes are those of ComfyUI's own modules."""
    import comfy.clip_model
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
    import comfy.ops
    import comfy.taesd.taesd

    operations = comfy.ops.disable_weight_init
    unet = random_weights(openaimodel.UNetModel(**UNET, device="meta", operations=operations))
    follow_noise(unet, share=0.03)
    clip = random_weights(comfy.clip_model.CLIPTextModel(CLIP_L, torch.float32, "meta", operations))
    del clip["text_projection.weight"]  # SD1.5 has none
    with torch.device("meta"):
        taesd = comfy.taesd.taesd.TAESD()
    vae = random_weights(taesd)
    vae["vae_shift"].zero_()
    vae["taesd_decoder.19.bias"].fill_(0.5)
    prefixes = {"model.diffusion_model.": unet, "cond_stage_model.transformer.": clip, "first_stage_model.": vae}
    return {prefix + name: weight.half() for prefix, part in prefixes.items() for name, weight in part.items()}


def main(comfyui: str, path: str) -> None:
    """Write the checkpoint at `path`, whole or not at all."""
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    partial = Path(path).with_suffix(".partial")
    save_file(state_dict(), partial)
    os.replace(partial, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
