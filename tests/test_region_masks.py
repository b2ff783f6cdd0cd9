"""Regions from what a model draws: the recorded attention on each character, and the masks made of it."""

import pytest
import torch
from duplicates import run
from graphs import empty, positive, random, story
from noise import PROMISED
from onestory.attention.region_masks import frame_masks, otsu, region_masks
from onestory.nodes.attention_view import OneStoryAttentionRecorder
from onestory.nodes.region_masks import OneStoryRegionMasks
from onestory.svr.record import KEY
from reference import relative_error
from test_attention_view import Onlooker

TALE = story("[Mia] a red fox\n[Otto] a blue owl", "[Mia] and [Otto] at sea", "[Mia] reads", "[Otto] waves at [Mia]")


class OnlookerAt(Onlooker):
    """Sees the attention on one character's words, wherever the row has them, by the formula in float64."""

    def __init__(self, model, block, conditioning, name):
        super().__init__(model, block, conditioning)
        self.rows = {row.spans[0].identity: row for _, o in conditioning for row in o[KEY].record.rows}
        self.name = name

    def mass(self, module, x, context, identity):
        spans = [span for name, span in self.rows[identity].subjects[0] if name == self.name]
        nothing = torch.zeros(len(x), dtype=torch.float64)
        return sum((super(OnlookerAt, self).mass(module, x, context, span) for span in spans), nothing)


@torch.inference_mode()
def test_the_maps_of_a_character_are_the_attention_on_its_words(sd, negative):
    conditioning = positive(sd.clip, TALE)
    model, attention = OneStoryAttentionRecorder.execute(sd.model, "output.3", 0.0, 1.0).result
    latent = empty(TALE, 40, 64)
    with OnlookerAt(sd.model, 3, conditioning, "Mia") as mia, OnlookerAt(sd.model, 3, conditioning, "Otto") as otto:
        run(model, conditioning, negative, latent, steps=2, cfg=1.0)
    maps = attention.character_maps()
    assert list(maps) == ["Mia", "Otto"]
    for name, onlooker in (("Mia", mia), ("Otto", otto)):
        assert maps[name].shape == (3, 8, 5)
        assert relative_error(maps[name], onlooker.maps(8, 5)) < PROMISED
    assert not maps["Otto"][1].any()
    torch.testing.assert_close(maps["Mia"][1], attention.maps()[1])
    samples = {"samples": random([3, 4, 8, 5])}
    for name in ("Mia", "otto"):
        masks, out = OneStoryRegionMasks.execute(attention, TALE, samples, name, 1).result
        assert masks.shape == (3, 64, 40) and masks.min() >= 0 and masks.max() == 1 and out is samples
    with pytest.raises(ValueError, match="has a story of 1 frames, and the recorded sampler drew another one of 3"):
        OneStoryRegionMasks.execute(attention, story("a fox", "runs"), samples, "", 1)


def test_otsus_threshold_splits_where_the_variance_between_the_classes_is_largest():
    values = torch.cat([0.2 + 0.1 * random([300]), 0.7 + 0.1 * random([100], 1)])
    assert 0.3 < otsu(values) < 0.7
    double = values.double()
    between = []
    for cut in double.sort().values[:-1]:
        low, high = double[double <= cut], double[double > cut]
        between.append(len(low) * len(high) * (low.mean() - high.mean()) ** 2)
    best = double.sort().values[torch.stack(between).argmax()]
    assert ((values > otsu(values)) == (values > best)).all()
    assert otsu(torch.ones(4)) == 1


def blob(y, x, size=16, height=1.0):
    at = torch.arange(size, dtype=torch.float32)
    return 0.05 + height * torch.exp(-((at[:, None] - y) ** 2 + (at[None] - x) ** 2) / 8)


def test_each_character_gets_the_place_where_its_share_is_largest_however_long_its_description():
    maps = {"Mia": blob(8, 4), "Otto": 0.2 * blob(8, 11) + 0.05 * blob(8, 4)}
    masks = frame_masks(maps, 0)
    for name, inside, outside in (("Mia", 4, 11), ("Otto", 11, 4)):
        assert masks[name][8, inside] > 0.9 > 0.1 > masks[name][8, outside]
    wider = frame_masks(maps, 2)
    assert all((wider[name] > 0.5).sum() > (masks[name] > 0.5).sum() for name in maps)
    assert all(mask.max() == 1 and mask.min() >= 0 for mask in (*masks.values(), *wider.values()))


def test_characters_in_one_place_and_specks_are_no_regions():
    assert frame_masks({"Mia": blob(8, 8), "Otto": blob(8, 8.4)}, 1) is None
    speck = torch.full((16, 16), 0.1)
    speck[3, 3] = 1
    assert frame_masks({"Mia": speck}, 1) is None
    maps = {"Mia": torch.stack([speck, blob(8, 4), blob(8, 4)])}
    masks, unclear = region_masks(maps, (("Mia",), ("Mia",), ()), 1)
    assert unclear == [0] and (masks["Mia"][0] == 1).all() and masks["Mia"][1].max() == 1 and not masks["Mia"][2].any()
