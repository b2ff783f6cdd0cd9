import comfy.model_management
import comfy.sd
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.architectures import unet
from ..subjects.adapters import family, part_of
from ..subjects.photomaker import PhotoMaker, read_photomaker
from ..subjects.vision import clip_pixels, picture_side
from ..svr.pictures import Pictures
from .cast import Cast, Member
from .image_adapter import for_each, load_weights, pictures_of, who_is
from .types import CATEGORY, STORY_CAST, STORY_PHOTOMAKER

FOLDER = "photomaker"


class OneStoryPhotoMaker(io.ComfyNode):
    """PhotoMaker's stacked ID embedding (arXiv 2312.04461, section 3.2) for each frame's characters.

    Image tokens are made here, once; Story Prompt makes room for them and puts them into the class words.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryPhotoMaker",
            display_name="Story PhotoMaker",
            category=CATEGORY,
            description="Let a story's characters look like photos of them, with PhotoMaker (SDXL) or FastComposer "
            "(SD1.5): their pictures become part of the words that describe them. Several characters in a frame are "
            "fine.",
            search_aliases=["story", "photomaker", "fastcomposer", "reference image", "face", "consistent character"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SDXL model for PhotoMaker, which gets the file's LoRA, or Load FastComposer's.",
                ),
                STORY_CAST.Input("cast", tooltip="Who looks how, from Story Cast."),
                io.Combo.Input(
                    "photomaker",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="PhotoMaker v1 or v2, or FastComposer's pytorch_model.bin, in ComfyUI's folder "
                    "models/photomaker.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="The strength of the LoRA in PhotoMaker's file, without which likeness is weak. It works "
                    "on all frames.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="From where in the sampling the pictures count. Before, words alone make the layout and "
                    "the style.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the file's LoRA."),
                STORY_PHOTOMAKER.Output(display_name="photomaker", tooltip="For Story Prompt."),
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, cast: Cast, photomaker: str, lora_strength: float, start_percent: float
    ) -> io.NodeOutput:
        source = read_photomaker(photomaker, load_weights(FOLDER, photomaker))
        check_model(model, source)
        device = comfy.model_management.get_torch_device()
        tokens = {member.name: tokens_of(member, source, device) for member in cast}
        if source.lora and lora_strength:
            model = comfy.sd.load_lora_for_models(model, None, dict(source.lora), lora_strength, 0)[0]
        fuse = source._replace(encoder={}, lora={}).fuse
        return io.NodeOutput(model, Pictures(source.file, source.channels, tokens, fuse, start_percent))


def check_model(model: ModelPatcher, source: PhotoMaker) -> None:
    """Raise `ValueError` for a model that was not made for such words."""
    own = unet.transformers(model.model)[0].text_channels if unet.blocks(model.model) else None
    if own != source.channels:
        is_one = type(model.model).__name__ if own is None else family(own)
        raise ValueError(
            f"“{source.file}” was made for {family(source.channels)}, and this model is {is_one}: choose a checkpoint "
            f"of {family(source.channels)}, or another file."
        )


def tokens_of(member: Member, source: PhotoMaker, device: torch.device) -> torch.Tensor:
    """A member's image tokens [tokens, channels], of each of its pictures in turn. Raises `ValueError`."""
    who = who_is(member)
    pictures = pictures_of(member, who)
    face = None
    if source.reads_face:
        if member.face is None:
            raise ValueError(
                f"“{source.file}” reads faces too, and Story Cast has no `face` of {who}: wire one from Story Face, or "
                "choose PhotoMaker v1."
            )
        face = for_each(member, member.face, len(pictures), source.file)
    pixels = torch.cat([clip_pixels(picture, picture_side(source.encoder)) for picture in pictures]).to(device)
    return source.tokens(pixels, face if face is None else face.to(pixels)).cpu()


class OneStoryLoadFastComposer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryLoadFastComposer",
            display_name="Load FastComposer",
            category=CATEGORY,
            description="Load the model that FastComposer's file holds beside what Story PhotoMaker reads: its own "
            "fine-tuned SD1.5.",
            search_aliases=["story", "fastcomposer", "checkpoint"],
            inputs=[
                io.Combo.Input(
                    "photomaker",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="FastComposer's pytorch_model.bin, in ComfyUI's folder models/photomaker.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="Its U-Net, for Story PhotoMaker."),
                io.Clip.Output(tooltip="Its text encoder, for Story Prompt."),
                io.Vae.Output(tooltip="Its VAE, which is SD1.5's."),
            ],
        )

    @classmethod
    def execute(cls, photomaker: str) -> io.NodeOutput:
        state = load_weights(FOLDER, photomaker)
        unet_weights, text, vae = (part_of(state, part) for part in ("unet", "text_encoder", "vae"))
        model = comfy.sd.load_diffusion_model_state_dict(unet_weights) if unet_weights else None
        if model is None or not text or not vae:
            raise ValueError(
                f"“{photomaker}” holds no whole model: Load FastComposer reads FastComposer's pytorch_model.bin, and a "
                "checkpoint is loaded with Load Checkpoint."
            )
        text = {name if name.startswith("text_model.") else f"text_model.{name}": text[name] for name in text}
        embeddings = folder_paths.get_folder_paths("embeddings")
        clip = comfy.sd.load_text_encoder_state_dicts([text], embedding_directory=embeddings)
        return io.NodeOutput(model, clip, comfy.sd.VAE(sd=vae))
