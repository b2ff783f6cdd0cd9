"""Files of IP-Adapter and its kin: which kind one is, what it reads, its tokens, and its keys and values.

A file is {"image_proj": weights of the projector, "ip_adapter": weights of the attention layers}, StoryMaker's
{"image_proj_model": ..., "ip_adapter": ...}, nested as PyTorch saves it or flat with these prefixes. The layers are
numbered as diffusers lists a U-Net's attention: 2n is the self-attention and 2n + 1 the cross-attention of the n-th
transformer, down, up, then the middle block.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .projectors import (
    Weights,
    face_tokens,
    image_embedding_tokens,
    patch_tokens,
    person_tokens,
    resample,
    tokens_in_place,
)

Kind = Literal["base", "plus", "full face", "FaceID", "FaceID-Plus", "StoryMaker"]
PROJECTORS = ("image_proj", "image_proj_model")
"""What files call the weights of the projector: IP-Adapter's, StoryMaker's."""
LORA = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
"""Which of an attention's modules a part of a FaceID file's LoRA changes."""


class Adapter(NamedTuple):
    """A file's weights; `file` is its name, for messages."""

    file: str
    kind: Kind
    projector: Weights
    layers: Weights

    @property
    def text_channels(self) -> int:
        """The width of the text of the models that it was made for."""
        return self.layers["1.to_k_ip.weight"].shape[1]

    @property
    def reads_face(self) -> bool:
        return self.kind in ("FaceID", "FaceID-Plus")

    @property
    def reads_embedding(self) -> bool:
        """Whether it reads CLIP's one embedding of a picture, not the tokens of the last layer but one."""
        return self.kind == "base"

    @property
    def vision_channels(self) -> int | None:
        """The width of what it reads of a CLIP vision model; None where it reads none."""
        names = {"base": "proj", "plus": "proj_in", "full face": "proj.0", "FaceID": None}
        name = names.get(self.kind, "perceiver_resampler.proj_in")
        return self.projector[f"{name}.weight"].shape[1] if name else None

    def tokens(self, seen: Tensor | None, face: Tensor | None, shortcut: bool) -> Tensor:
        """The tokens [pictures, tokens, channels] of pictures, of which CLIP has `seen` [pictures, embedding] or
        [pictures, patches, channels], or of faces with embeddings [faces, 512], or of both, one face a picture.

        `shortcut` is what FaceID-Plus v2 differs in: the face's own tokens are added to those that look at the picture.
        """
        weights = self.projector
        if face is not None:
            own = face_tokens(F.normalize(face, dim=-1), weights)
            if seen is None:
                return own
            looked = resample(own, seen, weights, "perceiver_resampler.")
            return own + looked if shortcut else looked
        assert seen is not None
        if self.kind == "base":
            return image_embedding_tokens(seen, weights)
        if self.kind == "full face":
            return patch_tokens(seen, weights)
        return resample(weights["latents"].to(seen).expand(len(seen), -1, -1), seen, weights)

    @property
    def places(self) -> int:
        """How many characters of a frame it tells apart by their place among them; 0 if it doesn't."""
        return len(self.projector["pos_embed"]) if self.kind == "StoryMaker" else 0

    @property
    def ground(self) -> Tensor | None:
        """The tokens [tokens, channels] that stand before those of a frame's characters, if any."""
        return self.projector["bg_embed"][0] if self.kind == "StoryMaker" else None

    def person_tokens(self, face: Tensor, seen: Tensor, body: Tensor) -> list[Tensor]:
        """StoryMaker's tokens [tokens, channels] of one character's pictures, for each place. As `person_tokens` of
        the projectors, but for the embeddings' length."""
        tokens = person_tokens(F.normalize(face, dim=-1), seen, body, self.projector)
        return [tokens_in_place(tokens, place, self.projector).flatten(0, 1) for place in range(self.places)]

    def keys_and_values(self, tokens: Tensor) -> Tensor:
        """Those of `tokens` [tokens, channels] in all cross-attention layers side by side, [2, tokens, channels]."""
        layers = range(len([name for name in self.layers if name.endswith("to_k_ip.weight")]))
        return torch.stack(
            [
                torch.cat(
                    [F.linear(tokens, self.layers[f"{2 * n + 1}.to_{x}_ip.weight"].to(tokens)) for n in layers], 1
                )
                for x in "kv"
            ]
        )

    def lora(self, modules: Sequence[str]) -> dict[str, Tensor]:
        """The LoRA of a FaceID file for these transformers' modules, by names that ComfyUI's loader knows."""
        found = {}
        for n, module in enumerate(modules):
            for m, attention in ((2 * n, "attn1"), (2 * n + 1, "attn2")):
                for part, target in LORA.items():
                    for side in ("down", "up"):
                        weight = self.layers.get(f"{m}.{part}_lora.{side}.weight")
                        if weight is not None:
                            found[f"{module}.{attention}.{target}.lora_{side}.weight"] = weight
        return found

    def check(self, widths: Sequence[tuple[int, int]]) -> None:
        """Raise `ValueError` where it is not for a model whose transformers have these widths (own, of the text)."""
        text = widths[0][1]
        if text != self.text_channels:
            raise ValueError(
                f"The adapter “{self.file}” was made for {family(self.text_channels)}, and this model is "
                f"{family(text)}: choose an adapter and a checkpoint of one family."
            )
        for x in "kv":
            own = [
                tuple(self.layers.get(f"{2 * n + 1}.to_{x}_ip.weight", torch.empty(0)).shape)
                for n in range(len(widths))
            ]
            more = f"{2 * len(widths) + 1}.to_{x}_ip.weight" in self.layers
            if own != list(widths) or more:
                raise ValueError(
                    f"The adapter “{self.file}” does not fit the {len(widths)} attention layers of this model: choose "
                    f"one that was made for it, or a checkpoint of {family(self.text_channels)}."
                )


def family(text_channels: int) -> str:
    """What has a text of this width."""
    named = {768: "SD1.5", 1024: "SD2.x", 1280: "the SDXL refiner", 2048: "SDXL"}
    return named.get(text_channels, f"a model with text of {text_channels} channels")


def read_adapter(file: str, state: Mapping[str, Any]) -> Adapter:
    """The adapter in a file's state dict. Raises `ValueError` for anything else."""
    projector = next(filter(None, (part_of(state, part) for part in PROJECTORS)), {})
    layers = part_of(state, "ip_adapter")
    kind = kind_of(projector)
    if kind is None or "1.to_k_ip.weight" not in layers:
        raise ValueError(
            f"“{file}” is no adapter that Image Characters knows: it reads IP-Adapter's base, plus, plus-face, "
            "full-face, portrait, FaceID and FaceID-Plus files for SD1.5 and SDXL, and StoryMaker's mask.bin."
        )
    return Adapter(file, kind, projector, layers)


def part_of(state: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    nested = state.get(part)
    if isinstance(nested, dict):
        return nested
    return {name[len(part) + 1 :]: weight for name, weight in state.items() if name.startswith(f"{part}.")}


def kind_of(projector: Weights) -> Kind | None:
    kinds: dict[str, Kind] = {
        "bg_embed": "StoryMaker",
        "latents": "plus",
        "proj.3.weight": "full face",
        "perceiver_resampler.proj_in.weight": "FaceID-Plus",
        "proj.2.weight": "FaceID",
        "proj.weight": "base",
    }
    return next((kind for name, kind in kinds.items() if name in projector), None)
