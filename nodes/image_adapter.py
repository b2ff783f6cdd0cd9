import logging
import os
from typing import Any, Literal

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.architectures import unet
from ..attention.blocks import parse_blocks
from ..attention.image_adapter import ImageAdapter
from ..attention.runtime import patch
from ..pages.similarity import INSIDE, cut_out
from ..subjects.adapters import Adapter, read_adapter
from .cast import Cast, Member, count
from .pictures import fitted
from .previews import with_previews
from .types import CATEGORY, STORY_CAST, reach_inputs

FOLDER = "ipadapter"
V1, V2 = "FaceID-Plus v1", "FaceID-Plus v2"
WHITE = 1.0


class OneStoryImageAdapter(io.ComfyNode):
    """IP-Adapter's decoupled cross-attention (arXiv 2308.06721), for each frame the characters that it shows.

    Image tokens, and their keys and values in all layers, are made here, once; the adapter's weights are not needed
    while sampling.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryImageAdapter",
            display_name="Image Characters",
            category=CATEGORY,
            description="Let a story's characters look like pictures of them, with IP-Adapter or StoryMaker: every "
            "frame gets the pictures of those that it shows, and a frame that shows nobody gets none. Works with SD1.5 "
            "and SDXL.",
            search_aliases=[
                "story",
                "ip-adapter",
                "ipadapter",
                "faceid",
                "storymaker",
                "reference image",
                "consistent character",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="An SD1.5 or SDXL model, before or after IPCA, LoRAs and other patches."
                ),
                STORY_CAST.Input("cast", tooltip="Who looks how, from Story Cast."),
                io.Combo.Input(
                    "adapter",
                    options=adapter_files(),
                    tooltip="An IP-Adapter file in ComfyUI's folder models/ipadapter: base, plus, plus-face, "
                    "full-face, portrait, FaceID or FaceID-Plus, of the model's family; or StoryMaker's mask.bin.",
                ),
                io.Float.Input(
                    "scale",
                    default=0.7,
                    min=-1.0,
                    max=3.0,
                    step=0.05,
                    tooltip="How much the pictures count: 0 is off, 1 is as trained. Lower it when frames lose their "
                    "own content.",
                ),
                io.Combo.Input(
                    "fit",
                    options=["pad", "crop", "squash"],
                    default="pad",
                    tooltip="How a picture becomes the square that CLIP sees: “pad” shows all of it on white, “crop” "
                    "its middle, “squash” all of it out of shape. StoryMaker always squashes.",
                ),
                io.Combo.Input(
                    "pictures",
                    options=["all", "average"],
                    default="all",
                    tooltip="What several pictures of a character do: “all” stand side by side, “average” is one "
                    "picture, halfway between them.",
                ),
                io.Combo.Input(
                    "version",
                    options=["auto", V1, V2],
                    default="auto",
                    tooltip="For FaceID-Plus files, which don't say it themselves. “auto” goes by the file's name: v2 "
                    "where it has plusv2 in it.",
                    advanced=True,
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="The strength of the LoRA in FaceID files and in StoryMaker's, where 0.8 is usual. 0 where "
                    "you load it with Load LoRA.",
                    advanced=True,
                ),
                *reach_inputs(blocks="all"),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="What looks at the pictures, from Load CLIP Vision: ViT-H for nearly all adapters, "
                    "ViT-bigG for the first one of SDXL, none for FaceID and portrait.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For a sampler whose positive input comes from Story Prompt.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        cast: Cast,
        adapter: str,
        scale: float,
        fit: Literal["pad", "crop", "squash"],
        pictures: Literal["all", "average"],
        version: str,
        lora_strength: float,
        blocks: str,
        start_percent: float,
        end_percent: float,
        clip_vision: ClipVisionModel | None = None,
    ) -> io.NodeOutput:
        transformers = unet.transformers(model.model) if unet.blocks(model.model) else []
        if not transformers:
            raise ValueError(
                f"Image Characters works with SD1.5 and SDXL, and this model is {type(model.model).__name__}: give the "
                "pictures to an edit model by Story Frames instead."
            )
        own = load_adapter(adapter)
        own.check([(each.channels, each.text_channels) for each in transformers])
        check_vision(own, clip_vision)
        shortcut = version == V2 or (version == "auto" and "plusv2" in adapter.lower())
        device = comfy.model_management.get_torch_device()

        def project(tokens: torch.Tensor) -> torch.Tensor:
            return own.keys_and_values(tokens.to(device, torch.float32)).cpu()

        def looks(seen: torch.Tensor | None, face: torch.Tensor | None) -> list[torch.Tensor]:
            seen, face = (x if x is None else x.to(device, torch.float32) for x in (seen, face))
            return [project(own.tokens(seen, face, shortcut).flatten(0, 1))]

        def persons(*seen: torch.Tensor) -> list[torch.Tensor]:
            return [project(tokens) for tokens in own.person_tokens(*(x.to(device, torch.float32) for x in seen))]

        if own.places:
            assert clip_vision is not None
            keys = {member.name: persons(*person_of(member, own, clip_vision, pictures)) for member in cast}
            blank = persons(*nobody(own, clip_vision))
        else:
            keys = {member.name: looks(*looks_of(member, own, clip_vision, fit, pictures)) for member in cast}
            blank = looks(*blank_of(own, clip_vision))
        method = ImageAdapter(
            keys,
            blank,
            unet.channel_spans(transformers),
            scale,
            parse_blocks(blocks),
            start_percent,
            end_percent,
            None if own.ground is None else project(own.ground),
        )
        lora = own.lora([f"diffusion_model.{each.module}" for each in transformers])
        if lora and lora_strength and not method.off():
            model = comfy.sd.load_lora_for_models(model, None, lora, lora_strength, 0)[0]
        return io.NodeOutput(with_previews(patch(model, method)))


def adapter_files() -> list[str]:
    """The files in ComfyUI's folders for IP-Adapter, which other packs and extra_model_paths.yaml may name too."""
    folder = os.path.join(folder_paths.models_dir, FOLDER)
    # ComfyUI_IPAdapter_plus takes a folder of its own where this one is not there.
    if os.path.isdir(folder):
        folder_paths.add_model_folder_path(FOLDER, folder)
    if FOLDER not in folder_paths.folder_names_and_paths:
        return []
    names = folder_paths.get_filename_list(FOLDER)
    return folder_paths.filter_files_extensions(names, folder_paths.supported_pt_extensions)


def load_adapter(name: str) -> Adapter:
    """The adapter in a file of ComfyUI's folders. Raises `ValueError` for a file that is none."""
    return read_adapter(name, load_weights(FOLDER, name))


def load_weights(folder: str, name: str) -> dict[str, Any]:
    """The state dict in a file of one of ComfyUI's model folders. Raises `ValueError` for a file that has more."""
    path = folder_paths.get_full_path_or_raise(folder, name)
    try:
        return comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:  # each format has its own
        raise ValueError(
            f"“{name}” can't be read: it is damaged, or a pickle with more in it than weights, which OneStory does not "
            "run; get the file again, as safetensors if there is one."
        ) from error


def check_vision(adapter: Adapter, clip_vision: ClipVisionModel | None) -> None:
    """Raise `ValueError` where the vision model is not the one that the adapter was made for."""
    width = adapter.vision_channels
    if width is None:
        return
    encoder = {
        True: {1024: "ViT-H", 1280: "ViT-bigG", 768: "ViT-L"},
        False: {1280: "ViT-H", 1664: "ViT-bigG", 1024: "ViT-L"},
    }[adapter.reads_embedding].get(width, "one")
    made_for = f"The adapter “{adapter.file}” was made for the CLIP vision model {encoder} ({width} channels)"
    if clip_vision is None:
        raise ValueError(f"{made_for}: load it with Load CLIP Vision and wire it into `clip_vision`.")
    config = clip_vision.config
    own = config.get("projection_dim" if adapter.reads_embedding else "hidden_size")
    if clip_vision.model_type != "clip_vision_model" or own != width:
        what = f"one of {own} channels" if clip_vision.model_type == "clip_vision_model" else clip_vision.model_type
        raise ValueError(f"{made_for}, and this one is {what}: load the right one with Load CLIP Vision.")


def looks_of(
    member: Member, adapter: Adapter, clip_vision: ClipVisionModel | None, fit: str, pictures: str
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What the adapter reads of a member: what CLIP sees in its pictures, and its faces. Raises `ValueError`."""
    who = who_is(member)
    face = member.face if adapter.reads_face else None
    if adapter.reads_face and face is None:
        raise ValueError(
            f"The adapter “{adapter.file}” reads faces, and Story Cast has no `face` of {who}: wire one, or choose an "
            "adapter that reads pictures, such as plus-face."
        )
    seen = None
    if adapter.vision_channels is not None:
        assert clip_vision is not None
        shown = [see(clip_vision, picture, adapter, fit) for picture in pictures_of(member, who)]
        seen = torch.cat(shown)
    if face is not None and seen is not None:
        face = for_each(member, face, len(seen), adapter.file)
    if pictures == "average":
        seen, face = (x if x is None else x.mean(0, keepdim=True) for x in (seen, face))
    return seen, face


def who_is(member: Member) -> str:
    return f"[{member.name}]" if member.name else "the character"


def for_each(member: Member, faces: torch.Tensor, pictures: int, file: str) -> torch.Tensor:
    """A member's faces [pictures, ...]. Raises `ValueError` for another number of them."""
    if len(faces) not in (1, pictures):
        raise ValueError(
            f"Story Cast has {count(member.images)} and {len(faces)} faces of {who_is(member)}: “{file}” needs one "
            "face for each picture, or one for all."
        )
    return faces.expand(pictures, *faces.shape[1:])


def person_of(
    member: Member, adapter: Adapter, clip_vision: ClipVisionModel, pictures: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What StoryMaker reads of a member, for each of its pictures: the face embedding, and what CLIP sees in the face
    alone and in the whole person on white. Zeros, as for nobody, for what of the face is missing. Raises `ValueError`.
    """
    given = {"face": member.face, "face_pictures": member.crops}
    missing = [f"`{name}`" for name, faces in given.items() if faces is None]
    if missing:
        logging.warning(
            "OneStory: Story Cast has no %s of %s, so StoryMaker will not keep the face: wire both outputs of Story "
            "Face into it.",
            " and no ".join(missing),
            who_is(member),
        )
    body = torch.cat([see(clip_vision, picture, adapter, "squash") for picture in persons_of(member)])
    face, seen, _ = nobody(adapter, clip_vision)
    if member.face is not None:
        face = member.face
    if member.crops is not None:
        crops = member.crops.to("cpu", torch.float32).split(1)
        seen = torch.cat([see(clip_vision, crop, adapter, "squash") for crop in crops])
    face, seen = (for_each(member, x, len(body), adapter.file) for x in (face, seen))
    if pictures == "average":
        face, seen, body = (x.mean(0, keepdim=True) for x in (face, seen, body))
    return face, seen, body


def nobody(adapter: Adapter, clip_vision: ClipVisionModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What StoryMaker was trained to read where there is nobody: zeros."""
    face = torch.zeros(1, adapter.projector["proj.0.weight"].shape[1])
    patches = (clip_vision.image_size // clip_vision.config["patch_size"]) ** 2
    seen = torch.zeros(1, 1 + patches, clip_vision.config["hidden_size"])
    return face, seen, seen


def persons_of(member: Member) -> list[torch.Tensor]:
    """Each picture of a member, [1, height, width, 3]: whole, or its bounding box on white, with edges as soft as
    OpenCV's Gaussian of 5 pixels makes them. Raises `ValueError`."""
    if member.mask is None:
        return pictures_of(member, who_is(member))
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    found = []
    for number, (image, mask) in enumerate(zip(member.images.cpu().float(), member.mask.cpu().float()), 1):
        inside = mask >= INSIDE
        if not inside.any():
            raise ValueError(empty_mask(who_is(member), number))
        rows, columns = (inside.any(side).nonzero().flatten() for side in (1, 0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        soft = F.conv2d(
            F.pad(mask[box][None, None], (2, 2, 2, 2), "replicate"), torch.outer(kernel, kernel)[None, None]
        )
        found.append(torch.lerp(torch.tensor(WHITE), image[box], soft[0, 0, ..., None])[None])
    return found


def empty_mask(who: str, number: int) -> str:
    return f"The mask of {who} is empty in picture {number}: paint the character white."


def pictures_of(member: Member, who: str) -> list[torch.Tensor]:
    """Each picture of a member, [1, height, width, 3]: whole, or the character alone on white. Raises `ValueError`."""
    images = member.images.to("cpu", torch.float32)
    if member.mask is None:
        return list(images.split(1))
    found = []
    for number, (image, mask) in enumerate(zip(images, member.mask.to("cpu", torch.float32)), 1):
        alone = cut_out(image.numpy(), mask.numpy(), WHITE)
        if alone is None:
            raise ValueError(empty_mask(who, number))
        found.append(torch.from_numpy(alone)[None])
    return found


def see(clip_vision: ClipVisionModel, picture: torch.Tensor, adapter: Adapter, fit: str) -> torch.Tensor:
    """What CLIP sees in a picture: its embedding [1, embedding], or the last layer but one [1, patches, channels]."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    if fit == "pad":
        side = max(picture.shape[1:3])
        picture = fitted(picture, side, side)
    out = clip_vision.encode_image(picture, crop=fit != "squash")
    return out["image_embeds" if adapter.reads_embedding else "penultimate_hidden_states"]


def blank_of(adapter: Adapter, clip_vision: ClipVisionModel | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What the adapter was trained to read where there is no picture: zeros, which CLIP sees as a grey picture."""
    face = torch.zeros(1, adapter.projector["proj.0.weight"].shape[1]) if adapter.reads_face else None
    if adapter.vision_channels is None:
        return None, face
    if adapter.reads_embedding:
        return torch.zeros(1, adapter.vision_channels), face
    assert clip_vision is not None
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    pixels: Any = torch.zeros(1, 3, clip_vision.image_size, clip_vision.image_size, device=clip_vision.load_device)
    return clip_vision.model(pixel_values=pixels, intermediate_output=-2)[1], face
