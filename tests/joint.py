"""Joint attention as the methods mean it, row by row in float64, in an otherwise unpatched model.

A second copy of the identity's keys is a second copy; what a frame sees of another one stands behind its own keys.
None of this shares a line with the pack.
"""

import math

import torch


class Reference:
    """An attention override. `columns` are each frame's positions of the identity in the text, which is `text` long.

    A picture has `picture` tokens. `sources` are, for each frame, the frames that it sees, at the positions that
    `sampled(sigma, frame)` gives. `turn` gives keys [heads, n, channels] their place beside the picture.
    """

    def __init__(self, text, picture, columns=None, strength=0, sources=None, sampled=None, turn=None, blocks=None):
        self.text, self.picture = text, picture
        self.columns, self.strength = columns, strength
        self.sources, self.sampled = sources, sampled
        self.turn = turn or (lambda keys: keys)
        self.blocks = blocks
        self.calls = 0

    def __call__(self, func, q, k, v, heads, mask=None, **options):
        ready = options.get("skip_reshape", False)
        tokens = q.shape[2] if ready else q.shape[1]
        joint, alone = tokens >= self.text + self.picture, tokens == self.picture
        at = options.get("transformer_options", {})
        if not (joint or alone) or (self.blocks and not self.blocks(at)):
            return func(q, k, v, heads, mask=mask, **options)
        self.calls += 1
        Q, K, V = (x.double() if ready else by_head(x.double(), heads) for x in (q, k, v))
        start = self.text if joint else 0
        picture = slice(start, start + self.picture)
        frames = len(Q) // len(at["cond_or_uncond"])
        sigma = float(at["sigmas"][0])
        out = []
        for row in range(len(Q)):
            chunk, frame = divmod(row, frames)
            forbidden = torch.zeros(tokens, dtype=torch.float64) if mask is None else row_of(mask, row, tokens)
            extra_k, extra_v = [K[row]], [V[row]]
            if joint and self.strength and at["cond_or_uncond"][chunk] == 0:
                copies = self.columns[frame] * self.strength
                extra_k.append(K[row][:, copies])
                extra_v.append(V[row][:, copies])
            for source in self.sources[frame] if self.sources else []:
                other = chunk * frames + source
                positions = start + self.sampled(sigma, source)
                extra_k.append(self.turn(K[other][:, positions]))
                extra_v.append(V[other][:, positions])
            plain = attended(Q[row], K[row], V[row], forbidden)
            K_row, V_row = torch.cat(extra_k, 1), torch.cat(extra_v, 1)
            more = torch.cat([forbidden, torch.zeros(K_row.shape[1] - tokens, dtype=torch.float64)])
            plain[:, picture] = attended(Q[row][:, picture], K_row, V_row, more)
            out.append(plain)
        result = torch.stack(out)
        return (result if options.get("skip_output_reshape") else result.transpose(1, 2).flatten(2)).to(q)


def by_head(x, heads):
    """[rows, tokens, heads * channels], or with the heads apart, as [rows, heads, tokens, channels]."""
    return (x if x.ndim == 4 else x.unflatten(-1, (heads, -1))).transpose(1, 2)


def row_of(mask, row, keys):
    """A mask over keys as what is added to their logits, in one row."""
    mask = mask if mask.dtype != torch.bool else torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    if mask.ndim == 3:  # ComfyUI's of Flux and Chroma, for each query; here they are all alike
        assert torch.equal(mask.exp(), mask[:, :1].exp().expand_as(mask))
        mask = mask[:, 0]
    mask = mask.double().reshape(-1, mask.shape[-1])
    assert mask.shape[-1] == keys
    return mask[row % len(mask)]


def attended(Q, K, V, added):
    logits = Q @ K.mT / math.sqrt(Q.shape[-1]) + added
    return logits.softmax(-1) @ V


def overridden(model, override):
    """A clone of a `ModelPatcher` whose attention calls go to `override`."""
    clone = model.clone()
    options = clone.model_options
    clone.model_options = {
        **options,
        "transformer_options": {**options["transformer_options"], "optimized_attention_override": override},
    }
    return clone
