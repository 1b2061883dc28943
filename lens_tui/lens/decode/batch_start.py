"""Batches through vllm-mlx's ``EngineCore``: its scheduler decides who runs, this library what a row is and chooses.

The engine is given a model that hooks each row by itself and a logits processor a
request that makes the choice, so sampling, seeds and log-probabilities are those of
the built-in way, also at a temperature (the engine has one sampler for all). Its
prefix cache knows nothing of interventions and is switched off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from numbers import Integral
from typing import Any, Literal

import mlx.core as mx

from lens_tui.records import ArmEnd, Intervention, LensError, Request, Sampling, Token

from ..hooks.capture_result import CaptureResult
from ..hooks.registry import PlanEntry, Registry
from ..hooks.steering import entries_of, reader_of
from ..room import check_run
from ..tokens import EncodedPrompt, Prompt, Tokens
from .batch import Batch, BatchGeneration, BatchOptions
from .batch_rows import BatchModel, BatchStep, Row, RowLabels, RowPlan
from .compare import writing_options
from .prefill import PrefixCache
from .row_recorder import RowRecorder
from .sampling import (
    LogitsProcessor,
    Sampler,
    best,
    check_sampling,
    log_softmax,
    make_processors,
    make_sampler,
    penalties_from,
    settings_from,
)

Engine = Literal["built-in", "vllm-mlx"]


def check_engine(use_engine: Engine | bool) -> Engine:
    """The engine of that name, if it is installed; ``False`` and ``True`` are the built-in one.

    Raises :class:`LensError` for another name, and for one that is not installed.
    """
    if isinstance(use_engine, bool) or use_engine == "built-in":
        return "built-in"
    if use_engine != "vllm-mlx":
        raise LensError(f"There is no engine {use_engine!r}.", "Use 'built-in' or 'vllm-mlx'.")
    if find_spec("vllm_mlx") is None:
        raise LensError(
            "vllm-mlx is not installed.",
            "pip install 'mlx-lens-tui[engine]' && pip install --no-deps vllm-mlx",
        )
    return "vllm-mlx"


class EngineModel:
    """The model as the engine sees it. Caches made for it end in the label of the row that is inserted next."""

    def __init__(self, model: BatchModel, root: Any, max_kv_size: int | None) -> None:
        self.model = model
        self.next_rows: deque[int] = deque()
        self._root = root
        self._max_kv_size = max_kv_size

    def __call__(self, inputs: mx.array, cache: list[Any], **_: Any) -> mx.array:
        """The last position's logits (rows, 1, vocabulary), float32."""
        return self.model(inputs, cache)

    @property
    def layers(self) -> Any:
        """The model's own."""
        return self._root.layers

    def make_cache(self) -> list[Any]:
        """Caches of one row: the one handed over first that has none yet."""
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self._root, self._max_kv_size)
        return [*cache, RowLabels([self.next_rows.popleft()], [0])]


class EngineBatch(Batch):
    """A batch that vllm-mlx schedules."""

    def _together(self) -> Iterator[Token | ArmEnd]:
        if self.tokens.tokenizer is None:
            raise LensError("vllm-mlx needs a tokenizer, and this model was given none.", "Leave use_engine out.")
        facade = EngineModel(self.model, self.registry.decoder.root, self.options.max_kv_size)
        self._generator = _core(facade, self.tokens.tokenizer, self._config())
        scheduler = self._generator.scheduler
        while self._unfinished():
            self._submit(facade, scheduler)
            for output in scheduler.step().outputs:
                row = self.rows[int(output.request_id)]
                for token in output.new_token_ids:
                    if not row.reason and row.launched:
                        yield from self._emit(row, int(token), *row.launched.popleft())
                if row.reason and not output.finished:
                    scheduler.abort_request(output.request_id)

    def _submit(self, facade: EngineModel, scheduler: Any) -> None:
        """Hand over the rows that have joined since the last step, in order."""
        from vllm_mlx.request import Request, SamplingParams

        for row in self._waiting:
            self._hold(row)
            params = SamplingParams(
                max_tokens=row.sampling.max_tokens,
                temperature=0.0,
                top_p=1.0,
                logits_processors=[_chooser(row, self.model)],
            )
            facade.next_rows.append(row.index)
            scheduler.add_request(Request(str(row.index), list(row.plan.prompt.ids), params))
        self._waiting.clear()

    def leave(self, row: Row) -> None:
        """A row ends where it stands."""
        if not row.reason and row not in self._waiting and self._generator is not None:
            self._generator.scheduler.abort_request(str(row.index))
        super().leave(row)

    def _config(self) -> dict[str, Any]:
        prefill = self._prefill_rows
        return {
            "enable_prefix_cache": False,
            "prefill_batch_size": prefill,
            "completion_batch_size": max(self.options.completion_batch_size, prefill),
            "prefill_step_size": self.options.prefill_step_size,
        }


def _chooser(row: Row, model: BatchModel) -> Callable[[mx.array, mx.array], mx.array]:
    """A logits processor that chooses the row's token by its own settings and leaves the engine no other."""

    def choose(_: mx.array, logits: mx.array) -> mx.array:
        if row.index not in model.last:
            raise LensError(f"vllm-mlx has mixed up the rows of a batch (prompt {row.index}).", "Leave use_engine out.")
        logits = model.logits[model.last.index(row.index)][None]
        logprobs = log_softmax(logits)
        chosen = row.choose(model.choosable(logits), model.choosable(logprobs))
        of_chosen = mx.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
        scales = (model.scales[model.last.index(row.index)],)
        top = best(model.choosable(logprobs), row.top) if row.top else None
        place = model.last.index(row.index)
        read = None if model.recorder is None else model.recorder.newest()
        read = None if read is None else read[place : place + 1]
        step = BatchStep(len(model.last), of_chosen, top, scales, model.doses(), (place,), read)
        row.launched.append((step, 0))
        return mx.where(mx.arange(logits.shape[-1])[None] == chosen[:, None], 0.0, -mx.inf)

    return choose


def _core(model: EngineModel, tokenizer: Any, config: dict[str, Any]) -> Any:
    from vllm_mlx.engine_core import EngineConfig, EngineCore
    from vllm_mlx.mlx_streams import bind_generation_streams
    from vllm_mlx.scheduler import SchedulerConfig

    bind_generation_streams()
    return EngineCore(model, tokenizer, EngineConfig(scheduler_config=SchedulerConfig(**config)))


Prompts = Sequence[Prompt | Request]


@dataclass(frozen=True, eq=False)
class Common:
    """What applies to every prompt that does not say otherwise."""

    entries: tuple[PlanEntry, ...]
    sampling: Sampling
    raw: bool = False
    top: int = 0
    sampler: Sampler | None = None
    processors: tuple[LogitsProcessor, ...] = ()


@dataclass(frozen=True, eq=False)
class RowMaker:
    """Makes rows from requests."""

    registry: Registry
    tokens: Tokens
    common: Common
    greedy: Sampler

    def __call__(self, index: int, request: Request, encoded: EncodedPrompt | None = None) -> Row:
        """A row, or :class:`LensError` for the first thing that is wrong with its request.

        ``encoded`` is its prompt as token ids, where that is known already.
        """
        common = self.common
        sampling = _own(request, common.sampling)
        raw = common.raw if request.raw is None else request.raw
        prompt = encoded or self.tokens.prompt(request.prompt, raw=raw)
        if request.stop is None and not sampling.stop:
            sampling = replace(sampling, stop=prompt.stop)
        entries = common.entries
        if request.interventions is not None:
            entries = tuple(entries_of(request.interventions, self.registry))
        sampler = self.common.sampler or (self.greedy if sampling.temp == 0.0 else None)
        return Row(
            index=index,
            plan=RowPlan(prompt, entries),
            sampling=sampling,
            sampler=sampler or make_sampler(sampling, self.registry.decoder.vocab_size),
            processors=make_processors(sampling, common.processors),
            interventions=tuple(entry.item for entry in entries if isinstance(entry.item, Intervention)),
            top=common.top,
            name=request.name or f"prompt {index}",
            **writing_options(self.tokens, sampling, prompt.ids[-1]),
        )


def start_batch(
    registry: Registry,
    tokens: Tokens,
    prompts: Prompts,
    *,
    sampling: Sampling | None,
    interventions: Sequence[Intervention] | None,
    options: dict[str, Any],
    prefixes: PrefixCache,
    engine: Engine = "built-in",
) -> BatchGeneration:
    """A batch of prompts, of which nothing has been computed yet.

    Args:
        registry: What is hooked.
        tokens: The model's tokenizer.
        prompts: At least one.
        sampling: The settings of the prompts that have none.
        interventions: Those of the prompts that have none; ``None`` for those of the blocks around the call.
        options: Those of ``LensModel.stream_batch``.
        prefixes: What is kept of prompts.
        engine: Who schedules the rows.

    Raises:
        LensError: For the first thing that is wrong with a prompt or an option.
    """
    requests = [as_request(prompt) for prompt in _several(prompts)]
    entries, recorders = registry.ambient()
    monitors = reader_of(registry, options.pop("monitors", ()))
    captures = [recorder for recorder in recorders if isinstance(recorder, CaptureResult)]
    if interventions is not None:
        entries = tuple(entries_of(interventions, registry))
    common = _common(entries, sampling, options, registry.decoder.vocab_size)
    known = {field.name for field in fields(BatchOptions)}
    batch_options = BatchOptions(**{name: options.pop(name) for name in known & set(options)})
    if options:
        raise LensError(f"There is no option {next(iter(options))!r}.", "See the docstring of LensModel.stream_batch.")
    make_row = RowMaker(registry, tokens, common, make_sampler(Sampling(), registry.decoder.vocab_size))
    kind = EngineBatch if engine == "vllm-mlx" else Batch
    recorder = None
    if captures or monitors is not None:
        recorder = RowRecorder(registry, captures, () if monitors is None else monitors.monitors)
    batch = kind(registry, tokens, batch_options, prefixes, recorder)
    rows = [make_row(index, request) for index, request in enumerate(requests)]
    together = max(batch_options.completion_batch_size, batch_options.prefill_batch_size)
    sizes = sorted(((len(row.plan.prompt.ids), row.sampling.max_tokens) for row in rows), key=sum, reverse=True)
    check_run(
        registry,
        sizes[:together],
        f"The {len(sizes[:together])} longest prompts with all that they may write, side by side,",
        "Lower max_tokens or completion_batch_size, or give shorter prompts.",
        together=False,
        window=batch_options.max_kv_size,
    )
    for row in rows:
        batch.join(row)
    return BatchGeneration(batch, make_row)


def as_request(prompt: Prompt | Request) -> Request:
    """A prompt as a request of its own."""
    return prompt if isinstance(prompt, Request) else Request(prompt)


def _several(prompts: Prompts) -> Prompts:
    one = isinstance(prompts, (str, bytes, Mapping, Request)) or not isinstance(prompts, Iterable)
    listed = [] if one else list(prompts)
    if one or (listed and (isinstance(listed[0], (Mapping, Integral)) or getattr(listed[0], "ndim", 1) == 0)):
        raise LensError("A batch takes a list of prompts, not one prompt.", "Put it into a list.")
    if not listed:
        raise LensError("There are no prompts.", "Give at least one.")
    return listed


def _common(
    entries: tuple[PlanEntry, ...], sampling: Sampling | None, options: dict[str, Any], vocab_size: int
) -> Common:
    """Take what every prompt shares out of the options."""
    settings = settings_from(sampling, options)
    processors = [*penalties_from(options, vocab_size), *(options.pop("logits_processors", None) or ())]
    own = {name: options.pop(name) for name in ("raw", "top", "sampler") if name in options}
    return Common(entries, settings, processors=tuple(processors), **own)


def _own(request: Request, common: Sampling) -> Sampling:
    """A prompt's settings with the stops that hold for it: its own, its settings', or the batch's."""
    own = common if request.sampling is None else request.sampling
    stop = (own.stop or common.stop) if request.stop is None else request.stop
    stop_ids = (own.stop_ids or common.stop_ids) if request.stop_ids is None else request.stop_ids
    return check_sampling(replace(own, stop=stop, stop_ids=stop_ids))
