"""A story by an edit model and its film by a first-last-frame model: ComfyUI's own nodes on small Kontext and Wan."""

import numpy
import pytest
from studio import CLIP, SIDE, film_of, saved
from test_frames import SETTINGS
from test_server import node

IDENTITY = "[Mia] a girl\n[Otto] an owl"
FRAMES = "[Mia] runs\n[Mia] and [Otto] talk\n[NC] a castle\n[Otto] sleeps"
PROMPTS = (
    "Picture 1 is Mia. a girl. runs",
    "Picture 1 is Mia, picture 2 is Otto. a girl and an owl. talk",
    "a castle",
    "Picture 1 is Otto. an owl. sleeps",
)
PICTURES = ("red", "white"), ("red", "blue"), ("white", "white"), ("blue", "white")
"""What Story Frames gives to a frame's two references: Mia is red and Otto blue."""


def kontext(name, prompt, first, second, seed):
    """Core's nodes from a prompt and two reference pictures to a picture, their names with `name`."""
    return {
        f"text {name}": node("CLIPTextEncode", clip=["flux text", 0], text=prompt),
        f"first {name}": node("VAEEncode", pixels=first, vae=["flux vae", 0]),
        f"second {name}": node("VAEEncode", pixels=second, vae=["flux vae", 0]),
        f"one {name}": node("ReferenceLatent", conditioning=[f"text {name}", 0], latent=[f"first {name}", 0]),
        f"both {name}": node("ReferenceLatent", conditioning=[f"one {name}", 0], latent=[f"second {name}", 0]),
        f"sampler {name}": node(
            "KSampler", model=["flux", 0], positive=[f"both {name}", 0], negative=["no text", 0],
            latent_image=["no picture", 0], seed=seed, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple",
            denoise=1.0,
        ),
        f"picture {name}": node("VAEDecode", samples=[f"sampler {name}", 0], vae=["flux vae", 0]),
    }  # fmt: skip


def wan(name, prompt, start, end):
    """Core's nodes from a prompt and two pictures to a clip, their names with `name`."""
    return {
        f"words {name}": node("CLIPTextEncode", clip=["wan text", 0], text=prompt),
        f"ends {name}": node(
            "WanFirstLastFrameToVideo", positive=[f"words {name}", 0], negative=["no words", 0], vae=["wan vae", 0],
            width=SIDE, height=SIDE, length=CLIP, batch_size=1, start_image=start, end_image=end,
        ),
        f"draw {name}": node(
            "KSampler", model=["wan", 0], positive=[f"ends {name}", 0], negative=[f"ends {name}", 1],
            latent_image=[f"ends {name}", 2], seed=3, steps=2, cfg=3.0, sampler_name="euler", scheduler="simple",
            denoise=1.0,
        ),
        f"clip {name}": node("VAEDecode", samples=[f"draw {name}", 0], vae=["wan vae", 0]),
    }  # fmt: skip


def save(source):
    return node("SaveImage", images=[source, 0], filename_prefix=source)


MODELS = {
    "flux": node("UNETLoader", unet_name="flux1-dev-kontext_fp8_scaled.safetensors", weight_dtype="default"),
    "flux text": node(
        "DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"
    ),
    "flux vae": node("VAELoader", vae_name="ae.safetensors"),
    "wan": node("UNETLoader", unet_name="wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", weight_dtype="default"),
    "wan text": node("CLIPLoader", clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan"),
    "wan vae": node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
    "no text": node("CLIPTextEncode", clip=["flux text", 0], text=""),
    "no words": node("CLIPTextEncode", clip=["wan text", 0], text=""),
    "no picture": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1),
}
COLOURS = {
    name: node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=colour)
    for name, colour in {"red": 0xFF0000, "blue": 0x0000FF, "white": 0xFFFFFF}.items()
}
STORY = {
    "script": node("OneStoryScript", identity=IDENTITY, frames=FRAMES),
    "mia": node("OneStoryCast", story=["script", 0], images=["red", 0], character="Mia"),
    "cast": node("OneStoryCast", story=["script", 0], images=["blue", 0], character="Otto", cast=["mia", 0]),
    "frames": node("OneStoryFrames", story=["script", 0], cast=["cast", 0], **SETTINGS),
    **kontext("each", ["frames", 0], ["frames", 2], ["frames", 3], ["frames", 6]),
    "collect": node("OneStoryCollectFrames", images=["picture each", 0], story=["script", 0]),
    "board": node("OneStoryBoard", images=["collect", 0], story=["script", 0], columns=2, captions=True),
    "save story": save("collect"),
    "save board": save("board"),
}
FILM = {
    "pairs": node(
        "OneStoryTransitions", images=["collect", 0], story=["script", 0], template="{from}, {to}",
        pairs="all neighbours",
    ),
    **wan("each", ["pairs", 2], ["pairs", 0], ["pairs", 1]),
    "film": node("OneStoryJoinClips", clips=["clip each", 0], number=["pairs", 3], hold=2, fade=0),
    "video": node("CreateVideo", images=["film", 0], fps=8.0),
    "save video": node("SaveVideo", video=["video", 0], filename_prefix="film", format="auto", codec="auto"),
    "save film": save("film"),
}  # fmt: skip


def by_hand():
    """The same frames and clips one by one, from prompts and pictures that are written here."""
    graph = {}
    for j, (prompt, (first, second)) in enumerate(zip(PROMPTS, PICTURES)):
        graph |= {
            **kontext(j, prompt, [first, 0], [second, 0], SETTINGS["seed"] + j),
            f"save {j}": save(f"picture {j}"),
        }
    graph |= {**kontext("swapped", PROMPTS[3], ["red", 0], ["white", 0], SETTINGS["seed"] + 3)}
    graph["save swapped"] = save("picture swapped")
    for j, prompt in enumerate(("runs, talk", "talk, a castle", "a castle, sleeps")):
        graph |= {**wan(j, prompt, [f"picture {j}", 0], [f"picture {j + 1}", 0]), f"save clip {j}": save(f"clip {j}")}
    return graph


@pytest.fixture(scope="module")
def outputs(studio):
    return studio.run({**MODELS, **COLOURS, **STORY, **FILM, **by_hand()})


def pixels(studio, outputs, name):
    return [numpy.asarray(picture.convert("RGB")).astype(float) for picture in saved(studio, outputs, name)]


def test_each_frame_is_what_core_draws_from_its_prompt_and_the_pictures_of_those_it_shows(studio, outputs):
    story = pixels(studio, outputs, "save story")
    assert len(story) == 4
    for j, picture in enumerate(story):
        (want,) = pixels(studio, outputs, f"save {j}")
        assert (picture == want).all(), f"frame {j + 1}"
    (swapped,) = pixels(studio, outputs, "save swapped")
    assert (swapped != story[3]).any(), "a reference counts"
    (board,) = saved(studio, outputs, "save board")
    assert board.width > 2 * SIDE and board.height > 2 * SIDE


def test_the_film_has_every_clip_once_and_comes_back_from_its_file_frame_by_frame(studio, outputs):
    film = pixels(studio, outputs, "save film")
    clips = [pixels(studio, outputs, f"save clip {j}") for j in range(3)]
    assert [len(clip) for clip in clips] == [CLIP] * 3
    want = [*clips[0], *clips[1][1:], *clips[2][1:]]
    assert len(film) == len(want) == 3 * (CLIP - 1) + 1
    assert all((got == picture).all() for got, picture in zip(film, want))

    with film_of(studio, outputs, "save video") as file:
        assert file.streams.video[0].average_rate == 8
        read = [frame.to_ndarray(format="rgb24").astype(float) for frame in file.decode(video=0)]
    assert len(read) == len(film)
    for n, picture in enumerate(read):
        apart = [abs(picture - other).mean() for other in film]
        assert apart[n] == min(apart), f"picture {n} of the file is that of the film"
