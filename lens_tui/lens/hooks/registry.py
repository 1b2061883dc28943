"""The one registry: what is hooked on a model, and what happens in each forward.

Two kinds of plans exist. The *ambient* one is what ``steer`` and ``capture``
blocks of the calling context have put up; it holds for forwards that anybody
runs on this thread. A *run* (a generation, a comparison, a loss) carries its own
plan, taken when it was started, and each of its forwards runs under that one
alone.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from lens_tui.records import Ablate, CapProjection, ClampFeature, FloatArray, Intervention, LensError, SteeringVector
from lens_tui.records.errors import warn
from lens_tui.records.interventions import as_number, as_records
from lens_tui.records.vectors import numbers

from ..architecture.find import Decoder
from ..architecture.taps import Call, input_of, install, named, original_class, uninstall
from .dose_meter import Meter
from .interventions import FeatureSource, decoder_row
from .positions import CacheLedger, Offset, Spans, Where, caches_of, reaches_scored
from .program import Hook, Item, Key, Program, build
from .sites import Point, SiteMap

_stamps = itertools.count(1)


class Entry:
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

    @property
    def stamp(self) -> tuple[int, int]:
        """Equal for as long as the entry does the same."""
        return self._stamp, self.registry.source_stamp(self.item)

    @property
    def print(self) -> tuple[object, int]:
        """Something hashable that is equal for entries of equal effects: their ids are left out."""
        return print_of(self.item), self.registry.source_stamp(self.item)

    @property
    def key(self) -> Key:
        """Layer and site."""
        return self.item.layer, self.item.site


class Recorder:
    """What a capture must offer: it is told of each forward and given each tensor at its sites."""

    registry: Registry
    places: tuple[Key, ...] = ()
    active: bool = True

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins; ``starts``: it begins a sequence."""
        raise NotImplementedError

    def record(self, key: Key, tensor: mx.array) -> None:
        """The tensor at a site, after all interventions there."""
        raise NotImplementedError


class Plan:
    """The items of a run, row by row. One row stands for every row of any batch."""

    def __init__(self, rows: Iterable[Iterable[Entry]] = ((),), recorders: Iterable[Recorder] = ()) -> None:
        self.rows: list[list[Entry]] = [list(row) for row in rows]
        self.recorders: tuple[Recorder, ...] = tuple(recorders)
        self._print: tuple[object, tuple[object, ...]] | None = None

    def set_row(self, row: int, entries: Iterable[Entry]) -> None:
        """Change what acts on one row, from the next forward on."""
        self.rows[row] = list(entries)

    @property
    def stamp(self) -> tuple[tuple[object, ...], ...]:
        """Equal for equal contents: what compiled programs are kept under."""
        return tuple(tuple(entry.stamp for entry in row) for row in self.rows)

    @property
    def keys(self) -> set[Key]:
        """Every layer and site that is touched or read."""
        written = {entry.key for row in self.rows for entry in row}
        return written | {key for recorder in self.recorders for key in recorder.places}

    def fingerprint(self) -> tuple[object, ...]:
        """What a KV cache filled under this plan depends on: equal for equal effects, empty for a plain model."""
        stamp = self.stamp
        if self._print is None or self._print[0] != stamp:
            rows = [tuple(entry.print for entry in row if acts(entry.item)) for row in self.rows]
            self._print = stamp, tuple(rows) if any(rows) else ()
        return self._print[1]


@dataclass(frozen=True, eq=False)
class Resume:
    """Where a forward goes on from what is known: a site, and (rows, tokens, width) there before interventions."""

    key: Key
    hidden: mx.array


@dataclass(eq=False)
class Run:
    """A generation, comparison or loss in progress: its plan and what its forwards are told.

    ``offset``, ``row_spans`` and ``real`` are for batches of different prompts, whose
    places are counted by who runs them: see :class:`~.positions.Where`. ``fork`` is
    how many rows a forward of one row becomes at the first site that is touched;
    ``resume`` what takes the place of a site's tensor, so that nothing below is computed.
    ``shown`` is how many rows a capture sees where there are others behind them (``None``: all).
    """

    registry: Registry
    plan: Plan
    n_prompt: Offset | None = None
    spans: tuple[tuple[str, int, int], ...] | None = None
    meter: Meter | None = None
    thinking: mx.array | None = None
    offset: Offset | None = None
    row_spans: tuple[Spans | None, ...] | None = None
    real: mx.array | None = None
    fork: int = 0
    resume: Resume | None = None
    shown: int | None = None


@dataclass(eq=False)
class _Forward:
    """One forward in progress on one thread."""

    where: Where
    programs: Mapping[Key, Program]
    recorders: tuple[Recorder, ...]
    meter: Meter | None
    called: set[Key] = field(default_factory=set)
    passes: dict[int, int] = field(default_factory=dict)
    fork: int = 0
    resume: Resume | None = None
    shown: int | None = None


_AMBIENT: ContextVar[tuple[Entry | Recorder, ...]] = ContextVar("lens_ambient", default=())
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
        self._taps: dict[int, tuple[Callable[..., Any], dict[Key, Point]]] = {}
        self._programs: dict[object, dict[Key, Program]] = {}
        self.caches = CacheLedger()
        self.ambient_entries: list[Entry] = []

    def attach(self, name: str, source: FeatureSource) -> None:
        """Give records an SAE to name, also while they are up: the next forward runs under the new one."""
        if self.sources.get(name) is not source:
            self.sources[name] = source
            self._source_stamps[name] = next(_stamps)

    def source_stamp(self, item: Item) -> int:
        """Changes when another SAE is given the name that a record names."""
        return self._source_stamps.get(item.sae, 0) if isinstance(item, ClampFeature) else 0

    # -- what is put up ---------------------------------------------------

    def put(self, item: Entry | Recorder) -> None:
        """Make an entry or recorder part of the calling context's plan and install what it needs."""
        keys = (item.key,) if isinstance(item, Entry) else item.places
        self.need(keys)
        if isinstance(item, Entry):
            with self._lock:
                self.ambient_entries.append(item)
        _AMBIENT.set((*_AMBIENT.get(), item))

    def take(self, item: Entry | Recorder) -> None:
        """End an entry or recorder, in any order and from any thread; what nobody needs is uninstalled."""
        if not item.active:
            return
        item.active = False
        _AMBIENT.set(tuple(other for other in _AMBIENT.get() if other is not item))
        if isinstance(item, Entry):
            with self._lock:
                self.ambient_entries.remove(item)
        self.release((item.key,) if isinstance(item, Entry) else item.places)

    def ambient(self) -> tuple[tuple[Entry, ...], tuple[Recorder, ...]]:
        """What holds for the calling context: entries and recorders, oldest first."""
        mine = [item for item in _AMBIENT.get() if item.active]
        entries = tuple(item for item in mine if isinstance(item, Entry) and item.registry is self)
        recorders = tuple(item for item in mine if isinstance(item, Recorder) and item.registry is self)
        return entries, recorders

    def need(self, keys: Iterable[Key]) -> None:
        """Install proxies for sites; every site is found before the first is installed."""
        points = [(key, self.sites.point(*key)) for key in keys]
        with self._lock:
            for key, point in points:
                if not self._needs:
                    for owner in self._owners():
                        install(owner, self._root)
                self._needs[key] = self._needs.get(key, 0) + 1
                if self._needs[key] == 1:
                    self._attach(key, point)

    def release(self, keys: Iterable[Key]) -> None:
        """The opposite of :meth:`need`."""
        with self._lock:
            for key in keys:
                self._needs[key] -= 1
                if self._needs[key] == 0:
                    del self._needs[key]
                    self._detach(key, self.sites.point(*key))
                if not self._needs:
                    for owner in self._owners():
                        uninstall(owner, self._root)

    @property
    def installed(self) -> tuple[Key, ...]:
        """The sites that carry a proxy now."""
        return tuple(sorted(self._needs))

    def _owners(self) -> tuple[Module, ...]:
        return self.decoder.owners

    def _attach(self, key: Key, point: Point) -> None:
        if id(point.module) in self._taps:
            self._taps[id(point.module)][1][key] = point
            return
        points = {key: point}

        def tap(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._visit(points, call, args, kwargs)

        self._taps[id(point.module)] = (tap, points)
        install(point.module, tap)

    def _detach(self, key: Key, point: Point) -> None:
        tap, points = self._taps[id(point.module)]
        del points[key]
        if not points:
            uninstall(point.module, tap)
            del self._taps[id(point.module)]

    # -- what happens in a forward ----------------------------------------

    @contextmanager
    def running(self, run: Run) -> Iterator[None]:
        """Forwards inside belong to ``run`` and run under its plan alone."""
        token = _RUN.set(run)
        try:
            yield
        finally:
            _RUN.reset(token)

    def _root(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(self._local, "forward", None) is not None:
            return call(*args, **kwargs)
        own = _RUN.get()
        if own is None or own.registry is not self:
            entries, recorders = self.ambient()
            own = None
        run = own or Run(self, Plan((entries,), recorders))
        if not run.plan.keys and run.resume is None:
            return call(*args, **kwargs)
        forward = self._begin(run, own, args, kwargs)
        self._local.forward = forward
        try:
            return call(*args, **kwargs)
        finally:
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
        recorders = tuple(recorder for recorder in run.plan.recorders if recorder.active)
        for recorder in recorders:
            recorder.begin(own, starts=not caches or (isinstance(offset, int) and offset == 0))
        programs = self.programs(run.plan)
        return _Forward(where, programs, recorders, run.meter, fork=run.fork, resume=run.resume, shown=run.shown)

    def programs(self, plan: Plan) -> dict[Key, Program]:
        """The plan's programs by site, built once for each state of the plan."""
        stamp = plan.stamp
        if stamp not in self._programs:
            while len(self._programs) >= 8:
                self._programs.pop(next(iter(self._programs)))
            keys = {entry.key for row in plan.rows for entry in row}
            self._programs[stamp] = {key: self._build(plan, key) for key in keys}
        return self._programs[stamp]

    def _build(self, plan: Plan, key: Key) -> Program:
        rows: Sequence[Sequence[Item]] = [[entry.item for entry in row if entry.key == key] for row in plan.rows]
        return build(key, rows, self.sources, self.sites.point(*key).width)

    def _visit(self, points: dict[Key, Point], call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward: _Forward | None = getattr(self._local, "forward", None)
        if forward is None:
            return call(*args, **kwargs)
        here = tuple(points.items()) if self.decoder.passes == 1 else self._in_this_pass(forward, points)
        for key, point in here:
            if point.port == "input":
                hidden = point.read(input_of(args, kwargs, point.argument))
                changed = self._at(forward, key, hidden)
                if changed is not hidden:
                    args, kwargs = point.give(args, kwargs, changed)
        output = call(*args, **kwargs)
        for key, point in here:
            if point.port == "output":
                hidden = point.read(output)
                changed = self._at(forward, key, hidden)
                if changed is not hidden:
                    output = point.write(output, changed)
        return output

    def _in_this_pass(self, forward: _Forward, points: dict[Key, Point]) -> tuple[tuple[Key, Point], ...]:
        """The sites of a module in a model that goes through its blocks several times: those of this pass."""
        now = forward.passes.get(id(points), 0)
        forward.passes[id(points)] = now + 1
        blocks = self.decoder.n_layers // self.decoder.passes
        return tuple((key, point) for key, point in points.items() if key[0] // blocks == now)

    def _at(self, forward: _Forward, key: Key, h: mx.array) -> mx.array:
        forward.called.add(key)
        if forward.resume is not None and forward.resume.key == key:
            h = forward.resume.hidden
        program = forward.programs.get(key)
        if program is not None and program.steps:
            if forward.fork and h.shape[0] == 1:
                h = mx.broadcast_to(h, (forward.fork, *h.shape[1:]))
            h = program.run(h, forward.where, forward.meter.watcher(key, program.acting) if forward.meter else None)
        for recorder in forward.recorders:
            if key in recorder.places:
                seen = h if forward.shown is None else h[: forward.shown]
                recorder.record(key, seen.astype(h.dtype))  # an alias: models may go on to change h in place
        return h


def acts(item: Item) -> bool:
    """Whether an item does anything at all."""
    return isinstance(item, Hook) or (item.enabled and getattr(item, "scale", 1.0) != 0.0)


def print_of(item: Item) -> object:
    """A record as something hashable that is equal for equal effects; its id is left out."""
    if not isinstance(item, Intervention):
        return ("hook", id(item.fn), item.layer, item.site)
    names = [field.name for field in fields(item) if field.name != "id"]
    return (item.mode, *(_hashable(getattr(item, name)) for name in names))


def _hashable(value: Any) -> object:
    value = getattr(value, "direction", value)
    return value.tobytes() if hasattr(value, "tobytes") else value


def check_device(model: Module) -> None:
    """Refuse a mixture of experts that MLX cannot compute on this device: on a CPU it takes float32 alone."""
    if mx.default_device().type != mx.DeviceType.cpu:
        return
    experts = [module for _, module in named(model) if original_class(module).__name__ == "SwitchLinear"]
    for dtype in {module.weight.dtype for module in experts} - {mx.float32}:
        one = mx.zeros((1, 1, 1), dtype=dtype)
        try:
            mx.eval(mx.gather_mm(one, one, rhs_indices=mx.array([[0]])))
        except RuntimeError:
            raise LensError(
                f"This mixture of experts is in {str(dtype).rpartition('.')[2]}, which MLX cannot compute on the CPU.",
                "Load it with dequantize='always', which holds its weights in float32, or quantise it.",
            ) from None


def entries_of(records: Any, registry: Registry) -> list[Entry]:
    """One intervention or several, checked, each as an entry. Raises :class:`LensError`."""
    return [Entry(registry, checked(record, registry)) for record in as_records(records)]


def for_a_block(records: Any, registry: Registry) -> list[Intervention]:
    """One intervention or several, checked; in one block an id names one of them. Raises :class:`LensError`."""
    found = [checked(record, registry) for record in as_records(records)]
    ids = [record.id for record in found]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise LensError(f"Two interventions have the id {twice!r}.", "Give each its own.")
    return found


def checked(record: Intervention, registry: Registry) -> Intervention:
    """The record with its layer counted from 0, or :class:`LensError` for the first thing that is wrong.

    Warns of a vector that belongs to another layer or site.
    """
    if not isinstance(record, Intervention):
        raise LensError(f"An intervention is {type(record).__name__}.", "Give Add, NormMatch, ... of lens_tui.")
    amounts = {name: as_number(value, f"The {name} of {record.id!r}") for name, value in _numbers(record)}
    record = replace(record, layer=registry.decoder.index(record.layer), **amounts)  # type: ignore[arg-type]
    width = registry.sites.point(record.layer, record.site).width
    vector = getattr(record, "vector", None)
    if isinstance(vector, SteeringVector):
        check_vector(vector.direction, width, f"The vector {vector.name!r}")
        if not 0.99 < (length := float(np.linalg.norm(vector.direction))) < 1.01:
            raise LensError(
                f"The direction of {vector.name!r} has the length {length:.3g}, not 1.",
                "Make it with SteeringVector.of.",
            )
        _check_place(vector, record, registry)
    elif hasattr(record, "vector"):
        raise LensError(f"The vector of {record.id!r} is {vector!r}.", "Give a SteeringVector, or numbers (d_model,).")
    _check_kind(record, registry, width)
    _check_positions(record)
    largest = float(np.abs(vector.direction).max()) if isinstance(vector, SteeringVector) else 1.0
    size = largest * abs(float(getattr(record, "scale", getattr(record, "value", 0.0)) or 0.0))
    check_overflow(size, registry.decoder.dtype, record)
    return record


def _numbers(record: Intervention) -> list[tuple[str, Any]]:
    """The record's amounts that are given."""
    named = [(name, getattr(record, name)) for name in ("scale", "value", "low", "high") if hasattr(record, name)]
    return [(name, value) for name, value in named if value is not None or name in ("scale", "value")]


def _check_place(vector: SteeringVector, record: Intervention, registry: Registry) -> None:
    """Say where a vector is used elsewhere than where it was made for: its numbers mean little there."""
    here, home = (record.layer, record.site), (vector.layer, vector.site)
    if vector.origin.kind == "random" or not vector.site or _same_place(home, here, registry):
        return
    warn(
        f"{vector.name!r} was made for layer {vector.layer} {vector.site} and is used at layer {record.layer} "
        f"{record.site}: a direction means something else there."
    )


def _check_source(record: ClampFeature, source: FeatureSource, registry: Registry) -> None:
    """Refuse to clamp what an SAE made for another place reads."""
    info = getattr(source, "info", None)
    if getattr(info, "is_transcoder", False):
        raise LensError(
            f"{record.sae!r} is a transcoder, which gives another tensor than it reads: {record.id!r} cannot clamp it.",
            "Add the feature's vector at the layer that it writes to.",
        )
    layer, site = getattr(info, "layer", -1), getattr(info, "site", "")
    if layer < 0 or not site or _same_place((layer, site), (record.layer, record.site), registry):
        return
    raise LensError(
        f"The SAE {record.sae!r} reads layer {layer} {site}, not layer {record.layer} {record.site} "
        f"as {record.id!r} has it.",
        f"Clamp at layer {layer} {site}, or attach an SAE of that place.",
    )


def _same_place(one: tuple[int, str], other: tuple[int, str], registry: Registry) -> bool:
    """Whether two layers and sites are one; what a block gives is what the next one takes."""
    count = registry.decoder.n_layers

    def boundary(layer: int, site: str) -> tuple[int, str]:
        layer = layer + count if -count <= layer < 0 else layer
        return (layer + 1, "resid_pre") if site == "resid_post" else (layer, site)

    return boundary(*one) == boundary(*other)


def check_vector(values: NDArray[Any], width: int, name: str) -> None:
    """A vector of exactly ``(width,)``, finite."""
    if not isinstance(values, np.ndarray):
        raise LensError(f"{name} holds {type(values).__name__}, not a numpy array.", "Make it with SteeringVector.of.")
    if values.shape != (width,):
        raise LensError(f"{name} has shape {values.shape}; this model's site needs ({width},).", "Is it of this model?")
    if not np.isfinite(values).all():
        raise LensError(f"{name} holds NaN or infinity.", "Check how it was made.")


def check_scored(
    record: Item, rows: Sequence[Sequence[int]], n_prompt: int, bos: int | None, spans: Spans | None = None
) -> None:
    """Refuse a record that none of the scored tokens of these texts can tell of: its measure would be the plain one."""
    positions = getattr(record, "positions", None)
    if positions is None or not acts(record):
        return
    if not any(reaches_scored(positions, row, n_prompt, bos, spans) for row in rows):
        raise LensError(
            f"{record.id!r} touches no token that a scored one follows.", "Change its positions, or give a longer text."
        )


def check_overflow(size: float, dtype: mx.Dtype, record: Intervention) -> None:
    """Refuse a change whose largest part the model's dtype cannot hold (float16 ends at 65504)."""
    if record.precision == "float32":
        return
    limit = float(mx.finfo(dtype).max)
    if size > limit:
        raise LensError(
            f"{record.id!r} at layer {record.layer} overflows the model's {str(dtype).rpartition('.')[2]} "
            f"({size:.3g} is above {limit:.3g}).",
            "Lower the scale, or use precision='float32'.",
        )


def as_numpy(values: Any) -> FloatArray:
    """A list, numpy or MLX array as float32 numpy, evaluated now: nothing lazy crosses to another thread."""
    exact = numbers(values, "The vector")
    with np.errstate(over="ignore"):
        made = exact.astype(np.float32)
    if np.isfinite(exact).all() and not np.isfinite(made).all():
        raise LensError("The vector holds numbers beyond the range of float32.", "Divide it, and raise the scale.")
    return made


def _check_kind(record: Intervention, registry: Registry, width: int) -> None:
    if type(record) is Intervention:
        raise LensError("An intervention needs a kind.", "Use Add, NormMatch, ProjectOut, ... of lens_tui.records.")
    if record.precision not in ("model", "float32"):
        raise LensError(f"There is no precision {record.precision!r}.", "Use 'model' or 'float32'.")
    if (
        isinstance(record, CapProjection)
        and record.low is not None
        and record.high is not None
        and record.low > record.high
    ):
        raise LensError(f"The cap of {record.id!r} has low {record.low} above high {record.high}.")
    if isinstance(record, CapProjection) and record.low is None and record.high is None:
        raise LensError(f"The cap of {record.id!r} has no bound.", "Give low, high or both.")
    if isinstance(record, Ablate) and record.mean is not None:
        check_vector(np.asarray(record.mean), width, f"The mean of {record.id!r}")
    if isinstance(record, ClampFeature):
        if record.sae not in registry.sources:
            known = ", ".join(registry.sources) or "none"
            raise LensError(
                f"The model has not been given the SAE {record.sae!r} (it has: {known}).", "Use attach_sae."
            )
        _check_source(record, registry.sources[record.sae], registry)
        decoder_row(registry.sources[record.sae], record.feature)


def _check_positions(record: Intervention) -> None:
    positions = record.positions
    if positions.kind not in ("all", "prompt", "generated", "last", "not_bos", "indices", "slice", "role"):
        raise LensError(f"There is no kind of positions {positions.kind!r}.")
    if positions.kind == "indices" and not positions.indices:
        raise LensError(f"The positions of {record.id!r} are an empty list.", "Name at least one.")
    start, stop = positions.start, positions.stop
    if positions.kind == "slice" and stop is not None and (start < 0) == (stop < 0) and start >= stop:
        raise LensError(
            f"The positions of {record.id!r}, {start} to {stop}, are empty.", "Let it end behind its start."
        )
    said = {"indices": bool(positions.indices), "slice": (start, stop) != (0, None), "role": bool(positions.role)}
    for kind, given in said.items():
        if given and positions.kind != kind:
            raise LensError(
                f"The positions of {record.id!r} are {positions.kind!r}, and name what belongs to {kind!r}.",
                f"Use Positions({kind!r}, ...).",
            )
