"""Decode rows in lock step over one of mlx-lm's caches, one step ahead of the reader.

The prompt goes in as mlx-lm's own loop sends it: in chunks, then its last token
alone. Step k+1 is launched before step k is read, so the device never waits for
the reader.

A *companion* is a row behind the arms' rows: the plain model, fed the tokens that an
arm writes, so that both distributions are of the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import mlx.core as mx

from lens_tui.records import Sampling

from .capture import CaptureResult
from .fork import add_rows, can_fork, spread
from .positions import follow_thinking
from .prefill import Filler, keep_rows, prefill_rows
from .prefix import PrefixCache
from .proxy import first_of
from .registry import Registry, Run, acts
from .sampling import LogitsProcessor, Sampler, make_processors, make_sampler
from .steered import History
from .steps import LaunchedStep, Scales, Step, against_plain, best, scales_of
from .tokens import EncodedPrompt

PREFILL_STEP = 2048
_async_eval: Any = mx.async_eval  # has no types


@dataclass(frozen=True)
class DecodeOptions:
    """How rows are decoded.

    ``kl`` asks for companions, ``top`` says how many candidates each token carries;
    the others are mlx-lm's ``generate_step``'s.
    """

    sampling: Sampling
    kl: bool = False
    top: int = 0
    prefill_step_size: int = PREFILL_STEP
    progress: Callable[[int, int], None] | None = None
    sampler: Sampler | None = None
    logits_processors: Sequence[LogitsProcessor] | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 5000


@dataclass
class RowDecoder:
    """The decoding of one prompt on ``n_rows`` rows, and their companions, under a run's plan.

    ``followed`` are the rows that companions are fed the tokens of, in the companions' order.

    ``thinking`` are the ids of the model's thinking markers, where it has such
    and the prompt went through its template; ``inside``: the prompt ends between them.
    """

    registry: Registry
    run: Run
    ids: tuple[int, ...]
    n_rows: int
    cache: list[Any]
    options: DecodeOptions
    thinking: tuple[int, int] | None = None
    inside: bool = False
    prefixes: PrefixCache | None = None
    max_kv_size: int | None = None
    reused: int = 0
    histories: list[History] = field(default_factory=list)
    followed: list[int] = field(default_factory=list)
    _alone: set[int] = field(default_factory=set)
    _at: int = 0
    _history: mx.array | None = None
    _inside: mx.array | None = None
    _stamp: object = None
    _version: int = -1
    _scales: Scales = ()
    _processors: list[LogitsProcessor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._processors = make_processors(self.options.sampling, self.options.logits_processors)
        self.histories = self.histories or [History() for _ in range(self.n_rows)]
        self._sample = self.options.sampler or make_sampler(self.options.sampling, self.registry.decoder.vocab_size)

    def steps(self) -> Iterator[Step]:
        """Token after token of all rows, up to ``max_tokens``; whoever reads decides when rows have ended."""
        with wired():
            launched = self._launch(self._prefill())
            count = self.options.sampling.max_tokens
            for index in range(count):
                ahead = self._launch(launched.chosen[:, None]) if index + 1 < count else None
                self._count(launched)
                yield launched.read()
                if ahead is None:
                    return
                if index % 256 == 0:
                    mx.clear_cache()
                launched = ahead

    def _count(self, launched: LaunchedStep) -> None:
        """What was measured in a step counts once it is used, unless the interventions have changed since."""
        if self.run.meter is not None and launched.version == self._version:
            self.run.meter.count(launched.measured)

    @property
    def start(self) -> int:
        """The absolute position of the prompt's first token: not 0 where the run goes on from a filled cache."""
        assert isinstance(self.run.n_prompt, int)
        return self.run.n_prompt - len(self.ids)

    def _prefill(self) -> mx.array:
        """Send all but the last prompt token through the model, in chunks; returns the last one."""
        tokens = mx.broadcast_to(mx.array(self.ids, dtype=mx.int32)[None], (self.n_rows, len(self.ids)))
        done, total = 0, len(self.ids)
        self._begin()
        self._report(0, total)
        filler = self._filler()
        if filler is not None:
            reused = prefill_rows(filler, self.run, self.cache, self._report)
            done, self.reused = (total - 1, reused) if reused >= 0 else (0, 0)
            self._at = self.start + done
        stamp = self.run.plan.stamp
        together = done == 0
        if together and filler is not None and self._may_fork(total) and self._send(tokens[:1], 0, fork=self.n_rows):
            spread(self.cache, self.n_rows)
        else:
            self._send(tokens, done)
        done = total - 1
        if filler is not None and together and self.run.plan.stamp == stamp:
            keep_rows(filler, self.run, self.cache)
        if self._processors:
            self._history = tokens[:, :done]
        return tokens[:, done:]

    def _send(self, tokens: mx.array, done: int, fork: int = 0) -> bool:
        """Prefill from ``done`` on, in chunks. ``False``, and nothing done, if the plan changes while rows fork."""
        total, stamp = len(self.ids), self.run.plan.stamp
        self.run.fork = fork
        while total - done > 1:
            size = min(self.options.prefill_step_size, total - done - 1)
            self._forward(tokens[:, done : done + size])
            mx.eval([cache.state for cache in self.cache], *self._extras())
            done += size
            self._report(done, total)
            mx.clear_cache()
            if fork and self.run.plan.stamp != stamp:
                self._start_again()
                return False
        self.run.fork = 0
        return True

    def _begin(self) -> None:
        """At the prompt's first token, under what holds now."""
        self._at = self.start
        for history in self.histories:
            history.restart()
        self._note_steering()

    def _note_steering(self) -> None:
        # Companions come behind the rows, and nothing acts on them.
        for history, entries in zip(self.histories, self.run.plan.rows, strict=False):
            history.note(self._at, entries)

    def _start_again(self) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.run.fork = 0
        self._begin()
        self.cache[:] = make_prompt_cache(self.registry.decoder.root, self.max_kv_size)
        if self.run.meter is not None:
            self.run.meter.restart()

    def _may_fork(self, total: int) -> bool:
        """Whether rows may share the layers before the first steered one."""
        assert self.prefixes is not None
        return (
            total > self.prefixes.min_tokens and self.options.kv_bits is None and can_fork(self.registry, self.run.plan)
        )

    def _filler(self) -> Filler | None:
        """What forks and keeps prefixes, where that is allowed: a capture must see every forward itself."""
        if self.prefixes is None or not self.prefixes.enabled or self.run.plan.recorders:
            return None
        self.prefixes.follow(self.registry.decoder.root)
        prompt = EncodedPrompt(self.ids, self.run.spans, self.thinking, self.inside)
        return Filler(self.registry, self.prefixes, prompt, self.options.prefill_step_size, self.max_kv_size)

    def _forward(self, inputs: mx.array) -> mx.array:
        """Logits of the next tokens; the cache moves on, and is quantised if that is asked for."""
        self._note_steering()
        self._at += inputs.shape[1]
        with self.registry.running(self.run):
            logits: mx.array = first_of(self.registry.decoder.root(inputs, cache=self.cache))
        if self.options.kv_bits is not None:
            quantise: Any = mlx_lm_generate().maybe_quantize_kv_cache
            quantise(self.cache, self.options.quantized_kv_start, self.options.kv_group_size, self.options.kv_bits)
        return logits

    def _report(self, done: int, total: int) -> None:
        if self.options.progress is not None:
            self.options.progress(done, total)

    def _launch(self, inputs: mx.array) -> LaunchedStep:
        self._note_changes()
        fed = mx.concatenate([inputs, inputs[mx.array(self.followed)]]) if self.followed else inputs
        self._note_thinking(fed)
        if self.run.meter is not None:
            self.run.meter.decoding = True
        every = self._forward(fed)[:, -1, :].astype(mx.float32)
        every_logprobs = every - mx.logsumexp(every, axis=-1, keepdims=True)
        logits, logprobs = every[: self.n_rows], every_logprobs[: self.n_rows]
        choosable = self.registry.decoder.choosable
        chosen = self._sample(choosable(self._processed(inputs, logits, logprobs)))
        of_chosen = mx.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
        plain = against_plain(logprobs, every_logprobs[self._plain_rows()], chosen) if self.options.kl else None
        top_ids, top_logprobs = best(choosable(logprobs), self.options.top) if self.options.top else (None, None)
        alone = frozenset(self._alone)
        launched = LaunchedStep(chosen, of_chosen, plain, top_ids, top_logprobs, self._version, self._scales, alone)
        _async_eval(*launched.arrays(), *self._extras())
        if self.run.meter is not None:
            launched.measured = self.run.meter.take()
        return launched

    def _processed(self, inputs: mx.array, logits: mx.array, logprobs: mx.array) -> mx.array:
        if not self._processors:
            return logprobs
        history = inputs if self._history is None else mx.concatenate([self._history, inputs], axis=1)
        self._history = history
        rows = []
        for row in range(self.n_rows):
            changed = logits[row : row + 1] + 0.0  # processors write in place
            for processor in self._processors:
                changed = processor(history[row], changed)
            rows.append(changed - mx.logsumexp(changed, axis=-1, keepdims=True))
        return mx.concatenate(rows, axis=0)

    def _note_thinking(self, inputs: mx.array) -> None:
        """Follow, on the device, which generated tokens are between the model's thinking markers."""
        if self.thinking is None:
            return
        if self._inside is None:  # the last prompt token: what the prompt's spans say of it holds
            self._inside = mx.full((inputs.shape[0], 1), self.inside)
            return
        self.run.thinking, self._inside = follow_thinking(inputs, self._inside, self.thinking)

    def _note_changes(self) -> None:
        """Count the versions of the plan; a new one is measured anew."""
        plan = self.run.plan
        if plan.stamp == self._stamp:
            return
        if self.options.kl:
            self._join_companions()
        if self._version >= 0 and self.run.meter is not None:
            self.run.meter.restart()
        self._stamp = plan.stamp
        self._version += 1
        self._scales = tuple(scales_of(plan, row) for row in range(len(plan.rows)))

    def _join_companions(self) -> None:
        """Give every row that something acts on from now on its companion, whose cache is that of a plain row."""
        plan, joined = self.run.plan, []
        for row in range(self.n_rows):
            if row in self.followed or row in self._alone or not any(acts(entry.item) for entry in plan.rows[row]):
                continue
            source = self._plain_row(row)
            if source is None:
                self._alone.add(row)
            else:
                joined.append((row, source))
        if not joined:
            return
        sources = [source for _, source in joined]
        n_rows = self.n_rows + len(self.followed)
        add_rows(self.cache, n_rows, sources)
        if self._inside is not None:
            self._inside = mx.concatenate([self._inside, self._inside[mx.array(sources)]])
        self.followed += [row for row, _ in joined]
        plan.rows += [[] for _ in joined]
        self.registry.caches.note(self.cache, self._at, plan.fingerprint())

    def _plain_row(self, row: int) -> int | None:
        """A row that read the same tokens as this one and that nothing has acted on; ``None``: there is none."""
        if self.histories[row].plain:
            return row
        # Before the first token is written all rows have read the same.
        same = range(self.n_rows) if self._at == self.start + len(self.ids) - 1 else ()
        return next((other for other in same if self.histories[other].plain), None)

    def _plain_rows(self) -> mx.array:
        """For each row its companion, or the row itself where nothing acts on it."""
        companions = {row: self.n_rows + place for place, row in enumerate(self.followed)}
        return mx.array([companions.get(row, row) for row in range(self.n_rows)])

    def _extras(self) -> list[mx.array]:
        """Measurements and captures of the newest forward, evaluated with the step they belong to."""
        meter = self.run.meter
        arrays = meter.arrays() if meter is not None else []
        for recorder in self.run.plan.recorders:
            if isinstance(recorder, CaptureResult):
                arrays.extend(recorder.pending())
        return arrays


def mlx_lm_generate() -> Any:
    """The module ``mlx_lm.generate``, which the function of that name hides."""
    return import_module("mlx_lm.generate")


_wired_depth = [0]


@contextmanager
def wired() -> Iterator[None]:
    """Keep the weights wired on Apple GPUs while tokens are made, as mlx-lm does; nothing elsewhere."""
    from mlx_lm.utils import maybe_set_recommended_wired_limit

    old = maybe_set_recommended_wired_limit() if _wired_depth[0] == 0 else None
    _wired_depth[0] += 1
    try:
        yield
    finally:
        _wired_depth[0] -= 1
        if old is not None:
            mx.synchronize()
            mx.set_wired_limit(old)
