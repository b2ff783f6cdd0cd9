"""Story Metrics: the similarity of frames against a plain formula, on pictures and on subjects cut out of them."""

import math

import numpy as np
import pytest
import torch
import vision
from graphs import random, story
from onestory.nodes.cast import Member
from onestory.nodes.metrics import OneStoryMetrics, embed, subjects
from onestory.pages.matrix import pool
from onestory.pages.sheet import WIDTH
from onestory.pages.similarity import MOST_PAIRS, cut_out, describe, mean_pairwise, similarities, steps_of
from onestory.pages.similarity_sheet import MOST_FRAMES, draw_similarity, lay_out
from PIL import Image

import nodes

pytestmark = pytest.mark.usefixtures("temporary")

FRAMES = 4
PAIRS = [(i, j) for i in range(FRAMES) for j in range(i)]


@pytest.fixture(scope="module")
def clip():
    return vision.tiny(vision.TINY_CLIP)


@pytest.fixture(scope="module")
def images():
    """Frames of 48 x 80 pixels that differ in colour and in detail."""
    tint = random([FRAMES, 1, 1, 3], seed=1)
    return 0.7 * tint + 0.3 * random([FRAMES, 48, 80, 3], seed=2)


@torch.inference_mode()
def run(*args):
    return OneStoryMetrics.execute(*args)


def cosine(a, b) -> float:
    """The plain formula, number by number in float64."""
    a, b = ([float(x) for x in vector] for vector in (a, b))
    dot, aa, bb = (sum(x * y for x, y in zip(u, v)) for u, v in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(aa * bb)


# --- the number -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [vision.TINY_CLIP, vision.TINY_DINO], ids=["CLIP", "DINOv2"])
def test_the_similarity_is_the_mean_cosine_of_all_pairs(config, images):
    model = vision.tiny(config)
    with torch.inference_mode():
        vectors = [model.encode_image(images[i : i + 1])["image_embeds"][0] for i in range(FRAMES)]
    wanted = sum(cosine(vectors[i], vectors[j]) for i, j in PAIRS) / len(PAIRS)
    assert run(images, model).result[0] == pytest.approx(wanted, abs=1e-9)
    assert wanted < 0.999


def test_a_clip_models_vector_is_its_projected_image_embedding(clip, images):
    """The class token behind the last norm and the projection (CLIP, section 2.4), not any hidden state."""
    with torch.inference_mode():
        found = embed(clip, list(images.split(1)))
        hidden = clip.encode_image(images)["last_hidden_state"]
        model = clip.model
        wanted = model.visual_projection(model.vision_model.post_layernorm(hidden[:, 0]))
    np.testing.assert_allclose(found, wanted.double().numpy(), rtol=1e-4, atol=1e-5)


def test_a_dino_models_vector_is_its_class_token(images):
    dino = vision.tiny(vision.TINY_DINO)
    with torch.inference_mode():
        found = embed(dino, list(images.split(1)))
        wanted = dino.encode_image(images)["last_hidden_state"][:, 0]
    np.testing.assert_allclose(found, wanted.double().numpy(), rtol=1e-4, atol=1e-5)


def test_frames_are_measured_each_alone(clip, images):
    """The other frames of a batch change nothing about a pair."""
    pair = run(images[:2], clip).result[0]
    three = run(images[:3], clip).result[2]
    assert f"{pair:.4f}" in three


def test_equal_frames_have_similarity_1(clip, images):
    similarity, heat_map, text, _ = run(images[:1].expand(3, -1, -1, -1), clip).result
    assert similarity == pytest.approx(1.0, abs=1e-6)
    assert text.startswith("mean 1.0000 over 3 pairs of 3 frames")


def test_a_fourth_channel_does_not_count(clip, images):
    with_alpha = torch.cat([images, random([FRAMES, 48, 80, 1])], dim=-1)
    assert run(with_alpha, clip).result[0] == run(images, clip).result[0]


def test_similarities_of_known_vectors():
    matrix = similarities(np.array([[1.0, 0], [0, 2], [-3, 0], [5, 5]]))
    half = math.sqrt(0.5)
    wanted = [[1, 0, -1, half], [0, 1, 0, half], [-1, 0, 1, -half], [half, half, -half, 1]]
    np.testing.assert_allclose(matrix, wanted, atol=1e-15)
    assert mean_pairwise(matrix) == pytest.approx((0 - 1 + half + 0 + half - half) / 6)


def test_a_vector_of_nothing_or_of_no_numbers_is_an_error():
    for bad in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="answer to frame 2 is no usable vector"):
            similarities(np.array([[1.0, 0.0], [bad, 0.0]]))


# --- the subject ------------------------------------------------------------------------------------------------------


def test_the_background_does_not_count(clip, images):
    mask = torch.zeros(1, 48, 80)
    mask[:, 10:30, 20:50] = 1
    other = torch.where(mask[..., None] > 0, images, random([FRAMES, 48, 80, 3], seed=9))
    assert run(other, clip).result[0] != run(images, clip).result[0]
    assert run(other, clip, mask).result[0] == run(images, clip, mask).result[0]


def test_where_the_subject_stands_does_not_count(clip):
    subject = random([12, 16, 3])
    frames, masks = torch.zeros(2, 48, 80, 3), torch.zeros(2, 48, 80)
    for i, (top, left) in enumerate([(0, 20), (36, 44)]):
        frames[i, top : top + 12, left : left + 16] = subject
        masks[i, top : top + 12, left : left + 16] = 1
    assert run(frames, clip).result[0] < 1 - 1e-6
    assert run(frames, clip, masks).result[0] == pytest.approx(1.0, abs=1e-9)


def test_a_subject_is_cut_out_as_a_square_that_fades_to_grey():
    image = np.full((6, 10, 3), 0.9)
    mask = np.zeros((6, 10))
    mask[2:4, 8:10] = 1
    mask[2, 5:8] = 0.5, 0.6, 0.75  # columns 5 to 9: twice as wide as high
    mask[5, 0] = 0.4  # too faint to belong to it
    cut = cut_out(image, mask)
    assert cut.shape == (5, 5, 3)
    wanted = np.full((5, 5), 0.5)
    wanted[1] = 0.7, 0.74, 0.8, 0.9, 0.9
    wanted[2, 3:] = 0.9
    np.testing.assert_allclose(cut, np.repeat(wanted[..., None], 3, -1))


def test_a_square_that_leaves_the_picture_is_grey_there():
    cut = cut_out(np.zeros((2, 9, 3)), np.ones((2, 9)))
    assert cut.shape == (9, 9, 3)
    np.testing.assert_array_equal(cut[:, 0, 0], [0.5] * 3 + [0] * 2 + [0.5] * 4)


def test_one_mask_serves_all_frames_and_may_have_another_size(images):
    mask = torch.zeros(1, 24, 40)
    mask[:, :12, :12] = 1
    pictures = subjects(images, mask)
    assert [picture.shape for picture in pictures] == [(1, 24, 24, 3)] * FRAMES
    torch.testing.assert_close(pictures[2][0, :20, :20], images[2, :20, :20])


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_the_text_has_every_pair_from_the_most_alike_down():
    matrix = np.array([[1, 0.25, 0.5], [0.25, 1, 0.75], [0.5, 0.75, 1]])
    assert describe(matrix, ["oak", "", "boat"]).splitlines() == [
        "mean 0.5000 over 3 pairs of 3 frames",
        "2 – 3  0.7500  boat",
        "1 – 3  0.5000  oak – boat",
        "1 – 2  0.2500  oak",
    ]


def test_frames_are_named_by_their_captions(clip, images):
    tale = story("a fox", "reading # Once", "running", "sleeping # Good night", "dreaming")
    text = run(images, clip, None, tale).result[2]
    assert "Once – running" in text and "Good night – dreaming" in text
    assert "Once – Once" in run(images.repeat(2, 1, 1, 1), clip, None, tale).result[2]


def test_the_node_shows_heat_map_text_and_number(clip, images, tmp_path):
    output = run(images, clip)
    similarity, heat_map, text, _ = output.result
    assert heat_map.shape[0] == 1 and heat_map.shape[2:] == (WIDTH, 3) and heat_map.dtype == torch.float32
    (shown,) = output.ui["images"]
    assert Image.open(tmp_path / shown["filename"]).size == (WIDTH, heat_map.shape[1])
    assert output.ui["text"] == (text,) and output.ui["similarity"] == (similarity,)


@pytest.mark.parametrize("frames", [2, 3, 12, 40, 120, 374, MOST_FRAMES + 1, 2000])
def test_everything_stays_on_the_page(frames):
    matrix = similarities(random([frames, 8]).numpy())
    names = ["A very long caption that has to be shortened to fit beside its row, in any case at all"] * frames
    page = lay_out(matrix, names)
    assert all(0 <= b.left < b.right <= WIDTH and 0 <= b.top < b.bottom <= page.y for b, _, _ in page.shapes)
    assert all(0 <= w.x <= w.x + w.text.width <= WIDTH and w.baseline + w.text.descent <= page.y for w in page.words)
    assert all(left + p.shape[1] <= WIDTH and top + p.shape[0] <= page.y for left, top, p in page.pictures)
    assert draw_similarity(matrix, names).shape == (page.y, WIDTH, 3)
    said = [word.text.text for word in page.words if "means of" in word.text.text]
    assert bool(said) == (frames > MOST_FRAMES)


def test_frames_that_share_a_square_show_the_mean_of_their_pairs():
    matrix = np.array([[1, 0.9, 0.5, 0.3, 0], [0.9, 1, 0.1, 0.1, 0.2], [0.5, 0.1, 1, 0.7, 0], [0.3, 0.1, 0.7, 1, 0]])
    matrix = np.vstack([matrix, [0, 0.2, 0, 0, 1]])
    cells, shared = pool(matrix, 3)
    assert shared == 2
    np.testing.assert_allclose(cells, [[0.9, 0.25, 0.1], [0.25, 0.7, 0], [0.1, 0, 1]], atol=1e-12)
    assert pool(matrix, 5)[1] == 1


def test_right_to_left_names_end_at_the_heat_map():
    matrix = np.array([[1, 0.9], [0.9, 1]])
    words = {word.text.text: word for word in lay_out(matrix, ["الثعلب", "a fox"]).words}
    arabic, latin = words["الثعلب"], words["a fox"]
    assert latin.x < arabic.x and arabic.x + arabic.text.width == pytest.approx(360 - 14)


def test_the_text_of_very_many_pairs_leaves_out_the_middle():
    n = 700
    matrix = similarities(random([n, 8]).numpy())
    lines = describe(matrix, [""] * n).splitlines()
    assert len(lines) == MOST_PAIRS + 2
    assert lines[1 + MOST_PAIRS // 2] == f"… {n * (n - 1) // 2 - MOST_PAIRS} pairs between"
    values = [float(line.split()[-1]) for line in lines[1:] if line[0] != "…"]
    assert values == sorted(values, reverse=True)


def test_more_alike_is_paler_and_a_frames_pair_with_itself_stays_plain():
    matrix = np.array([[1, 0.9, 0.3], [0.9, 1, 0.6], [0.3, 0.6, 1]])
    cells = [shape for shape in lay_out(matrix, [""] * 3).shapes if shape.radius == 4]
    light = np.array([cell.colour.sum() for cell in cells]).reshape(3, 3)
    assert light[0, 1] > light[1, 2] > light[0, 2]
    assert light[0, 0] == light[1, 1] == light[2, 2]
    np.testing.assert_array_equal(light, light.T)


@pytest.mark.parametrize("pairs", [(0.31, 0.92), (0.9, 0.9), (1.0, 1.0), (-1.0, 1.0), (0.97, 0.99)])
def test_the_colour_scale_holds_every_pair(pairs):
    low, high = steps_of(np.array([[1, pairs[0], pairs[1]], [pairs[0], 1, pairs[1]], [pairs[1], pairs[1], 1]]))
    assert low <= min(pairs) <= max(pairs) <= high and high - low > 0.04


# --- what can't be measured -------------------------------------------------------------------------------------------


def test_one_frame_is_an_error(clip, images):
    with pytest.raises(ValueError, match="Story Metrics has one frame only: wire two or more"):
        run(images[:1], clip)
    with pytest.raises(ValueError, match="one frame only"):
        similarities(np.ones((1, 4)))


def test_masks_that_do_not_match_are_an_error(clip, images):
    with pytest.raises(ValueError, match="has 3 masks and 4 frames: give one mask for each frame, or one for all"):
        run(images, clip, torch.ones(3, 48, 80))


def test_an_empty_mask_names_its_frame(clip, images):
    masks = torch.ones(FRAMES, 48, 80)
    masks[2] = 0
    with pytest.raises(ValueError, match="The mask of frame 3 is empty"):
        run(images, clip, masks)


def test_a_model_without_one_vector_for_a_picture_is_an_error(images):
    model = vision.tiny(vision.TINY_SIGLIP)
    with pytest.raises(ValueError, match=r"vision model \(siglip_vision_model\) gives no single vector .* or DINOv2"):
        run(images, model)


def test_a_checkpoint_without_a_vision_model_is_an_error(images):
    with pytest.raises(ValueError, match="clip_vision input is empty: .* Load CLIP Vision"):
        run(images, None)


# --- with ComfyUI's own loader ----------------------------------------------------------------------------------------


def test_a_dino_model_from_comfyuis_loader_is_measured(tmp_path, monkeypatch):
    """A CLIP model from a file is measured on the server, in test_quality_servers.py."""
    vision.write_dino(tmp_path / "dino.pt")
    monkeypatch.setattr("folder_paths.get_full_path_or_raise", lambda kind, name: str(tmp_path / name))
    (model,) = nodes.CLIPVisionLoader().load_clip("dino.pt")
    model.image_size = 28  # it takes any; 518 would be minutes of CPU time
    similarity, _, text, _ = run(torch.stack([torch.zeros(32, 32, 3), random([32, 32, 3])]), model).result
    assert 0 < similarity < 1 - 1e-7
    assert text.startswith(f"mean {similarity:.4f} over 1 pair of 2 frames")


# --- against the cast's pictures -------------------------------------------------------------------------------------


def test_the_text_tells_of_each_character_how_like_its_pictures_its_frames_are(clip, images):
    tale = story(
        "[Mia] a fox\n[Otto] an owl\n[Ada] a cat", "[Mia] runs", "[Mia] and [Otto] talk", "[NC] rain", "[Otto] sits"
    )
    pictures = {"Mia": random([2, 40, 40, 3], 7), "Otto": random([1, 48, 30, 3], 8)}
    mask = torch.zeros(1, 48, 30)
    mask[:, 10:30, 5:25] = 1
    cast = (
        Member("Mia", pictures["Mia"]), Member("Otto", pictures["Otto"], mask), Member("Ada", pictures["Mia"])
    )  # fmt: skip
    text = run(images, clip, None, tale, cast).result[2]
    alone = 0.5 + (pictures["Otto"] - 0.5) * mask[..., None]
    with torch.inference_mode():
        frames = [clip.encode_image(images[i : i + 1])["image_embeds"][0] for i in range(FRAMES)]
        mia = [clip.encode_image(pictures["Mia"][i : i + 1])["image_embeds"][0] for i in range(2)]
        otto = clip.encode_image(alone[:, 10:30, 5:25])["image_embeds"][0]
    wanted = (
        sum(cosine(frames[i], each) for i in (0, 1) for each in mia) / 4,
        sum(cosine(frames[i], otto) for i in (1, 3)) / 2,
    )
    assert text.splitlines()[:3] == [
        f"Mia: {wanted[0]:.4f} between 2 frames and 2 pictures",
        f"Otto: {wanted[1]:.4f} between 2 frames and 1 picture",
        "Ada: in no frame",
    ]
    assert text.splitlines()[3:] == run(images, clip, None, tale).result[2].splitlines()


def test_a_cast_without_its_story_gets_a_sentence(clip, images):
    cast = (Member("", images),)
    with pytest.raises(ValueError, match="has a cast and no story: wire `story` too"):
        run(images, clip, None, None, cast)
    with pytest.raises(ValueError, match="has 4 pictures and a cast for a story of 1 frame:"):
        run(images, clip, None, story("a fox", "runs"), cast)
    with pytest.raises(ValueError, match="The mask of picture 1 of the character is empty"):
        run(images, clip, None, story("a fox", *"abcd"), (Member("", images, torch.zeros(4, 48, 80)),))
