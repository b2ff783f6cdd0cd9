from functools import partial
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SD1ClipModel
from comfy.sdxl_clip import SDXLClipModel, SDXLRefinerClipModel
from comfy.text_encoders.sd2_clip import SD2ClipModel
from comfy_api.latest import io

from ..story.script import Story
from ..svr.consolidate import NAMES, Prompt, consolidate
from ..svr.measures import token_texts
from ..svr.record import KEY, Attached, Record, pairs_up
from .types import CATEGORY, STORY

ENCODERS: dict[type, tuple[str, ...]] = {
    SD1ClipModel: ("l",),
    SD2ClipModel: ("h",),
    SDXLClipModel: ("l", "g"),
    SDXLRefinerClipModel: ("g",),
}


class OneStoryPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryPrompt",
            display_name="Story Prompt",
            category=CATEGORY,
            description="Encode a whole story as one conditioning with a row for each frame. In “one prompt” mode "
            "every frame is encoded together with the others, which keeps the character the same.",
            search_aliases=["story", "prompt consolidation", "1prompt1story", "consistent character"],
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder: SD1.x, SD2.x, SDXL base or refiner."),
                STORY.Input("story", tooltip="From Story Script."),
                io.Combo.Input(
                    "mode",
                    options=["one prompt", "separate prompts"],
                    default="one prompt",
                    tooltip="“one prompt” puts the identity and all frames into one prompt (follow it with SVR). "
                    "“separate prompts” encodes the identity with each frame alone, for comparison.",
                ),
                io.Int.Input(
                    "window",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="The most frames that share one prompt. 0: as many as fit the text encoder.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "pooled",
                    options=["story", "frame", "zero"],
                    default="story",
                    tooltip="SDXL's pooled text output: of the frame's consolidated prompt, of the identity with this "
                    "frame alone, or zeros.",
                    advanced=True,
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="One row for each frame, for SVR or a sampler's positive input.")],
        )

    @classmethod
    def execute(cls, clip: CLIP | None, story: Story, mode: str, window: int, pooled: str) -> io.NodeOutput:
        if clip is None:
            raise ValueError(
                "The clip input is empty: this checkpoint has no text encoder, so load one with Load CLIP."
            )
        encoders = ENCODERS.get(type(clip.cond_stage_model))
        if encoders is None:
            name = type(clip.cond_stage_model).__name__.rstrip("_")
            raise ValueError(
                f"The text encoder {name} is not supported: OneStory works with those of SD1.x (CLIP-L), SD2.x "
                "(OpenCLIP-H), SDXL base (CLIP-L and CLIP-G) and the SDXL refiner (CLIP-G)."
            )
        tokenize = partial(clip.tokenize, return_word_ids=True)
        prompts, chosen, record = consolidate(story, tokenize, encoders, mode == "separate prompts", window)
        alone: list[Prompt] = []
        if pooled == "frame":
            alone = consolidate(story, tokenize, encoders, separate=True)[0]

        progress = comfy.utils.ProgressBar(len(prompts) + len(alone))
        encoded = [encode(clip, prompt, progress) for prompt in prompts]
        encoded_alone = [encode(clip, prompt, progress) for prompt in alone]

        own = [embeds for schedule in encoded for embeds, _ in schedule]
        record = record._replace(interleaved=2 if all(pairs_up(embeds, record.tokens) for embeds in own) else 1)
        for p, (prompt, schedule) in enumerate(zip(prompts, encoded)):
            check(prompt, schedule, record.select([chosen.index(p)]))
        for prompt, schedule in zip(alone, encoded_alone):
            check_pooled(prompt, schedule)

        texts = [read(clip, prompt, encoders) for prompt in prompts]
        record = record._replace(rows=tuple(row._replace(texts=texts[p]) for row, p in zip(record.rows, chosen)))
        conditioning = []
        for i, (_, options) in enumerate(encoded[0]):
            embeds = torch.cat([encoded[p][i][0] for p in chosen])
            rows = [encoded[p][i][1]["pooled_output"] for p in chosen]
            if pooled == "frame":
                rows = [schedule[i][1]["pooled_output"] for schedule in encoded_alone]
            pooled_output = torch.cat(rows)
            if pooled == "zero":
                pooled_output = torch.zeros_like(pooled_output)
            added = {"pooled_output": pooled_output, KEY: Attached.to(embeds, record)}
            conditioning.append([embeds, {**options, **added}])
        return io.NodeOutput(conditioning)


def encode(clip: CLIP, prompt: Prompt, progress: comfy.utils.ProgressBar) -> list[list[Any]]:
    comfy.model_management.throw_exception_if_processing_interrupted()
    schedule = clip.encode_from_tokens_scheduled(prompt.tokens, show_pbar=False)
    progress.update(1)
    return schedule


def check(prompt: Prompt, schedule: list[list[Any]], record: Record) -> None:
    """Raise `ValueError` where the encoder's output for `prompt` is not what the record of its one row says."""
    want = [1, record.tokens * record.interleaved, record.channels]
    for embeds, _ in schedule:
        if list(embeds.shape) != want:
            raise ValueError(
                f"The text encoder returned {list(embeds.shape)} rows, tokens and channels where Story Prompt expects "
                f"{want}: a patch on `clip` changes its output. Wire `clip` from before that patch."
            )
        bad = record.find_not_finite(embeds)
        if bad is not None:
            raise ValueError(not_finite(f"{NAMES[bad[1].name]}'s output", prompt))
    check_pooled(prompt, schedule)


def check_pooled(prompt: Prompt, schedule: list[list[Any]]) -> None:
    for _, options in schedule:
        pooled = options["pooled_output"]
        if pooled is not None and not pooled.isfinite().all():
            raise ValueError(not_finite("The text encoder's pooled output", prompt))


def not_finite(what: str, prompt: Prompt) -> str:
    frames = "frame " if len(prompt.window) == 1 else "frames "
    frames += ", ".join(str(frame + 1) for frame in prompt.window)
    return (
        f"{what} is not finite (NaN or infinity) for the prompt of {frames}: start ComfyUI with --fp32-text-enc, or "
        "leave out the LoRAs and patches on `clip`, or load another text encoder."
    )


def read(clip: CLIP, prompt: Prompt, encoders: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The text of every token, for each encoder."""
    return tuple(
        token_texts(
            [token if isinstance(token, int) else None for token, _ in prompt.tokens[name][0]],
            lambda token: clip.tokenizer.untokenize([(token, 1.0)])[0][1],
        )
        for name in encoders
    )
