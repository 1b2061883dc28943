"""Steering vectors: made of texts, tokens and arrays, and put together of one another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import FloatArray, LensError, Origin, SteeringVector
from lens_tui.records.sanitise import one_line

from .architecture.unembed import Convention, Unembedding, find_unembedding
from .forward import Ids
from .hooks.steering import as_numpy, check_vector
from .texts import read_rows

if TYPE_CHECKING:
    from .model import LensModel
    from .tokens import Prompt


def combine(name: str, terms: Sequence[tuple[float, SteeringVector]], *, unit: bool = False) -> SteeringVector:
    """``sum k_i v_i`` of vectors of one layer, site and model, each at its own length, or at length 1 with ``unit``.

    Raises :class:`LensError` if they do not belong together or cancel.
    """
    if not terms:
        raise LensError("A sum of vectors needs at least one.", "Give (factor, vector) pairs.")
    first = terms[0][1]
    for factor, vector in terms:
        _same_place(first, vector)
        if not np.isfinite(factor):
            raise LensError(f"The factor of {vector.name!r} is {factor}.", "Give a finite number.")
    total = sum(factor * _values(vector, unit) for factor, vector in terms)
    parts = [{"factor": float(factor), **_description(vector)} for factor, vector in terms]
    model = next((vector.model for _, vector in terms if vector.model), "")
    origin = Origin("arithmetic", {"sum": parts, "unit": unit})
    return SteeringVector.of(name, total, first.layer, site=first.site, model=model, origin=origin)


def without(name: str, vector: SteeringVector, *others: SteeringVector) -> SteeringVector:
    """The part of a vector that is orthogonal to all the others, at the length that is left.

    Raises :class:`LensError` if nothing is left.
    """
    for other in others:
        _same_place(vector, other)
    values = _values(vector, unit=False)
    if others:
        basis, _ = np.linalg.qr(np.stack([other.direction.astype(np.float64) for other in others], axis=1))
        values = values - basis @ (basis.T @ values)
    if np.linalg.norm(values) <= 1e-6 * vector.norm:
        raise LensError(
            f"Nothing of {vector.name!r} is left once the others are taken out of it.", "Leave one of them out."
        )
    origin = Origin("arithmetic", {"of": _description(vector), "without": [_description(other) for other in others]})
    return SteeringVector.of(name, values, vector.layer, site=vector.site, model=vector.model, origin=origin)


def _values(vector: SteeringVector, unit: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return vector.direction.astype(np.float64) * (1.0 if unit else vector.norm)


def _description(vector: SteeringVector) -> dict[str, object]:
    return {"name": vector.name, "norm": vector.norm, "origin": vector.origin.kind}


def _same_place(first: SteeringVector, other: SteeringVector) -> None:
    if (first.layer, first.site, first.d_model) != (other.layer, other.site, other.d_model):
        raise LensError(
            f"{first.name!r} (layer {first.layer} {first.site}, width {first.d_model}) and {other.name!r} "
            f"(layer {other.layer} {other.site}, width {other.d_model}) belong to different places.",
            "Combine vectors of the same layer and site.",
        )
    if first.model and other.model and first.model != other.model:
        raise LensError(f"{first.name!r} was made for {first.model} and {other.name!r} for {other.model}.")


Method = Literal["mean_difference", "pca_diff", "pca_center", "logistic"]
METHODS: tuple[str, ...] = get_args(Method)
Array = NDArray[np.float64]
L2 = 0.01
_NEWTON_STEPS = 50


@dataclass(frozen=True, slots=True)
class Separation:
    """How well projections on a direction tell held-out positives from negatives.

    ``accuracy`` is the share of texts on the right side of the midpoint of the two
    training means, ``pairs`` the share of pairs whose positive projects further than its negative (a tie
    counts half), ``auc`` the same over every positive with every negative, and
    ``d_prime`` the distance of the means in units of the root of the mean variance.
    """

    accuracy: float
    pairs: float
    auc: float
    d_prime: float


def fit(method: str, positive: Array, negative: Array) -> Array:
    """The direction of a method, shape (width,); its length is that of the mean difference, or 1 for the others."""
    if method == "mean_difference":
        return np.asarray(positive.mean(axis=0) - negative.mean(axis=0))
    if method == "pca_diff":
        return _signed(_principal(positive - negative, centred=True), positive, negative)
    if method == "pca_center":
        return _signed(_principal((positive - negative) / 2, centred=False), positive, negative)
    if method == "logistic":
        return logistic(positive, negative)[0]
    raise LensError(f"There is no method {method!r} of making vectors.", f"Use one of {', '.join(METHODS)}.")


def logistic(positive: Array, negative: Array, l2: float = L2) -> tuple[Array, float]:
    """Logistic regression by Newton's method: the unit weight vector, and the loss that was reached.

    Minimises ``mean log(1 + exp(-y (w.x + b))) + l2/2 ||w||^2`` with activations
    shifted to their common mean and divided by their root mean square length, so that ``l2`` means
    the same in every model. The weights lie in the span of the texts, so the
    steps are taken in that space of at most 2 * pairs dimensions.
    """
    x = np.concatenate([positive, negative])
    x = x - x.mean(axis=0)
    size = np.sqrt((x * x).sum(axis=1).mean())
    if size == 0:
        raise LensError("All activations are the same, so nothing separates them.", "Use texts that differ.")
    u, s, basis = np.linalg.svd(x / size, full_matrices=False)
    z = np.concatenate([u * s, np.ones((len(x), 1))], axis=1)
    y = np.repeat([1.0, -1.0], [len(positive), len(negative)])
    penalty = np.append(np.full(len(s), l2), 0.0)
    w = np.zeros(z.shape[1])
    loss = _loss(z, y, w, penalty)
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(np.clip(y * (z @ w), -500, 500)))
        gradient = -(z.T @ (y * p)) / len(y) + penalty * w
        curve = (z.T * (p * (1 - p) / len(y))) @ z + np.diag(penalty + 1e-12)
        step, size = np.linalg.solve(curve, gradient), 1.0
        while (new := _loss(z, y, w - size * step, penalty)) > loss and size > 1e-8:
            size /= 2
        w, before, loss = w - size * step, loss, min(new, loss)
        if before - loss < 1e-14:
            break
    weights = w[:-1] @ basis
    return weights / np.linalg.norm(weights), loss


def separation(positive: Array, negative: Array, midpoint: float = 0.0) -> Separation:
    """Of projections, shape (n,) each, positives and negatives of the same pairs."""
    right = np.concatenate([positive - midpoint, midpoint - negative])
    spread = np.sqrt((positive.var() + negative.var()) / 2)
    gap = float(positive.mean() - negative.mean())
    return Separation(
        accuracy=float(_ahead(right).mean()),
        pairs=float(_ahead(positive - negative).mean()),
        auc=float(_ahead(positive[:, None] - negative[None]).mean()),
        d_prime=gap / float(spread) if spread > 0 else float(np.sign(gap)) * np.inf if gap else 0.0,
    )


def cross_validated(method: str, positive: Array, negative: Array, folds: NDArray[np.int64]) -> Separation:
    """Separation of pairs by the directions that were fitted without them.

    Projections are on unit directions, measured from the midpoint of the training means, so that folds can be pooled.

    Args:
        method: How a direction is fitted.
        positive: ``(pairs, width)``.
        negative: ``(pairs, width)``.
        folds: ``(pairs,)``, the number of each pair's fold.

    Raises:
        LensError: Where the pairs that are left do not differ.
    """
    plus: list[Array] = []
    minus: list[Array] = []
    for fold in np.unique(folds):
        train = folds != fold
        direction = fit(method, positive[train], negative[train])
        length = np.linalg.norm(direction)
        if length == 0:
            raise LensError("With some pairs held out, the others do not differ at all.", "Add pairs that differ.")
        direction = direction / length
        middle = (positive[train].mean(axis=0) + negative[train].mean(axis=0)) / 2 @ direction
        held = ~train
        plus.append(positive[held] @ direction - middle)
        minus.append(negative[held] @ direction - middle)
    return separation(np.concatenate(plus), np.concatenate(minus))


def _ahead(difference: Array) -> Array:
    return np.asarray((difference > 0) + 0.5 * (difference == 0), dtype=np.float64)


def _loss(z: Array, y: Array, w: Array, penalty: Array) -> float:
    return float(np.logaddexp(0, -y * (z @ w)).mean() + (penalty * w * w).sum() / 2)


def _principal(rows: Array, *, centred: bool) -> Array:
    """The first principal component, by the small matrix of the rows' products."""
    rows = rows - rows.mean(axis=0) if centred else rows
    if not np.any(rows):
        raise LensError("The differences of the pairs are all the same, so they have no component.", "Add pairs.")
    _, vectors = np.linalg.eigh(rows @ rows.T)
    component = rows.T @ vectors[:, -1]
    return np.asarray(component / np.linalg.norm(component))


def _signed(direction: Array, positive: Array, negative: Array) -> Array:
    """repeng's convention: in most pairs the positive text projects further than the negative one."""
    gaps = (positive - negative) @ direction
    return -direction if (gaps < 0).sum() > (gaps > 0).sum() else direction


Over = Literal["last", "all"]


@dataclass(frozen=True, slots=True)
class LayerScore:
    """A layer, how well held-out pairs separate there, and how far apart the means are.

    ``gap`` is the distance of the two means along the layer's vector and ``relative``
    the same as a share of the mean length of the activations there. ``held_out`` is ``None`` for fewer pairs
    than can be held out.
    """

    layer: int
    held_out: Separation | None
    gap: float
    relative: float


@dataclass(frozen=True)
class Contrast:
    """Vectors by layer, made from all pairs, and the layers' scores, best first."""

    vectors: tuple[SteeringVector, ...]
    ranking: tuple[LayerScore, ...]

    @property
    def best(self) -> SteeringVector:
        """The vector of the layer that separates held-out pairs best."""
        return self.at(self.ranking[0].layer)

    def at(self, layer: int) -> SteeringVector:
        """The vector of a layer, counted from 0."""
        for vector in self.vectors:
            if vector.layer == layer:
                return vector
        raise LensError(f"There is no vector for layer {layer}.", "Ask for it among the layers.")


def contrast(
    lens: LensModel,
    name: str,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    *,
    layers: int | Sequence[int] | None = None,
    method: Method = "mean_difference",
    site: str = "resid_post",
    over: Over = "last",
    raw: bool = True,
    folds: int = 5,
    seed: int = 0,
) -> Contrast:
    """Steering vectors from pairs: ``positive[i]`` and ``negative[i]`` differ in what the vector is to say.

    Args:
        lens: The model.
        name: Of the vectors.
        positive: Texts (through the chat template unless ``raw``), chat messages or token ids.
        negative: As many.
        layers: One layer, several, or ``None`` for all.
        method: ``mean_difference``, whose ``norm`` is the length of the difference, 1 for the others (ActAdd, Turner et
            al. 2023, 2308.10248; CAA, Panickssery et al. 2023, 2312.06681); ``pca_diff``, the first principal component
            of the pairs' differences, centred, and ``pca_center``, of the texts around their pair's middle, both with
            repeng's sign (Zou et al. 2023, 2310.01405); ``logistic``, regression with an L2 penalty.
        site: Where activations are read.
        over: ``"last"``: the last token's activation; ``"all"``: the mean over all but special ones and the first.
        raw: Do not apply the chat template.
        folds: Of the cross-validation by which layers are ranked.
        seed: Which pairs are in which fold.

    Returns:
        A vector for each layer, made from all pairs, and the layers ranked by the AUC and then d' of held-out pairs.

    Raises:
        LensError: For unequal or too few pairs, and for pairs that do not differ.
    """
    _check(positive, negative, method)
    keys = _keys(lens, layers, site)
    rows = [lens.tokens.prompt(text, raw=raw).ids for text in (*positive, *negative)]
    read = _pair_activations(lens, rows, keys, over)
    n = len(positive)
    fold = np.random.default_rng(seed).permutation(n) % min(folds, n)
    facts = _facts(positive, negative, method, over)
    vectors, scores = [], []
    for layer, _ in keys:
        plus, minus = read[layer, site][:n], read[layer, site][n:]
        values = fit(method, plus, minus)
        gap = float((plus - minus).mean(axis=0) @ (values / max(float(np.linalg.norm(values)), 1e-300)))
        origin = Origin("prompts", {**facts, "gap": gap})
        vectors.append(SteeringVector.of(name, values, layer, site=site, model=lens.info.name, origin=origin))
        size = float(np.linalg.norm(read[layer, site], axis=1).mean())
        held_out = cross_validated(method, plus, minus, fold) if n >= _needed(method) else None
        scores.append(LayerScore(layer, held_out, gap, gap / size))
    return Contrast(tuple(vectors), tuple(sorted(scores, key=_rank)))


def _keys(lens: LensModel, layers: int | Sequence[int] | None, site: str) -> tuple[tuple[int, str], ...]:
    decoder = lens.registry.decoder
    asked = range(decoder.n_layers) if layers is None else layers
    keys = tuple(dict.fromkeys((layer, site) for layer in decoder.indices(asked)))
    if not keys:
        raise LensError("There is no layer to make a vector for.", "Name at least one.")
    return keys


def _check(positive: Sequence[Any], negative: Sequence[Any], method: str) -> None:
    if method not in METHODS:
        raise LensError(f"There is no method {method!r} of making vectors.", f"Use one of {', '.join(METHODS)}.")
    if len(positive) != len(negative):
        raise LensError(
            f"Pairs need as many positive texts as negative ones, not {len(positive)} and {len(negative)}.",
            "mean_difference() takes unequal sets.",
        )
    least = 2 if method == "pca_diff" else 1
    if len(positive) < least:
        raise LensError(f"The method {method} needs at least {least} pairs, not {len(positive)}.", "Add pairs.")


def _needed(method: str) -> int:
    """Pairs that there must be for each fold to leave enough for a fit."""
    return 4 if method == "pca_diff" else 2


def _pair_activations(
    lens: LensModel, rows: Sequence[Ids], keys: Sequence[tuple[int, str]], over: Over
) -> dict[Any, Array]:
    """Activations (texts, width) by site: of the last token, or the mean over its content."""
    found: dict[Any, list[Any]] = {key: [None] * len(rows) for key in keys}
    for at, read in read_rows(lens, rows, keys):
        keep = lens.tokens.content(rows[at])
        weight = mx.array((keep / keep.sum()).astype(np.float32))
        for key, h in read.items():
            wide = h.astype(mx.float32)
            found[key][at] = np.array(wide[-1] if over == "last" else weight @ wide)
    return {key: np.asarray(np.stack(values), dtype=np.float64) for key, values in found.items()}


def _rank(score: LayerScore) -> tuple[float, float, float]:
    held_out = score.held_out
    return (-held_out.auc, -held_out.d_prime, -score.relative) if held_out else (0.0, 0.0, -score.relative)


def _facts(positive: Sequence[Prompt], negative: Sequence[Prompt], method: str, over: str) -> dict[str, Any]:
    texts = {"positive": [plain(text) for text in positive], "negative": [plain(text) for text in negative]}
    digest = hashlib.sha256(json.dumps(texts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    return {"method": method, "over": over, **texts, "sha256": digest}


def plain(prompt: Prompt) -> Any:
    """A prompt as JSON data."""
    if isinstance(prompt, str):
        return prompt
    return [dict(item) if isinstance(item, Mapping) else int(item) for item in prompt]


# Plain sentences for the norm of a residual where nothing else is given.
SAMPLE_TEXTS = (
    "The town lies on the river, and most of its houses were built when the bridge was opened.",
    "She opened the door, looked at the letter on the table and sat down without a word.",
    "In the second experiment the samples were heated slowly and weighed again after an hour.",
    "The committee will meet on Monday to decide whether the plan can be paid for.",
)


def mean_difference(
    lens: LensModel,
    name: str,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    layer: int,
    *,
    site: str = "resid_post",
    over: Over = "all",
    raw: bool = True,
) -> SteeringVector:
    """Mean activation over ``positive`` minus mean over ``negative``, as a unit vector.

    Each text counts once. Difference of means is the method of ActAdd (Turner et al. 2023, 2308.10248) and CAA
    (Panickssery et al. 2023, 2312.06681).

    Args:
        lens: The model.
        name: Of the vector.
        positive: Texts, chat messages or token ids.
        negative: The same, as many as there are.
        layer: Counted from 0; negative numbers count from the end.
        site: Where activations are read.
        over: ``"last"``: the activation at a text's last token; ``"all"``: the mean over all but special ones and
            the first.
        raw: Do not apply the chat template.

    Returns:
        The vector; its ``norm`` is the length of the difference: steering by it moves one mean onto the other.

    Raises:
        LensError: For no texts on one of the sides, and for means that are equal.
    """
    if not positive or not negative:
        raise LensError("A mean difference needs texts on both sides.", "Give at least one text to each.")
    where = lens.registry.decoder.index(layer)
    means = [_mean(lens, texts, where, site, over, raw) for texts in (positive, negative)]
    facts: dict[str, Any] = {
        "method": "mean_difference",
        "over": over,
        "positive": [plain(text) for text in positive],
        "negative": [plain(text) for text in negative],
    }
    facts["sha256"] = hashlib.sha256(repr((facts["positive"], facts["negative"])).encode()).hexdigest()
    origin = Origin("prompts", facts)
    return SteeringVector.of(name, means[0] - means[1], where, site=site, model=lens.info.name, origin=origin)


def random_unit(lens: LensModel, name: str, layer: int, *, seed: int = 0, site: str = "resid_post") -> SteeringVector:
    """A direction drawn uniformly from the sphere: the control that an effect is held against.

    Args:
        lens: The model.
        name: Of the vector.
        layer: Counted from 0; negative numbers count from the end.
        seed: Of the draw.
        site: Whose width it has.
    """
    where = lens.registry.decoder.index(layer)
    width = lens.registry.sites.point(where, site).width
    values = np.random.default_rng(seed).normal(size=width)
    origin = Origin("random", {"seed": seed})
    return SteeringVector.of(name, values, where, site=site, model=lens.info.name, origin=origin)


def from_array(
    lens: LensModel,
    name: str,
    values: Any,
    layer: int,
    *,
    site: str = "resid_post",
    origin: Origin | None = None,
    max_activation: float | None = None,
) -> SteeringVector:
    """A vector from numbers, checked and made unit; their length is kept as ``norm``.

    Args:
        lens: The model.
        name: Of the vector.
        values: ``(width of the site,)``.
        layer: Counted from 0; negative numbers count from the end.
        site: Where it belongs.
        origin: Where it is from: ``Origin("feature", {"sae": ..., "feature": ...})`` for a row of an SAE's decoder.
        max_activation: For such a row, the largest activation seen.

    Raises:
        LensError: For another shape, numbers that are not finite, or nothing but zeros.
    """
    where = lens.registry.decoder.index(layer)
    array = as_numpy(values)
    check_vector(array, lens.registry.sites.point(where, site).width, f"The vector {name!r}")
    return SteeringVector.of(
        name, array, where, site=site, model=lens.info.name, origin=origin, max_activation=max_activation
    )


def from_token(
    lens: LensModel,
    token: str | int,
    layer: int,
    *,
    name: str = "",
    kind: Literal["unembedding", "embedding"] = "unembedding",
    convention: Convention = "norm",
    site: str = "resid_post",
) -> SteeringVector:
    """The direction of one token: its row of the unembedding, or what it puts into the residual stream.

    Args:
        lens: The model.
        token: An id, or a text that is one token.
        layer: Where the vector will be used.
        name: By default the token's text.
        kind: ``"unembedding"``: adding it to the last residual raises the token's own logit most for its length, up
            to the norm's division. ``"embedding"``: the token's residual before the first block, with the model's
            embedding scale (and its first position's embedding, where it has such).
        convention: ``"norm"`` multiplies unembedding rows by the final norm's gain, ``"raw"`` does not.
        site: Where the vector will be used.

    Raises:
        LensError: For a text of no or several tokens, and where the unembedding cannot be proved.
    """
    where = lens.registry.decoder.index(layer)
    at = _token_id(lens, token)
    if kind == "unembedding":
        values = _unembedding_row(find_unembedding(lens.registry.decoder), at, convention)
    elif kind == "embedding":
        values = np.array(lens.residuals([at], 0, site="resid_pre").astype(mx.float32))[0]
    else:
        raise LensError(f"There is no kind {kind!r} of token vector.", "Use 'unembedding' or 'embedding'.")
    text = lens.tokens.display(at)
    facts = {"token": at, "text": text, "kind": kind, "convention": convention}
    return from_array(lens, name or f"token {text}", values, where, site=site, origin=Origin("token", facts))


def residual_norm(
    lens: LensModel, layer: int, *, site: str = "resid_post", texts: Sequence[Prompt] | None = None
) -> float:
    """The median of ``||h||`` over texts, special tokens and the first left out: what scales are compared with.

    Args:
        lens: The model.
        layer: Counted from 0; negative numbers count from the end.
        site: Where activations are read.
        texts: ``SAMPLE_TEXTS`` by default.
    """
    texts = SAMPLE_TEXTS if texts is None else texts
    if not texts:
        raise LensError("A residual norm needs texts.", "Give at least one.")
    norms = []
    for text in texts:
        h, keep = _activations(lens, text, layer, site, raw=True)
        norms.append(np.linalg.norm(h[keep], axis=-1))
    return float(np.median(np.concatenate(norms)))


def _mean(lens: LensModel, texts: Sequence[Prompt], layer: int, site: str, over: Over, raw: bool) -> FloatArray:
    rows = []
    for text in texts:
        h, keep = _activations(lens, text, layer, site, raw=raw)
        rows.append(h[-1] if over == "last" else h[keep].mean(axis=0))
    return np.asarray(np.mean(rows, axis=0, dtype=np.float64), dtype=np.float32)


def _activations(lens: LensModel, text: Prompt, layer: int, site: str, *, raw: bool) -> tuple[FloatArray, Any]:
    """Unsteered activations (tokens, width) of one text in float32, and which tokens are content."""
    ids = lens.tokens.prompt(text, raw=raw).ids
    h = np.array(lens.residuals(ids, layer, site=site).astype(mx.float32))
    return h, lens.tokens.content(ids)


def _token_id(lens: LensModel, token: str | int) -> int:
    if isinstance(token, Integral):
        return lens.tokens.check([int(token)])[0]
    special = lens.tokens.special_ids()
    ids = [item for item in lens.tokens.encode(str(token)) if item not in special]
    if len(ids) != 1:
        pieces = " ".join(lens.tokens.display(item) for item in ids)
        raise LensError(
            f"{one_line(str(token), 40)!r} is {len(ids)} tokens ({one_line(pieces, 80)}).", "Give one token."
        )
    return ids[0]


def _unembedding_row(unembedding: Unembedding, token: int, convention: Convention) -> FloatArray:
    start = 0
    for rows in unembedding.rows():
        if token < start + rows.shape[0]:
            row: FloatArray = np.array(rows[token - start])
            return row * unembedding.gain if convention == "norm" else row
        start += rows.shape[0]
    raise LensError(f"The unembedding has no row {token}.")
