"""IPCA the long way: a model patch that writes the identity's keys and values a second time, and what runs it."""

import torch
from comfy.ldm.modules.attention import attention_pytorch
from onestory.svr.record import KEY

import nodes

FOX = "a watercolor of a young red fox"
FRAMES = ("reading a book", "running through deep snow", "sailing a boat", "sleeping")
BLOCKS = [("input", n) for n in range(12)] + [("middle", 0)] + [("output", n) for n in range(12)]


def duplicated(model, *stories, strength=1, blocks=BLOCKS, start=0.0, end=1.0, then=None):
    """The model with the identity's keys and values written a second time, by a patch that shares nothing with ours.

    It looks at the tensors the U-Net gets: where the positive branch's context begins with a row of one of `stories`,
    the keys and values of that row's SOT and identity stand `strength` more times, in every repetition of the context.
    `then(out, q, k, v, extra_options)` may do something else to each layer's output. `model.seen` of what comes back
    gets the number of such rows in each forward pass.
    """

    def forward(apply_model, args):
        c, sigma, owners = args["c"], args["timestep"][0], args["cond_or_uncond"]
        context = c["c_crossattn"]
        sampling = model.model.model_sampling
        on = sampling.percent_to_sigma(end) <= sigma <= sampling.percent_to_sigma(start)
        extra = []
        for i, tokens in enumerate(context):
            extra.append([])
            for conditioning in stories if on and owners[i // (len(context) // len(owners))] == 0 else ():
                for embeds, options in conditioning:
                    own = embeds.shape[1]
                    for row, where in zip(embeds, options[KEY].record.rows):
                        if not extra[i] and len(tokens) % own == 0 and torch.equal(tokens[:own], row.to(tokens)):
                            identity = [0, *range(*where.spans[0].identity)]
                            extra[i] = [r * own + t for r in range(len(tokens) // own) for t in identity] * strength

        def attention(q, k, v, extra_options):
            out = torch.cat(
                [
                    attention_pytorch(
                        q[i : i + 1],
                        torch.cat([k[i], k[i, extra[i]]])[None],
                        torch.cat([v[i], v[i, extra[i]]])[None],
                        extra_options["n_heads"],
                    )
                    for i in range(len(q))
                ]
            )
            return then(out, q, k, v, extra_options) if then else out

        options = c["transformer_options"]
        replace = {**options.get("patches_replace", {}), "attn2": dict.fromkeys(blocks, attention)}
        seen.append(sum(map(bool, extra)))
        return apply_model(
            args["input"], args["timestep"], **{**c, "transformer_options": {**options, "patches_replace": replace}}
        )

    seen = []
    clone = model.clone()
    clone.set_model_unet_function_wrapper(forward)
    clone.seen = seen
    return clone


@torch.inference_mode()
def run(model, positive, negative, latent, cfg=5.0, steps=1, sampler="euler", seed=1):
    return nodes.common_ksampler(model, seed, steps, cfg, sampler, "normal", positive, negative, latent)[0]["samples"]


def rows(conditioning, chosen):
    """The conditioning of some of the frames alone."""
    return [
        [embeds[chosen], {**o, "pooled_output": o["pooled_output"][chosen], KEY: o[KEY].select(chosen)}]
        for embeds, o in conditioning
    ]


def latent_rows(latent, chosen):
    return {
        **latent,
        "samples": latent["samples"][chosen],
        "batch_index": [latent["batch_index"][j] for j in chosen],
    }
