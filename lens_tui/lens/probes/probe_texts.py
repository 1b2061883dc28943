"""Probes on a model's activations of labelled texts or tokens, layer by layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError, Origin, SteeringVector
from lens_tui.records.probe import HeldOut, Probe, ProbeReport, SparseProbe, probe_facts

from ..forward import Ids
from ..room import memory_left, refuse_above
from ..texts import read_rows
from ..vectors import plain
from .probe_fits import (
    L2,
    PROBE_KINDS,
    Array,
    ProbeKind,
    Reduced,
    Whole,
    auc_of,
    dealt,
    fit_many,
    numbered,
    r2_of,
    stratified,
    strongest,
)

if TYPE_CHECKING:
    from ..model import LensModel
    from ..tokens import Prompt

ReadOf = Literal["last", "mean", "every"]
READ_OF: tuple[str, ...] = get_args(ReadOf)
MOST = 20_000
"""Tokens that a probe is fitted to, at most, where every token of a text is an example: more are drawn from."""
Label = float | int | bool
Fit = Callable[[NDArray[Any], Array], Callable[[NDArray[Any]], Array]]
"""Fits ``k`` labellings ``(n, k)`` of some examples; what comes of it scores other examples, ``(m, k)``."""


@dataclass(frozen=True, eq=False)
class _Examples:
    """Activations (n, width) by layer and site, a label and a group for each, and which text each is of."""

    read: dict[tuple[int, str], NDArray[np.float32]]
    labels: Array
    groups: Whole


def train_probes(
    lens: LensModel,
    name: str,
    texts: Sequence[Prompt],
    labels: Sequence[Label | Sequence[Label]] | NDArray[Any],
    *,
    kind: ProbeKind = "logistic",
    layers: int | Sequence[int] | None = None,
    site: str = "resid_post",
    over: ReadOf = "last",
    groups: Sequence[Any] | None = None,
    raw: bool = True,
    folds: int = 5,
    permutations: int = 100,
    l2: float = L2,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeReport:
    """A linear probe at each layer, with its score on examples that were held out and on labels dealt at random.

    Probes are those of Alain and Bengio (2016, 1610.01644); the null is a permutation test that refits every fold.

    Args:
        lens: The model, which is read plain.
        name: What the probes are called.
        texts: Texts (through the chat template unless ``raw``), chat messages or token ids.
        labels: One for each: 0 and 1 (or ``False`` and ``True``), for ``ridge`` any numbers. Or a list for each
            text with a label for each of its token ids; ``over`` is then ``"every"``.
        kind: ``mean_difference``, ``logistic`` (L2 penalty) or ``ridge`` (linear regression with an L2 penalty).
        layers: One, several, or ``None`` for all.
        site: Where they are read.
        over: ``"last"``: a text's last token; ``"mean"``: the mean over all but special ones and the
            first; ``"every"``: each of these is an example, at most ``MOST`` of all, drawn by the seed.
        groups: What each text belongs to (a pair, a topic): one group is held out together. By default its own.
        raw: Do not apply the chat template.
        folds: Of the cross-validation, stratified by label.
        permutations: Of labels for the null: within groups that hold several, else of whole groups.
        l2: The penalty, on activations of mean 0 and root mean square length 1.
        seed: Of folds, permutations and draws: the same inputs and seed give the same probes.
        progress: ``progress(done, total)`` counts layers; what it raises ends it.

    Returns:
        A probe for each layer, fitted to all examples.

    Raises:
        LensError: For labels that do not fit, too few examples, and what memory does not hold.
    """
    keys = _checked(lens, texts, labels, kind, layers, site, over, groups)
    facts = _facts(texts, labels, kind, over, groups, {"folds": folds, "seed": seed, "l2": l2, "raw": raw})
    classes = kind != "ridge"
    examples = _examples(lens, texts, labels, keys, over, groups, raw=raw, seed=seed, classes=classes)
    fold_of = stratified(examples.labels, examples.groups, folds, seed, classes=classes)
    columns = _columns(examples.labels, examples.groups, permutations, seed)
    found = []
    for done, key in enumerate(sorted(keys)):
        (progress or _unheard)(done, len(keys))
        x = np.asarray(examples.read[key], dtype=np.float64)
        held_out = _held_out(x, columns, fold_of, examples.groups, _linear(kind, l2), classes=classes)
        found.append(_fitted((name, lens.info.name, key), x, examples.labels, held_out, facts))
    return ProbeReport(name, lens.info.name, tuple(found), facts)


def _unheard(done: int, total: int) -> None:
    """Nobody counts."""


def _fitted(
    named: tuple[str, str, tuple[int, str]], x: Array, labels: Array, held_out: HeldOut, facts: dict[str, Any]
) -> Probe:
    """The probe of a name, a model and a place, fitted to all examples."""
    name, model, (layer, site) = named
    weights, biases = fit_many(facts["probe"], Reduced.of(x), labels[:, None], facts["l2"])
    origin = Origin("probe", probe_facts(facts, float(biases[0]), held_out))
    vector = SteeringVector.of(name, weights[0], layer, site=site, model=model, origin=origin)
    return Probe(vector, float(biases[0]), held_out)


def sparse_probe(
    features: Any,
    labels: Sequence[Label] | NDArray[Any],
    k: int,
    *,
    groups: Sequence[Any] | None = None,
    folds: int = 5,
    permutations: int = 100,
    l2: float = L2,
    seed: int = 0,
) -> SparseProbe:
    """A logistic probe on the ``k`` features that tell the labels apart best (Gurnee et al. 2023, 2305.01610).

    Features are chosen by the difference of their means in standard deviations, in each fold (and for each permutation)
    from the training examples alone.

    Args:
        features: ``(n, width)``: activations of an SAE for each example, say; any array.
        labels: 0 and 1.
        k: How many features.
        groups: What each example belongs to, as in :func:`train_probes`.
        folds: Of the cross-validation.
        permutations: Of the labels, for the null.
        l2: The penalty, on the chosen features with mean 0 and root mean square length 1.
        seed: Of folds and permutations.

    Raises:
        LensError: For labels that do not fit, and fewer features than ``k``.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not 1 <= k <= x.shape[1]:
        message = f"A sparse probe of {k} features cannot be had of an array of {x.shape}."
        raise LensError(message, f"Choose 1 to {x.shape[1]}." if x.ndim == 2 else "Give (examples, features).")
    y = _numbers(labels, classes=True)
    if len(y) != len(x):
        raise LensError(f"There are {len(x)} examples and {len(y)} labels.", "Give a label for each.")
    group_of = numbered(range(len(y)) if groups is None else groups)
    fold_of = stratified(y, group_of, folds, seed, classes=True)

    def fit(train: NDArray[Any], given: Array) -> Callable[[NDArray[Any]], Array]:
        found = [_sparse(train, given[:, at], k, l2) for at in range(given.shape[1])]
        return lambda held: np.stack([held[:, chosen] @ w + b for chosen, w, b in found], axis=1)

    held_out = _held_out(x, _columns(y, group_of, permutations, seed), fold_of, group_of, fit, classes=True)
    chosen, weights, bias = _sparse(x, y, k, l2)
    return SparseProbe(tuple(map(int, chosen)), tuple(map(float, weights)), bias, held_out)


def evaluate_probe(lens: LensModel, probe: Probe, texts: Sequence[Prompt], labels: Any) -> tuple[list[float], float]:
    """A probe's scores of labelled texts, and the AUC or R2 of these: what it does on texts it was not fitted to.

    Texts are read as the probe's own were: their last token, their mean, or every token.

    Args:
        lens: The model.
        probe: The probe.
        texts: Texts, chat messages or token ids.
        labels: One for each, or lists of one for each token.

    Raises:
        LensError: For labels that do not fit.
    """
    facts, key = probe.vector.origin.facts, (probe.layer, probe.vector.site)
    over, classes = str(facts.get("over", "last")), probe.held_out.metric == "auc"
    raw, kind = bool(facts.get("raw", True)), str(facts.get("probe", "logistic"))
    _checked(lens, texts, labels, kind, key[0], key[1], over, None)
    given = _examples(lens, texts, labels, [key], over, None, raw=raw, seed=0, classes=classes)
    scores = probe.scores(given.read[key]).astype(np.float64)
    value = (auc_of if classes else r2_of)(scores[:, None], given.labels[:, None])[0]
    return [float(score) for score in scores], float(value)


def token_scores(lens: LensModel, probe: Probe, text: Prompt) -> tuple[Ids, list[float]]:
    """The token ids of a text as it is, without a chat template, and a probe's score at each of them."""
    ids = lens.tokens.prompt(text, raw=True).ids
    h = np.array(lens.residuals(ids, probe.layer, site=probe.vector.site).astype(mx.float32))
    return ids, [float(score) for score in probe.scores(h)]


def _sparse(x: Array, y: Array, k: int, l2: float) -> tuple[NDArray[Any], Array, float]:
    chosen = strongest(x, y, k)
    few = x[:, chosen]
    if not few.std(axis=0).any():  # nothing varies among these examples: nothing is read
        return chosen, np.zeros(k), 0.0
    weights, biases = fit_many("logistic", Reduced.of(few), y[:, None], l2)
    return chosen, weights[0], float(biases[0])


def _linear(kind: str, l2: float) -> Fit:
    def fit(train: NDArray[Any], labels: Array) -> Callable[[NDArray[Any]], Array]:
        # The true labels are the first, fitted alone: that fit is exact, and the rest share their steps.
        reduced = Reduced.of(train)
        shares = (slice(0, 1), slice(1, None))[: labels.shape[1]]
        parts = [fit_many(kind, reduced, labels[:, part], l2) for part in shares]
        weights = np.concatenate([one for one, _ in parts])
        biases = np.concatenate([one for _, one in parts])
        return lambda held: held @ weights.T + biases

    return fit


def _columns(labels: Array, groups: Whole, permutations: int, seed: int) -> Array:
    """The labels and behind them those dealt at random, (n, 1 + permutations)."""
    return np.concatenate([labels[:, None], dealt(labels, groups, permutations, seed)], axis=1)


def _held_out(x: Array, columns: Array, fold_of: Whole, groups: Whole, fit: Fit, *, classes: bool) -> HeldOut:
    """The mean score over folds of every labelling; the first one is the true one, the others are the null."""
    each = np.full((int(fold_of.max()) + 1, columns.shape[1]), np.nan)
    for fold, found in enumerate(each):
        held = fold_of == fold
        train = columns[~held]
        # Dealt at random, few labels may leave a class without an example to learn from: such a draw has no score here.
        known = np.array([not classes or len(np.unique(column)) > 1 for column in train.T])
        known[0] = True
        scores = fit(x[~held], train[:, known])(x[held])
        found[known] = (auc_of if classes else r2_of)(scores, columns[held][:, known])
    counts = (~np.isnan(each)).sum(axis=0)
    means = np.where(counts > 0, np.nansum(each, axis=0) / np.maximum(counts, 1), np.nan)
    value, null = float(means[0]), means[1:][~np.isnan(means[1:])]
    score = HeldOut(
        "auc" if classes else "r2", value, tuple(map(float, each[:, 0])), len(x), int(groups.max()) + 1, len(null)
    )
    if not len(null):
        return score
    return replace(
        score,
        null_mean=float(null.mean()),
        null_high=float(np.quantile(null, 0.95)),
        p=(1 + int((null >= value).sum())) / (1 + len(null)),
    )


def _numbers(labels: Any, *, classes: bool) -> Array:
    try:
        found = np.asarray(labels, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros((0, 0))
    if found.ndim != 1 or not np.isfinite(found).all():
        raise LensError("The labels are not numbers, one for each example.", "Give 0 and 1, or numbers for 'ridge'.")
    if classes and not np.isin(found, (0.0, 1.0)).all():
        raise LensError("The labels are not all 0 or 1.", "Give those, or fit numbers with kind='ridge'.")
    return found


def _checked(
    lens: LensModel,
    texts: Sequence[Prompt],
    labels: Any,
    kind: str,
    layers: int | Sequence[int] | None,
    site: str,
    over: str,
    groups: Sequence[Any] | None,
) -> list[tuple[int, str]]:
    if kind not in PROBE_KINDS:
        raise LensError(f"There is no kind {kind!r} of probe.", f"Use one of {', '.join(PROBE_KINDS)}.")
    if over not in READ_OF:
        raise LensError(f"A probe cannot read {over!r} of a text.", f"Use one of {', '.join(READ_OF)}.")
    if isinstance(texts, str) or len(texts) != len(labels) or (groups is not None and len(groups) != len(texts)):
        sizes = f"{len(texts)} texts, {len(labels)} labels" + ("" if groups is None else f", {len(groups)} groups")
        raise LensError(f"There are {sizes}.", "Give a label, and a group if there are such, for each text.")
    decoder = lens.registry.decoder
    keys = [(layer, site) for layer in decoder.indices(range(decoder.n_layers) if layers is None else layers)]
    if not keys or not texts:
        raise LensError("There is nothing to probe.", "Give texts, and at least one layer.")
    for key in keys:
        lens.registry.sites.point(*key)
    return list(dict.fromkeys(keys))


def _examples(
    lens: LensModel,
    texts: Sequence[Prompt],
    labels: Any,
    keys: list[tuple[int, str]],
    over: str,
    groups: Sequence[Any] | None,
    *,
    raw: bool,
    seed: int,
    classes: bool,
) -> _Examples:
    """Every example's activations, label and group; texts are read once for all layers."""
    rows = [lens.tokens.prompt(text, raw=raw).ids for text in texts]
    each = [hasattr(label, "__len__") for label in labels]
    if any(each) and over != "every":
        raise LensError("Labels for each token need every token.", "Say over='every'.")
    taken = _taken(lens, rows, over, seed)
    counts = [len(where) if over == "every" else 1 for where in taken]
    width = sum(lens.registry.sites.point(*key).width for key in keys)
    refuse_above(
        memory_left,
        sum(counts) * width * 4,
        f"Activations of {sum(counts):,} examples at {len(keys)} layers",
        "Probe fewer layers, or fewer texts.",
    )
    flat: list[Any] = []
    for label, row, where, one in zip(labels, rows, taken, each, strict=True):
        if one and len(label) != len(row):
            raise LensError(f"A text of {len(row)} tokens has {len(label)} labels.", "Give one for each token id.")
        flat += [label[at] for at in where] if one else [label] * (len(where) if over == "every" else 1)
    found: dict[tuple[int, str], list[Any]] = {key: [None] * len(rows) for key in keys}
    for at, read in read_rows(lens, rows, keys):
        for key, h in read.items():
            found[key][at] = _of_text(h.astype(mx.float32), taken[at], over)
    own = range(len(rows)) if groups is None else groups
    group_of = numbered([group for group, count in zip(own, counts, strict=True) for _ in range(count)])
    arrays = {key: np.concatenate(parts) for key, parts in found.items()}
    return _Examples(arrays, _numbers(flat, classes=classes), group_of)


def _taken(lens: LensModel, rows: Sequence[Ids], over: str, seed: int) -> list[NDArray[np.int64]]:
    """The places of each text that are read: their content; of too many for examples, some at random."""
    found = [np.flatnonzero(lens.tokens.content(row)) for row in rows]
    total = sum(map(len, found))
    if over == "every" and total > MOST:
        kept = np.zeros(total, dtype=bool)
        kept[np.random.default_rng(seed).permutation(total)[:MOST]] = True
        ends = np.cumsum([len(places) for places in found])
        found = [places[part] for places, part in zip(found, np.split(kept, ends[:-1]), strict=True)]
    return found


def _of_text(h: mx.array, places: NDArray[np.int64], over: str) -> NDArray[np.float32]:
    """What is read of one text's activations (tokens, width): one row, or one for each place."""
    if over == "last":
        return np.array(h[-1:])
    rows: NDArray[np.float32] = np.array(h)[places]
    return rows if over == "every" else rows.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)


def _facts(
    texts: Sequence[Prompt],
    labels: Any,
    kind: str,
    over: str,
    groups: Sequence[Any] | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """What every probe's file says of how it was made; texts by their hash."""
    given = [np.asarray(label).tolist() for label in labels]
    data = {
        "texts": [plain(text) for text in texts],
        "labels": given,
        "groups": groups and [str(one) for one in groups],
    }
    digest = hashlib.sha256(json.dumps(data, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    return {"probe": kind, "over": over, "n_texts": len(texts), "sha256": digest, **options}
