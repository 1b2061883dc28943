"""Steering held to its word: the checks beforehand, the blocks that ``steer`` and ``intervene`` give, what came of it.

Which tokens an intervention touched is noted as forwards go, and worked out when it is asked for.

Numbers that are not finite are found where they first come to the host, and reported with the layer they begin at.
Looking costs nothing a token: a NaN anywhere in the logits makes the log-probability of every token NaN, the chosen
one's too, and that one is read anyway. Only when it is found does one more forward look for the place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import (
    Ablate,
    AblateHeads,
    Add,
    CapProjection,
    ClampFeature,
    Dose,
    EditPattern,
    FloatArray,
    Intervention,
    LensError,
    NormMatch,
    NotFinite,
    Positions,
    SteeringVector,
)
from lens_tui.records.errors import warn
from lens_tui.records.gates import Gate, Monitor
from lens_tui.records.interventions import as_number, as_records, positions_text
from lens_tui.records.steering_vector import numbers

from .capture_result import CaptureResult, MonitorReader
from .head_checks import checked_heads, checked_pattern
from .passage import Passage
from .places import Spans, reach, reaches_scored
from .program import DoseMeter, Item, Key, has_effect
from .readings import FeatureSource, decoder_row, source_named
from .registry import Plan, PlanEntry, Recorder, Registry, Run


class Steering:
    """Interventions that are applied together: a context manager, and the handle that changes them.

    They hold for forwards in the context (thread or task) that entered the
    block. A generation started inside keeps them to its end, and follows
    :meth:`update`. Leaving is allowed in any order and from any thread.
    """

    def __init__(self, registry: Registry, items: Sequence[Item], vector_norm: float = 1.0) -> None:
        self._registry = registry
        self._items = tuple(items)
        self._vector_norm = vector_norm
        self._entries: list[PlanEntry] = []
        self.doses: tuple[Dose, ...] = ()

    def __enter__(self) -> Steering:
        if self._entries:
            raise LensError("This steering has been entered already.", "Make another with steer().")
        for item in self._items:
            entry = PlanEntry(self._registry, item)
            self._registry.put(entry)
            self._entries.append(entry)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entries, self._entries = self._entries, []
        for entry in entries:
            self._registry.take(entry)
        self._items = tuple(entry.item for entry in entries)
        if kind is None:
            _check_called(entries)

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The records, as they are now."""
        return tuple(item for item in self._now() if isinstance(item, Intervention))

    @property
    def scale(self) -> float:
        """The scale of the first intervention that has one, in the units it was given in.

        Raises :class:`LensError` if none has (a hook, a projection).
        """
        scales = [float(item.scale) for item in self._now() if hasattr(item, "scale")]
        if not scales:
            raise LensError("Nothing in this block has a scale.", "Look at .interventions for what it holds.")
        return scales[0] / self._vector_norm

    def update(
        self, *, scale: float | None = None, positions: Positions | None = None, enabled: bool | None = None
    ) -> None:
        """Change the interventions, live: the next forward runs under the new values.

        Raises :class:`LensError` for a scale where nothing has one.
        """
        if scale is not None:
            _ = self.scale
        for index, item in enumerate(self._now()):
            if not isinstance(item, Intervention):
                continue
            values: dict[str, Any] = {}
            if scale is not None and hasattr(item, "scale"):
                values["scale"] = scale * self._vector_norm
            if positions is not None:
                values["positions"] = positions
            if enabled is not None:
                values["enabled"] = enabled
            self._put(index, checked(replace(item, **values), self._registry))

    def _now(self) -> tuple[Item, ...]:
        return tuple(entry.item for entry in self._entries) if self._entries else self._items

    def _put(self, index: int, item: Item) -> None:
        if self._entries:
            self._entries[index].set(item)
        else:
            self._items = (*self._items[:index], item, *self._items[index + 1 :])


def _check_called(entries: Sequence[PlanEntry]) -> None:
    """A block whose forwards never came past the site has steered nothing: say so."""
    for entry in entries:
        if entry.forwards and not entry.calls:
            item = entry.item
            raise LensError(
                f"{item.id!r} never acted: {entry.forwards} forwards did not call layer {item.layer} {item.site}.",
                "This way of calling the model bypasses its blocks.",
            )


def entries_of(records: Any, registry: Registry) -> list[PlanEntry]:
    """One intervention or several, checked, each as an entry. Raises :class:`LensError`."""
    return [PlanEntry(registry, checked(record, registry)) for record in as_records(records)]


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
        raise LensError(f"An intervention cannot be {type(record).__name__}.", "Give Add, NormMatch, ... of lens_tui.")
    amounts = {name: as_number(value, f"The {name} of {record.id!r}") for name, value in _numbers(record)}
    record = replace(record, layer=registry.decoder.index(record.layer), **amounts)  # type: ignore[arg-type]
    width = registry.sites.point(record.layer, record.site).width
    vector = getattr(record, "vector", None)
    for name in ("vector", "other"):
        if hasattr(record, name):
            _check_direction(getattr(record, name), record, width, registry)
    if isinstance(record, AblateHeads):
        record = checked_heads(record, registry.sites, width)
    if isinstance(record, EditPattern):
        record = checked_pattern(record, registry)
    _check_kind(record, registry, width)
    _check_positions(record)
    if record.gate is not None:
        record = replace(record, gate=checked_gate(record.gate, (record.layer, record.site), record.id, registry))
    largest = float(np.abs(vector.direction).max()) if isinstance(vector, SteeringVector) else 1.0
    size = largest * abs(float(getattr(record, "scale", getattr(record, "value", 0.0)) or 0.0))
    check_overflow(size, registry.decoder.dtype, record)
    return record


def _check_direction(vector: Any, record: Intervention, width: int, registry: Registry) -> None:
    if not isinstance(vector, SteeringVector):
        raise LensError(f"The vector of {record.id!r} is {vector!r}.", "Give a SteeringVector, or numbers (d_model,).")
    check_vector(vector.direction, width, f"The vector {vector.name!r}")
    if not 0.99 < (length := float(np.linalg.norm(vector.direction))) < 1.01:
        raise LensError(
            f"The direction of {vector.name!r} has the length {length:.3g}, not 1.", "Make it with SteeringVector.of."
        )
    _check_place(vector, record, registry)


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
    if getattr(getattr(source, "info", None), "is_transcoder", False):
        raise LensError(
            f"{record.sae!r} is a transcoder, which gives another tensor than it reads: {record.id!r} cannot clamp it.",
            "Add the feature's vector at the layer that it writes to.",
        )
    _check_reads(record.sae, source, (record.layer, record.site), record.id, registry)


def _check_reads(sae: str, source: FeatureSource, here: tuple[int, str], name: str, registry: Registry) -> None:
    """Refuse an SAE that was made to read another place than it is used at."""
    info = getattr(source, "info", None)
    layer, site = getattr(info, "layer", -1), getattr(info, "site", "")
    if layer < 0 or not site or _same_place((layer, site), here, registry):
        return
    raise LensError(
        f"The SAE {sae!r} reads layer {layer} {site}, not layer {here[0]} {here[1]} as {name!r} has it.",
        f"Use it at layer {layer} {site}, or attach an SAE for that place.",
    )


def checked_monitor(monitor: Monitor, registry: Registry) -> Monitor:
    """The monitor with its layer counted from 0, or :class:`LensError` for the first thing that is wrong."""
    if not isinstance(monitor, Monitor):
        raise LensError(f"A monitor cannot be {type(monitor).__name__}.", "Give Monitor, or a probe's monitor().")
    scale, bias = (as_number(getattr(monitor, part), f"The {part} of {monitor.name!r}") for part in ("scale", "bias"))
    monitor = replace(monitor, layer=registry.decoder.index(monitor.layer), scale=scale, bias=bias)
    width = registry.sites.point(monitor.layer, monitor.site).width
    if monitor.vector is not None:
        check_vector(monitor.vector.direction, width, f"The vector of the monitor {monitor.name!r}")
        return monitor
    source = source_named(monitor.sae, registry.sources)
    _check_reads(monitor.sae, source, (monitor.layer, monitor.site), monitor.name, registry)
    if source.d_model != width:
        raise LensError(f"The SAE {monitor.sae!r} reads width {source.d_model}; layer {monitor.layer} has {width}.")
    decoder_row(source, monitor.feature)
    return monitor


def reader_of(registry: Registry, monitors: Any) -> MonitorReader | None:
    """The reader of a run's monitors; ``None`` where there are none. Raises :class:`LensError` for what is none."""
    given = (monitors,) if isinstance(monitors, Monitor) else tuple(monitors or ())
    names = [monitor.name for monitor in given if isinstance(monitor, Monitor)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LensError(f"Two monitors have the name {twice!r}.", "Give each its own.")
    checks = [checked_monitor(monitor, registry) for monitor in given]
    return MonitorReader(registry, checks) if checks else None


ORDER = (
    "resid_pre", "attn_q", "attn_k", "attn_v", "attn_z", "attn_out", "attn_out_normed", "mlp_normed", "mlp_in",
    "mlp_out", "mlp_out_normed", "resid_post",
)  # fmt: skip
"""The sites of a block as they are computed."""


def checked_gate(gate: Gate, here: tuple[int, str], name: str, registry: Registry) -> Gate:
    """A gate of the record ``name`` at a layer and site, its monitor checked and read in time. Raises ``LensError``."""
    if not isinstance(gate, Gate):
        raise LensError(f"The gate of {name!r} is {type(gate).__name__}.", "Give Gate(monitor, threshold).")
    if gate.side not in ("above", "below"):
        raise LensError(f"There is no side {gate.side!r} of a gate.", "Use 'above' or 'below'.")
    monitor, threshold = checked_monitor(gate.monitor, registry), as_number(gate.threshold, f"The gate of {name!r}")
    if (monitor.layer, ORDER.index(monitor.site)) > (here[0], ORDER.index(here[1])):
        raise LensError(
            f"The gate of {name!r} reads layer {monitor.layer} {monitor.site}, which is computed after layer {here[0]} "
            f"{here[1]}, where it acts: a token's reading would come too late for it.",
            "Read at an earlier layer, or steer at a later one.",
        )
    return Gate(monitor, threshold, gate.side)


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
        raise LensError(
            f"{name} has shape {values.shape}; this model's site needs ({width},).", "Was it made for this model?"
        )
    if not np.isfinite(values).all():
        raise LensError(f"{name} holds NaN or infinity.", "Check how it was made.")


def check_scored(
    record: Item, rows: Sequence[Sequence[int]], n_prompt: int, bos: int | None, spans: Spans | None = None
) -> None:
    """Refuse a record that no scored token of these texts depends on: its measure would be the plain one.

    Args:
        record: The intervention, or a hook, which is never refused.
        rows: Token ids of each text.
        n_prompt: Where the prompts end and scoring begins.
        bos: The id of the BOS token.
        spans: The chat roles of the prompts.

    Raises:
        LensError: With the record's id.
    """
    positions = getattr(record, "positions", None)
    if positions is None or not has_effect(record):
        return
    if not any(reaches_scored(positions, row, n_prompt, bos, spans) for row in rows):
        raise LensError(
            f"{record.id!r} touches no token that a scored one follows.", "Change its positions, or give a longer text."
        )


def check_reach(entries: Sequence[PlanEntry], n_prompt: int, last: int, text: str) -> None:
    """Refuse positions that no token can have.

    Args:
        entries: What acts on the row.
        n_prompt: Where its prompt ends.
        last: The position of the last token that will go in.
        text: What it is called in the sentence.

    Raises:
        LensError: With the id of the first that touches nothing.
    """
    for entry in entries:
        positions = getattr(entry.item, "positions", None)
        if positions is not None and not reach(positions, n_prompt, last):
            raise LensError(f"{entry.item.id!r} touches no position of {text} (0 to {last}).", "Change its positions.")
        sources = entry.item.sources if isinstance(entry.item, EditPattern) and entry.item.weights is None else None
        if sources is not None and not reach(sources, n_prompt, last):
            raise LensError(
                f"A cut edge of layer {entry.item.layer} is from {positions_text(sources)}; {text} has 0 to {last}.",
                "Name tokens that are there; 0 is the first one, BOS where the model has one.",
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
        single = exact.astype(np.float32)
    if np.isfinite(exact).all() and not np.isfinite(single).all():
        raise LensError("The vector holds numbers beyond the range of float32.", "Divide it, and raise the scale.")
    return single


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
        raise LensError(f"The positions of {record.id!r}, {start} to {stop}, are empty.", "Let it end after its start.")
    said = {"indices": bool(positions.indices), "slice": (start, stop) != (0, None), "role": bool(positions.role)}
    for kind, given in said.items():
        if given and positions.kind != kind:
            raise LensError(
                f"The positions of {record.id!r} are {positions.kind!r}, and name what belongs to {kind!r}.",
                f"Use Positions({kind!r}, ...).",
            )


def check_moved(
    registry: Registry,
    plan: Plan,
    meter: DoseMeter,
    name: Callable[[int], str] = lambda row: "Steering",
    *,
    touched: bool = False,
) -> None:
    """Refuse to continue where what had to move a row was measured and did not.

    Args:
        registry: What the plan is of.
        plan: What acts on each row.
        meter: What was measured of it so far.
        name: What the steering of a row is called in the sentence.
        touched: Refuse as well what has touched no token: where the whole text has been seen.

    Raises:
        LensError: With the intervention and the place.
    """
    meter.settle()
    for key, program in registry.programs(plan).items():
        for row, must in enumerate(program.must_move):
            if not must:
                continue
            if touched and not meter.doses(row, [key]):
                names = ", ".join(repr(entry.item.id) for entry in plan.rows[row] if entry.key == key)
                raise LensError(
                    f"{names} touches no token of the text.", "Change its positions, or give a longer text."
                )
            adds = any(isinstance(entry.item, Add | NormMatch) for entry in plan.rows[row] if entry.key == key)
            meter.check_moved(row, [key], name(row), adds=adds)


HEAD = "the residual is finite at every layer, so the final norm or the unembedding is not"


def check_chosen(logprob: float, what: str, where: Callable[[], str]) -> None:
    """Raise :class:`NotFinite` if the log-probability of a chosen token is not a number; ``where()`` says since where.

    Minus infinity is one: a sampler of the user's may choose a token of probability 0.
    """
    if math.isnan(logprob) or logprob == math.inf:
        raise not_finite(what, where())


def check_values(values: Any, what: str, where: Callable[[], str] = lambda: "") -> None:
    """Raise :class:`NotFinite` if any of these numbers, in numpy or MLX, is NaN or infinite."""
    finite = mx.isfinite(values).all().item() if isinstance(values, mx.array) else np.isfinite(values).all()
    if not finite:
        raise not_finite(what, where())


def not_finite(what: str, where: str = "") -> NotFinite:
    """The error: ``what`` (a plural) is not finite, and ``where`` that begins."""
    return NotFinite(
        f"{what} are not finite numbers" + (f": {where}." if where else "."),
        "Lower the scale." if " under " in where else "Check the weights, or convert the model to float32.",
    )


def origin_in(registry: Registry, passage: Passage, entries: Sequence[PlanEntry] = ()) -> str:
    """Where numbers cease to be finite in one text under these interventions, as a clause: found by one forward."""
    try:
        return "" if passage.start else _origin(registry, passage, entries)  # tokens in a cache are not known
    except LensError:
        return ""  # positions of chat roles, say, where only ids are known


def _origin(registry: Registry, passage: Passage, entries: Sequence[PlanEntry]) -> str:
    watch = _FiniteLayers(registry)
    logits = passage.forward(registry, Plan((entries,), (watch,)))
    if layer := watch.first():
        acting = ", ".join(repr(entry.item.id) for entry in entries)
        return f"the residual is not finite from {layer} on" + (f" under {acting}" if acting else "")
    # A logit of minus infinity is a token that cannot come, and no fault.
    return HEAD if (mx.isnan(logits) | mx.isposinf(logits)).any().item() else ""


def origin_of(registry: Registry, rows: Any, entries: Sequence[PlanEntry] = (), *, n_prompt: int | None = None) -> str:
    """As :func:`origin_in`, for several texts: what is found in the first that has such a place.

    Args:
        registry: What is hooked.
        rows: Token ids ``(rows, tokens)``, or a list of them for each text.
        entries: What acts on them.
        n_prompt: Where the prompts end, by default at the texts' ends.
    """
    listed: Any = rows.tolist() if isinstance(rows, mx.array) else rows
    passages = (Passage(tuple(row), n_prompt or len(row), bos=registry.bos) for row in listed)
    return next(filter(None, (origin_in(registry, passage, entries) for passage in passages)), "")


@contextmanager
def explained(run: Run, rows: Any) -> Iterator[None]:
    """A residual found not to be finite inside is reported with where that begins in the texts of a run's forward."""
    try:
        yield
    except NotFinite:
        registry, plans = run.registry, run.plan.rows
        listed: Any = rows.tolist() if isinstance(rows, mx.array) else rows
        each = plans if len(plans) == len(listed) else [plans[0]] * len(listed)
        ends: Any = run.n_prompt.tolist() if isinstance(run.n_prompt, mx.array) else [run.n_prompt] * len(listed)
        texts = zip(listed, each, ends, strict=True)
        found = (origin_of(registry, [row], entries, n_prompt=end) for row, entries, end in texts)
        if where := next(filter(None, found), ""):
            raise not_finite("The model's activations", where) from None
        raise


def captured(result: CaptureResult, where: Callable[[], str]) -> dict[Key, mx.array]:
    """What a forward left in a capture, by layer and site, evaluated. Raises :class:`NotFinite` with ``where()``."""
    mx.eval(result.pending())
    found = {key: result[key] for key in result.places}
    for (layer, site), values in found.items():
        check_values(values, f"The activations at layer {layer} {site}", where)
    return found


class _FiniteLayers(Recorder):
    """Whether the residual is finite before the first and behind each layer: one truth value a layer is kept."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.places = ((0, "resid_pre"), *((layer, "resid_post") for layer in range(registry.decoder.n_layers)))
        self._finite: dict[Key, mx.array] = {}

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins."""

    def record(self, key: Key, tensor: mx.array) -> None:
        """The residual at a layer."""
        self._finite[key] = mx.isfinite(tensor).all()

    def first(self) -> str:
        """The place from which on the residual is not finite; empty where it is."""
        mx.eval(*self._finite.values())
        for key in self.places:
            if key in self._finite and not self._finite[key].item():
                return "the embedding" if key[1] == "resid_pre" else f"layer {key[0]}"
        return ""
