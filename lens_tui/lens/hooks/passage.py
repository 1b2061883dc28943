"""What is found out of tokens that went through a model: which were steered, what moved, where numbers end, the echo.

Which tokens an intervention touched is noted as forwards go, and worked out when it is asked for.

Numbers that are not finite are found where they first come to the host, and reported with the layer they begin at.
Looking costs nothing a token: a NaN anywhere in the logits makes the log-probability of every token NaN, the chosen
one's too, and that one is read anyway. Only when it is found does one more forward look for the place.

The downstream echo is how much of a change at one layer is still there at the layers behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Echo, FloatArray, Intervention, LensError, NotFinite, Steered

from .places import Spans, Where, touched
from .program import DoseMeter, Key, has_effect
from .registry import CaptureResult, Plan, PlanEntry, Recorder, Registry, Run
from .steering import entries_of


@dataclass(eq=False)
class History:
    """What acted on a row, from which absolute position on: interventions change during a run."""

    _held: list[tuple[int, tuple[Intervention, ...]]] = field(default_factory=list)
    _stamp: tuple[object, ...] | None = None

    def note(self, at: int, entries: Sequence[PlanEntry]) -> None:
        """A forward begins at a position under these entries."""
        stamp: tuple[object, ...] = tuple(entry.stamp for entry in entries)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if self._held and self._held[-1][0] == at:
            self._held.pop()
        items = (entry.item for entry in entries)
        self._held.append((at, tuple(item for item in items if isinstance(item, Intervention) and has_effect(item))))

    @property
    def plain(self) -> bool:
        """Whether nothing has acted on the row so far."""
        return not any(items for _, items in self._held)

    def restart(self) -> None:
        """The prompt begins again."""
        self._held.clear()
        self._stamp = None

    def parts(self, start: int, stop: int) -> list[tuple[int, int, tuple[Intervention, ...]]]:
        """Half-open ranges of positions with the interventions that held there."""
        ends = [at for at, _ in self._held[1:]] + [stop]
        begins = [start, *(at for at, _ in self._held[1:])]
        pairs = zip(begins, ends, self._held, strict=True) if self._held else ()
        return [(begin, min(end, stop), items) for begin, end, (_, items) in pairs if begin < min(end, stop)]


@dataclass(frozen=True, eq=False)
class Passage:
    """The tokens of a row that went through the model, and what positions are found from.

    ``ids`` begin at the absolute position ``start`` (not 0 where the run went on from a cache); ``n_prompt`` is where
    the prompt ends, ``spans`` its roles, ``markers`` what thinking stands between, ``inside`` whether the prompt ends
    between them.
    """

    ids: tuple[int, ...]
    n_prompt: int
    start: int = 0
    bos: int | None = None
    spans: Spans | None = None
    markers: tuple[int, int] | None = None
    inside: bool = False

    def where(self) -> Where:
        """All of it as one forward."""
        ids = mx.array([self.ids])
        return Where(
            self.start, len(self.ids), ids, self.n_prompt, self.bos, self.spans, mx.array(self.thinking()[None])
        )

    def forward(self, registry: Registry, plan: Plan) -> mx.array:
        """Logits of all of it, lazy, in one forward under a plan, as if it were a text of its own."""
        where = self.where()
        assert where.ids is not None
        run = Run(registry, plan, self.n_prompt, self.spans, thinking=where.thinking)
        return registry.forward(run, where.ids)

    def thinking(self) -> NDArray[np.bool_]:
        """Which tokens are between the thinking markers: those of the prompt by its spans, then one by one."""
        found = np.zeros(len(self.ids), dtype=np.bool_)
        for role, begin, end in self.spans or ():
            if role == "thinking":
                found[max(0, begin - self.start) : max(0, end - self.start)] = True
        if self.markers is not None:
            inside = self.inside
            for at in range(self.n_prompt - self.start, len(self.ids)):
                opens, closes = (self.ids[at] == marker for marker in self.markers)
                found[at] = inside and not opens and not closes
                inside = (inside or opens) and not closes
        return found


def steered(history: History, passage: Passage, display: Callable[[int], str]) -> tuple[Steered, ...]:
    """For each intervention that acted, the tokens it touched, in the order in which they first acted."""
    where, stop = passage.where(), passage.start + len(passage.ids)
    places: dict[tuple[str, int, str], list[int]] = {}
    for begin, end, items in history.parts(passage.start, stop):
        for item in items:
            mask = touched(item.positions, where)
            hit = np.full(len(passage.ids), mask) if isinstance(mask, bool) else np.array(mask)[0, :, 0]
            mine = places.setdefault((item.id, item.layer, item.site), [])
            mine += [at for at in range(begin, end) if hit[at - passage.start]]
    return tuple(
        Steered(*key, tuple(found), tuple(display(passage.ids[at - passage.start]) for at in found))
        for key, found in places.items()
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
            meter.check_moved(row, [key], name(row))


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
    watch = _Watch(registry)
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


class _Watch(Recorder):
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


def echo(registry: Registry, rows: Sequence[Sequence[int]], interventions: Sequence[Intervention]) -> tuple[Echo, ...]:
    """What interventions leave in ``resid_post`` of every layer, averaged over the tokens of texts (their ids)."""
    entries = tuple(entries_of(interventions, registry))
    parts = [_changes(registry, Passage(tuple(row), len(row), bos=registry.bos), entries) for row in rows]
    return _echoes(registry, parts, entries)


def echo_of(registry: Registry, passage: Passage, entries: Sequence[PlanEntry]) -> tuple[Echo, ...]:
    """The same of a run: over its prompt and its text, with the positions that its tokens have there.

    Raises :class:`LensError` for a run that went on from a cache, whose tokens are not known.
    """
    if passage.start:
        raise LensError("The run went on from a prompt cache, whose tokens are not known.", "Use echo(tokens, ...).")
    return _echoes(registry, [_changes(registry, passage, entries)], entries)


def _changes(
    registry: Registry, passage: Passage, entries: Sequence[PlanEntry]
) -> tuple[list[FloatArray], list[FloatArray]]:
    """``resid_post`` of every layer, plain and changed, ``(tokens, d_model)`` each: two forwards over the same ids."""
    plain, changed = (_stack(registry, passage, rows) for rows in ((), entries))
    return plain, changed


def _stack(registry: Registry, passage: Passage, entries: Sequence[PlanEntry]) -> list[FloatArray]:
    keys = tuple((layer, "resid_post") for layer in range(registry.decoder.n_layers))
    result = CaptureResult(registry, keys, by_site=True)
    passage.forward(registry, Plan((entries,), (result,)))
    found = captured(result, lambda: origin_in(registry, passage, entries))
    return [np.array(values.astype(mx.float32))[0] for values in found.values()]


def _echoes(
    registry: Registry, parts: Sequence[tuple[list[FloatArray], list[FloatArray]]], entries: Sequence[PlanEntry]
) -> tuple[Echo, ...]:
    vector = next((entry.item.vector for entry in entries if hasattr(entry.item, "vector")), None)
    direction = None if vector is None else vector.direction
    echoes = []
    for layer in range(registry.decoder.n_layers):
        before, after = (np.concatenate([part[side][layer] for part in parts]) for side in (0, 1))
        echoes.append(_compare(layer, before, after, direction))
    return tuple(echoes)


def _compare(layer: int, before: FloatArray, after: FloatArray, direction: FloatArray | None) -> Echo:
    change = after - before
    moved = np.linalg.norm(change, axis=-1)
    length = np.maximum(np.linalg.norm(before, axis=-1), 1e-30)
    # Lengths of the residual differ by layer; a direction that is of another width has no projection here.
    along = (
        float((change @ direction).mean()) if direction is not None and direction.shape == change.shape[-1:] else None
    )
    return Echo(layer, float(moved.mean()), float((moved / length).mean()), along)
