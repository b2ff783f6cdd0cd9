import re
import unicodedata
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..pages.contact_sheet import draw_contact_sheet
from ..pages.similarity import similar_to_first
from ..story.script import Story
from ..svr.record import KEY
from .types import CATEGORY, STORY, STORY_VECTORS


class OneStoryPickTakes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryPickTakes",
            display_name="Pick Takes",
            category=CATEGORY,
            description="Make one story of the best frames of several takes. The node shows a contact sheet: a column "
            "for each frame, a row for each take. Changing the choice samples nothing again.",
            search_aliases=["story", "takes", "choose", "select", "contact sheet", "variations", "batch"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="All takes of the story, from VAE Decode: a list of batches, or one batch with take after "
                    "take.",
                ),
                STORY.Input("story", tooltip="The story, which says how many frames a take has."),
                io.String.Input(
                    "picks",
                    default="",
                    tooltip="The take of each frame, such as 2,1,1,3. Empty for the suggestions where Story Metrics is "
                    "wired, else for the first take.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The takes' latents, from the sampler, where they are to be picked as well: for another "
                    "sampler, or for Join Story.",
                ),
                STORY_VECTORS.Input(
                    "vectors",
                    optional=True,
                    tooltip="From Story Metrics with the same images, for suggestions: of each frame, the take that is "
                    "most like the first frame you chose.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The chosen frames as one batch, in the story's order."),
                io.Latent.Output(tooltip="Their latents, where `latent` is wired."),
                io.Image.Output(display_name="contact_sheet", tooltip="All takes, numbered, the chosen ones marked."),
                io.String.Output(display_name="text", tooltip="The choice, the suggestion, and how alike frames are."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        story: list[Story],
        picks: list[str],
        latent: list[dict[str, Any]] | None = None,
        vectors: list[np.ndarray] | None = None,
    ) -> io.NodeOutput:
        frames = len(story[0].frames)
        takes = split_takes(images, frames)
        alike = None if vectors is None else np.concatenate(vectors)
        if alike is not None and len(alike) != takes.shape[0] * frames:
            raise ValueError(
                f"Story Metrics measured {len(alike)} pictures and Pick Takes has {takes.shape[0] * frames}: wire the "
                "same images into both."
            )
        chosen = parse_picks(picks[0], frames, len(takes))
        text, suggested = "", None
        if alike is not None:
            likeness = similar_to_first(alike.reshape(len(takes), frames, -1), chosen[0] if chosen else 0)
            suggested = suggest(likeness, chosen[0] if chosen else 0)
            text = f"suggested: {written(suggested)}\n{table(likeness)}"
        chosen = chosen or suggested or [0] * frames
        text = f"picked: {written(chosen)}\n{text}".rstrip()
        sheet = draw_contact_sheet(
            takes[..., :3].to("cpu", torch.float32).numpy(), [frame.caption for frame in story[0].frames], chosen,
            suggested,
        )  # fmt: skip
        shown = torch.from_numpy(sheet)[None]
        return io.NodeOutput(
            takes[chosen, range(frames)],
            ExecutionBlocker("Pick Takes has no latent to hand on: wire the sampler's into its input `latent`.")
            if latent is None
            else pick_latent(latent, chosen, len(takes)),
            shown,
            text,
            ui=ui.PreviewImage(shown, cls=cls).as_dict() | ui.PreviewText(text).as_dict(),
        )


def split_takes(images: list[torch.Tensor], frames: int) -> torch.Tensor:
    """The takes of a story as [takes, frames, height, width, channels]. Raises `ValueError`."""
    for number, batch in enumerate(images, 1):
        if len(batch) % frames:
            raise ValueError(
                f"Pick Takes has {len(batch)} {'image' if len(batch) == 1 else 'images'} in batch {number} and the "
                f"story {frames} frames: wire the story's takes from VAE Decode, each with every frame."
            )
        if batch.shape[1:] != images[0].shape[1:]:
            raise ValueError(
                f"Pick Takes has pictures of {batch.shape[2]} x {batch.shape[1]} and of {images[0].shape[2]} x "
                f"{images[0].shape[1]}: draw all takes at one size."
            )
    pictures = torch.cat(images)
    return pictures.reshape(-1, frames, *pictures.shape[1:])


def parse_picks(text: str, frames: int, takes: int) -> list[int]:
    """The takes, from 0, in a text such as "2,1,1,3", which counts from 1; none for an empty one.

    Raises `ValueError` unless the text has one take for each frame.
    """
    parts = [part for part in re.split(r"[\s,;、]+", unicodedata.normalize("NFKC", text)) if part]
    for part in parts:
        if not part.isdecimal() or not 1 <= int(part) <= takes:
            numbers = "1, since there is one take" if takes == 1 else f"a number from 1 to {takes} for each frame"
            raise ValueError(f"picks has “{part}”: write {numbers}, such as {written([*range(takes)] * 4, 4)}.")
    if parts and len(parts) != frames:
        raise ValueError(
            f"picks has {len(parts)} {'number' if len(parts) == 1 else 'numbers'} and the story {frames} "
            f"{'frame' if frames == 1 else 'frames'}: write the take of each frame, or nothing."
        )
    return [int(part) - 1 for part in parts]


def suggest(likeness: np.ndarray, first: int) -> list[int]:
    """For each frame the take that is most like the chosen first frame; for that one, the chosen take itself."""
    return [first, *likeness[:, 1:].argmax(0).tolist()]


def written(takes: list[int], most: int | None = None) -> str:
    return ",".join(str(take + 1) for take in takes[:most])


def table(likeness: np.ndarray) -> str:
    """Every frame's likeness to the chosen first one, a line for each take."""
    return "\n".join(
        f"take {take}: {'  '.join(f'{value:.4f}' for value in row)}" for take, row in enumerate(likeness, 1)
    )


def pick_latent(latents: list[dict[str, Any]], chosen: list[int], takes: int) -> dict[str, Any]:
    """One latent batch with frame `j` of take `chosen[j]`, and its noise number. Raises `ValueError`."""
    frames = len(chosen)
    rows = [(latent, row) for latent in latents for row in range(len(latent["samples"]))]
    if len(rows) != takes * frames or any(KEY in latent for latent in latents):
        raise ValueError(
            f"Pick Takes has {len(rows)} latents and {takes * frames} pictures: wire `latent` from where VAE "
            "Decode has it: the sampler, or Join Story."
        )
    picked = [rows[take * frames + frame] for frame, take in enumerate(chosen)]
    joined = {key: value for key, value in latents[0].items() if key not in ("batch_index", "noise_mask")}
    joined["samples"] = torch.stack([latent["samples"][row] for latent, row in picked])
    if all("batch_index" in latent for latent in latents):
        joined["batch_index"] = [latent["batch_index"][row] for latent, row in picked]
    return joined
