"""Takes of a story: drawn from other noise, picked on a contact sheet, and nothing drawn again by another pick."""

import numpy as np
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from graphs import empty, encode, positive, random, sample, story
from onestory.nodes.latent import OneStoryLatent
from onestory.nodes.takes import OneStoryPickTakes
from onestory.pages.board import PAPER
from onestory.pages.contact_sheet import CHOSEN, draw_contact_sheet
from onestory.svr.record import KEY
from test_server import graph as server_graph

TALE = story("a red fox", "runs", "sleeps", "eats", "swims")


def latents(**inputs):
    return OneStoryLatent.execute(TALE, 64, 40, "same", **inputs).result[0]


def pick(images, picks="", **more):
    return OneStoryPickTakes.execute(images, [TALE], [picks], **more).result


def takes(count=3, channels=3):
    return [random([4, 24, 32, channels], n) for n in range(count)]


# --- Story Latent -----------------------------------------------------------------------------------------------------


def test_one_take_is_the_latent_that_it_always_was():
    (latent,) = latents(noise_ids="0,0,5,0")
    assert latent["batch_index"] == [0, 0, 5, 0]
    assert set(latent) == {"samples", "batch_index", "downscale_ratio_spacial"} and not latent["samples"].any()


def test_a_take_is_what_its_noise_ids_draw(sd):
    conditioning, negative = positive(sd.clip, TALE), encode(sd.clip, "blurry")
    drawn = [sample(sd.model, conditioning, negative, latent) for latent in latents(noise_ids="0,0,5,0", takes=3)]
    for take, ids in enumerate(("0,0,5,0", "100,100,105,100", "200,200,205,200")):
        assert torch.equal(drawn[take], sample(sd.model, conditioning, negative, empty(TALE, 64, 40, noise_ids=ids)))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1]))


def test_another_number_of_takes_leaves_the_first_ones_as_they_are():
    few, many = latents(takes=2), latents(takes=5)
    assert [take["batch_index"] for take in many[:2]] == [take["batch_index"] for take in few]


def test_frames_to_start_from_get_the_storys_noise_numbers():
    mask = random([1, 40, 64])
    encoded = {"samples": random([4, 16, 9, 11]), "noise_mask": mask}
    (latent,) = latents(noise_ids="0,0,5,0", latent=encoded)
    assert latent["samples"] is encoded["samples"] and latent["noise_mask"] is mask
    assert latent["batch_index"] == [0, 0, 5, 0] and "batch_index" not in encoded
    for wrong in ({"samples": random([3, 4, 5, 8])}, {"samples": random([4, 4, 5, 8]), KEY: "run"}):
        with pytest.raises(ValueError, match=r"Story Latent's `latent` has \d frames and the story 4: wire one batch"):
            latents(latent=wrong)


# --- Pick Takes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, expected", [("2,1,1,3", [1, 0, 0, 2]), (" ３、1 2\n2;", [2, 0, 1, 1]), ("", [0] * 4)])
@pytest.mark.parametrize("joined", [False, True], ids=["list", "one batch"])
def test_frames_and_latents_come_from_the_picked_takes(text, expected, joined):
    images = takes()
    drawn = [{"samples": random([4, 4, 3, 4], 9 + n), "batch_index": [n, n, n + 5, n]} for n in range(3)]
    given = [torch.cat(images)] if joined else images
    picked, latent, sheet, text_ = pick(given, text, latent=drawn)
    assert torch.equal(picked, torch.stack([images[take][frame] for frame, take in enumerate(expected)]))
    assert torch.equal(latent["samples"], torch.stack([drawn[t]["samples"][f] for f, t in enumerate(expected)]))
    assert latent["batch_index"] == [drawn[t]["batch_index"][f] for f, t in enumerate(expected)]
    assert text_ == "picked: " + ",".join(str(take + 1) for take in expected)
    assert sheet.ndim == 4 and len(sheet) == 1


def test_without_latents_their_output_says_what_to_wire():
    latent = pick(takes(), "1,1,1,1")[1]
    assert isinstance(latent, ExecutionBlocker) and "wire the sampler's into its input `latent`" in latent.message


@pytest.mark.parametrize("picks, first", [("", 0), ("3,1,1,1", 2)])
def test_suggestions_are_the_takes_most_like_the_chosen_first_frame(picks, first):
    vectors = [random([4, 16], n).double().numpy() - 0.4 for n in range(3)]
    chosen = vectors[first][0]

    def cosine(vector):
        return (
            sum(a * b for a, b in zip(vector, chosen))
            / (sum(a * a for a in vector) * sum(b * b for b in chosen)) ** 0.5
        )

    best = [first] + [max(range(3), key=lambda t, f=frame: cosine(vectors[t][f])) for frame in (1, 2, 3)]
    images = takes()
    picked, _, _, text = pick(images, picks, vectors=vectors)
    assert f"suggested: {','.join(str(take + 1) for take in best)}" in text
    assert f"{cosine(vectors[1][2]):.4f}" in text
    want = best if not picks else [2, 0, 0, 0]
    assert torch.equal(picked, torch.stack([images[take][frame] for frame, take in enumerate(want)]))


@pytest.mark.parametrize(
    "picks, said",
    [
        ("2,1,1", "picks has 3 numbers and the story 4 frames: write the take of each frame"),
        ("1", "picks has 1 number and the story 4 frames"),
        ("2,1,1,4", "picks has “4”: write a number from 1 to 3 for each frame, such as 1,2,3,1"),
        ("0,1,1,1", "picks has “0”"),
        ("a,1,1,1", "picks has “a”"),
        ("1.5,1,1,1", "picks has “1.5”"),
    ],
)
def test_picks_that_are_none_are_a_sentence_each(picks, said):
    with pytest.raises(ValueError, match=said):
        pick(takes(), picks)


def test_what_does_not_go_together_is_a_sentence_each():
    with pytest.raises(ValueError, match="has 3 images in batch 2 and the story 4 frames"):
        pick([takes()[0], takes()[1][:3]])
    with pytest.raises(ValueError, match="has pictures of 32 x 16 and of 32 x 24: draw all takes at one size"):
        pick([takes()[0], takes()[1][:, :16]])
    with pytest.raises(ValueError, match="measured 4 pictures and Pick Takes has 12: wire the same images into both"):
        pick(takes(), vectors=[np.ones((4, 3))])
    with pytest.raises(ValueError, match="has 4 latents and 12 pictures: wire `latent` from where VAE Decode has it"):
        pick(takes(), latent=[{"samples": random([4, 4, 3, 4])}])


# --- the contact sheet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, frames, size", [(1, 1, (8, 8)), (3, 4, (64, 64)), (2, 13, (96, 24)), (2, 3, (24, 96)), (9, 2, (8, 8))]
)
def test_every_take_of_every_frame_is_on_the_sheet_whole_and_only_the_picked_ones_are_framed(count, frames, size):
    """Each picture has a colour of its own; a picked one has a border in the colour of choice around it."""
    total = count * frames
    shades = np.linspace(0.1, 0.9, total, dtype=np.float32)
    colours = np.stack([shades, shades[::-1], np.full_like(shades, 0.5)], -1).reshape(count, frames, 1, 1, 3)
    images = np.broadcast_to(colours, (count, frames, *size, 3))
    picks = [frame % count for frame in range(frames)]
    captions = [
        "A caption that is rather long for a small column, and longer.",
        "一个很长很长很长很长很长很长的图注",
        "",
    ] * 5
    sheet = draw_contact_sheet(images, captions[:frames], picks)
    for take in range(count):
        for frame in range(frames):
            same = (np.abs(sheet - colours[take, frame, 0, 0]) < 1 / 255).all(-1)
            rows, columns = np.flatnonzero(same.any(1)), np.flatnonzero(same.any(0))
            assert len(rows) and len(columns)
            bottom, right = rows[-1], columns[-1]
            framed = (np.abs(sheet[bottom + 1 : bottom + 5, right - 1] - CHOSEN) < 1e-6).all()
            assert framed == (picks[frame] == take)
    edge = np.concatenate([sheet[:8].reshape(-1, 3), sheet[:, :8].reshape(-1, 3), sheet[:, -8:].reshape(-1, 3)])
    assert (np.abs(edge - PAPER) < 1e-6).all(), "nothing is cut at the sheet's edges"


# --- on the server ----------------------------------------------------------------------------------------------------


def test_takes_are_drawn_measured_suggested_and_picked_by_comfyui_itself(server):
    def link(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    graph = server_graph("a red fox", "runs\nsleeps\neats")
    graph["latent"]["inputs"]["takes"] = 2
    graph |= {
        "eye": link("CLIPVisionLoader", clip_name="clip.pt"),
        "metrics": link("OneStoryMetrics", images=["pictures", 0], clip_vision=["eye", 0]),
        "pick": link(
            "OneStoryPickTakes", images=["pictures", 0], story=["script", 0], picks="", latent=["sampler", 0],
            vectors=["metrics", 3],
        ),
        "redraw": link("SaveLatent", samples=["pick", 1], filename_prefix="picked"),
    }  # fmt: skip
    graph["board"]["inputs"]["images"] = ["pick", 0]
    outputs = server.run(graph)
    picked, suggested, first, second = outputs["pick"]["text"][0].splitlines()
    assert picked.removeprefix("picked: ") == suggested.removeprefix("suggested: ")
    rows = [[float(value) for value in line.split(": ")[1].split()] for line in (first, second)]
    assert rows[0][0] == 1.0
    best = [1, *(1 + (rows[1][frame] > rows[0][frame]) for frame in (1, 2))]
    assert suggested == "suggested: " + ",".join(map(str, best))
    assert len(outputs["metrics"]["images"]) == 2, "a heat map for each take"
    assert len(outputs["save frames"]["images"]) == 6 and len(outputs["save board"]["images"]) == 1
    del graph["pick"]["inputs"]["latent"]
    errors = []
    server.run(graph, lambda kind, data: errors.append(data) if kind == "execution_error" else None)
    assert [error["node_id"] for error in errors] == ["redraw"]
    assert "Pick Takes has no latent to hand on: wire the sampler's into its input" in errors[0]["exception_message"]
