"""A new method is a file of its own: it needs no change anywhere else."""

from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import optimized_attention
from graphs import empty, encode, ipca, positive, sample, scaled_error, self_attention, story
from noise import bound
from onestory.attention.blocks import parse_blocks
from onestory.attention.runtime import patch


@dataclass(frozen=True)
class Louder:
    """Adds a constant to the self-attention of its blocks."""

    name, kinds = "Louder", frozenset({"self"})
    stacks = adds = widens = reads_alone = stories_first = False
    start_percent, end_percent = 0.0, 1.0
    constant: float
    blocks: tuple = parse_blocks("output.1")

    def off(self):
        return self.constant == 0

    def check(self, records, places, report):
        pass

    def sources(self, cast):
        return [[] for _ in cast.characters]

    def prepare(self, batch):
        return self

    def attend(self, call, next):
        return next(call) + self.constant


def by_hand(model, constant):
    def replaced(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"]) + constant

    clone = model.clone()
    clone.set_model_attn1_replace(replaced, "output", 1)
    return clone


def test_a_method_that_the_pack_does_not_know_works_beside_the_others(sd):
    tale = story("a red fox", "runs", "sleeps")
    graph = positive(sd.clip, tale), encode(sd.clip, "blurry"), empty(tale)
    want = sample(ipca(by_hand(sd.model, 0.5)), *graph)
    for model in (ipca(patch(sd.model, Louder(0.5))), patch(ipca(sd.model), Louder(0.5))):
        assert scaled_error(sample(model, *graph), want) < bound(by_hand(sd.model, 0.5), *graph)
    assert scaled_error(sample(ipca(sd.model), *graph), want) > 1e-3
    later = patch(patch(sd.model, Louder(0.5)), Louder(0.0))
    assert torch.equal(sample(later, *graph), sample(sd.model, *graph)), "the later one counts"
    shared = self_attention(sd.model, blocks="output.0")
    both = sample(patch(shared, Louder(0.5)), *graph)
    assert scaled_error(both, sample(shared, *graph)) > 1e-3
    assert scaled_error(both, sample(patch(sd.model, Louder(0.5)), *graph)) > 1e-3
