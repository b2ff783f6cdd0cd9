"""Stories frame by frame for edit models, and films: lists that ComfyUI runs once for each item."""

import pytest
import torch
from graphs import random, story
from onestory.nodes.cast import OneStoryCast
from onestory.nodes.film import OneStoryJoinClips, OneStoryTransitions
from onestory.nodes.frames import OneStoryCollectFrames, OneStoryFrames
from onestory.nodes.types import STORY_CAST
from studio import saved
from test_server import node

LINES = "[Mia] runs", "[Otto] and [Mia] talk", "[NC] a castle", "[Otto] sleeps # Zzz"
TALE = story("[Mia] a girl\n[Otto] an owl", *LINES)
MIA, OTTO = random([2, 16, 24, 3], 1), random([1, 24, 16, 3], 2)
SETTINGS = {
    "template": "{pictures} {identity}. {frame}",
    "pictures": "Picture {number} is {name}",
    "missing": "white picture",
    "seed": 7,
    "same_seed": False,
    "file_prefix": "tale",
}
STORY_OF_ONE = story("a fox", "runs", "sleeps")


def member(images, character="", cast=None, tale=TALE, **more):
    return OneStoryCast.execute(tale, images, character, cast=cast, **more).result[0]


CAST = member(OTTO, "[otto]", member(MIA, "Mia"))


def frames(tale=TALE, cast=CAST, **changed):
    return OneStoryFrames.execute(tale, cast=cast, **SETTINGS | changed).result


def film(clips=None, number=None, images=None, hold=1, fade=0):
    return OneStoryJoinClips.execute([hold], [fade], clips, number, images).result[0]


# --- Story Cast -------------------------------------------------------------------------------------------------------


def test_a_cast_has_each_characters_pictures_and_those_of_the_same_one_add_up():
    mask, face = random([1, 16, 24], 3), random([1, 512], 4)
    cast = member(MIA[:1], "mia", CAST, mask=mask, face=face)
    assert STORY_CAST.io_type == "STORY_CAST" and [one.name for one in cast] == ["Mia", "Otto"]
    assert torch.equal(cast[0].images, torch.cat([MIA, MIA[:1]])) and torch.equal(cast[0].face, face)
    assert torch.equal(cast[0].mask, torch.cat([torch.ones(2, 16, 24), mask]))
    assert [one.name for one in CAST] == ["Mia", "Otto"] and len(CAST[0].images) == 2 and CAST[0].mask is None
    assert member(MIA, tale=STORY_OF_ONE)[0].name == ""
    faces = random([2, 20, 20, 4], 5)
    [both, _] = member(MIA, "Mia", member(MIA, "Mia", CAST, face_pictures=faces), face_pictures=faces[:1, :10])
    assert torch.equal(both.crops[:2], faces[..., :3]) and both.crops.shape == (3, 20, 20, 3)


@pytest.mark.parametrize(
    "character, more, said",
    [
        ("", {}, r"whose pictures these are: write \[Mia\] or \[Otto\] in `character`"),
        ("Mio", {}, r"has “Mio” as `character`, and the story has \[Mia\] and \[Otto\]: write one"),
        ("Mia", {"tale": STORY_OF_ONE}, "the story's one character has no name: leave `character` empty"),
        ("Otto", {"cast": CAST}, r"pictures of \[Otto\] of 16 x 24 and of 24 x 16: resize them"),
        ("Mia", {"mask": torch.ones(3, 16, 24)}, "has 3 masks and 2 pictures: give one mask for all"),
        ("Mia", {"mask": torch.ones(1, 64, 64)}, "has a mask of 64 x 64 and pictures of 24 x 16"),
        ("Mia", {"face": torch.ones(1, 128)}, "has a face of 1 x 128 numbers: an embedding has 512"),
    ],
)
def test_a_wrong_member_is_a_sentence(character, more, said):
    with pytest.raises(ValueError, match=said):
        member(MIA, character, **more)


# --- Story Frames -----------------------------------------------------------------------------------------------------


def test_each_frame_gets_its_prompt_and_the_pictures_of_those_it_shows():
    prompts, references, first, second, third, captions, seeds, names, numbers = frames()
    assert prompts == [
        "Picture 1 is Mia. a girl. runs",
        "Picture 1 is Mia, picture 2 is Otto. a girl and an owl. talk",
        "a castle",
        "Picture 1 is Otto. an owl. sleeps",
    ]
    assert captions[3] == "Zzz" and seeds == [7, 8, 9, 10] and numbers == [1, 2, 3, 4]
    assert names == ["tale_01", "tale_02", "tale_03", "tale_04"]
    white = torch.ones(1, 16, 24, 3)
    places = [MIA[:1], MIA[:1], white, OTTO], [white, OTTO, white, white], [white] * 4
    for got, want in zip((first, second, third), places):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert [len(batch) for batch in references] == [2, 3, 1, 1] and torch.equal(references[1][:2], MIA)
    fitted = references[1][2]
    assert (fitted[:, :6] == 1).all() and (fitted[:, 18:] == 1).all() and fitted[:, 8:16].mean() < 0.7
    assert torch.equal(references[3], OTTO)


def test_what_is_missing_may_be_nothing_or_an_error_that_names_the_frame():
    _, references, first, second, *_ = frames(missing="nothing")
    assert references[2] is None and first[2] is None and second[0] is None
    assert torch.equal(second[1], OTTO)
    with pytest.raises(ValueError, match="has no picture for frame 3, which shows nobody of the cast: add"):
        frames(missing="error")


def test_templates_and_single_frames():
    changed = {"template": "{frame}; {characters}, ({caption})", "frames": "4, 2", "same_seed": True}
    prompts, *_, seeds, names, numbers = frames(**changed)
    assert prompts[1] == "sleeps; Otto, (Zzz)" and seeds == [7, 7] and numbers == [2, 4] and names[1] == "tale_04"
    assert frames(STORY_OF_ONE, None)[0] == ["a fox. runs", "a fox. sleeps"]
    assert frames(STORY_OF_ONE, member(MIA, tale=STORY_OF_ONE))[0][0] == "Picture 1 is a fox. a fox. runs"
    with pytest.raises(ValueError, match=r"template has \{place\}, which is not a placeholder: it may"):
        frames(template="{place}")
    with pytest.raises(ValueError, match=r"pictures has \{who\}"):
        frames(pictures="{who}")
    with pytest.raises(ValueError, match=r"\[Mia\] in the cast and not in the story: wire the same story"):
        frames(STORY_OF_ONE)


def collect(images, number=None, earlier=None):
    return OneStoryCollectFrames.execute(images, [TALE], number, earlier).result[0]


def test_pictures_come_back_in_the_storys_order_and_single_ones_are_redone():
    drawn = [random([1, 8, 12, 3], n) for n in range(4)]
    whole = collect(drawn)
    assert torch.equal(whole, torch.cat(drawn)) and torch.equal(collect(drawn[::-1], [4, 3, 2, 1]), whole)
    new = random([1, 8, 12, 3], 9)
    redone = collect([new], [3], [whole])
    assert torch.equal(redone[2:3], new) and torch.equal(redone[[0, 1, 3]], whole[[0, 1, 3]])
    for args, said in (
        (([new],), "has 1 picture for 4 frames: draw one picture for each"),
        (([],), "has 0 pictures for 4 frames: draw one picture for each"),
        (([new, new], [3, 3], [whole]), "has two pictures for frame 3: wire `number` from one Story Frames"),
        (([new], [3]), "lacks frame 1 of 4: let Story Frames draw all, or wire"),
        (([new], [5], [whole]), "has number 5, and the story has 4 frames"),
        (([new], [3], [whole[:2]]), "`earlier` has 2 pictures and the story 4 frames"),
    ):
        with pytest.raises(ValueError, match=said):
            collect(*args)


# --- on the server ----------------------------------------------------------------------------------------------------


def test_pictures_reach_their_frames_through_comfyuis_own_nodes_and_a_film_is_saved(server):
    """Colours stand for characters; core's nodes run once for each frame and for each pair."""

    def colour(value):
        return node("EmptyImage", width=32, height=32, batch_size=1, color=value)

    graph = {
        "script": node(
            "OneStoryScript",
            identity="[Mia] a girl\n[Otto] an owl",
            frames="[Mia] runs\n[Mia] and [Otto] talk\n[NC] a castle\n[Otto] sleeps",
        ),
        "red": colour(0xFF0000),
        "blue": colour(0x0000FF),
        "mia": node("OneStoryCast", story=["script", 0], images=["red", 0], character="Mia"),
        "otto": node("OneStoryCast", story=["script", 0], images=["blue", 0], character="Otto", cast=["mia", 0]),
        "frames": node("OneStoryFrames", story=["script", 0], cast=["otto", 0], **SETTINGS),
        "nothing": node("OneStoryFrames", story=["script", 0], cast=["otto", 0], **SETTINGS | {"missing": "nothing"}),
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="onestory_random.safetensors"),
        "qwen": node(
            "TextEncodeQwenImageEditPlus", clip=["checkpoint", 1], prompt=["nothing", 0], image1=["nothing", 2],
            image2=["nothing", 3], image3=["nothing", 4],
        ),
        "rows": node("PreviewAny", source=["qwen", 0]),
        "small": node("ImageScale", image=["frames", 2], upscale_method="area", width=16, height=16, crop="disabled"),
        "collect": node("OneStoryCollectFrames", images=["small", 0], story=["script", 0]),
        "pairs": node(
            "OneStoryTransitions", images=["collect", 0], story=["script", 0], template="{to}", pairs="all neighbours",
            cuts="2",
        ),
        "clip": node("ImageBatch", image1=["pairs", 0], image2=["pairs", 1]),
        "film": node("OneStoryJoinClips", clips=["clip", 0], number=["pairs", 3], hold=2, fade=1),
        "save": node("SaveImage", images=["film", 0], filename_prefix="film"),
    }  # fmt: skip
    outputs = server.run(graph)
    pictures = saved(server, outputs, "save")
    red, white, blue = (255, 0, 0), (255, 255, 255), (0, 0, 255)
    assert [picture.getpixel((8, 8)) for picture in pictures] == [red, red, (255, 127, 127), white, blue]


# --- Story Transitions and Join Clips ---------------------------------------------------------------------------------


def test_neighbours_become_starts_ends_and_prompts_with_cuts_where_wanted():
    tale = story("[Mia] a girl\n[Otto] an owl", "[Mia] runs", "[Mia] eats", "[Otto] flies")
    images = random([3, 8, 8, 3])
    every = OneStoryTransitions.execute(images, tale, "{identity}, {to}", "all neighbours").result
    start, end, prompts, numbers = every
    assert torch.equal(torch.cat(start), images[:2]) and torch.equal(torch.cat(end), images[1:])
    assert prompts == ["a girl, eats", "an owl, flies"] and numbers == [1, 2]
    same = OneStoryTransitions.execute(images, tale, "{from} > {to}", "same characters").result
    assert same[2:] == (["runs > eats"], [1])
    assert OneStoryTransitions.execute(images, tale, "{to}", "all neighbours", "1").result[3] == [2]
    for args, said in (
        ((images[:2], tale, "{to}", "all neighbours"), "has 2 pictures and the story 3 frames"),
        ((images[:1], story("a fox", "runs"), "{to}", "all neighbours"), "has a story of 1 frame"),
        ((images, tale, "{to}", "same characters", "1"), "has a cut after every frame: choose “all neighbours”"),
        ((images, tale, "{of}", "all neighbours"), r"template has \{of\}"),
        (
            (images, tale, "{to}", "all neighbours", "4"),
            "cuts has “4”, and the story has 3 frames: write numbers from 1",
        ),
        ((images, tale, "{to}", "all neighbours", "end"), "cuts has “end”: write numbers of frames such as 3"),
        ((images[:0], tale, "{to}", "all neighbours"), "has 0 pictures and the story 3 frames"),
    ):
        with pytest.raises(ValueError, match=said):
            OneStoryTransitions.execute(*args)


def test_a_film_has_no_doubled_pictures_and_cuts_where_clips_do_not_meet():
    clips = [random([5, 8, 8, 3], n) for n in range(3)]
    assert torch.equal(film(clips), torch.cat([clips[0], clips[1][1:], clips[2][1:]]))
    assert torch.equal(film(clips, [1, 3, 4]), torch.cat([clips[0], clips[1], clips[2][1:]]))
    images = random([7, 8, 8, 3], 9)
    whole = film(clips, [2, 3, 5], [images], hold=2)
    stills = images[:1].repeat(2, 1, 1, 1), images[6:].repeat(2, 1, 1, 1)
    assert torch.equal(whole, torch.cat([stills[0], clips[0], clips[1][1:], clips[2], stills[1]]))


def test_pictures_alone_fade_into_each_other():
    images = random([2, 4, 6, 3])
    got = film(images=[images], hold=2, fade=3)
    a, b = images.double()
    want = torch.stack([a, a, *(a * (1 - t) + b * t for t in (0.25, 0.5, 0.75)), b, b])
    assert (got.double() - want).abs().max() < 1e-6
    for args, said in (
        ((), "has nothing to join: wire `clips`, or `images`"),
        (([images], [1, 2]), "has 1 clip and 2 in `number`"),
        (([images, images], [2, 1]), "has the numbers 2, 1: wire `number` from one Story Transitions"),
        (([images], [2], [images]), "has a clip from frame 2 to the next and 2 pictures in `images`"),
        (([images, images[:1]],), "has 1 picture in clip 2 of 2: a clip begins and ends with one, so raise"),
    ):
        with pytest.raises(ValueError, match=said):
            film(*args)
