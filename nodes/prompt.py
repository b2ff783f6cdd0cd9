from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.sd import CLIP
from comfy_api.latest import io

from ..story.script import Story
from ..svr.consolidate import Prompt, consolidate
from ..svr.encoders import TextEncoder, name_of
from ..svr.inspect import token_texts
from ..svr.record import KEY, Attached, Record, pairs_up, with_scales
from .encoders import text_model_of
from .types import CATEGORY, STORY


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
                io.Clip.Input(
                    "clip", tooltip="The checkpoint's text encoder: SD1.x, SD2.x, SDXL base or refiner, SD3, Flux.1."
                ),
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
        encoders, width = text_model_of(clip)
        tokenize = partial(clip.tokenize, return_word_ids=True)
        separate = mode == "separate prompts"
        prompts, chosen, record = consolidate(story, tokenize, encoders, separate, window, width)
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
        scaled = [encoder.key for encoder in encoders if not encoder.is_clip]
        conditioning = []
        for i, (_, options) in enumerate(encoded[0]):
            embeds = torch.cat([encoded[p][i][0] for p in chosen])
            rows = [encoded[p][i][1]["pooled_output"] for p in chosen]
            if pooled == "frame":
                rows = [schedule[i][1]["pooled_output"] for schedule in encoded_alone]
            pooled_output = None if any(row is None for row in rows) else torch.cat(rows)
            if pooled == "zero" and pooled_output is not None:
                pooled_output = torch.zeros_like(pooled_output)
            attached = Attached.to(embeds, with_scales(embeds, record, scaled))
            conditioning.append([embeds, {**options, "pooled_output": pooled_output, KEY: attached}])
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
            raise ValueError(not_finite(f"{name_of(bad[1].name)}'s output", prompt))
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


def read(clip: CLIP, prompt: Prompt, encoders: Sequence[TextEncoder]) -> tuple[tuple[str, ...], ...]:
    """The text of every token that the encoder's output has, for each encoder."""
    texts = []
    for encoder in encoders:
        tokens = [token if isinstance(token, int) else None for token, _ in prompt.tokens[encoder.key][0]]
        texts.append(token_texts(tokens[encoder.dropped :], tokenizer_of(clip, encoder).inv_vocab.__getitem__))
    return tuple(texts)


def tokenizer_of(clip: CLIP, encoder: TextEncoder) -> Any:
    """The tokenizer of one of the text encoders."""
    names = (f"clip_{encoder.key}", encoder.key)
    return next(getattr(clip.tokenizer, name) for name in names if hasattr(clip.tokenizer, name))
