"""Set a batch up: what each prompt asks for, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

from lens_tui.records import Intervention, LensError, Request, Sampling

from .batch import Batch, BatchGeneration, BatchOptions
from .batch_model import RowPlan
from .batch_rows import Row
from .checks import entries_of
from .engine import Engine, EngineBatch
from .prefix import PrefixCache
from .registry import Entry, Registry
from .sampling import (
    LogitsProcessor,
    Sampler,
    check_sampling,
    make_processors,
    make_sampler,
    penalties_from,
    settings_from,
)
from .stops import writing_options
from .tokens import Prompt, Tokens

Prompts = Sequence[Prompt | Request]


@dataclass(frozen=True, eq=False)
class Common:
    """What holds for every prompt that does not say otherwise."""

    entries: tuple[Entry, ...]
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

    def __call__(self, index: int, request: Request) -> Row:
        """A row, or :class:`LensError` for the first thing that is wrong with its request."""
        common = self.common
        sampling = _own(request, common.sampling)
        raw = common.raw if request.raw is None else request.raw
        prompt = self.tokens.prompt(request.prompt, raw=raw)
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
    """A batch of these prompts; ``options`` are those of ``LensModel.stream_batch``."""
    requests = [as_request(prompt) for prompt in _several(prompts)]
    entries, recorders = registry.ambient()
    if recorders:
        raise LensError(
            "A batch was started inside a capture block, but its rows come and go.",
            "Capture with forward, or generate the prompts one by one.",
        )
    if interventions is not None:
        entries = tuple(entries_of(interventions, registry))
    common = _common(entries, sampling, options)
    known = {field.name for field in fields(BatchOptions)}
    batch_options = BatchOptions(**{name: options.pop(name) for name in known & set(options)})
    if options:
        raise LensError(f"There is no option {next(iter(options))!r}.", "See the docstring of LensModel.stream_batch.")
    make_row = RowMaker(registry, tokens, common, make_sampler(Sampling(), registry.decoder.vocab_size))
    kind = EngineBatch if engine == "vllm-mlx" else Batch
    batch = kind(registry, tokens, batch_options, prefixes)
    for index, request in enumerate(requests):
        batch.join(make_row(index, request))
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


def _common(entries: tuple[Entry, ...], sampling: Sampling | None, options: dict[str, Any]) -> Common:
    """Take what every prompt shares out of the options."""
    settings = settings_from(sampling, options)
    processors = [*penalties_from(options), *(options.pop("logits_processors", None) or ())]
    own = {name: options.pop(name) for name in ("raw", "top", "sampler") if name in options}
    return Common(entries, settings, processors=tuple(processors), **own)


def _own(request: Request, common: Sampling) -> Sampling:
    """A prompt's settings with the stops that hold for it: its own, its settings', or the batch's."""
    own = common if request.sampling is None else request.sampling
    stop = (own.stop or common.stop) if request.stop is None else request.stop
    stop_ids = (own.stop_ids or common.stop_ids) if request.stop_ids is None else request.stop_ids
    return check_sampling(replace(own, stop=stop, stop_ids=stop_ids))
