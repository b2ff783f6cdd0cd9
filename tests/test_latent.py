"""Story Latent: which frames start from the same noise, and re-rolling one frame."""

import pytest
import torch
from graphs import empty, encode, ipca, positive, sample, sample_advanced, self_attention, story
from onestory.story.script import parse_script

FRAMES = "runs", "sleeps", "eats fish", "swims"


@pytest.fixture(scope="module")
def tale():
    return story("a red fox", *FRAMES)


@pytest.fixture(scope="module")
def prompts(sd, tale):
    return positive(sd.clip, tale), encode(sd.clip, "blurry")


def test_a_latent_has_a_row_for_each_frame_and_the_pictures_size(tale):
    latent = empty(tale, 72, 40)
    assert latent["samples"].shape == (4, 4, 5, 9) and not latent["samples"].any()
    assert latent["downscale_ratio_spacial"] == 8


@pytest.mark.parametrize(
    ("inputs", "ids"),
    [
        ({"noise": "same"}, [0, 0, 0, 0]),
        ({"noise": "different"}, [0, 1, 2, 3]),
        ({"noise": "same", "noise_ids": "0,0,5,0"}, [0, 0, 5, 0]),
        ({"noise": "different", "noise_ids": "0, 0 5\n0,"}, [0, 0, 5, 0]),
        ({"noise": "different", "noise_ids": "  \n"}, [0, 1, 2, 3]),
        ({"noise_ids": "9999,1,1,0"}, [9999, 1, 1, 0]),
    ],
)
def test_noise_ids_override_the_choice_of_noise(tale, inputs, ids):
    assert empty(tale, **inputs)["batch_index"] == ids


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0,0,5", 3), ("1,2,3,4,5", 5), (", ,", 0)])
def test_another_count_is_a_sentence_with_both_numbers(tale, text, count):
    with pytest.raises(ValueError) as error:
        empty(tale, noise_ids=text)
    assert str(error.value) == (
        f"noise_ids has {count} numbers and the story 4 frames: write one number for each frame, or leave it empty."
    )


@pytest.mark.parametrize("word", ["x", "-1", "1.5", "10000", "²", "٣", "1;2", "0x1", "99999999999999999999"])
def test_what_is_no_small_whole_number_is_a_sentence_that_names_it(tale, word):
    with pytest.raises(ValueError) as error:
        empty(tale, noise_ids=f"0,0,{word},0")
    assert str(error.value) == f"noise_ids has “{word}”: write whole numbers from 0 to 9999, such as 0,0,5,0."


def changed_frames(a, b) -> list[bool]:
    return [not torch.equal(x, y) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("sampler", [sample, sample_advanced], ids=["KSampler", "SamplerCustomAdvanced"])
def test_a_changed_noise_id_re_rolls_that_frame_alone(sd, tale, prompts, sampler):
    def run(ids):
        return sampler(ipca(sd.model), *prompts, empty(tale, 64, 40, noise_ids=ids))

    first = run("0,0,0,0")
    assert changed_frames(run("0,0,5,0"), first) == [False, False, True, False]
    assert changed_frames(run("7,7,5,7"), run("0,0,5,0")) == [True, True, False, True]


def test_with_self_attention_a_frame_that_is_no_anchor_is_re_rolled_alone(sd, tale, prompts):
    model = self_attention(ipca(sd.model), anchors=2)
    first, second, third = (
        sample(model, *prompts, empty(tale, 64, 40, noise_ids=ids)) for ids in ("0,0,0,0", "0,0,5,0", "0,5,0,0")
    )
    assert changed_frames(first, second) == [False, False, True, False]
    assert changed_frames(first, third) == [True, True, True, True]


@pytest.mark.parametrize("sampler", [sample, sample_advanced], ids=["KSampler", "SamplerCustomAdvanced"])
def test_equal_prompts_from_the_same_noise_give_equal_frames_and_from_different_noise_others(sd, prompts, sampler):
    tale = parse_script("a red fox", "runs\nruns")
    conditioning = positive(sd.clip, tale, svr=False)
    same, different = (
        sampler(sd.model, [[conditioning[0][0][:1].repeat(2, 1, 1), conditioning[0][1]]], prompts[1],
                empty(tale, 64, 40, noise=noise))
        for noise in ("same", "different")
    )  # fmt: skip
    assert torch.allclose(same[0], same[1], atol=1e-5)
    assert not torch.allclose(different[0], different[1], atol=1e-1)
