"""Activation patching: put activations of one run into another, place by place, and see what that does to a metric.

Denoising patches clean activations into the corrupted run (what suffices to restore the behaviour), noising the other
way round (what is necessary for it): Heimersheim and Nanda 2024 (2404.15255), Zhang and Nanda 2023 (2309.16042).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, LensError
from lens_tui.records.patch_grid import By, Direction, Doubles, Method, PatchGrid, PromptPair

from ..forward import Core
from ..hooks.program import Key
from ..hooks.readings import FeatureSource, decoder_row
from ..hooks.registry import Resume
from ..measure.effects import bootstrap
from ..measure.scores import can_resume
from .cells import (
    Change,
    Progress,
    TextRun,
    heads_at,
    judged,
    layers_with,
    metric_of_run,
    needed_for,
    read_run,
    replacement,
    variant_of,
)
from .gradients import gradient_at
from .metrics import Measure, Metric, metric_of
from .prompt_pairs import Aligned, Places, align, several_pairs

HEAD_SITE = "attn_z"
_TOP_FEATURES = 20


_Cell = tuple[tuple[Key, ...], int | None, int | None, int | None]


@dataclass(frozen=True, eq=False)
class _Features:
    """An SAE that reads the site that is patched, and its features in question."""

    sae: FeatureSource
    key: Key
    chosen: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Grid:
    """What the rows and columns of a grid are; a cell is one or all layers, a head, a feature, and a column."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[_Cell, ...]
    """Keys, head, feature, and the number of the column's places (``None``: all of them), row by row."""
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
    n_heads: int = 1


@dataclass(frozen=True, eq=False)
class _Ready:
    """One pair, run both ways: what is patched, what it is patched from, and the metric in each."""

    aligned: Aligned
    base: TextRun
    source: TextRun
    metric: Metric
    clean: float
    corrupted: float

    @property
    def gap(self) -> float:
        return self.clean - self.corrupted


def patch(
    lens: Core,
    pairs: PromptPair | Sequence[PromptPair],
    metric: Measure = "logit-difference",
    *,
    site: str = "",
    by: By = "layer-position",
    layers: Sequence[int] | None = None,
    direction: Direction = "denoise",
    method: Method = "exact",
    controls: bool = True,
    sae: FeatureSource | None = None,
    features: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    partial: Callable[[PatchGrid], None] | None = None,
) -> PatchGrid:
    """Patch activations of one prompt into a run of the other, one place at a time.

    Interventions of blocks around the call are left out.

    Args:
        lens: The model.
        pairs: One pair of prompts or several. With ``by`` a position they all have the same number of tokens, or spans
            of the same names.
        metric: ``logit-difference``, ``log-probability``, ``probability``, ``kl`` (of the clean run's next token from
            the patched run's), ``rank``, a :class:`Metric`, or a function of float32 logits (rows, vocabulary) after
            the last token that gives (rows,).
        site: ``resid_pre`` (the default), ``resid_post``, ``attn_out``, ``mlp_out`` or any other site of the model;
            by heads always ``attn_z``, by features that of the SAE.
        by: What one patch is: a ``layer`` at all tokens, a ``position`` at all layers, one of each
            (``layer-position``), a ``head`` at all tokens or at one (``head-position``), a ``feature`` of ``sae`` at
            all tokens or at one.
        layers: Those to patch, by default all that have the site.
        direction: ``denoise``: clean activations into the corrupted run; ``noise``: the other way round.
        method: ``exact``, or ``attribution``: first-order estimates from one backward pass for each pair
            (Nanda 2023; Syed et al. 2023, 2310.10348), without controls.
        controls: Patch at random and from shuffled pairs too, for comparison: two to three times the work.
        sae: For features: reads one layer and site (its ``info`` says which).
        features: Which of them, by default the 20 whose activation differs most between the prompts.
        seed: Of the random patches and the intervals.
        progress: Is called with (patches done, patches in all).
        partial: Is called after each batch with the grid as far as it is: NaN where it is not, the mean over the pairs
            that are done (of the first one while it is under way), without intervals.

    Raises:
        LensError: For prompts that cannot be aligned, a metric that is the same in both runs, and for a site, layer,
            head or feature that there is not.
        NotFinite: For activations or a metric that are not numbers.
    """
    _check(by, direction, method)
    aligned = _aligned(lens, pairs)
    wanted = _features(lens, aligned, sae, features) if by.startswith("feature") else None
    site = HEAD_SITE if by.startswith("head") else (wanted.key[1] if wanted else site or "resid_pre")
    grid = _lay_out(lens, aligned[0], by, site, layers, wanted)
    _check_columns(aligned, by, direction)
    ready = [_run_both(lens, each, grid, metric, direction) for each in aligned]
    _check_gaps(ready)
    kinds = _kinds(ready, controls=controls and method == "exact")
    return _answered(lens, ready, (grid, wanted), kinds, (site, by, direction, method), seed, (progress, partial))


def _answered(
    lens: Core,
    ready: Sequence[_Ready],
    what: tuple[_Grid, _Features | None],
    kinds: Sequence[str],
    said: tuple[str, By, Direction, Method],
    seed: int,
    tell: tuple[Progress | None, Callable[[PatchGrid], None] | None],
) -> PatchGrid:
    """The grid of every kind of patch, told as it fills."""
    (grid, wanted), (progress, partial) = what, tell

    def so_far(found: dict[str, Doubles], pairs: int) -> None:
        if partial is not None and abs(sum(one.gap for one in ready[:pairs])) > 0:
            partial(_gathered(lens, grid, ready[:pairs], found, said, None))

    count = _Count(len(grid.cells) * len(ready) * len(kinds), progress)
    watch = _GridProgress((len(ready), len(grid.rows), len(grid.columns)), None if partial is None else so_far)
    found = {kind: _judge(lens, ready, grid, wanted, (kind, seed, said[3]), count, watch) for kind in kinds}
    return _gathered(lens, grid, ready, found, said, seed)


def _aligned(lens: Core, pairs: PromptPair | Sequence[PromptPair]) -> list[Aligned]:
    return [align(lens, pair) for pair in several_pairs(pairs)]


def _kinds(ready: Sequence[_Ready], *, controls: bool) -> list[str]:
    """What is patched: the other run, and for comparison random directions and another pair's run."""
    if not controls:
        return ["source"]
    lengths = {(len(one.aligned.clean), len(one.aligned.corrupted)) for one in ready}
    return ["source", "random", *(["shuffled"] if len(ready) > 1 and len(lengths) == 1 else [])]


def _judge(
    lens: Core,
    ready: Sequence[_Ready],
    grid: _Grid,
    wanted: _Features | None,
    how: tuple[str, int, Method],
    count: _Count,
    watch: _GridProgress,
) -> Doubles:
    """The metric of every pair and cell, (pairs, rows, columns)."""
    found = []
    for at, one in enumerate(ready):
        watch.at(how[0], at)
        found.append(_cells(lens, one, ready[(at + 1) % len(ready)], grid, wanted, *how, count, watch))
    cells: Doubles = np.stack(found).astype(np.float64)
    return cells.reshape(len(ready), len(grid.rows), len(grid.columns))


def _check(by: str, direction: str, method: str) -> None:
    for value, kind, what in (
        (by, By, "way to patch by"),
        (direction, Direction, "direction"),
        (method, Method, "method"),
    ):
        if value not in get_args(kind):
            raise LensError(f"There is no {what} {value!r}.", f"Use {', '.join(get_args(kind))}.")


class _Count:
    """Adds up what several batches of patches have done."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self._progress, self._before = total, progress, 0

    def __call__(self, done: int, of: int) -> None:
        if self._progress is not None:
            self._progress(self._before + done, max(self.total, self._before + of))
        if done == of:
            self._before += of


class _GridProgress:
    """Holds what several batches of patches have found so far, and tells it: what there is, and of how many pairs."""

    def __init__(self, shape: tuple[int, int, int], tell: Callable[[dict[str, Doubles], int], None] | None) -> None:
        self._shape, self._tell = shape, tell
        self._found: dict[str, Doubles] = {}
        self._kind, self._pair = "", 0

    def at(self, kind: str, pair: int) -> None:
        """What comes next is of this kind of patch and this pair."""
        self._kind, self._pair = kind, pair
        self._found.setdefault(kind, np.full(self._shape, np.nan))

    def __call__(self, values: FloatArray) -> None:
        self._found[self._kind][self._pair] = values.reshape(self._shape[1:])
        if self._tell is not None:
            whole = int(np.isfinite(self._found["source"]).all(axis=(1, 2)).sum())
            pairs = max(1, whole)
            self._tell({kind: of[:pairs] for kind, of in self._found.items()}, pairs)


def _features(
    lens: Core, aligned: Sequence[Aligned], sae: FeatureSource | None, features: Sequence[int] | None
) -> _Features:
    info = getattr(sae, "info", None)
    if sae is None or info is None or info.layer < 0 or not info.site:
        raise LensError("Features are patched by an SAE that says which layer and site it reads.", "Give sae=.")
    key = (lens.registry.decoder.index(info.layer), str(info.site))
    width = lens.registry.sites.point(*key).width
    if width != sae.d_model:
        raise LensError(f"The SAE reads width {sae.d_model}; layer {key[0]} {key[1]} of this model has {width}.")
    if features is not None:
        for feature in features:
            decoder_row(sae, feature)  # says which there are
        if not features:
            raise LensError("There is no feature to patch.", "Name some, or leave features out.")
        return _Features(sae, key, tuple(dict.fromkeys(int(feature) for feature in features)))
    moved: mx.array | None = None
    for each in aligned:
        clean, corrupted = (sae.encode(read_run(lens, ids, [key]).hidden[key]) for ids in (each.clean, each.corrupted))
        change = mx.abs(clean.sum(axis=0) - corrupted.sum(axis=0)).astype(mx.float32)
        moved = change if moved is None else moved + change
    size = np.array(moved)
    order = np.argsort(-size, kind="stable")[:_TOP_FEATURES]
    return _Features(sae, key, tuple(int(at) for at in order if size[at] > 0) or (int(order[0]),))


def _lay_out(
    lens: Core, first: Aligned, by: By, site: str, layers: Sequence[int] | None, wanted: _Features | None
) -> _Grid:
    names = [name for name, _ in first.columns("denoise")]
    if not first.spans:
        names = [str(at) for at in range(len(names))]
    placed = list(enumerate(names)) if by.endswith("position") else [(None, "all tokens")]
    columns = tuple(name for _, name in placed)
    if wanted is not None:
        rows = [((wanted.key,), None, feature) for feature in wanted.chosen]
        of_features: tuple[_Cell, ...] = tuple((*row, at) for row in rows for at, _ in placed)
        return _Grid(tuple(f"f{f}" for f in wanted.chosen), columns, of_features, features=wanted.chosen)
    chosen = layers_with(lens, site, layers)
    if by == "position":
        keys = tuple((layer, site) for layer in chosen)
        return _Grid(("all layers",), columns, tuple((keys, None, None, at) for at, _ in placed))
    if not by.startswith("head"):
        cells: tuple[_Cell, ...] = tuple((((layer, site),), None, None, at) for layer in chosen for at, _ in placed)
        return _Grid(tuple(f"L{layer}" for layer in chosen), columns, cells, layers=chosen)
    counts = {heads_at(lens, layer) for layer in chosen}
    if len(counts) > 1:
        raise LensError(f"The layers have {', '.join(map(str, sorted(counts)))} heads.", "Patch those of one count.")
    count = counts.pop()
    if by == "head":
        cells = tuple((((layer, site),), head, None, None) for layer in chosen for head in range(count))
        names_ = tuple(f"head {head}" for head in range(count))
        return _Grid(tuple(f"L{layer}" for layer in chosen), names_, cells, chosen, tuple(range(count)), (), count)
    pairs = [(layer, head) for layer in chosen for head in range(count)]
    cells = tuple((((layer, site),), head, None, at) for layer, head in pairs for at, _ in placed)
    labels = tuple(f"L{layer}.{head}" for layer, head in pairs)
    return _Grid(labels, columns, cells, tuple(la for la, _ in pairs), tuple(h for _, h in pairs), (), count)


def _check_columns(aligned: Sequence[Aligned], by: By, direction: Direction) -> None:
    if not by.endswith("position"):
        return
    shapes = {tuple(name for name, _ in each.columns(direction)) for each in aligned}
    if len(shapes) > 1:
        said = ", ".join(sorted({", ".join(shape) if any(shape) else f"{len(shape)} tokens" for shape in shapes}))
        raise LensError(
            f"The pairs do not have the same positions ({said}), so no column is one place in all of them.",
            "Give pairs of one length, or spans of the same names, or patch by layer or head.",
        )


def _run_both(lens: Core, aligned: Aligned, grid: _Grid, measure: Measure, direction: Direction) -> _Ready:
    keys = list(dict.fromkeys(key for cell in grid.cells for key in cell[0]))
    last = (lens.registry.decoder.n_layers - 1, "resid_post")
    needed = [*needed_for(lens, keys), last]
    clean, corrupted = (read_run(lens, ids, needed) for ids in (aligned.clean, aligned.corrupted))
    metric = metric_of(lens, measure, aligned.pair, lambda: final_logits(lens, clean))
    values = check_gap(lens, metric, clean, corrupted)
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    return _Ready(aligned, base, source, metric, *values)


def final_logits(lens: Core, run: TextRun) -> mx.array:
    """Logits ``(vocabulary,)`` after the last token of a run."""
    found: list[mx.array] = []

    def keep(logits: mx.array) -> mx.array:
        found.append(logits[0])
        return logits[:, 0]

    mx.eval(_measured_in(lens, Metric("logits", keep), run))
    return found[0]


def check_gap(lens: Core, metric: Metric, clean: TextRun, corrupted: TextRun) -> tuple[float, float]:
    """The metric in both runs. Raises :class:`LensError` where it is the same, or no number."""
    first, second = (float(_measured_in(lens, metric, run)) for run in (clean, corrupted))
    if not np.isfinite([first, second]).all() or abs(first - second) <= 1e-6 * max(1.0, abs(first), abs(second)):
        raise LensError(
            f"The metric {metric.name!r} is {first:.6g} for the clean prompt and {second:.6g} for the corrupted one, "
            "so there is no effect to be measured.",
            "Choose prompts that the model answers differently, or another metric.",
        )
    return first, second


def _measured_in(lens: Core, metric: Metric, run: TextRun) -> mx.array:
    """The metric of a run, from its last residual where that is known: no block is computed again."""
    last = (lens.registry.decoder.n_layers - 1, "resid_post")
    known = run.hidden.get(last) if can_resume(lens.registry) else None
    resume = None if known is None else Resume(last, known[None])
    return metric_of_run(lens, mx.array([list(run.ids)], dtype=mx.int32), (), metric, resume)[0]


def _cells(
    lens: Core,
    one: _Ready,
    other: _Ready,
    grid: _Grid,
    wanted: _Features | None,
    kind: str,
    seed: int,
    method: Method,
    count: _Count,
    watch: _GridProgress,
) -> FloatArray:
    """The metric of one pair for every cell."""
    source = other.source if kind == "shuffled" else one.source
    direction: Direction = "denoise" if one.base.ids == one.aligned.corrupted else "noise"
    columns = [places for _, places in one.aligned.columns(direction)]
    whole = one.aligned.everything(direction)
    along = {} if wanted is None else _feature_changes(one.base, source, wanted, whole)
    changes = [
        Change(
            keys,
            whole if at is None else columns[at],
            source,
            head,
            grid.n_heads,
            None if feature is None else along[feature],
            seed if kind == "random" else None,
        )
        for keys, head, feature, at in grid.cells
    ]
    if method == "exact":
        return judged(lens, one.base, changes, one.metric, progress=count, so_far=watch)
    start = one.corrupted if direction == "denoise" else one.clean
    return start + estimated(lens, one.base, changes, one.metric)


def _feature_changes(
    base: TextRun, source: TextRun, wanted: _Features, whole: Places
) -> dict[int, tuple[mx.array, mx.array]]:
    """For each feature how much more of it the source has at each token of the base, and what a unit of it adds."""
    here, there = (wanted.sae.encode(run.hidden[wanted.key]).astype(mx.float32) for run in (base, source))
    chosen = mx.array(list(wanted.chosen))
    here, there = here[:, chosen], there[:, chosen]
    take, mask = np.zeros(here.shape[0], np.int32), np.zeros((here.shape[0], 1), np.float32)
    take[list(whole[0])], mask[list(whole[0])] = whole[1], 1.0
    amounts = (there[mx.array(take)] - here) * mx.array(mask)
    mx.eval(amounts)
    return {f: (amounts[:, at : at + 1], decoder_row(wanted.sae, f)) for at, f in enumerate(wanted.chosen)}


def estimated(lens: Core, base: TextRun, changes: Sequence[Change], metric: Metric) -> FloatArray:
    """The first-order change of a metric under each change: the change's inner product with the metric's gradient.

    Args:
        lens: The model.
        base: The run that is changed, where the gradient is taken.
        changes: As for :func:`~.cells.judged`.
        metric: What is read; it has to have a gradient.

    Returns:
        ``(changes,)``: the metric's change, not its value.
    """
    keys = list(dict.fromkeys(key for change in changes for key in change.keys))
    _, gradients = gradient_at(lens, base.ids, keys, metric)
    # Changes of one site from one source differ in the tokens and heads that they take: what each of these is worth is
    # one table (tokens, heads).
    tables: dict[object, mx.array] = {}
    needed: list[list[object]] = []
    for change in changes:
        # A residual that is replaced at a layer makes what is replaced above it follow: only the lowest counts.
        stream = all(site in ("resid_pre", "resid_post") for _, site in change.keys)
        needed.append([])
        for key in [min(change.keys)] if stream else change.keys:
            name = (key, variant_of(change, len(base.ids)), change.heads)
            needed[-1].append(name)
            if name not in tables:
                moved = (replacement(base, change, key) - base.hidden[key].astype(mx.float32)) * gradients[key]
                tables[name] = moved.reshape(moved.shape[0], change.heads, -1).sum(axis=-1)
    mx.eval(list(tables.values()))
    worth = {name: np.array(table, np.float64) for name, table in tables.items()}
    found = [
        sum(
            worth[name][list(change.places[0]), slice(None) if change.head is None else change.head].sum()
            for name in names
        )
        for change, names in zip(changes, needed, strict=True)
    ]
    return np.array(found, np.float32)


def _check_gaps(ready: Sequence[_Ready]) -> None:
    gaps = np.array([one.gap for one in ready])
    if abs(gaps.sum()) <= 1e-6 * np.abs(gaps).sum():
        raise LensError("The pairs' metrics cancel: what is clean in one is corrupted in another.", "Turn some round.")


def _gathered(
    lens: Core,
    grid: _Grid,
    ready: Sequence[_Ready],
    found: dict[str, Doubles],
    said: tuple[str, By, Direction, Method],
    seed: int | None,
) -> PatchGrid:
    """The grid of what was found; with a seed and several pairs with its intervals."""
    values = found["source"]
    corrupted, gaps = np.array([one.corrupted for one in ready]), np.array([one.gap for one in ready])

    def effect(of: Doubles | None) -> Doubles | None:
        if of is None:
            return None
        shares: Doubles = (of - corrupted[:, None, None]).sum(axis=0) / gaps.sum()
        return shares

    low = high = None
    if len(ready) > 1 and seed is not None:
        moved = values - corrupted[:, None, None]
        ends = [[bootstrap(moved[:, i, j], gaps, seed) for j in range(values.shape[2])] for i in range(values.shape[1])]
        low, high = np.array(ends)[..., 0], np.array(ends)[..., 1]
    first = ready[0]
    site, by, direction, method = said
    shown = tuple(lens.tokens.display(token) for token in first.base.ids)
    whole = effect(values)
    assert whole is not None
    return PatchGrid(
        lens.info.name, site, by, direction, method, first.metric.name, grid.rows, grid.columns,
        float(np.mean([one.clean for one in ready])), float(corrupted.mean()),
        values.mean(axis=0), whole, values, low, high, effect(found.get("random")), effect(found.get("shuffled")),
        grid.layers, grid.heads, grid.features, shown, len(ready), tuple(map(lens.tokens.display, first.source.ids)),
    )  # fmt: skip
