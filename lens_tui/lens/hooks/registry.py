"""The one registry: what is hooked on a model, the door into a forward pass, and what happens in it.

Two kinds of plans exist. The *ambient* one is what ``steer`` and ``capture`` blocks of the calling context apply; it
holds for forwards that anyone runs on this thread. A *run* (a generation, a comparison, a loss) carries its own plan,
taken when it was started, and each of its forwards runs under that one alone.

Whatever this library computes with a whole model goes through :meth:`Registry.forward`: the positions are checked
there, the sites of the run's plan are proxied for as long as it takes, and the run is known to all that is hooked.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from hashlib import blake2b
from types import TracebackType
from typing import Any, TypeVar

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui.records import EditPattern, Intervention
from lens_tui.records.gates import Gate, Monitor

from ..architecture.find import Decoder
from ..architecture.taps import Call, Sink, Tap, first_of, input_of, install_all, now, taps_of, uninstall_all
from .pattern_edits import Rehearsal, rehearsed
from .places import CacheLedger, Offset, Spans, Where, caches_of
from .points import Point, SiteMap
from .program import DoseMeter, Hook, Item, Key, Program, build, has_effect
from .readings import FeatureSource, sources_of

Found = TypeVar("Found")
Seat = tuple[Point, Tap, dict[Key, Point]]
"""A site's call, the tap of its module, and the sites that the tap visits now."""
_stamps = itertools.count(1)


class PlanEntry:
    """One item under an id: what it is now, and a stamp that changes when it does, or when the SAE it names does."""

    def __init__(self, registry: Registry, item: Item) -> None:
        self.registry = registry
        self.active = True
        self.calls = 0
        self.forwards = 0
        self.proved: object = None
        self.set(item)

    def set(self, item: Item) -> None:
        """Replace the item; every plan that holds the entry follows."""
        self.item = item
        self._stamp = next(_stamps)
        self._sources = sources_of(item)

    @property
    def stamp(self) -> tuple[int, int]:
        """Equal for as long as the entry does the same."""
        return self._stamp, self.registry.source_stamp(self._sources) if self._sources else 0

    @property
    def fingerprint(self) -> tuple[object, int]:
        """Something hashable that is equal for entries of equal effects: their ids are left out."""
        return fingerprint_of(self.item), self.registry.source_stamp(self._sources)

    @property
    def key(self) -> Key:
        """Layer and site."""
        return self.item.layer, self.item.site

    @property
    def monitor(self) -> Monitor | None:
        """What its gate reads."""
        gate = None if isinstance(self.item, Hook) else self.item.gate
        return None if gate is None else gate.monitor

    @property
    def keys(self) -> tuple[Key, ...]:
        """What is touched, where its gate is read, if it has one, and the attention whose pattern it edits."""
        monitor = self.monitor
        found = (self.key,) if monitor is None else (self.key, (monitor.layer, monitor.site))
        return (*found, (self.item.layer, "attn_out")) if isinstance(self.item, EditPattern) else found


class Recorder:
    """What a capture must offer: it learns of each forward and gets each tensor at its sites."""

    reads_last: bool = False  # it needs the last token that a run writes to go in, where there is a place
    whole: bool = True  # else it needs the tokens that a run writes alone: the prompt may come from what was kept
    registry: Registry
    places: tuple[Key, ...] = ()
    active: bool = True

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins; ``starts``: it begins a sequence."""
        raise NotImplementedError

    def record(self, key: Key, tensor: mx.array) -> None:
        """The tensor at a site, after all interventions there."""
        raise NotImplementedError

    def sink(self, key: Key) -> Sink:
        """:meth:`record` of one site for the forward that has begun."""
        return partial(self.record, key)

    @cached_property
    def place_set(self) -> frozenset[Key]:
        """Its places, to look one up."""
        return frozenset(self.places)

    def beside_logits(self) -> list[mx.array]:
        """What is to be evaluated beside the last position's logits in a forward of a run."""
        return []

    def end(self, logits: mx.array | None = None) -> None:
        """A forward of this library is built; nothing of it is evaluated yet. ``logits``: what its caller gets."""


class Plan:
    """The items of a run, row by row. One row stands for every row of any batch."""

    def __init__(self, rows: Iterable[Iterable[PlanEntry]] = ((),), recorders: Iterable[Recorder] = ()) -> None:
        self.rows: list[list[PlanEntry]] = [list(row) for row in rows]
        self.recorders: tuple[Recorder, ...] = tuple(recorders)
        self._fingerprint: tuple[object, tuple[object, ...]] | None = None

    def set_row(self, row: int, entries: Iterable[PlanEntry]) -> None:
        """Change what acts on one row, from the next forward on."""
        self.rows[row] = list(entries)

    @property
    def stamp(self) -> tuple[tuple[object, ...], ...]:
        """Equal for equal contents: what compiled programs are kept under."""
        return tuple([tuple([entry.stamp for entry in row]) for row in self.rows])

    @property
    def keys(self) -> set[Key]:
        """Every layer and site that is touched or read."""
        written = {key for row in self.rows for entry in row for key in entry.keys}
        return written | {key for recorder in self.recorders for key in recorder.places}

    def fingerprint(self) -> tuple[object, ...]:
        """What a KV cache filled under this plan depends on: equal for equal effects, empty for a plain model."""
        stamp = self.stamp
        if self._fingerprint is None or self._fingerprint[0] != stamp:
            rows = [tuple(entry.fingerprint for entry in row if has_effect(entry.item)) for row in self.rows]
            self._fingerprint = stamp, tuple(rows) if any(rows) else ()
        return self._fingerprint[1]


@dataclass(frozen=True, eq=False)
class Resume:
    """Where a forward continues from what is known: a site, and (rows, tokens, width) there before interventions."""

    key: Key
    hidden: mx.array


@dataclass(eq=False)
class Run:
    """A generation, comparison or loss in progress: its plan and what its forwards need to know.

    ``offset``, ``row_spans`` and ``real`` are for batches of different prompts, whose
    places are counted by who runs them: see :class:`~.positions.Where`. ``fork`` is
    how many rows a forward of one row becomes at the first site that is touched;
    ``resume`` what takes the place of a site's tensor, so that nothing below is computed.
    ``writing``: the prompt is behind it.
    ``opened`` is given where the gates of a forward are open.
    ``captured_rows`` is how many rows a capture sees where there are others behind them (``None``: all).
    """

    registry: Registry
    plan: Plan
    n_prompt: Offset | None = None
    spans: tuple[tuple[str, int, int], ...] | None = None
    meter: DoseMeter | None = None
    thinking: mx.array | None = None
    offset: Offset | None = None
    row_spans: tuple[Spans | None, ...] | None = None
    real: mx.array | None = None
    fork: int = 0
    resume: Resume | None = None
    captured_rows: int | None = None
    writing: bool = False
    opened: dict[tuple[str, int, str], mx.array] | None = None

    @property
    def keys(self) -> set[Key]:
        """Every layer and site that its forwards touch, read or resume at."""
        return self.plan.keys if self.resume is None else self.plan.keys | {self.resume.key}

    @property
    def idle(self) -> bool:
        """Whether there are no such sites."""
        plan = self.plan
        return self.resume is None and not any(plan.rows) and not any(one.places for one in plan.recorders)


@dataclass(eq=False)
class _Forward:
    """One forward in progress on one thread; ``sinks``: see :meth:`Registry._sinks`."""

    where: Where
    programs: Mapping[Key, Program]
    recorders: tuple[Recorder, ...]
    run: Run
    sinks: Mapping[int, Sink]
    called: set[Key] = field(default_factory=set)
    passes: dict[int, int] = field(default_factory=dict)
    patterns: frozenset[int] = frozenset()
    rehearsal: Rehearsal | None = None


_AMBIENT: ContextVar[tuple[PlanEntry | Recorder, ...]] = ContextVar("lens_ambient", default=())
_RUN: ContextVar[Run | None] = ContextVar("lens_run", default=None)


class Registry:
    """All that is hooked on one model. Modules carry a proxy only while something needs them."""

    def __init__(self, decoder: Decoder, bos: int | None = None) -> None:
        self.decoder = decoder
        self.sites = SiteMap(decoder)
        self.sources: dict[str, FeatureSource] = {}
        self._source_stamps: dict[str, int] = {}
        self.weights_per_token: int | None = None  # known once a prompt is read
        self.bos = bos
        # Called before each forward of a measure: what it raises ends the measure between two forwards.
        self.between: Callable[[], None] = lambda: None
        self._local = threading.local()
        self._lock = threading.RLock()
        self._needs: dict[Key, int] = {}
        self._taps: dict[int, tuple[Tap, dict[Key, Point]]] = {}
        self._seats: dict[Key, Seat] = {}
        self._programs: dict[object, dict[Key, Program]] = {}
        self._found: dict[Any, Any] = {}
        self.caches = CacheLedger()
        self.ambient_entries: list[PlanEntry] = []

    def attach(self, name: str, source: FeatureSource) -> None:
        """Give records an SAE to name, also while they act: the next forward runs under the new one."""
        if self.sources.get(name) is not source:
            self.sources[name] = source
            self._source_stamps[name] = next(_stamps)

    def source_stamp(self, names: Iterable[str]) -> int:
        """Changes when another SAE is given one of these names."""
        return sum(self._source_stamps.get(name, 0) for name in names)

    def once(self, find: Callable[[Registry], Found]) -> Found:
        """What a function finds out about the model, by forwards of its own, the first time it is asked for."""
        if find not in self._found:
            self._found[find] = find(self)
        found: Found = self._found[find]
        return found

    # -- what acts -------------------------------------------------------

    def put(self, item: PlanEntry | Recorder) -> None:
        """Make an entry or recorder part of the calling context's plan and install what it needs."""
        keys = item.keys if isinstance(item, PlanEntry) else item.places
        self._need(keys)
        if isinstance(item, PlanEntry):
            with self._lock:
                self.ambient_entries.append(item)
        _AMBIENT.set((*_AMBIENT.get(), item))

    def take(self, item: PlanEntry | Recorder) -> None:
        """End an entry or recorder, in any order and from any thread; what nobody needs is uninstalled."""
        if not item.active:
            return
        item.active = False
        _AMBIENT.set(tuple(other for other in _AMBIENT.get() if other is not item))
        if isinstance(item, PlanEntry):
            with self._lock:
                self.ambient_entries.remove(item)
        self._release(item.keys if isinstance(item, PlanEntry) else item.places)

    def ambient(self) -> tuple[tuple[PlanEntry, ...], tuple[Recorder, ...]]:
        """What holds for the calling context: entries and recorders, oldest first."""
        mine = [item for item in _AMBIENT.get() if item.active]
        entries = tuple(item for item in mine if isinstance(item, PlanEntry) and item.registry is self)
        recorders = tuple(item for item in mine if isinstance(item, Recorder) and item.registry is self)
        return entries, recorders

    def _need(self, keys: Iterable[Key]) -> None:
        """Install proxies for sites; every site is found before the first is installed."""
        seats = [(key, self._seats.get(key) or self._seat(key)) for key in keys]
        fresh: list[tuple[Module, Tap]] = []
        with self._lock:
            needs = self._needs
            if seats and not needs:
                fresh += [(owner, self._root) for owner in self.decoder.owners]
            for key, (point, tap, points) in seats:
                needed = needs.get(key, 0)
                needs[key] = needed + 1
                if not needed:
                    if not points:
                        fresh.append((point.module, tap))
                    points[key] = point
            install_all(fresh)

    def _release(self, keys: Iterable[Key]) -> None:
        """The opposite of :meth:`_need`."""
        free: list[tuple[Module, Tap]] = []
        with self._lock:
            needs = self._needs
            had = bool(needs)
            for key in keys:
                needed = needs[key] - 1
                if needed:
                    needs[key] = needed
                else:
                    del needs[key]
                    point, tap, points = self._seats[key]
                    del points[key]
                    if not points:
                        free.append((point.module, tap))
            if had and not needs:
                free += [(owner, self._root) for owner in self.decoder.owners]
            uninstall_all(free)

    @property
    def installed(self) -> tuple[Key, ...]:
        """The sites that carry a proxy now."""
        return tuple(sorted(self._needs))

    def _seat(self, key: Key) -> Seat:
        """A site's call, its module's tap and what that tap knows, found once."""
        point = self.sites.point(*key)
        tap, points = self._taps.get(id(point.module)) or self._tap(point.module)
        self._seats[key] = point, tap, points
        return self._seats[key]

    def _tap(self, module: Module) -> tuple[Tap, dict[Key, Point]]:
        """A module's tap, made once: what a capture makes anew for each layer, Python's collector goes through."""
        # It knows no registry, which knows it, or only the collector could free a model.
        local, points = self._local, dict[Key, Point]()

        def tap(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            forward: _Forward | None = getattr(local, "forward", None)
            if forward is None:
                return call(*args, **kwargs)
            return forward.run.registry._visit(forward, points, call, args, kwargs)

        self._taps[id(module)] = tap, points
        return tap, points

    # -- the door ---------------------------------------------------------

    def forward(
        self, run: Run, ids: mx.array, cache: list[Any] | None = None, *, start: int = 0, held: bool = False
    ) -> mx.array:
        """Logits ``(batch, tokens, vocabulary)``, lazy, of token ids under a run.

        Args:
            run: What acts, what is recorded, and what the forward needs to know.
            ids: ``(batch, tokens)``.
            cache: mlx-lm's prompt cache, which the ids are appended to; without one they are whole texts.
            start: Tokens that went in before these, of the row that has most.
            held: The run's sites are proxied already, by a :class:`Holding`: one token is not a reason to
                install and uninstall them.

        Raises:
            LensError: For more positions than the model has, and for a site that it does not have.
        """
        self.decoder.check_positions(start + ids.shape[1])
        self.decoder.check_room(ids.shape[0], ids.shape[1], start + ids.shape[1])
        if not held:
            with Holding(self, run.keys):
                return self._call(run, ids, cache)
        return self._call(run, ids, cache)

    def _call(self, run: Run, ids: mx.array, cache: list[Any] | None) -> mx.array:
        token = _RUN.set(run)
        try:
            if cache is None:
                return self.decoder.forward(ids)
            root: Any = self.decoder.root
            logits: mx.array = first_of(root(ids, cache=cache))
            return logits
        finally:
            _RUN.reset(token)

    @contextmanager
    def running(self, run: Run) -> Iterator[None]:
        """Calls of the model or its parts inside belong to ``run`` and are made under its plan alone."""
        token = _RUN.set(run)
        try:
            yield
        finally:
            _RUN.reset(token)

    # -- what happens in a forward ----------------------------------------

    def _root(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(self._local, "forward", None) is not None:
            return call(*args, **kwargs)
        own = _RUN.get()
        if own is None or own.registry is not self:
            entries, recorders = self.ambient()
            own = None
        run = own or Run(self, Plan((entries,), recorders))
        if run.idle:
            return call(*args, **kwargs)
        forward = self._begin(run, own, args, kwargs)
        self._local.forward = forward
        around, now.sinks = now.sinks, forward.sinks
        try:
            return call(*args, **kwargs)
        finally:
            now.sinks = around
            self._local.forward = None
            for row in run.plan.rows:
                for entry in row:
                    entry.forwards += 1
                    entry.calls += entry.key in forward.called

    def _begin(self, run: Run, own: Run | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Forward:
        caches = caches_of(args, kwargs)
        ids = input_of(args, kwargs)
        ids = ids if isinstance(ids, mx.array) and ids.ndim == 2 else None
        length = ids.shape[1] if ids is not None else input_of(args, kwargs).shape[1]
        offset = self.caches.begin(caches, length, run.plan.fingerprint())
        offset = offset if run.offset is None else run.offset
        n_prompt = run.n_prompt
        if n_prompt is None and not caches:
            n_prompt = length
        where = Where(offset, length, ids, n_prompt, self.bos, run.spans, run.thinking, run.row_spans, run.real)
        where = replace(where, opened=run.opened) if run.opened is not None else where
        recorders = tuple([recorder for recorder in run.plan.recorders if recorder.active])
        for recorder in recorders:
            recorder.begin(own, starts=not caches or (isinstance(offset, int) and offset == 0))
        programs = self.programs(run.plan)
        items = [entry.item for row in run.plan.rows for entry in row]
        edited = frozenset([item.layer for item in items if isinstance(item, EditPattern) and has_effect(item)])
        sinks = {} if edited or not recorders else self._sinks(run, recorders, programs)
        return _Forward(where, programs, recorders, run, sinks, patterns=edited)

    def _sinks(self, run: Run, recorders: Sequence[Recorder], programs: Mapping[Key, Program]) -> dict[int, Sink]:
        """Of the modules of which one output is recorded, as it is, and nothing else happens: what takes it.

        By the module's id: its proxy gives them the output, and its tap is not called. A capture of every layer costs
        Python for each, and that way a fifth of what others do.
        """
        found: dict[int, Sink] = {}
        if self.decoder.passes > 1 or run.resume is not None or run.captured_rows is not None or len(recorders) > 1:
            return found
        for key in recorders[0].places:
            if key not in self._seats:
                continue
            point, tap, points = self._seats[key]
            if point.plain and len(points) == 1 and key not in programs and taps_of(point.module) == (tap,):
                found[id(point.module)] = recorders[0].sink(key)
        return found

    def programs(self, plan: Plan) -> dict[Key, Program]:
        """The plan's programs by site, built once for each state of the plan."""
        stamp = plan.stamp
        if stamp not in self._programs:
            while len(self._programs) >= 8:
                self._programs.pop(next(iter(self._programs)))
            keys = {key for row in plan.rows for entry in row for key in entry.keys}
            self._programs[stamp] = {key: self._build(plan, key) for key in keys}
        return self._programs[stamp]

    def _build(self, plan: Plan, key: Key) -> Program:
        rows: Sequence[Sequence[Item]] = [[entry.item for entry in row if entry.key == key] for row in plan.rows]
        found = {entry.monitor for row in plan.rows for entry in row if entry.key != key}
        monitors = [monitor for monitor in found if monitor is not None and (monitor.layer, monitor.site) == key]
        return build(key, rows, self.sources, self.sites.point(*key).width, monitors)

    def _visit(
        self,
        forward: _Forward,
        points: dict[Key, Point],
        call: Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        here: Iterable[tuple[Key, Point]] = points.items()
        if forward.patterns and forward.rehearsal is None:
            layer = next((layer for layer, site in points if site == "attn_out" and layer in forward.patterns), None)
            if layer is not None:
                return self._with_pattern(forward, layer, points, call, args, kwargs)
        if self.decoder.passes > 1:
            here = self._in_this_pass(forward, points)
        for key, point in here:
            if point.port == "input":
                hidden = point.read(input_of(args, kwargs, point.argument))
                changed = self._at(forward, key, hidden)
                if changed is not hidden:
                    args, kwargs = point.give(args, kwargs, changed)
        output = call(*args, **kwargs)
        for key, point in here:
            if point.port == "output":
                hidden = point.after(args, kwargs, output)
                changed = self._at(forward, key, hidden)
                if changed is not hidden:
                    output = point.write(output, changed)
        return output

    def _with_pattern(
        self, forward: _Forward, layer: int, points: dict[Key, Point], call: Call, args: Any, kwargs: Any
    ) -> Any:
        """An attention whose pattern is edited: it is called to see what it attends to, and then for its output."""
        forward.rehearsal = Rehearsal(layer, self.sites.point(layer, "attn_out").module)
        try:
            attend, kwargs = rehearsed(forward.rehearsal, forward.where, call, args, kwargs)
            return self._visit(forward, points, attend, args, kwargs)
        finally:
            forward.rehearsal = None

    def _in_this_pass(self, forward: _Forward, points: dict[Key, Point]) -> tuple[tuple[Key, Point], ...]:
        """The sites of a module in a model that goes through its blocks several times: those of this pass."""
        now = forward.passes.get(id(points), 0)
        forward.passes[id(points)] = now + 1
        blocks = self.decoder.n_layers // self.decoder.passes
        return tuple((key, point) for key, point in points.items() if key[0] // blocks == now)

    def _at(self, forward: _Forward, key: Key, h: mx.array) -> mx.array:
        run, rehearsal = forward.run, forward.rehearsal
        if rehearsal is not None and rehearsal.withholds(key, h):
            return rehearsal.known.get(key, h)
        if run.resume is not None and run.resume.key == key:
            h = run.resume.hidden
        program = forward.programs.get(key)
        if program is not None:
            forward.called.add(key)
            if program.steps:
                if run.fork and h.shape[0] == 1:
                    h = mx.broadcast_to(h, (run.fork, *h.shape[1:]))
                h = program.run(h, forward.where, run.meter.watcher(key, program.acting) if run.meter else None)
            for monitor, read in program.reads:
                forward.where.readings[monitor] = read(h)
        for recorder in forward.recorders:
            if key in recorder.place_set:
                seen = h if run.captured_rows is None else h[: run.captured_rows]
                recorder.record(key, seen[...])  # an alias: models may change h in place afterwards
        if rehearsal is not None:
            rehearsal.keep(key, h)
        return h


def fingerprint_of(item: Item) -> object:
    """A record as something hashable that is equal for equal effects; its id is left out."""
    if not isinstance(item, Intervention):
        return ("hook", id(item.fn), item.layer, item.site)
    names = [field.name for field in fields(item) if field.name != "id"]
    return (item.mode, *(_hashable(getattr(item, name)) for name in names))


def _hashable(value: Any) -> object:
    if isinstance(value, (Gate, Monitor)):
        return tuple(_hashable(getattr(value, field.name)) for field in fields(value))
    value = getattr(value, "direction", value)
    if not hasattr(value, "tobytes"):
        return value
    # A digest: fingerprints are kept with every prefix, and a vector is as long as the residual stream is wide.
    return blake2b(value.tobytes(), digest_size=16).digest()


class Holding:
    """The sites that something keeps proxied while it lasts: a run, from its first forward to its last.

    Installing costs more than a token's forward does in Python, so that whoever runs forward after forward
    holds the sites for all of them. As a context manager it lets go of them at the end.
    """

    def __init__(self, registry: Registry, keys: Iterable[Key] = ()) -> None:
        self._registry = registry
        self.keys: set[Key] = set()
        self.change(keys)

    def change(self, keys: Iterable[Key]) -> None:
        """Hold these sites from now on, and no others."""
        wanted = set(keys)
        self._registry._need(sorted(wanted - self.keys))
        self._registry._release(self.keys - wanted)
        self.keys = wanted

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.change(())
