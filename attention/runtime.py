"""The run-time: ComfyUI's three hooks, and which method gets which attention call. It knows no method and no model.

Nodes leave only immutable settings in `transformer_options["onestory"]` and three wrappers under one key. While
sampling, the conditioning's records say which rows of a batch hold which frames; everything a forward pass needs lives
in an object of its own. No state outlives a sampling and none is global.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..svr.record import KEY, Between
from .architectures import ARCHITECTURES, layers_of
from .batch import Batch, Characters, Chunk, Kept, Placement, Turn
from .between import between_noise
from .blocks import describe
from .dispatch import Dispatch
from .method import Method
from .placing import alone_of, fitting, place_stories, positive, rows_of
from .rows import Cut, check_run, wrong_batch
from .runs import FRAMES_AT_A_TIME, calc_cond_batch, prepare_sampling
from .sampling import Sampling, cast_of, without_story
from .schedule import Place


def patch(model: Any, method: Method) -> Any:
    """A clone of the `ModelPatcher` with one more method, after those it has.

    A model of an unknown architecture comes back as it is, with a warning. Raises `ValueError` for a method whose
    blocks the model lacks.
    """
    clone = model.clone()
    layers = layers_of(model.model)
    if layers is None:
        known = ", ".join(architecture.name for architecture in ARCHITECTURES)
        logging.warning(
            "OneStory: %s is no %s, so it is used unchanged by %s.", type(model.model).__name__, known, method.name
        )
        return clone
    if not layers.selected(method.blocks):
        names = ", ".join(f"{name}.{number}" for name, number in layers.blocks)
        raise ValueError(
            f"The blocks “{describe(method.blocks)}” are none that this model has attention in: write “all”, or "
            f"some of {names}."
        )
    options = clone.model_options["transformer_options"]
    methods = options.get(KEY, ())
    if method.off() and not any(type(m) is type(method) for m in methods):
        return clone
    options[KEY] = (*methods, method)
    wrap(clone, WRAPPERS | (TURN_WRAPPERS if method.stories_first else {}))
    return clone


def patch_runs(model: Any, frames_at_a_time: int) -> Any:
    """A clone of the `ModelPatcher`, of any architecture, that sees so many frames at most in one pass."""
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    options.setdefault(KEY, ())
    options[FRAMES_AT_A_TIME] = frames_at_a_time
    wrap(clone, WRAPPERS | RUN_WRAPPERS)
    return clone


def wrap(patcher: Any, wrappers: Mapping[Any, Callable[..., Any]]) -> None:
    """Leave each wrapper once, whatever number of our nodes a model goes through."""
    for kind, wrapper in wrappers.items():
        patcher.remove_wrappers_with_key(kind, KEY)
        patcher.add_wrapper_with_key(kind, KEY, wrapper)


class Step(NamedTuple):
    """What one evaluation of the model has to know. `stories` are by the uuid of their conditioning; `positives` are
    the uuids of all that are not negative.

    Its batch has a row for each of `frames`, that show `characters`. The latent pictures are of `size`. It is drawn in
    `passes`, if any; in one of these, `kept` has what earlier ones left. `turn` is as in `Batch`.
    """

    sampling: Sampling
    methods: tuple[Method, ...]
    place: Place
    stories: Mapping[Any, Placement]
    positives: frozenset[Any]
    frames: tuple[int, ...]
    characters: Characters
    between: tuple[Between, ...]
    size: tuple[int, int]
    passes: tuple[Cut, ...] = ()
    kept: Kept | None = None
    turn: Turn | None = None

    def part(self, cut: Cut, kept: Kept) -> "Step":
        """The step for the rows of one pass."""
        rows = list(cut.rows)
        stories = {uuid: rows_of(placement, rows) for uuid, placement in self.stories.items()}
        return self._replace(stories=stories, frames=tuple(self.frames[row] for row in rows), passes=(), kept=kept)


def outer_sample(
    executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Before a sampler starts: a batch that is not the story's is an error, a graph without a story a warning."""
    guider = executor.class_obj
    options = guider.model_options
    stories = [c for _, c in positive(guider.conds) if KEY in c]
    records = [c[KEY].record for c in stories]
    for story, record in zip(stories, records):
        record.check(story["cross_attn"], "The sampler")
        if noise.shape[0] != len(record.rows) and "context_handler" not in options:
            raise ValueError(wrong_batch(noise.shape[0], len(record.rows)))
        if len(record.rows) < record.frames:
            for branch, conds in guider.conds.items():
                for c in conds:
                    check_run(branch, c, len(record.rows), record.frames)
        noise = between_noise(noise, record)
    transformer_options = options["transformer_options"]
    sampling = Sampling(guider.model_patcher, transformer_options[KEY], transformer_options.get(FRAMES_AT_A_TIME, 0))
    sampling.check(records, sigmas[:-1].tolist(), noise.shape[0])
    guider.model_options = {**options, "transformer_options": {**transformer_options, KEY: sampling}}
    try:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        guider.model_options = options
        sampling.close()


def predict_noise(
    executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any] = {}, seed: int | None = None
) -> Tensor:
    """Once a step: hand on, in copies, which methods are on now and where the stories are."""
    guider = executor.class_obj
    options = model_options["transformer_options"]
    sampling = options[KEY]
    stories = place_stories(guider.conds, timestep)
    place = sampling.at(float(timestep[0]))
    methods = sampling.on(place)
    rows = x.shape[0]
    window = getattr(model_options.get("context_handler"), "context_length", rows)
    if window < rows:
        sampling.warn(
            f"a context window draws {window} of the {rows} frames at a time, so that they can't be kept consistent: "
            "take the context window off and draw the story in runs with Split Story, if memory is short."
        )
        methods = ()
    record = next((story.record for story in stories.values() if len(story.record.rows) == rows), None)
    cast = cast_of(record) if record else without_story(rows)
    positives = frozenset(c["uuid"] for _, c in positive(guider.conds))
    step = Step(sampling, methods, place, stories, positives, *cast, size_of(x))
    if window == rows:
        casts = {cast_of(story.record) for story in stories.values()} | {cast}
        step = step._replace(passes=sampling.cuts(methods, rows, casts))
    return executor(x, timestep, {**model_options, "transformer_options": {**options, KEY: step}}, seed)


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
    if isinstance(step, Step):
        # torch.compile can't look into a dict by uuid.
        transformer_options = {name: value for name, value in transformer_options.items() if name != KEY}
        if c_crossattn is not None and step.methods:
            model, sampling = executor.class_obj, step.sampling
            batch = batch_of(step, transformer_options["uuids"], x, c_crossattn, model)
            chosen = {block: sampling.chosen(step.methods, block) for block in sampling.blocks}
            if any(method.reads_alone for methods in chosen.values() for method in methods):
                batch = batch._replace(alone=alone_of(batch.chunks, c_crossattn))
            prepared = {method: method.prepare(batch) for method in step.methods}
            if any(prepared.values()):
                if batch.alone is not None:
                    c_crossattn = torch.cat([c_crossattn, batch.alone.tokens], dim=1)
                dispatch = Dispatch(chosen, prepared, batch)
                transformer_options = sampling.architecture.install(transformer_options, model, batch, dispatch)
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def batch_of(step: Step, uuids: list[Any], x: Tensor, context: Tensor, model: Any) -> Batch:
    rows = x.shape[0] // len(uuids)
    if rows != len(step.frames):
        step.sampling.warn(
            f"{rows} pictures are drawn at a time for the story's {len(step.frames)} frames, so that they can't be "
            "kept consistent: a tiled sampler has to take one tile at a time (its tile batch size is 1)."
        )
    # Interleaved tokens are keys and values by turns: a layer sees as many keys as there are pairs.
    interleaved = max((story.record.interleaved for story in step.stories.values()), default=1)
    tokens, size = context.shape[1] // interleaved, size_of(x)
    copies = step.sampling.architecture.copies
    chunks = tuple(
        Chunk(i * rows, (i + 1) * rows, fitting(step.stories.get(uuid), rows, tokens, copies))
        for i, uuid in enumerate(uuids)
    )
    return Batch(
        chunks,
        step.frames,
        step.characters,
        tokens,
        size,
        step.size,
        lambda tokens: step.sampling.architecture.layer_size(model, tokens, *size),
        step.place,
        model.get_dtype_inference(),
        x.device,
        step.sampling,
        step.methods,
        tuple(uuids),
        tuple(uuid in step.positives for uuid in uuids),
        step.kept,
        asked=step.sampling.methods,
        turn=step.turn,
        between=step.between,
    )


def size_of(latent: Tensor) -> tuple[int, int]:
    return latent.shape[-2], latent.shape[-1]


WRAPPERS: dict[Any, Callable[..., Any]] = {
    WrappersMP.OUTER_SAMPLE: outer_sample,
    WrappersMP.PREDICT_NOISE: predict_noise,
    WrappersMP.APPLY_MODEL: apply_model,
}
TURN_WRAPPERS: dict[Any, Callable[..., Any]] = {WrappersMP.CALC_COND_BATCH: calc_cond_batch}
RUN_WRAPPERS: dict[Any, Callable[..., Any]] = {
    **TURN_WRAPPERS,
    WrappersMP.PREPARE_SAMPLING: prepare_sampling,
}
