"""Decoding step by step: one prompt on several rows, what every row's next token is, when a row ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import mlx.core as mx

from lens_tui.records import LensError, Sampling

from ..hooks.capture_result import MonitorReader
from ..hooks.passage import History
from ..hooks.places import follow_thinking
from ..hooks.program import DoseMeter, Measured, async_eval, has_effect
from ..hooks.registry import Plan, Registry, Run
from ..hooks.steering import reader_of
from ..room import check_arms, piece_of
from ..tokens import EncodedPrompt
from .prefill import Filler, PrefixCache, add_rows, can_fork, keep_rows, prefill_rows, spread
from .sampling import (
    LogitsProcessor,
    Sampler,
    best,
    kl,
    log_softmax,
    make_processors,
    make_sampler,
    penalties_from,
    whole_number,
)

Scales = tuple[tuple[tuple[str, float], ...], ...]
"""For each row, ``(id, scale)`` of its records."""


@dataclass(frozen=True)
class AgainstPlain:
    """One arm's next-token distribution against the plain model's on the same tokens, in nats.

    ``kl`` is D(arm || plain), ``reverse_kl`` D(plain || arm), ``logprob`` the plain model's log-probability of the
    token that the arm chose. Not finite where a distribution is not.
    """

    kl: float
    reverse_kl: float
    logprob: float


@dataclass(frozen=True)
class DecodeStep:
    """One forward's choice for every arm, read back in columns: a list of one value an arm, not a record a token.

    Without text, which only the arm's :class:`Writing` knows; together they make the :class:`~lens_tui.records.Token`s.
    ``plain`` is ``None`` where nothing was compared. ``version`` and ``scales`` say which interventions of the rows it
    was computed under.
    """

    ids: list[int]
    logprobs: list[float]
    plain: list[AgainstPlain | None] | None
    top_ids: list[list[int]] | None
    top_logprobs: list[list[float]] | None
    version: int
    scales: Scales
    readings: list[list[float]] | None = None


@dataclass
class LaunchedStep:
    """A step whose arrays may not have been computed yet.

    ``plain`` is (3, arms) as of :func:`against_plain`; the arms in ``alone`` had no row to be compared with.
    """

    chosen: mx.array
    logprobs: mx.array
    plain: mx.array | None
    top_ids: mx.array | None
    top_logprobs: mx.array | None
    version: int
    scales: Scales
    alone: frozenset[int] = frozenset()
    measured: list[Measured] = field(default_factory=list)
    readings: mx.array | None = None
    unsent: tuple[mx.array, ...] = ()

    def send(self) -> None:
        """Have the device compute it, if that has not been asked for yet."""
        unsent, self.unsent = self.unsent, ()
        if unsent:
            async_eval(*unsent)

    def arrays(self) -> list[mx.array]:
        """What is to be evaluated."""
        every = (self.chosen, self.logprobs, self.plain, self.top_ids, self.top_logprobs, self.readings)
        return [array for array in every if array is not None]

    def read(self) -> DecodeStep:
        """The step in Python's numbers."""
        return DecodeStep(
            self.chosen.tolist(),  # type: ignore[arg-type]
            self.logprobs.tolist(),  # type: ignore[arg-type]
            self._against_plain(),
            None if self.top_ids is None else self.top_ids.tolist(),  # type: ignore[arg-type]
            None if self.top_logprobs is None else self.top_logprobs.tolist(),  # type: ignore[arg-type]
            self.version,
            self.scales,
            None if self.readings is None else self.readings.tolist(),  # type: ignore[arg-type]
        )

    def _against_plain(self) -> list[AgainstPlain | None] | None:
        if self.plain is None:
            return None
        values: list[list[float]] = self.plain.tolist()  # type: ignore[assignment]
        return [
            None if arm in self.alone else AgainstPlain(*numbers)
            for arm, numbers in enumerate(zip(*values, strict=True))
        ]


def scales_of(plan: Plan, row: int) -> tuple[tuple[str, float], ...]:
    """``(id, scale)`` of every enabled record of a row that has a scale or a value."""
    found = []
    for entry in plan.rows[row]:
        item = entry.item
        value = getattr(item, "scale", getattr(item, "value", None))
        if value is not None and getattr(item, "enabled", True):
            found.append((item.id, float(value)))
    return tuple(found)


def against_plain(logprobs: mx.array, plain: mx.array, chosen: mx.array) -> mx.array:
    """What :class:`AgainstPlain` holds, (3, arms), of log-probabilities (arms, vocabulary) and chosen ids (arms,)."""
    of_chosen = mx.take_along_axis(plain, chosen[:, None], axis=-1)[:, 0]
    return mx.stack([kl(logprobs, plain), kl(plain, logprobs), of_chosen])


@dataclass(frozen=True)
class DecodeOptions:
    """How rows are decoded.

    ``kl`` asks for companions, ``top`` says how many candidates each token carries;
    the others are mlx-lm's ``generate_step``'s.
    """

    sampling: Sampling
    kl: bool = False
    top: int = 0
    prefill_step_size: int | None = None
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
    monitors: MonitorReader | None = None
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

    def steps(self) -> Iterator[DecodeStep]:
        """Token after token of all rows, up to ``max_tokens``; whoever reads decides when rows have ended."""
        with wired():
            # One step ahead: the device computes the next token while the last one is read, written and drawn. The step
            # under way when a row ends is thrown away, which is why doses are counted only once a step is used.
            launched = self._launch(self._prefill())
            launched.send()
            count = self.options.sampling.max_tokens
            for index in range(count):
                ahead = self._launch(launched.chosen[:, None]) if index + 1 < count or self._reads_last() else None
                # A CPU is all but through with a step once it is sent: the first token does not wait for the second.
                if ahead is not None and (index or mx.default_device().type != mx.DeviceType.cpu):
                    ahead.send()
                self._count(launched)
                try:
                    yield launched.read()
                finally:  # whoever reads no further may yet go on from the cache, in another thread
                    if ahead is not None:
                        ahead.send()
                if ahead is None:
                    return
                if index % 256 == 0:
                    mx.clear_cache()
                launched = ahead

    def _reads_last(self) -> bool:
        """Whether the last token goes into the model too, for what reads the written ones; where there is a place."""
        if not any(recorder.reads_last or not recorder.whole for recorder in self.run.plan.recorders):
            return False
        try:
            self.registry.decoder.check_positions(self.start + len(self.ids) + self.options.sampling.max_tokens)
        except LensError:
            return False
        return True

    def _count(self, launched: LaunchedStep) -> None:
        """What was measured in a step counts once it is used, unless the interventions have changed since."""
        if self.run.meter is not None and launched.version == self._version:
            self.run.meter.count(launched.measured)

    @property
    def start(self) -> int:
        """The absolute position of the prompt's first token: not 0 where the run continues a filled cache."""
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
            size = min(self.options.prefill_step_size or piece_of(self.registry, len(tokens)), total - done - 1)
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
        self.run.fork = 0
        self._begin()
        room = self.start + len(self.ids) + self.options.sampling.max_tokens
        self.cache[:] = fresh_cache(self.registry, self.max_kv_size, room)
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
        if self.prefixes is None or not self.prefixes.enabled:
            return None
        if any(recorder.whole for recorder in self.run.plan.recorders):
            return None
        self.prefixes.follow(self.registry.decoder.root)
        prompt = EncodedPrompt(self.ids, self.run.spans, self.thinking, self.inside)
        return Filler(self.registry, self.prefixes, prompt, self.options.prefill_step_size, self.max_kv_size)

    def _forward(self, inputs: mx.array) -> mx.array:
        """Logits of the next tokens; the cache moves on, and is quantised if that is asked for."""
        self._note_steering()
        start, self._at = self._at, self._at + inputs.shape[1]
        logits = self.registry.forward(self.run, inputs, self.cache, start=start, held=True)
        if self.options.kv_bits is not None:
            quantise: Any = mlx_lm_generate().maybe_quantize_kv_cache
            quantise(self.cache, self.options.quantized_kv_start, self.options.kv_group_size, self.options.kv_bits)
        return logits

    def _report(self, done: int, total: int) -> None:
        if self.options.progress is not None:
            self.options.progress(done, total)

    def _launch(self, inputs: mx.array) -> LaunchedStep:
        """The next step, laid out under what holds now; the device has it once it is sent."""
        self._note_changes()
        # Companions come after the rows, and choose nothing: they are fed what the row that they follow has chosen.
        fed = mx.concatenate([inputs, inputs[mx.array(self.followed)]]) if self.followed else inputs
        self._note_thinking(fed)
        self.run.writing = True
        if self.run.meter is not None:
            self.run.meter.decoding = True
        every = self._forward(fed)[:, -1, :].astype(mx.float32)
        every_logprobs = log_softmax(every)
        logits, logprobs = every[: self.n_rows], every_logprobs[: self.n_rows]
        choosable = self.registry.decoder.choosable
        chosen = self._sample(choosable(self._processed(inputs, logits, logprobs)))
        of_chosen = mx.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
        plain = against_plain(logprobs, every_logprobs[self._plain_rows()], chosen) if self.options.kl else None
        top_ids, top_logprobs = best(choosable(logprobs), self.options.top) if self.options.top else (None, None)
        alone = frozenset(self._alone)
        read = None if self.monitors is None else self.monitors.newest()
        launched = LaunchedStep(chosen, of_chosen, plain, top_ids, top_logprobs, self._version, self._scales, alone)
        launched.readings = read
        launched.unsent = (*launched.arrays(), *self._extras())
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
            rows.append(log_softmax(changed))
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
        """Count the versions of the plan; a new one is measured from the start."""
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
        # A companion is fed its arm's tokens and steered by nothing: its distribution is the plain model's on the arm's
        # own text. It needs the plain model's cache of what was read so far, which only a row that nothing has acted on
        # can give; once an arm has been steered for a while there may be none, and it stays alone (its KL is ``None``).
        # Rows that nothing acts on are their own companions, and join once something does.
        plan, joined = self.run.plan, []
        for row in range(self.n_rows):
            if (
                row in self.followed
                or row in self._alone
                or not any(has_effect(entry.item) for entry in plan.rows[row])
            ):
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
            arrays.extend(recorder.beside_logits())
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


_LAID_OUT = 64
"""The positions of a short run's cache are a multiple of so many: what continues from it grows by as many."""

OPTIONS = (
    "prefill_step_size",
    "progress",
    "sampler",
    "logits_processors",
    "kv_bits",
    "kv_group_size",
    "quantized_kv_start",
)
"""What ``stream`` and ``compare`` take beside sampling settings; the names are mlx-lm's."""


def fresh_cache(registry: Registry, max_kv_size: int | None, most: int) -> list[Any]:
    """An empty cache of the model's own, for a run of at most ``most`` tokens, its prompt included.

    mlx-lm lays out 256 positions at a time. Where a run is shorter, writing zeros to the rest, for every row and layer,
    took as long as its first two forwards.
    """
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    cache: list[Any] = make_prompt_cache(registry.decoder.root, max_kv_size)
    for item in cache:
        if type(item) is KVCache:
            item.step = min(item.step, -(-most // _LAID_OUT) * _LAID_OUT)
    return cache


def row_decoder(
    registry: Registry,
    prompt: EncodedPrompt,
    plan: Plan,
    n_rows: int,
    decode: DecodeOptions,
    options: dict[str, Any],
    prompt_cache: list[Any] | None = None,
    prefixes: PrefixCache | None = None,
) -> RowDecoder:
    """A decoder of several rows over a fresh cache, or over one that was filled under the same plan.

    Args:
        registry: What is hooked.
        prompt: What all rows begin with.
        plan: What acts on each row.
        n_rows: How many there are.
        decode: How they are decoded.
        options: More of that by name, mlx-lm's names; all are taken out.
        prompt_cache: A cache to continue from.
        prefixes: Used and added to where the cache is a fresh one, not quantised.

    Raises:
        LensError: For an option that does not exist, a cache filled under other interventions, and more tokens than a
            model with learnt positions has places for or than fit into memory.
    """
    extra = {name: options.pop(name) for name in OPTIONS if name in options}
    max_kv_size = options.pop("max_kv_size", None)
    monitors = reader_of(registry, options.pop("monitors", ()))
    if monitors is not None:
        plan.recorders = (*plan.recorders, monitors)
    if penalties := penalties_from(options, registry.decoder.vocab_size):
        extra["logits_processors"] = [*penalties, *(extra.get("logits_processors") or ())]
    if options:
        raise LensError(f"There is no option {next(iter(options))!r}.", "See the docstring of LensModel.stream.")
    cache = prompt_cache
    if cache is None:
        cache = fresh_cache(registry, max_kv_size, len(prompt.ids) + decode.sampling.max_tokens)
    n_prompt = registry.caches.check(cache, plan.fingerprint()) + len(prompt.ids)
    registry.decoder.check_positions(n_prompt + decode.sampling.max_tokens - 1)
    for name in ("prefill_step_size", "kv_bits", "kv_group_size"):  # MLX takes others for shapes
        if extra.get(name) is not None and whole_number(extra[name], name) < 1:
            raise LensError(f"The option {name} cannot be {extra[name]!r}.", "Give 1 or more, or leave it out.")
    piece = min(extra.get("prefill_step_size") or piece_of(registry, len(prompt.ids)), len(prompt.ids))
    registry.decoder.check_room(n_rows, piece, n_prompt)
    bounds = {"window": max_kv_size, "bits": extra.get("kv_bits")}
    check_arms(registry, plan, n_rows, (len(prompt.ids), decode.sampling.max_tokens), kl=decode.kl, **bounds)
    meter = DoseMeter(gathers=True) if any(plan.rows) else None
    run = Run(registry, plan, n_prompt, prompt.spans, meter, captured_rows=n_rows if decode.kl else None)
    options_of = replace(decode, **extra)
    if prompt.stop and not decode.sampling.stop:
        options_of = replace(options_of, sampling=replace(decode.sampling, stop=prompt.stop))
    if prompt_cache is not None or extra.get("kv_bits") is not None:
        prefixes = None
    ends = prompt.thinking, prompt.inside
    return RowDecoder(
        registry, run, prompt.ids, n_rows, cache, options_of, *ends, prefixes, max_kv_size, monitors=monitors
    )
