"""The papers' formulas in float64, as loops that spell them out: what the fast forms are tested against.

"1P1S" is 1Prompt1Story, arXiv 2501.13554; "StoryDiffusion" is arXiv 2405.01434. None of this shares a line or an
algebraic shortcut with the pack: an SVD is an SVD, a second copy of the keys is a second copy of the keys.
"""

import math

import torch

# --- how near float32 comes to them ----------------------------------------------------------------------------------

ONE_ROUNDING = 1e-6
"""Where one side is float64 and the other its float32, or a short sum in another order: eight times float32's eps."""

ONE_LAYER = 1e-5
"""One attention or encoder layer in float32 beside float64: logits near 30 are off by some eps of that, 4e-6."""

# --- 1P1S: prompt embeddings ------------------------------------------------------------------------------------------


def naive_reweight(embeds, record, express=2.0, suppress=0.5):
    """1P1S's baseline "naive prompt reweighting": scale c_Pj by one factor and every other c_Pk by another.

    A frame that is alone in its window has nothing to be weighed against and stays as it is, here and in SVR.
    """
    C = embeds.double().clone()
    for r, row in enumerate(record.rows):
        if row.window == (row.frame,):
            continue
        for encoder, spans in zip(record.encoders, row.spans, strict=True):
            for k, P in zip(row.window, spans.frames, strict=True):
                factor = express if k == row.frame else suppress
                C[r, slice(*P), slice(*encoder.channels)] *= factor
    return C


def reweight_singular_values(X, alpha, beta):
    """1P1S, singular-value reweighting: X = U S V^T, s' = beta exp(alpha s) s. X is [tokens, channels].

    SVR+ has alpha > 0. SVR- is the same with -alpha' and beta'.
    """
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    for i, s in enumerate(S.tolist()):
        S[i] = beta * math.exp(alpha * s) * s
    return U @ torch.diag(S) @ Vh


def reweight_frame_prompt(c, P, EOT, alpha, beta, eot):
    """One call of SVR, in place, on one encoder's c [tokens, channels]: X is one frame prompt's tokens and the EOT set.

    eot "scale" (the released benchmark's mode): X is the frame prompt alone, and the EOT set is multiplied by 0.9.
    """
    tokens = list(range(P.start, P.stop))
    if eot == "reweight":
        tokens += list(range(EOT.start, EOT.stop))
    else:
        c[EOT.start : EOT.stop] *= 0.9
    c[tokens] = reweight_singular_values(c[tokens], alpha, beta)


def singular_value_reweight(
    embeds,
    record,
    variant="released",
    express_alpha=0.01,
    express_beta=1.0,
    suppress_alpha=0.01,
    suppress_beta=0.05,
    eot="reweight",
):
    """1P1S, SVR, for every frame on its own and every text encoder on its own channels.

    "paper": SVR+ on [c_Pj, c_EOT], then SVR- on [c_Pk, c_EOT] for each k != j, each on the EOT just produced.
    "released": SVR- on each k != j in the order of the prompt, then SVR+ on j.
    """
    C = embeds.double().clone()
    for r, row in enumerate(record.rows):
        if row.window == (row.frame,):
            continue
        for encoder, spans in zip(record.encoders, row.spans, strict=True):
            channels = slice(*encoder.channels)
            prompts = list(zip(row.window, spans.frames, strict=True))
            c = C[r, : record.tokens, channels].clone()
            # The papers' alpha was tuned on vectors about 28 long: others count as if they were.
            down, up = suppress_alpha * encoder.scale, express_alpha * encoder.scale
            suppress = [(P, -down, suppress_beta) for k, P in prompts if k != row.frame]
            express = [(P, up, express_beta) for k, P in prompts if k == row.frame]
            calls = express + suppress if variant == "paper" else suppress + express
            for P, alpha, beta in calls:
                reweight_frame_prompt(c, P, spans.eot, alpha, beta, eot)
            C[r, : record.tokens, channels] = c
    return C


# --- attention --------------------------------------------------------------------------------------------------------


def softmax_attention(q, K, V, weight=None):
    """softmax(q K^T / sqrt(d)) V for one row and one head: q [queries, d], K and V [keys, d].

    `weight` [queries, keys] says how often each key stands in the sum: 0 leaves it out.
    """
    logits = q @ K.T / math.sqrt(q.shape[-1])
    e = torch.exp(logits - logits.max())
    if weight is not None:
        e = e * weight
    return (e / e.sum(dim=-1, keepdim=True)) @ V


def split_heads(x, heads):
    """[rows, tokens, heads * d] to [rows, heads, tokens, d], in float64."""
    return x.double().unflatten(-1, (heads, -1)).transpose(1, 2)


def plain_attention(q, k, v, heads):
    """What an unpatched layer computes: every row and head by itself. [rows, queries, heads * d]."""
    Q, K, V = (split_heads(x, heads) for x in (q, k, v))
    out = [[softmax_attention(Q[i, h], K[i, h], V[i, h]) for h in range(heads)] for i in range(len(Q))]
    return torch.stack([torch.cat(row, dim=-1) for row in out])


def kept_columns(row, tokens):
    """Where every encoder has SOT or the identity prompt, and where every encoder has the EOT set."""
    identity, eot = [], []
    for t in range(tokens):
        if t == 0 or all(s.identity.start <= t < s.identity.stop for s in row.spans):
            identity.append(t)
        if all(s.eot.start <= t < s.eot.stop for s in row.spans):
            eot.append(t)
    return identity, eot


def identity_attention(q, k, v, heads, record, strength=1.0, variant="released", own_tokens=None, dropped=None):
    """1P1S, identity-preserving cross-attention: K~ = [K, K2], V~ = [V, V2], softmax(Q K~^T / sqrt(d)) V~.

    q is [rows, queries, heads * d]; k and v [rows, context, heads * d], where the context is the conditioning's
    `own_tokens` tokens (the record's, then any that another node appended) repeated a whole number of times.
    "released": the second copy has only the columns of SOT and of the identity prompt.
    "paper": it has all the record's columns, those of the frame prompts set to zero in K2 and in V2.
    `strength` lambda counts every key of the second copy lambda times. `dropped` [rows, queries, context], released
    code's dropout: True leaves that key of the second copy out for that query, in every head.
    """
    Q, K, V = (split_heads(x, heads) for x in (q, k, v))
    queries, context = Q.shape[2], K.shape[2]
    own_tokens = own_tokens or context
    assert context % own_tokens == 0
    out = []
    for i, row in enumerate(record.rows):
        identity, eot = kept_columns(row, record.tokens)
        second, zeroed = [], []
        for repeat in range(context // own_tokens):
            for t in range(record.tokens):
                kept = t in identity or (variant == "paper" and t in eot)
                if kept or variant == "paper":
                    second.append(repeat * own_tokens + t)
                    zeroed.append(not kept)
        weight = torch.ones(queries, context + len(second), dtype=torch.float64)
        weight[:, context:] = strength
        if dropped is not None:
            weight[:, context:] *= (~dropped[i][:, second]).double()
        row_out = []
        for h in range(heads):
            K2, V2 = K[i, h, second].clone(), V[i, h, second].clone()
            K2[torch.tensor(zeroed)] = 0
            V2[torch.tensor(zeroed)] = 0
            row_out.append(softmax_attention(Q[i, h], torch.cat([K[i, h], K2]), torch.cat([V[i, h], V2]), weight))
        out.append(torch.cat(row_out, dim=-1))
    return torch.stack(out)


# --- StoryDiffusion: consistent self-attention ------------------------------------------------------------------------


def anchor_frames(characters, anchors):
    """Released code: a character's anchors are the first `anchors` frames that show it and no one else.

    `characters[i]` are the characters that frame i shows. A frame that shows two is no one's anchor.
    """
    names = sorted({name for shown in characters for name in shown})
    return {name: [i for i, shown in enumerate(characters) if tuple(shown) == (name,)][:anchors] for name in names}


def anchors_attention(q, k, v, heads, characters, anchors, samples):
    """StoryDiffusion's released code. q, k, v are one story's rows [frames, tokens, heads * d], all cond or all uncond.

    `anchors[name]` are the anchor frames of that character, `samples[f]` the sampled token positions of anchor f, one
    set per anchor that every frame shares. Frame i attends to
    - all its own tokens, each once: an anchor does not see its own sample again,
    - the samples of the anchors of the characters it shows, itself excepted; an anchor shows one character, so these
      are the other anchors of its group. No frame ever attends to a frame that is not an anchor.
    Written as the mask over all tokens of all frames: `weight[f * tokens + t]` is 1 where frame i may look.
    """
    Q, K, V = (split_heads(x, heads) for x in (q, k, v))
    frames, _, tokens, _ = Q.shape
    out = []
    for i in range(frames):
        weight = torch.zeros(frames, tokens, dtype=torch.float64)
        for name in characters[i]:
            for f in anchors[name]:
                for t in list(samples[f]):
                    weight[f, t] = 1
        weight[i] = 1
        mask = weight.reshape(1, -1).expand(tokens, -1)
        row = []
        for h in range(heads):
            all_K, all_V = torch.cat(list(K[:, h])), torch.cat(list(V[:, h]))
            row.append(softmax_attention(Q[i, h], all_K, all_V, mask))
        out.append(torch.cat(row, dim=-1))
    return torch.stack(out)


def tile_starts(frames, tile):
    """StoryDiffusion, Algorithm 1: tiles of W frames slide by one over N frames; one tile when N <= W."""
    return list(range(frames - tile + 1)) if frames > tile else [0]


def tiles_attention(q, k, v, heads, tile, samples):
    """StoryDiffusion, Algorithm 1 (Consistent Self-Attention). q, k, v as in `anchors_attention`.

    `samples[n]` are positions in tile n's tokens, laid end to end, frame after frame: 0 to W * tokens. The sample is
    taken from the whole tile and is the same for each frame of it, and the frame's own tokens are concatenated to it:
    an own token that was also sampled stands twice. A frame's outputs are averaged over the tiles that cover it.
    """
    Q, K, V = (split_heads(x, heads) for x in (q, k, v))
    frames, _, tokens, d = Q.shape
    total = torch.zeros(frames, tokens, heads * d, dtype=torch.float64)
    count = torch.zeros(frames, dtype=torch.float64)
    for n, start in enumerate(tile_starts(frames, tile)):
        members = list(range(start, min(start + tile, frames)))
        for i in members:
            row = []
            for h in range(heads):
                tile_K, tile_V = torch.cat([K[f, h] for f in members]), torch.cat([V[f, h] for f in members])
                picked = torch.as_tensor(list(samples[n]), dtype=torch.long)
                keys, values = torch.cat([tile_K[picked], K[i, h]]), torch.cat([tile_V[picked], V[i, h]])
                row.append(softmax_attention(Q[i, h], keys, values))
            total[i] += torch.cat(row, dim=-1)
            count[i] += 1
    return total / count[:, None, None]


# --- comparing --------------------------------------------------------------------------------------------------------


def relative_error(got, want):
    """||got - want|| / ||want||, in float64."""
    return ((got.double() - want.double()).norm() / want.double().norm()).item()
