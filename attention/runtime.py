"""The run-time: the one file that knows ComfyUI's hooks.

Nodes leave only immutable settings in `transformer_options["onestory"]` and three wrappers under one key. While
sampling, the conditioning's records say which rows of a batch hold which frames; everything a forward pass needs lives
in an object of its own. No state outlives a forward pass and none is global; what Attention Recorder's recording has
seen is the graph's.
"""

import hashlib
import logging
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import comfy.ldm.modules.attention
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..svr.record import KEY, Record
from .blocks import describe, selects
from .ipca import IPCA, biased_attention, eot_span, identity_bias, identity_span
from .self_attention import (
    Characters,
    Gather,
    SelfAttention,
    anchor_gathers,
    anchor_sources,
    consistent_attention,
    probability,
    sample,
    tile_gathers,
    tiles_of,
)
from .view import View, identity_columns, identity_mass, layer_size

WINDOWED = "OneStory: %d of %d frames are sampled at a time, so they can't be kept consistent."


class Patches(NamedTuple):
    """What the nodes ask of a model, in the order they were applied: where two overlap, the later one counts."""

    ipca: tuple[IPCA, ...] = ()
    self_attention: tuple[SelfAttention, ...] = ()
    views: tuple[View, ...] = ()


class Placement(NamedTuple):
    """A conditioning's record and the number of tokens of its own tensor."""

    record: Record
    own_tokens: int


class Step(NamedTuple):
    """What one evaluation of the model has to know. `stories` are by the uuid of their conditioning.

    It is number `number` of `steps`, and its batch has a row for each of `frames`, that show `characters`. The latent
    pictures are of `size`, height and width.
    """

    patches: Patches
    stories: Mapping[Any, Placement]
    number: int
    steps: int
    frames: tuple[int, ...]
    characters: Characters
    size: tuple[int, ...]


def patch(model: Any, **added: IPCA | SelfAttention | View) -> Any:
    """A clone of the `ModelPatcher` with one more setting of a kind (`ipca`, `self_attention` or `views`), behind
    those it has.

    A model whose attention is not a Stable Diffusion U-Net's comes back as it is, with a warning. Raises `ValueError`
    for a setting whose blocks the model lacks.
    """
    clone = model.clone()
    own = attention_blocks(model)
    if not own:
        logging.warning(
            "OneStory: %s has no U-Net with cross-attention (SD1.x, SD2.x and SDXL have), so it is used unchanged.",
            type(model.model).__name__,
        )
        return clone
    for setting in added.values():
        if not any(selects(setting.blocks, block) for block in own):
            names = ", ".join(f"{name}.{number}" for name, number in own)
            raise ValueError(
                f"The blocks “{describe(setting.blocks)}” are none that this model has attention in: write “all”, or "
                f"some of {names}."
            )
    options = clone.model_options["transformer_options"]
    patches = options.get(KEY, Patches())
    if not any(getattr(patches, kind) or not is_off(value) for kind, value in added.items()):
        return clone
    options[KEY] = patches._replace(**{kind: (*getattr(patches, kind), value) for kind, value in added.items()})
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, outer_sample),
        (WrappersMP.PREDICT_NOISE, predict_noise),
        (WrappersMP.APPLY_MODEL, apply_model),
    ):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


def is_off(setting: IPCA | SelfAttention | View) -> bool:
    """Whether the setting does nothing but overrule earlier ones."""
    if isinstance(setting, IPCA):
        return setting.strength == 0
    return isinstance(setting, SelfAttention) and setting.sampling_rate == 0


def attention_blocks(model: Any) -> list[tuple[str, int]]:
    """The model's blocks with attention, by ComfyUI's (name, number); none where it is not a U-Net with text."""
    unet = model.model.diffusion_model
    if not isinstance(unet, UNetModel):
        return []
    parts = [("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks)]
    return [
        (name, number)
        for name, blocks in parts
        for number, block in enumerate(blocks)
        if block is not None and any(isinstance(layer, SpatialTransformer) for layer in block)
    ]


def outer_sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Before a sampler starts: a batch that is not the story's is an error, a graph without a story a warning."""
    guider = executor.class_obj
    records = [c[KEY] for _, c in positive(guider.conds) if KEY in c]
    patches = guider.model_options["transformer_options"][KEY]
    if patches.ipca and not records:
        logging.warning(
            "OneStory: IPCA has nothing to do, because the sampler's conditioning carries no story: "
            "wire its positive input from Story Prompt."
        )
    for record in records:
        if noise.shape[0] != len(record.rows) and "context_handler" not in guider.model_options:
            raise ValueError(
                f"The latent batch has {noise.shape[0]} frames and the story {len(record.rows)}: "
                "use Story Latent, wired to the same story, as the sampler's latent image."
            )
        for own in patches.self_attention:
            check_complete(own, record)
    for view in patches.views:
        view.recording.begin(records)
    return executor(noise, *args, **kwargs)


def check_complete(own: SelfAttention, record: Record) -> None:
    """Every frame that the rows of a run look at has to be among them."""
    rows = {row.frame for row in record.rows}
    if own.variant == "anchors":
        sources = anchor_sources(record.characters, own.anchors)
        missing = sorted({s for frame in rows for s in sources[frame]} - rows)
        if missing:
            raise ValueError(
                f"This run of the story lacks frame {missing[0] + 1}, which others look at: set the input `anchors` of "
                f"Split Story to {own.anchors}, as in Consistent Self-Attention."
            )
    elif len(rows) < record.frames:
        raise ValueError(
            f"This run has {len(rows)} of the story's {record.frames} frames, and the variant “tiles” of Consistent "
            "Self-Attention needs them all: use the variant “anchors”, or no Split Story."
        )


def predict_noise(
    executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any] = {}, seed: int | None = None
) -> Tensor:
    """Once a step: hand on, in copies, which settings are on now and where the stories are."""
    guider = executor.class_obj
    options = model_options["transformer_options"]
    patches = options[KEY]
    stories = place_stories(guider.conds, timestep)
    number, steps = 0, 0
    if any(p.start_percent > 0 or p.end_percent < 1 for kind in patches for p in kind):
        sigma = float(timestep[0])
        to_sigma = guider.inner_model.model_sampling.percent_to_sigma
        patches = Patches(
            *(
                tuple(p for p in kind if to_sigma(p.end_percent) <= sigma <= to_sigma(p.start_percent))
                for kind in patches
            )
        )
    if patches.self_attention or any(p.dropout for p in patches.ipca):
        number, steps = step_number(float(timestep[0]), options["sample_sigmas"].tolist())
    rows = x.shape[0]
    window = getattr(model_options.get("context_handler"), "context_length", rows)
    if window < rows:
        if is_first(timestep, options):
            logging.warning(WINDOWED, window, rows)
        patches = Patches()
    record = next((story.record for story in stories.values() if len(story.record.rows) == rows), None)
    frames = tuple(row.frame for row in record.rows) if record else tuple(range(rows))
    characters = record.characters if record else (("",),) * rows
    step = Step(patches, stories, number, steps, frames, characters, tuple(x.shape[-2:]))
    return executor(x, timestep, {**model_options, "transformer_options": {**options, KEY: step}}, seed)


def place_stories(conds: dict[str, list[dict[str, Any]]], timestep: Tensor) -> dict[Any, Placement]:
    """The guider's conditionings that carry a story and are on at `timestep`, by their uuid.

    Where one list has an area and the other none, ComfyUI puts a copy of the area's entry into the other list, with the
    embedding of that list's own entry: the story belongs to the embedding, and the copy gets a uuid of its own.
    """
    seen: set[Any] = set()
    owners: dict[int, dict[str, Any]] = {}
    for entries in conds.values():
        for n, c in enumerate(entries):
            if c["uuid"] in seen:
                entries[n] = c = {**c, "uuid": uuid.uuid4()}
            seen.add(c["uuid"])
            owners.setdefault(id(c["model_conds"]["c_crossattn"]), c)
    stories = {}
    for _, c in positive(conds):
        owner = owners[id(c["model_conds"]["c_crossattn"])]
        early = "timestep_start" in c and timestep[0] > c["timestep_start"]
        late = "timestep_end" in c and timestep[0] < c["timestep_end"]
        if KEY in owner and not early and not late:
            stories[c["uuid"]] = Placement(owner[KEY], owner["cross_attn"].shape[1])
    return stories


def is_first(sigmas: Tensor, options: dict[str, Any]) -> bool:
    """Whether an evaluation at `sigmas` is of the first step, for warnings that are to come once."""
    return float(sigmas[0]) >= float(options["sample_sigmas"][0])


def step_number(sigma: float, sigmas: list[float]) -> tuple[int, int]:
    """Which of how many steps an evaluation at `sigma` belongs to; those between two steps belong to the first."""
    return max(0, sum(sigma <= s * (1 + 1e-6) for s in sigmas) - 1), len(sigmas) - 1


def positive(conds: dict[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The guider's conditionings, without its negative ones: the method is for the positive branch only."""
    return [(name, c) for name, entries in conds.items() if "negative" not in name for c in entries]


def apply_model(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] = {},
    **kwargs: Any,
) -> Tensor:
    """Once a forward pass: see which rows hold which frames, and listen for the attention calls.

    This is outside of what torch.compile compiles, as all has to be that differs from step to step.
    """
    step = transformer_options.get(KEY)
    if isinstance(step, Step) and c_crossattn is not None:
        forward = Forward(step, transformer_options, x, c_crossattn)
        if forward.on:
            forward.make_biases(executor.class_obj.get_dtype_inference(), x.device)
            transformer_options = forward.listen(transformer_options)
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


class Chunk(NamedTuple):
    """The rows `start` to `stop` of a batch: one conditioning's."""

    start: int
    stop: int
    placement: Placement | None


class Forward:
    """One forward pass of the U-Net.

    ComfyUI calls the noting patches just before each block's attention; `attend`, its override of every attention call
    that is given `transformer_options`, then knows which layer it serves.
    """

    def __init__(self, step: Step, transformer_options: dict[str, Any], x: Tensor, context: Tensor):
        self.step = step._replace(stories={})  # torch.compile can't look into a dict by uuid
        self.batch = batch = x.shape[0]
        self.size = tuple(x.shape[-2:])
        self.tokens = context.shape[1]
        self.next: tuple[str, int, int] | None = None
        self.previous = transformer_options.get("optimized_attention_override")
        self.biases: dict[IPCA, Tensor] = {}
        self.gathers: dict[Any, list[Gather]] = {}
        self.columns: dict[int, Tensor] = {}
        uuids = transformer_options["uuids"]
        rows = batch // len(uuids)
        self.chunks = [
            Chunk(i * rows, (i + 1) * rows, self.place(step.stories.get(uuid), rows)) for i, uuid in enumerate(uuids)
        ]
        self.whole = rows == len(step.frames)
        if not self.whole and any(step.patches) and is_first(transformer_options["sigmas"], transformer_options):
            logging.warning(WINDOWED, rows, len(step.frames))
        cross = bool(step.patches.ipca or step.patches.views) and any(chunk.placement for chunk in self.chunks)
        self.on = cross or (bool(step.patches.self_attention) and self.whole and rows > 1)

    def place(self, placement: Placement | None, rows: int) -> Placement | None:
        if placement is None:
            return None
        record = placement.record
        if rows != len(record.rows) or placement.own_tokens < record.tokens or self.tokens % placement.own_tokens:
            return None
        return placement

    def listen(self, transformer_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the options that notes each block's attention and overrides the attention calls."""
        patches = dict(transformer_options.get("patches", {}))
        for kind in ("attn1", "attn2"):
            patches[f"{kind}_patch"] = [*patches.get(f"{kind}_patch", []), partial(self.note, kind)]
        replace = dict(transformer_options.get("patches_replace", {}))
        if "attn2" in replace:
            replace["attn2"] = {block: partial(self.replaced, p) for block, p in replace["attn2"].items()}
        return {
            **transformer_options,
            KEY: self.step,
            "patches": patches,
            "patches_replace": replace,
            "optimized_attention_override": self.attend,
        }

    def note(self, kind: str, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> tuple:
        left, self.next = self.next, (kind, *extra_options["block"], extra_options["block_index"])
        if (
            left
            and left[0] == "attn1"
            and self.step.number == 0
            and self.setting(self.step.patches.self_attention, left)
        ):
            logging.warning(
                "OneStory: another patch replaces the self-attention of block %s.%d, so it stays that patch's.",
                *left[1:3],
            )
        return n, context, value

    def attend(
        self,
        func: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        layer, self.next = self.next, None
        attention = partial(self.previous, func) if self.previous else func
        bias = self.bias(layer, q, k)
        self.watch(layer, func, q, k, heads, bias, **kwargs)
        kwargs["mask"] = mask
        if bias is not None:
            return biased_attention(attention, q, k, v, heads, bias, **kwargs)
        if layer is not None and layer[0] == "attn1" and self.setting(self.step.patches.self_attention, layer):
            return self.look_around(layer, attention, q, k, v, heads, **kwargs)
        return attention(q, k, v, heads, **kwargs)

    @torch.compiler.disable
    def look_around(
        self,
        layer: tuple[str, int, int],
        attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        **kwargs: Any,
    ) -> Tensor:
        gathers = self.sources(layer, q, k)
        if gathers is None:
            return attention(q, k, v, heads, **kwargs)
        return consistent_attention(attention, q, k, v, heads, gathers, **kwargs)

    def replaced(self, patch: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, extra_options: Any) -> Tensor:
        """Another pack's `attn2_replace` patch, which may call attention out of our hearing, plus what IPCA adds."""
        layer, self.next = self.next, None
        out = patch(q, k, v, extra_options)
        bias = self.bias(layer, q, k)
        heads, attention = extra_options["n_heads"], comfy.ldm.modules.attention.optimized_attention
        options = {"attn_precision": extra_options["attn_precision"]}
        self.watch(layer, attention, q, k, heads, bias, **options)
        if bias is None:
            return out
        options["transformer_options"] = extra_options
        return out + biased_attention(attention, q, k, v, heads, bias, **options) - attention(q, k, v, heads, **options)

    def bias(self, layer: tuple[str, int, int] | None, q: Tensor, k: Tensor) -> Tensor | None:
        """The bias for a cross-attention layer, [batch, 1 or queries, keys], or None where IPCA is off."""
        if layer is None or layer[0] != "attn2" or k.shape[-2] != self.tokens:
            return None
        ipca = self.setting(self.step.patches.ipca, layer)
        if ipca is None or not ipca.strength:
            return None
        if not q.shape[0] == k.shape[0] == self.batch:
            if self.step.number == 0:
                logging.warning("OneStory: another patch cuts block %s.%d, so IPCA leaves it as it is.", *layer[1:3])
            return None
        if ipca.dropout:
            return self.make_bias(ipca, q.dtype, q.device, q.shape[-2], layer)
        return self.biases[ipca].to(q)

    def make_biases(self, dtype: torch.dtype, device: torch.device) -> None:
        """All biases that layers share."""
        for ipca in self.step.patches.ipca:
            if ipca.strength and not ipca.dropout:
                self.biases[ipca] = self.make_bias(ipca, dtype, device)

    @torch.compiler.disable
    def make_bias(
        self,
        ipca: IPCA,
        dtype: torch.dtype,
        device: torch.device,
        queries: int = 1,
        layer: tuple[str, int, int] | None = None,
    ) -> Tensor:
        zeros = ipca.variant == "paper"
        bias = torch.zeros(self.batch, queries, self.tokens + zeros)
        if zeros:
            bias[:, :, -1] = float("-inf")
        for chunk in self.chunks:
            if chunk.placement is None:
                continue
            record, own = chunk.placement
            made: dict[Any, Tensor] = {}
            for i, row in enumerate(record.rows, chunk.start):
                at = i if ipca.dropout else (identity_span(row), eot_span(row))
                if at not in made:
                    generator = seeded(ipca.seed, self.step.number, layer, row.frame) if ipca.dropout else None
                    settings = ipca.strength, ipca.variant, own, self.tokens // own, ipca.dropout, queries, generator
                    made[at] = identity_bias(row, record, *settings)
                bias[i] = made[at]
        return bias.to(dtype).to(device, non_blocking=device.type == "cuda")

    def watch(
        self,
        layer: tuple[str, int, int] | None,
        attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        heads: int,
        bias: Tensor | None,
        **kwargs: Any,
    ) -> None:
        """Let the views see where a cross-attention layer looks; parts of a picture (areas) are not seen."""
        if not self.step.patches.views or layer is None or layer[0] != "attn2" or k.shape[-2] != self.tokens:
            return
        recordings = [view.recording for view in self.step.patches.views if selects(view.blocks, layer[1:])]
        size = layer_size(q.shape[-2], *self.size) if self.size == self.step.size else None
        if not recordings or size is None:
            return
        for start, stop, placement in self.chunks:
            if placement is None:
                continue
            record, own = placement
            if start not in self.columns:
                self.columns[start] = identity_columns(record.rows, own, self.tokens // own).to(q)
            mass = identity_mass(
                attention,
                q[start:stop],
                k[start:stop],
                heads,
                self.columns[start],
                None if bias is None else bias[start:stop],
                **kwargs,
            )
            for recording in recordings:
                recording.add(record, mass.unflatten(1, size))

    def sources(self, layer: tuple[str, int, int], q: Tensor, k: Tensor) -> list[Gather] | None:
        """What the rows of a self-attention layer look at, or None where they look only at themselves."""
        if not self.whole:
            return None
        own = self.setting(self.step.patches.self_attention, layer)
        tokens = k.shape[-2]
        if own is None or not round(own.sampling_rate * tokens):
            return None
        step = self.step
        if not q.shape[0] == k.shape[0] == self.batch:
            if step.number == 0:
                logging.warning(
                    "OneStory: another patch cuts block %s.%d, so self-attention leaves it as it is.", *layer[1:3]
                )
            return None
        chance = probability(own.probability, step.number, step.steps)
        if torch.rand((), generator=seeded(own.seed, step.number, layer)) >= chance:
            return None
        key = (own, tokens)
        if key not in self.gathers:
            casts: dict[tuple[tuple[int, ...], Characters], list[int]] = {}
            for start, _, placement in self.chunks:
                record = placement and placement.record
                cast = (tuple(row.frame for row in record.rows), record.characters) if record else None
                casts.setdefault(cast or (step.frames, step.characters), []).append(start)

            def samples(what: int | list[int]) -> Tensor:
                among = tokens if isinstance(what, int) else tokens * len(what)
                return sample(among, own.sampling_rate, seeded(own.seed, step.number, tokens, what))

            self.gathers[key] = []
            for (frames, characters), starts in casts.items():
                which = list(frames), starts, tokens, samples, q.device
                if own.variant == "anchors":
                    self.gathers[key] += anchor_gathers(anchor_sources(characters, own.anchors), *which)
                else:
                    self.gathers[key] += tile_gathers(tiles_of(characters, own.tile), *which)
        gathers = self.gathers[key]
        return gathers if any(gather.keys is not None for gather in gathers) else None

    @staticmethod
    def setting(settings: tuple[Any, ...], layer: tuple[str, int, int]) -> Any:
        """The last of `settings` that works on the layer's block, or None."""
        return next((p for p in reversed(settings) if selects(p.blocks, layer[1:])), None)


def seeded(*key: Any) -> torch.Generator:
    """A generator that depends on `key` alone: the same draws on every device and beside any other rows."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
