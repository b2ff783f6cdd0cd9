import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.sd import CLIP
from comfy_api.latest import io

from ..story.marks import MARK, repeat_marks
from ..story.parts import IDENTITY, SOT
from ..story.script import Story
from ..subjects.adapters import family
from ..svr.consolidate import Prompt, consolidate, identities_alone
from ..svr.encoders import TextEncoder, name_of
from ..svr.measures import prompt_list, token_texts
from ..svr.own_words import Alone, description_prompts, put_own_words
from ..svr.pictures import Pictures
from ..svr.record import KEY, Attached, Record, pairs_up, token_norms, with_scales
from .delay import Conditioning, one_after_the_other
from .encoders import text_model_of
from .types import CATEGORY, STORY, STORY_PHOTOMAKER, show_text


class OneStoryPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStoryPrompt",
            display_name="Story Prompt",
            category=CATEGORY,
            description="Encode a whole story as one conditioning with a row for each frame. In “one prompt” mode "
            "every frame is encoded together with the others, which keeps the character the same.",
            search_aliases=["story", "prompt consolidation", "1prompt1story"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The model's text encoder: of SD1.x, SD2.x, SDXL, its refiner, SD3, Flux.1, Chroma, "
                    "Flux.2, Qwen-Image, Z-Image, Lumina 2, HunyuanImage or Wan.",
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
                    tooltip="The pooled text output of SDXL and SD3: of the frame's consolidated prompt, of the "
                    "identity with this frame alone, or zeros.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "identity",
                    options=["together", "each alone"],
                    default="together",
                    optional=True,
                    tooltip="“each alone” encodes each character's description alone and puts that where the story "
                    "describes it, so that the characters' looks blend less. For Story Regions.",
                    advanced=True,
                ),
                STORY_PHOTOMAKER.Input(
                    "photomaker",
                    optional=True,
                    tooltip="From Story PhotoMaker: each character's pictures are put into the word before img in its "
                    "description, after SVR too.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="One row for each frame, for SVR or a sampler's positive input.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        clip: CLIP | None,
        story: Story,
        mode: str,
        window: int,
        pooled: str,
        identity: str = "together",
        photomaker: Pictures | None = None,
    ) -> io.NodeOutput:
        if clip is None:
            raise ValueError(
                "The clip input is empty: this checkpoint has no text encoder, so load one with Load CLIP."
            )
        settings = Settings(mode == "separate prompts", window, pooled, identity == "each alone")
        if photomaker is None:
            conditioning, shown = encode_story(clip, story, settings)
            show_text(cls, shown)
            return io.NodeOutput(conditioning)
        for name in photomaker.tokens:
            if not any(name in frame.characters for frame in story.frames):
                logging.warning(
                    "OneStory: the cast has pictures %s, whom no frame of the story shows.",
                    f"of [{name}]" if name else "without a name",
                )
        marked = settings._replace(mark=MARK)
        stacked = repeat_marks(story, photomaker.counts)
        after, shown = encode_story(clip, stacked, marked)
        show_text(cls, shown)
        after = [put_pictures(entry, photomaker) for entry in after]
        if photomaker.start_percent == 0 or not shows_pictures(after):
            return io.NodeOutput(after)
        before, _ = encode_story(clip, story, marked)
        for _, options in before:
            options[KEY] = options[KEY]._replace(record=options[KEY].record.with_slots(()))
        return io.NodeOutput(one_after_the_other(before, after, photomaker.start_percent))


class Settings(NamedTuple):
    """How a story is encoded: each frame apart, the most frames in a prompt, what the pooled output is of, whether each
    description is encoded alone, and what marks class words."""

    separate: bool
    window: int
    pooled: str
    alone: bool
    mark: str = ""


def encode_story(clip: CLIP, story: Story, settings: Settings) -> tuple[Conditioning, str]:
    """The story's conditioning, with a row for each frame, and what to show of its prompts."""
    _, window, pooled, each_alone, mark = settings
    encoders, width, lengths = text_model_of(clip)
    tokenize = partial(clip.tokenize, return_word_ids=True)
    prompts, chosen, record = consolidate(story, tokenize, encoders, settings.separate, window, width, mark)
    if lengths == "equal":
        check_lengths([prompts[p] for p in chosen], encoders[0].name)
    shown = prompt_list(record)
    alone: list[Prompt] = []
    if pooled == "frame":
        alone = consolidate(story, tokenize, encoders, separate=True, mark=mark)[0]

    # Where a token has read what follows it, the identity in a story is not the identity.
    whole = any(not encoder.causal for encoder in encoders)
    identities = identities_alone(story, tokenize, encoders, width) if whole else {}
    described = description_prompts(story, tokenize, encoders, mark) if each_alone else {}

    progress = comfy.utils.ProgressBar(len(prompts) + len(alone) + len(identities) + len(described))
    encoded = [encode(clip, prompt, progress) for prompt in prompts]
    encoded_alone = [encode(clip, prompt, progress) for prompt in alone]
    encoded_words = {name: encode(clip, prompt, progress) for name, prompt in described.items()}

    own = [(embeds, prompt.length) for prompt, schedule in zip(prompts, encoded) for embeds, _ in schedule]
    record = record._replace(interleaved=2 if all(pairs_up(*each) for each in own) else 1)
    for p, (prompt, schedule) in enumerate(zip(prompts, encoded)):
        check(prompt, schedule, record.select([chosen.index(p)]))
    for prompt, schedule in zip(alone, encoded_alone):
        check_pooled(prompt, schedule)
    if record.interleaved > 1:
        identities = {}
    vectors = {text: encode_alone(clip, *each, progress) for text, each in identities.items()}

    texts = [read(clip, prompt, encoders) for prompt in prompts]
    of_frames = [vectors.get(frame.identity) for frame in story.frames]
    counts = [0 if each is None else each.shape[1] for each in of_frames]
    record = record._replace(
        rows=tuple(row._replace(texts=texts[p], alone=n) for row, p, n in zip(record.rows, chosen, counts))
    )
    left = lengths == "left"
    if left:
        record = record.at_the_end()
    scaled = [encoder.key for encoder in encoders if not encoder.is_clip]
    conditioning = []
    for i, (_, options) in enumerate(encoded[0]):
        embeds, mask = in_rows([encoded[p][i] for p in chosen], left)
        if described:
            words = {name: Alone(encoded_words[name][i][0], prompt.spans) for name, prompt in described.items()}
            embeds = put_own_words(embeds, record, words)
        if mask is not None:
            options = {**options, **(squared(mask) if lengths == "squared" else {"attention_mask": mask})}
        if QUOTED in set().union(*(encoded[p][i][1] for p in chosen)):
            options = {**options, QUOTED: quoted([encoded[p][i][1].get(QUOTED) for p in chosen])}
        rows = [encoded[p][i][1]["pooled_output"] for p in chosen]
        if pooled == "frame":
            rows = [schedule[i][1]["pooled_output"] for schedule in encoded_alone]
        pooled_output = None if any(row is None for row in rows) else torch.cat(rows)
        if pooled == "zero" and pooled_output is not None:
            pooled_output = torch.zeros_like(pooled_output)
        beside = in_one([None if each is None else each[i] for each in of_frames]) if vectors else None
        attached = Attached.to(embeds, with_scales(embeds, record, scaled), beside)
        conditioning.append([embeds, {**options, "pooled_output": pooled_output, KEY: attached}])
    return conditioning, shown


def put_pictures(entry: list[Any], pictures: Pictures) -> list[Any]:
    """An entry of the conditioning with the pictures in its class words. Raises `ValueError` where they don't fit."""
    words, options = entry
    record = options[KEY].record.with_slots(pictures.tokens)
    if record.channels != pictures.channels:
        raise ValueError(
            f"“{pictures.file}” was made for {family(pictures.channels)}, and this text encoder gives "
            f"{record.channels} channels: take the `clip` of the checkpoint that Story PhotoMaker gets."
        )
    for row in record.rows:
        for name, span in record.slots(row):
            if span.stop - span.start != pictures.counts.get(name):
                raise ValueError(
                    f"Frame {row.frame + 1} has {MARK} twice in a row, or an embedding before it that only one text "
                    f"encoder reads: write {MARK} in the descriptions only, and the embedding after it."
                )
    embeds, attached = options[KEY]._replace(record=record, pictures=pictures).fused(words)
    return [embeds, {**options, KEY: attached._replace(norms=token_norms(embeds, record))}]


def shows_pictures(conditioning: Conditioning) -> bool:
    return any(slots for _, options in conditioning for row in options[KEY].record.rows for slots in row.slots)


def encode(clip: CLIP, prompt: Prompt, progress: comfy.utils.ProgressBar) -> list[list[Any]]:
    comfy.model_management.throw_exception_if_processing_interrupted()
    schedule = clip.encode_from_tokens_scheduled(prompt.tokens, show_pbar=False)
    progress.update(1)
    return schedule


def encode_alone(clip: CLIP, prompt: Prompt, record: Record, progress: comfy.utils.ProgressBar) -> torch.Tensor:
    """SOT and identity of a prompt that has nothing else, for each entry of its schedule: [entries, tokens, channels].

    Those of each text encoder that has tokens of its own follow each other.
    """
    schedule = encode(clip, prompt, progress)
    check(prompt, schedule, record)
    spans = [span for part in (SOT, IDENTITY) for span in record.columns(record.rows[0], part)]
    columns = [t for span in sorted(spans) for t in range(*span)]
    return torch.cat([embeds[:, columns] for embeds, _ in schedule])


def in_one(rows: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Rows [tokens, channels], or None for no token, as [rows, tokens, channels] with zeros after the shorter ones."""
    longest = max((row for row in rows if row is not None), key=len)
    out = longest.new_zeros(len(rows), *longest.shape)
    for row, own in zip(out, rows):
        if own is not None:
            row[: len(own)] = own
    return out


QUOTED = "conditioning_byt5small"
"""Where ComfyUI has what HunyuanImage reads of words in quotes."""


def check_lengths(prompts: Sequence[Prompt], encoder: str) -> None:
    """Raise `ValueError` where a model that takes prompts of one length only gets others; a prompt for each frame."""
    lengths = [prompt.length for prompt in prompts]
    other = next((j for j, length in enumerate(lengths) if length != lengths[0]), None)
    if other is not None:
        raise ValueError(
            f"Frame 1's prompt has {lengths[0]} tokens for {encoder} and frame {other + 1}'s {lengths[other]}, and "
            "this model draws frames together only if their prompts are equally long: use the mode “one prompt” with "
            "window 0 for a story of up to 512 tokens whose frames all show the same characters, or another model, "
            "such as Qwen-Image."
        )


def in_rows(rows: Sequence[list[Any]], left: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The embedding of entries [1, tokens, channels] as [rows, tokens, channels], with zeros after the shorter ones, or
    before them (`left`).

    The mask [rows, tokens] is 0 there and where the encoder says so, 1 for text; None where it would be 1 everywhere.
    """
    tokens = [embeds.shape[1] for embeds, _ in rows]
    missing = [(max(tokens) - n, 0) if left else (0, max(tokens) - n) for n in tokens]
    embeds = torch.cat([F.pad(row, (0, 0, *side)) for (row, _), side in zip(rows, missing)])
    masks = [options.get("attention_mask", row.new_ones(row.shape[:2], dtype=torch.long)) for row, options in rows]
    mask = torch.cat([F.pad(own, side) for own, side in zip(masks, missing)])
    return embeds, None if mask.all() else mask


HIDDEN = -30000.0
"""What is added to the logit of a token that nobody may look at: a number in every type, whose exponential is 0."""


def squared(mask: torch.Tensor) -> dict[str, Any]:
    """A mask [rows, tokens] as Chroma takes it: added to the logits, [rows, tokens + 1, tokens + 1].

    The last is for the picture's tokens, all alike: ComfyUI stretches that one to their number.
    """
    keys = F.pad((mask == 0) * HIDDEN, (0, 1))
    return {"attention_mask": keys[:, None].repeat(1, keys.shape[1], 1), "attention_mask_img_shape": (1, 1)}


def quoted(rows: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """What HunyuanImage reads of words in quotes, [rows, tokens, channels]. Raises `ValueError` if rows differ."""
    found = [row for row in rows if row is not None]
    if len(found) < len(rows) or len({row.shape for row in found}) > 1:
        raise ValueError(
            "The frames' prompts have words in quotes of different lengths, and this model draws frames together only "
            "if those are equally long: use the mode “one prompt” with window 0, or quote the same words in all frames."
        )
    return torch.cat(found)


def check(prompt: Prompt, schedule: list[list[Any]], record: Record) -> None:
    """Raise `ValueError` where the encoder's output for `prompt` is not what the record of its one row says."""
    want = [1, prompt.length * record.interleaved, record.channels]
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
    of = frames if prompt.window else "an identity"
    return (
        f"{what} is not finite (NaN or infinity) for the prompt of {of}: start ComfyUI with --fp32-text-enc, or "
        "leave out the LoRAs and patches on `clip`, or load another text encoder."
    )


def read(clip: CLIP, prompt: Prompt, encoders: Sequence[TextEncoder]) -> tuple[tuple[str, ...], ...]:
    """The text of every token that the encoder's output has, for each encoder."""
    texts = []
    for encoder in encoders:
        tokens = [token if isinstance(token, int) else None for token, _ in prompt.tokens[encoder.key][0]]
        texts.append(token_texts(tokens[encoder.dropped :], tokenizer_of(clip, encoder).inv_vocab))
    return tuple(texts)


def tokenizer_of(clip: CLIP, encoder: TextEncoder) -> Any:
    """The tokenizer of one of the text encoders."""
    names = (f"clip_{encoder.key}", encoder.key)
    return next(getattr(clip.tokenizer, name) for name in names if hasattr(clip.tokenizer, name))
