"""Characters from pictures through a real server: a cast of two, files of every layout, to the board."""

import pytest
from onestory.tools.client import WorkflowError
from studio import saved
from test_server import graph, node, with_inputs

IDENTITY = "[Mia] a girl img with a hat\n[Otto] an owl img"
FRAMES = "[Mia] runs\n[Mia] and [Otto] talk\n[NC] a castle"
PLAIN = "[Mia] a girl with a hat\n[Otto] an owl"


def colour(value):
    return node("EmptyImage", width=32, height=48, batch_size=1, color=value)


def member(name, **more):
    image = name.lower()
    return node(
        "OneStoryCast", story=["script", 0], images=[f"{image} picture", 0], character=name, face=[f"{image} face", 0],
        face_pictures=[f"{image} face", 1], **more,
    )  # fmt: skip


CAST = {
    "analyser": node("TestFaceAnalyser"),
    "mia picture": colour(0xFF0000),
    "otto picture": colour(0x0000FF),
    "mia face": node("OneStoryFace", analyser=["analyser", 0], images=["mia picture", 0]),
    "otto face": node("OneStoryFace", analyser=["analyser", 0], images=["otto picture", 0]),
    "mia": member("Mia"),
    "otto": member("Otto", cast=["mia", 0]),
    "vision": node("TestClipVision"),
    "ViT-L": node("CLIPVisionLoader", clip_name="clip.pt"),
}


def characters(file, model="checkpoint"):
    vision = "ViT-L" if file == "base.safetensors" else "vision"
    return node(
        "OneStoryImageAdapter", model=[model, 0], cast=["otto", 0], clip_vision=[vision, 0], adapter=file, scale=0.3,
        fit="pad", pictures="all", version="auto", lora_strength=0.0, blocks="all", start_percent=0.0, end_percent=1.0,
    )  # fmt: skip


def photomaker(file, model="checkpoint"):
    return node(
        "OneStoryPhotoMaker", model=[model, 0], cast=["otto", 0], photomaker=file, lora_strength=0.0, start_percent=0.0
    )


def drawing(model, identity=PLAIN, **changed):
    runs = node("OneStoryRuns", model=[model, 0], frames_at_a_time=3)
    return graph(identity, FRAMES, ipca=runs, **changed)


ADAPTERS = "base.safetensors", "plus.bin", "full-face.bin", "faceid.bin", "faceid-plusv2.bin", "mask.bin"
PHOTOMAKERS = "photomaker-v1.safetensors", "photomaker-v2.bin", "pytorch_model.bin"


def test_a_cast_of_two_reaches_its_frames_and_the_board_with_files_of_every_layout(server):
    """Adapters one behind the other, and each PhotoMaker in the prompt. A frame that shows nobody does not change."""
    before = saved(server, server.run(drawing("checkpoint")), "save frames")
    chain = dict(zip(ADAPTERS, ("checkpoint", *ADAPTERS), strict=False))
    models = {file: characters(file, model) for file, model in chain.items()}
    outputs = server.run(drawing(ADAPTERS[-1], **CAST, **models))
    assert [a.tobytes() == b.tobytes() for a, b in zip(before, saved(server, outputs, "save frames"), strict=True)] == [
        False, False, True,
    ]  # fmt: skip
    assert len(outputs["save board"]["images"]) == 1
    for file in PHOTOMAKERS:
        prompt = with_inputs("prompt", photomaker=["pictures in words", 1])
        own = {**CAST, "pictures in words": photomaker(file)}
        outputs = server.run(drawing("pictures in words", IDENTITY, **own, **prompt))
        after = saved(server, outputs, "save frames")
        assert [a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True)] == [False, False, True], file
        assert len(outputs["save board"]["images"]) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (characters("code.bin"), "“code.bin” can't be read: it is damaged, or a pickle with more in it"),
        (photomaker("code.bin"), "“code.bin” can't be read: it is damaged, or a pickle with more in it"),
    ],
)
def test_a_pickle_with_code_is_one_sentence_at_its_node(server, wrong, says):
    with pytest.raises(WorkflowError) as error:
        server.run(drawing("wrong", **CAST, wrong=wrong))
    assert error.value.node_id == "wrong"
    assert error.value.message.startswith(says)
