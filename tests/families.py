"""Small models of the families that number their blocks, with their text encoders and where their tokens stand."""

import base64
import io
import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple
from unittest.mock import patch

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from tiny import OPERATIONS, fill, loaded, text_encoder

CHANNELS = 64
"""What the small language models give for each token."""

ROWS, COLUMNS = 4, 6
PICTURE = ROWS * COLUMNS


class Family(NamedTuple):
    """`pixels` are a token's. A text and a picture are padded to multiples of `multiple` tokens.

    Rotary positions have `axes` channels each, the width's at `axis`, and turn by powers of `theta`. A picture is
    `width` positions wide. A text that is shorter than `least` tokens stands behind as many zeros as are missing.
    """

    name: str
    model: Callable[[], comfy.model_patcher.ModelPatcher]
    clip: Callable[[], comfy.sd.CLIP]
    pixels: int
    axes: tuple[int, ...]
    theta: float
    multiple: int = 1
    width: float = COLUMNS
    axis: int = -1
    least: int = 0

    def padded(self, tokens: int) -> int:
        return tokens + -tokens % self.multiple

    def text(self, tokens: int) -> int:
        return max(self.padded(tokens), self.least)

    def turn(self, keys: torch.Tensor) -> torch.Tensor:
        """Keys [..., channels] that have a position, one picture's width to the right: a formula of its own."""
        axis = self.axis % len(self.axes)
        channels = self.axes[axis]
        angles = self.width * self.theta ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        sizes = [sum(self.axes[:axis]), channels, sum(self.axes[axis + 1 :])]
        first, across, last = keys.double().split(sizes, dim=-1)
        pairs = torch.view_as_complex(across.unflatten(-1, (-1, 2)).contiguous())
        moved = torch.view_as_real(pairs * torch.exp(1j * angles)).flatten(-2)
        return torch.cat([first, moved, last], dim=-1)


def in_process(kind: type, **config) -> comfy.model_patcher.ModelPatcher:
    """A model by ComfyUI's own classes that its loader knows only in full width."""
    settings = kind(config)
    settings.set_inference_dtype(torch.float32, None)
    settings.optimizations = {}
    model = settings.get_model({}, "", device=torch.device("cpu")).eval()
    fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@cache
def qwen_image():
    return in_process(
        comfy.supported_models.QwenImage,
        image_model="qwen_image",
        in_channels=64,
        num_layers=3,
        num_attention_heads=1,
        joint_attention_dim=CHANNELS,
    )


LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": CHANNELS,
    "n_layers": 3,
    "qk_norm": True,
    "n_refiner_layers": 1,
}


@cache
def z_image():
    return in_process(
        comfy.supported_models.ZImage,
        **LUMINA,
        dim=256,
        n_heads=2,
        n_kv_heads=2,
        axes_dims=[32, 48, 48],
        axes_lens=[1536, 512, 512],
        rope_theta=256.0,
        ffn_dim_multiplier=8 / 3,
        z_image_modulation=True,
        time_scale=1000.0,
        pad_tokens_multiple=32,
    )


@cache
def lumina2():
    return in_process(
        comfy.supported_models.Lumina2,
        **LUMINA,
        dim=192,
        n_heads=2,
        n_kv_heads=1,
        axes_dims=[32, 32, 32],
        axes_lens=[300, 512, 512],
        rope_theta=10000.0,
        ffn_dim_multiplier=4.0,
    )


@cache
def hunyuan_image(byt5: bool = False):
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    return loaded(
        HunyuanVideo(
            image_model="hunyuan_video",
            in_channels=64,
            out_channels=64,
            patch_size=[1, 1],
            context_in_dim=CHANNELS,
            hidden_size=128,
            mlp_ratio=4.0,
            num_heads=1,
            depth=1,
            depth_single_blocks=2,
            axes_dim=[64, 64],
            theta=256,
            qkv_bias=True,
            byt5=byt5,
            vec_in_dim=None,
            meanflow=False,
            meanflow_sum=False,
            guidance_embed=False,
            use_cond_type_embedding=False,
            vision_in_dim=None,
            **OPERATIONS,
        )
    )


@cache
def flux(pooled: int | None = 768):
    """Without a pooled text, as LongCat-Image is."""
    from comfy.ldm.flux.model import Flux

    return loaded(
        Flux(
            in_channels=16,
            out_channels=16,
            patch_size=2,
            vec_in_dim=pooled,
            context_in_dim=4096 if pooled else 3584,
            hidden_size=128,
            mlp_ratio=4.0,
            num_heads=1,
            depth=1,
            depth_single_blocks=2,
            axes_dim=[16, 56, 56],
            theta=10000,
            qkv_bias=True,
            guidance_embed=bool(pooled),
            txt_ids_dims=[] if pooled else [1, 2],
            **OPERATIONS,
        )
    )


CHROMA = {
    "out_channels": 64,
    "context_in_dim": 4096,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "in_dim": 64,
    "out_dim": 128,
    "hidden_dim": 64,
    "n_layers": 1,
    "txt_ids_dims": [],
    "vec_in_dim": None,
}


@cache
def chroma():
    return in_process(comfy.supported_models.Chroma, image_model="chroma", in_channels=64, patch_size=2, **CHROMA)


@cache
def radiance():
    return in_process(
        comfy.supported_models.ChromaRadiance,
        image_model="chroma_radiance",
        **{**CHROMA, "out_channels": 3},
        in_channels=3,
        patch_size=16,
        nerf_hidden_size=8,
        nerf_mlp_ratio=2,
        nerf_depth=1,
        nerf_max_freqs=2,
        nerf_tile_size=512,
        nerf_final_head_type="conv",
        nerf_embedder_dtype=torch.float32,
        use_x0=False,
        use_sequential_txt_ids=True,
    )


@cache
def flux2():
    from comfy.ldm.flux.model import Flux

    return loaded(
        Flux(
            in_channels=128,
            out_channels=128,
            patch_size=1,
            vec_in_dim=None,
            context_in_dim=3 * CHANNELS,
            hidden_size=128,
            mlp_ratio=3.0,
            num_heads=1,
            depth=1,
            depth_single_blocks=2,
            axes_dim=[32, 32, 32, 32],
            theta=2000,
            qkv_bias=False,
            guidance_embed=True,
            txt_ids_dims=[3],
            global_modulation=True,
            mlp_silu_act=True,
            ops_bias=False,
            **OPERATIONS,
        )
    )


@cache
def wan(image_to_video: bool = False, **more):
    from comfy.ldm.wan.model import WanModel

    kind = {"model_type": "i2v", "in_dim": 36} if image_to_video else {"model_type": "t2v", "in_dim": 16}
    size = {"dim": 128, "out_dim": 16, "num_heads": 1, "ffn_dim": 64, "num_layers": 3}
    return loaded(WanModel(**{**kind, **size, **more}, **OPERATIONS))


STACKED = (10, 20, 30)
"""The layers of Mistral that Flux.2 dev reads; Klein's are earlier ones of Qwen3."""

WORDS = "a the watercolor fox with blue scarf red reads under an oak runs through deep snow sails sleeps by fire"

SMALL = {
    "hidden_size": CHANNELS,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


@cache
def flux_clip():
    """T5 by its tokens, as SD3 has it, and CLIP-L for the pooled output alone."""
    from comfy.text_encoders.flux import FluxTokenizer, flux_clip

    return text_encoder(flux_clip(), FluxTokenizer)


@cache
def mistral_clip():
    """Flux.2 dev's."""
    from comfy.text_encoders import flux

    small = {**SMALL, "vocab_size": 512, "num_hidden_layers": STACKED[-1]}
    given = flux.flux2_te(), flux.Flux2Tokenizer, {"tekken_model": tekken()}
    if find_spec("comfy.text_encoders.bpe_tokenizer"):
        return text_encoder(*given, mistral3_24b_model_config=small)
    # before 0.33.0 ComfyUI reads the file by a part of transformers that newer transformers have not
    with patch.object(flux, "load_mistral_tokenizer", lambda _: {"tokenizer_object": byte_pairs(), "legacy": False}):
        return text_encoder(*given, mistral3_24b_model_config=small)


@cache
def klein_clip():
    """Flux.2 Klein 9B's."""
    from comfy.text_encoders import flux

    small = {**SMALL, "num_hidden_layers": STACKED[-1]}
    return text_encoder(flux.klein_te(model_type="qwen3_8b"), flux.KleinTokenizer8B, qwen3_8b_model_config=small)


@cache
def chroma_clip():
    """T5 without padding."""
    from comfy.text_encoders.pixart_t5 import PixArtTokenizer, pixart_te

    return text_encoder(pixart_te(), PixArtTokenizer)


@cache
def qwen_clip():
    from comfy.text_encoders import qwen_image

    return text_encoder(qwen_image.te(), qwen_image.QwenImageTokenizer, qwen25_7b_model_config=SMALL)


@cache
def z_clip():
    from comfy.text_encoders import z_image

    return text_encoder(z_image.te(), z_image.ZImageTokenizer, qwen3_4b_model_config=SMALL)


@cache
def gemma_clip():
    from comfy.text_encoders import lumina2

    small = {**SMALL, "vocab_size": 512}
    return text_encoder(
        lumina2.te(),
        lumina2.LuminaTokenizer,
        {"spiece_model": sentencepiece(spaces=False)},
        gemma2_2b_model_config=small,
    )


@cache
def hunyuan_clip(byt5: bool = False):
    from comfy.text_encoders import hunyuan_image

    glyphs = {"num_layers": 1, "d_ff": 64, "num_heads": 1}
    return text_encoder(
        hunyuan_image.te(byt5=byt5),
        hunyuan_image.HunyuanImageTokenizer,
        qwen25_7b_model_config=SMALL,
        _model_config=glyphs,
    )


@cache
def umt5_clip():
    from comfy.text_encoders import wan

    small = {"vocab_size": 512, "d_ff": 64, "d_kv": 16, "num_heads": 1, "num_layers": 1}
    return text_encoder(
        wan.te(), wan.WanT5Tokenizer, {"spiece_model": sentencepiece(spaces=True)}, umt5xxl_model_config=small
    )


@cache
def sentencepiece(spaces: bool) -> bytes:
    """A small vocabulary of the kind that Gemma has, or UMT5, which adds a space before a text."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS, *WORDS.split()] * 3),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="unigram" if spaces else "bpe",
        add_dummy_prefix=spaces,
        remove_extra_whitespaces=spaces,
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        bos_id=2 if not spaces else -1,
        unk_id=3,
        minloglevel=2,
    )
    return model.getvalue()


MARKS = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 11: "<pad>"}
MARKS |= {17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]"}
MARKS = {number: MARKS.get(number, f"<SPECIAL_{number}>") for number in range(20)}


def byte_pairs():
    """A small vocabulary of the kind that Mistral has: byte pairs within words, which count the space before them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s+(?!\S)|\s+")
    split = pre_tokenizers.Split(words, behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*MARKS.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    return tokenizer


def tekken() -> bytes:
    """The same vocabulary in Mistral's file format."""
    numbers = byte_pairs().get_vocab()
    words = sorted(set(numbers) - {*MARKS.values()}, key=lambda word: numbers[word])
    # bytes that can't be printed are written as the characters from 256 on, in order
    shown = {ord(character) for word in words for character in word}
    hidden = iter(sorted(code for code in shown if code > 255))
    byte_of = {chr(byte if byte in shown else next(hidden)): byte for byte in range(256)}
    coded = [base64.b64encode(bytes(map(byte_of.__getitem__, word))).decode() for word in words]
    return json.dumps(
        {
            "config": {"default_vocab_size": len(numbers), "default_num_special_tokens": len(MARKS)},
            "vocab": [{"rank": rank, "token_bytes": word} for rank, word in enumerate(coded)],
            "special_tokens": [{"rank": rank, "token_str": word} for rank, word in MARKS.items()],
        }
    ).encode()


FLUX = Family("Flux.1", flux, flux_clip, 16, (16, 56, 56), 10000)
FLUX2 = Family("Flux.2", flux2, mistral_clip, 16, (32, 32, 32, 32), 2000, axis=2, least=512)
CHROMA_HD = Family("Chroma", chroma, chroma_clip, 16, (16, 56, 56), 10000)
RADIANCE = Family("Chroma1-Radiance", radiance, chroma_clip, 16, (16, 56, 56), 10000)
QWEN_IMAGE = Family("Qwen-Image", qwen_image, qwen_clip, 16, (16, 56, 56), 10000)
Z_IMAGE = Family("Z-Image", z_image, z_clip, 16, (32, 48, 48), 256, multiple=32)
LUMINA2 = Family("Lumina 2", lumina2, gemma_clip, 16, (32, 32, 32), 10000)
HUNYUAN_IMAGE = Family("HunyuanImage", hunyuan_image, hunyuan_clip, 32, (64, 64), 256)
WAN = Family("Wan", wan, umt5_clip, 16, (44, 42, 42), 10000)
JOINT = (FLUX, CHROMA_HD, FLUX2, QWEN_IMAGE, Z_IMAGE, LUMINA2, HUNYUAN_IMAGE)
