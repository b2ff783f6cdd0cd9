"""Through a real server: what is wrong in a graph comes back as our sentence, and the server goes on."""

import json

import pytest
from graphs import SVR
from onestory.tools.client import WorkflowError

FOX = "a watercolor of a young red fox"
FRAMES = "reading a book\nrunning through deep snow\nsleeping"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def graph(identity=FOX, frames=FRAMES, **changed):
    """The whole way from script to board, 16 pixels wide and one step long, with nodes replaced by `changed`."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="onestory_random.safetensors"),
        "script": node("OneStoryScript", identity=identity, frames=frames),
        "prompt": node(
            "OneStoryPrompt",
            clip=["checkpoint", 1],
            story=["script", 0],
            mode="one prompt",
            window=0,
            pooled="story",
        ),
        "svr": node("OneStorySVR", conditioning=["prompt", 0], **SVR),
        "ipca": node(
            "OneStoryIPCA",
            model=["checkpoint", 0],
            strength=1.0,
            variant="released",
            dropout=0.0,
            blocks="all",
            start_percent=0.0,
            end_percent=1.0,
            seed=0,
        ),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text="blurry"),
        "latent": node("OneStoryLatent", story=["script", 0], width=16, height=16, noise="same"),
        "sampler": node(
            "KSampler",
            model=["ipca", 0],
            positive=["svr", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=1,
            steps=1,
            cfg=5.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "pictures": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "board": node("OneStoryBoard", images=["pictures", 0], story=["script", 0], columns=0, captions=True),
        "save frames": node("SaveImage", images=["pictures", 0], filename_prefix="frame"),
        "save board": node("SaveImage", images=["board", 0], filename_prefix="board"),
        **changed,
    }


def with_inputs(name, **inputs):
    """The graph's node `name` with some inputs changed."""
    original = graph()[name]
    return {name: {**original, "inputs": {**original["inputs"], **inputs}}}


LONG = " ".join(["cat"] * 70)
WRONG = {
    "empty identity": (graph(identity=" \n "), "script", "The story's identity is empty: describe who it is about"),
    "no frames": (graph(frames="\n\n"), "script", "The story has no frames: write one frame a line"),
    "a frame without a prompt": (graph(frames="running\n# Hi"), "script", "Frame 2 (“Hi”) has no prompt"),
    "an unknown character": (
        graph(identity="[Mia] a girl", frames="[Max] runs"),
        "script",
        "Frame 1 mentions [Max], but the identity describes only [Mia]",
    ),
    "a frame that is too long": (
        graph(frames=f"running\n{LONG}"),
        "prompt",
        "Frame 2 is too long for CLIP-L by 2 tokens: 77 of at most 75 (7 of the identity, 70 of the frame "
        "“cat cat cat cat cat cat cat cat cat cat…”), so shorten the identity or this frame.",
    ),
    "nobody and somebody": (
        graph(identity="[Mia] a girl", frames="[Mia] runs\na street [nc] with [mia]"),
        "script",
        "Frame 2 has [NC], which shows nobody, and mentions [mia]: delete one of the two",
    ),
    "SVR without a story": (
        graph(**with_inputs("svr", conditioning=["negative", 0])),
        "svr",
        "SVR found no story in its conditioning: wire the input `conditioning` from Story Prompt.",
    ),
    "naive reweighting without a story": (
        graph(svr=node("OneStoryNaiveReweight", conditioning=["negative", 0], express=2.0, suppress=0.5)),
        "svr",
        "Naive Reweighting found no story in its conditioning",
    ),
    "parameters that overflow": (
        graph(**with_inputs("svr", variant="paper", express_alpha=1.0, express_beta=10.0)),
        "svr",
        "SVR makes frame 1's embedding overflow: lower express_alpha (1) or express_beta (10)",
    ),
    "blocks that are no blocks": (
        graph(**with_inputs("ipca", blocks="upper")),
        "ipca",
        "blocks “upper” is not understood at “upper”: write all, down, mid, up",
    ),
    "a latent batch that does not match": (
        graph(latent=node("EmptyLatentImage", width=16, height=16, batch_size=2)),
        "sampler",
        "The latent batch has 2 frames and the story 3: use Story Latent, wired to the same story",
    ),
    "a story file that is not there": (
        graph(script=node("OneStoryLoad", file="../none.txt", index=0)),
        "script",
        "There is no story file “../none.txt” in ComfyUI's input folder: put it there, or choose another.",
    ),
    "noise numbers that do not match": (
        graph(**with_inputs("latent", noise_ids="1,2")),
        "latent",
        "noise_ids has 2 numbers and the story 3 frames",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_answers_with_our_sentence_at_its_node(server, name):
    workflow, at, says = WRONG[name]
    with pytest.raises(WorkflowError) as error:
        server.run(workflow)
    assert (error.value.node_id, error.value.node_type) == (at, workflow[at]["class_type"])
    assert says in error.value.message
    assert error.value.message.rstrip().endswith(".")
    for trace in ("Traceback", "File ", "ValueError", "Error:", "\n"):
        assert trace not in error.value.message.strip()


def test_an_unsupported_text_encoder_answers_with_what_is_supported(server):
    """ComfyUI's own nodes save the checkpoint's CLIP-L and load it as HiDream's."""
    server.run(
        {
            "checkpoint": graph()["checkpoint"],
            "save": node("CLIPSave", clip=["checkpoint", 1], filename_prefix="clip/onestory"),
        }
    )
    [name] = [name for name in server.choices("CLIPLoader", "clip_name") if name.startswith("onestory")]
    workflow = graph(
        clip=node("CLIPLoader", clip_name=name, type="hidream", device="default"),
        **with_inputs("prompt", clip=["clip", 0]),
    )
    with pytest.raises(WorkflowError) as error:
        server.run(workflow)
    assert error.value.node_id == "prompt"
    assert error.value.message == (
        "The text encoder HiDreamTEModel is not supported: OneStory works with those of SD1.x (CLIP-L), SD2.x "
        "(OpenCLIP-H), SDXL base (CLIP-L and CLIP-G), the SDXL refiner (CLIP-G), SD3 and SD3.5, Flux.1, Chroma, "
        "Flux.2, Qwen-Image, Z-Image, Lumina 2, HunyuanImage and Wan."
    )


def test_after_all_of_that_the_server_draws_a_story(server):
    outputs = server.run(graph())
    assert len(outputs["save frames"]["images"]) == 3
    assert len(outputs["save board"]["images"]) == 1


def test_a_story_file_is_drawn_and_a_story_that_it_lacks_is_told(server):
    stories = [{"identity": FOX, "frames": ["reading", "sailing"]}, {"identity": FOX, "frames": FRAMES.split("\n")}]
    name = server.upload("two.json", json.dumps({"stories": stories}).encode())
    assert name in server.choices("OneStoryLoad", "file")
    outputs = server.run(graph(script=node("OneStoryLoad", file=name, index=1)))
    assert len(outputs["save frames"]["images"]) == 3
    with pytest.raises(WorkflowError) as error:
        server.run(graph(script=node("OneStoryLoad", file=name, index=2)))
    assert (error.value.node_id, error.value.message) == (
        "script",
        f"“{name}” holds 2 stories, so there is no story 2: set index to a number from 0 to 1.",
    )


TEXTS = {
    "frames that name nobody": (
        "[Mia] a girl\n[Tom] a boy",
        "[Mia] and [Tom] run\nshe runs home\n[Mia] hugs [Tom]",
        "Frame 2 (“she runs home”) mentions no character, so it shows nobody: write [Mia] or [Tom] where they belong, "
        "or [NC] if nobody is meant.",
    ),
    "tags of other programs": (
        FOX,
        "reading <lora:x:0.8>\nsailing, BREAK sleeping",
        "ComfyUI reads <lora:x:0.8> and BREAK as plain words, since only other programs know such tags: delete them, "
        "and load a LoRA with a Load LoRA node.",
    ),
    "nothing to say": (FOX, "(reading:1.2) #Book\n\u2028\u200b\nranked #1", None),
}


@pytest.mark.parametrize("name", TEXTS)
def test_warnings_of_a_script_are_its_nodes_preview_text(server, name):
    identity, frames, warning = TEXTS[name]
    workflow = graph(identity=identity, frames=frames)
    outputs = server.run(
        {key: workflow[key] for key in ("checkpoint", "script", "latent", "ipca", "prompt", "svr")}
        | {key: workflow[key] for key in ("negative", "sampler", "pictures", "save frames")}
    )
    assert outputs.get("script", {}).get("text") == (warning and [warning])


def test_a_hundred_frames_simply_work(server):
    """Of five characters, twenty each: every group fits one prompt, so it is quick."""
    cast = ("Mia", "Tom", "Rex", "Ada", "Bo")
    frames = "\n".join(f"[{cast[j % 5]}] thing {j} # Number {j}" for j in range(100))
    outputs = server.run(graph(identity="\n".join(f"[{name}] a fox" for name in cast), frames=frames))
    assert len(outputs["save frames"]["images"]) == 100
    [board] = outputs["save board"]["images"]
    assert server.download(board).startswith(b"\x89PNG")
