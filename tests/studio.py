"""An artist's ComfyUI: a real server with every model that the shipped workflows name, all of them small and random."""

import json
import math
import sys
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import av
import pytest
import torch
from adapters import adapter, flat
from conftest import COMFYUI
from model_files import write_flux, write_wan
from onestory.story.script import parse_script
from onestory.tools import canvas, client, demo, host
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import write_sd3_checkpoint
from vision import write_small_clip

WORKFLOWS = host.ROOT / "workflows"
KINDS = (
    "checkpoints", "loras", "controlnet", "diffusion_models", "text_encoders", "vae", "clip_vision", "ipadapter",
    "photomaker",
)  # fmt: skip
KEEPS = ("--cache-classic",)
"""What a server has computed stays there for the next run, however little memory the machine has left."""
SIDE = 64
CLIP = 5
"""The pictures of a clip, in short."""
SAVERS = ("SaveImage", "SaveVideo")
STORY, FILM = {"OneStory/frame", "OneStory/board"}, {"OneStory/picture", "OneStory/film"}
"""How the names begin of what a workflow saves."""
CUSTOM_NODES = Path(__file__).parent / "custom_nodes"
CHROMIUM = canvas.BROWSER
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def twin(name: str) -> dict[str, dict]:
    return read(WORKFLOWS / "api" / f"{name}.json")


@pytest.fixture(scope="session")
def studio(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """A client of that server; it runs for the rest of the session."""
    folder = tmp_path_factory.mktemp("studio")
    write_models(checkpoint, folder / "models")
    paths = folder / "studio.yaml"
    this = host.Host(COMFYUI, Path(sys.executable))
    with host.running(this, folder, cpu=True, more=arguments(this, folder / "models", paths)) as url:
        studio = client.Client(url)
        studio.upload("example.png", png(Image.linear_gradient("L").rotate(45)))
        yield studio


def arguments(this: host.Host, models: Path, paths: Path) -> list[str]:
    """ComfyUI's, with which it sees the models and the tests' custom nodes; `paths` is the file that names them."""
    folders = {kind: str(models / kind) for kind in KINDS}
    paths.write_text(json.dumps({"studio": {**folders, "custom_nodes": str(CUSTOM_NODES)}}))
    packs = [host.link_pack(this), *sorted(path.name for path in CUSTOM_NODES.glob("*.py"))]
    return ["--extra-model-paths-config", str(paths), *KEEPS, "--whitelist-custom-nodes", *packs]


def write_models(checkpoint: Path, folder: Path) -> None:
    """The models that the shipped workflows name, under their names, in a folder for each kind."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in ("sd_xl_base_1.0.safetensors", host.WORLD_CHECKPOINT):
        link = folder / "checkpoints" / name
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoint)
    write_sd3_checkpoint(folder / "checkpoints" / "sd3.5_large_fp8_scaled.safetensors", checkpoint)
    write_flux(folder)
    write_wan(folder)
    save_file(random_lora(), folder / "loras" / "sd_xl_offset_example-lora_1.0.safetensors")
    save_file(flat(adapter("plus")), folder / "ipadapter" / "ip-adapter-plus_sdxl_vit-h.safetensors")
    for other in ("ipadapter/another", "photomaker/one", "photomaker/another"):  # to choose in the editor, not to use
        save_file({"nothing": torch.zeros(1)}, folder / f"{other}.safetensors")
    write_small_clip(folder / "clip_vision" / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    save_file(random_controlnet(checkpoint), folder / "controlnet" / "control-lora-canny-rank128.safetensors")


def random_lora() -> dict[str, torch.Tensor]:
    """One layer of the U-Net and one of the text encoder, at rank 1."""
    sizes = {"diffusion_model.middle_block.1.proj_in": 320, "lora_te_text_model_encoder_layers_0_self_attn_q_proj": 768}
    generator = torch.Generator().manual_seed(0)
    return {
        f"{layer}.lora_{side}.weight": torch.randn(shape, generator=generator) / size**0.5
        for layer, size in sizes.items()
        for side, shape in (("down", (1, size)), ("up", (size, 1)))
    }


def random_controlnet(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's own encoder with random "zero convolutions" and hint encoder (ControlNet, arXiv 2302.05543)."""
    prefix = "model.diffusion_model."
    parts = tuple(prefix + part for part in ("input_blocks", "middle_block", "time_embed"))
    with safe_open(checkpoint, "pt") as file:
        net = {name[len(prefix) :]: file.get_tensor(name) for name in file.keys() if name.startswith(parts)}  # noqa: SIM118
    blocks = 1 + max(int(name.split(".")[1]) for name in net if name.startswith("input_blocks"))
    convolutions = {f"zero_convs.{block}.0": (320, 320, 1, 1) for block in range(blocks)}
    convolutions["middle_block_out.0"] = (320, 320, 1, 1)
    for i, (wide_in, wide_out) in enumerate(pairwise((3, 16, 16, 32, 32, 96, 96, 256, 320))):
        convolutions[f"input_hint_block.{2 * i}"] = (wide_out, wide_in, 3, 3)
    generator = torch.Generator().manual_seed(0)
    for name, shape in convolutions.items():
        net[f"{name}.weight"] = (torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5).half()
        net[f"{name}.bias"] = torch.zeros(shape[0]).half()
    return net


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def draft(workflow: dict[str, dict], side: int = SIDE, steps: int = 2) -> dict[str, dict]:
    """The workflow, quick to run: small pictures in few steps, short clips."""
    for node in workflow.values():
        for key, value in {"width": side, "height": side, "megapixels": 0.01, "length": CLIP}.items():
            if key in node["inputs"]:
                node["inputs"][key] = value
    demo.set_steps(workflow, steps)
    return workflow


def pages(workflow: dict[str, dict], node_id: str, frames: int) -> int:
    """How many pages of a story of `frames` a node that saves a board gets."""
    board = workflow[workflow[node_id]["inputs"]["images"][0]]["inputs"]
    return math.ceil(frames / (board["frames_per_page"] or frames))


def saved(client_: client.Client, outputs: dict[str, dict], node_id: str) -> list[Image.Image]:
    """The pictures that a Save Image node wrote."""
    return [Image.open(BytesIO(client_.download(image))) for image in client.images(outputs, [node_id])]


def check_pictures(client_: client.Client, api: dict[str, dict], outputs: dict[str, dict]) -> None:
    """What the workflow promises was saved: every frame of the story and every page, a film, or both. `api` is a draft.

    Pictures have their size, and none is in one colour.
    """
    (script,) = (node["inputs"] for node in api.values() if node["class_type"] == "OneStoryScript")
    frames = len(parse_script(script["identity"], script["frames"]).frames)
    savers = {id_: node["inputs"]["filename_prefix"] for id_, node in api.items() if node["class_type"] in SAVERS}
    assert {prefix.split()[0] for prefix in savers.values()} in (STORY, FILM, STORY | {"OneStory/film"})
    side = SIDE * math.prod(node["inputs"]["scale_by"] for node in api.values() if node["class_type"] == "ImageScaleBy")
    for id_, prefix in savers.items():
        if prefix.startswith("OneStory/film"):
            check_film(film_of(client_, outputs, id_), api, frames)
            continue
        pictures = saved(client_, outputs, id_)
        assert len(pictures) == count(api, id_, frames)
        if prefix.startswith("OneStory/board"):
            assert all(board.width > SIDE and board.height > SIDE for board in pictures)
        else:
            assert {picture.size for picture in pictures} == {(side, side)}
        for picture in pictures:
            assert any(low < high for low, high in picture.convert("RGB").getextrema()), "a picture of one colour"


def count(api: dict[str, dict], node_id: str, frames: int) -> int:
    """How many pictures a Save Image node gets for a story of `frames`."""
    prefix = api[node_id]["inputs"]["filename_prefix"]
    if prefix.startswith("OneStory/board"):
        return pages(api, node_id, frames)
    return film_length(api, frames) if prefix.startswith("OneStory/picture") else frames


def film_length(api: dict[str, dict], frames: int) -> int:
    """How many pictures the film of a story of `frames` has, without a cut."""
    each = {key: node["inputs"][key] for node in api.values() for key in ("count", "length") if key in node["inputs"]}
    steps = each["count"] + 1 if "count" in each else each["length"] - 1
    return (frames - 1) * steps + 1


def film_of(client_: client.Client, outputs: dict[str, dict], node_id: str) -> av.container.InputContainer:
    """The file that a Save Video node wrote."""
    (video,) = outputs[node_id]["images"]
    return av.open(BytesIO(client_.download(video)))


def check_film(file: av.container.InputContainer, api: dict[str, dict], frames: int) -> None:
    (fps,) = (node["inputs"]["fps"] for node in api.values() if node["class_type"] == "CreateVideo")
    assert file.streams.video[0].average_rate == fps
    sizes = [(picture.width, picture.height) for picture in file.decode(video=0)]
    assert sizes == [(SIDE, SIDE)] * film_length(api, frames)
