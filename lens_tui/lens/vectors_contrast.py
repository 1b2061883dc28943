"""Vectors from contrastive pairs at one layer or all, and which layers tell the pairs apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError, Origin, SteeringVector

from .rows import Ids, read_rows
from .vectors_fit import METHODS, Array, Method, Separation, cross_validated, fit

if TYPE_CHECKING:
    from .model import LensModel
    from .tokens import Prompt

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

    Prompts are texts (through the chat template unless ``raw``), chat messages or
    token ids; ``over`` takes the last token's activation, or the mean over all but special ones.
    ``layers`` is one layer, several, or ``None`` for all. Methods: ``mean_difference``
    (ActAdd, Turner et al. 2023, 2308.10248; CAA, Panickssery et al. 2023, 2312.06681); ``pca_diff``, the first
    principal component of the pairs' differences, centred, and ``pca_center``, of the
    texts around their pair's middle, both with the sign that repeng gives them (Zou et al. 2023, 2310.01405);
    ``logistic``, regression with an L2 penalty. ``norm`` is the length of the
    mean difference, 1 for the others. Layers are ranked by the AUC and then d' of pairs held out in
    ``folds``-fold cross-validation; the vectors themselves are made from all pairs.
    """
    _check(positive, negative, method)
    decoder = lens.registry.decoder
    asked = range(decoder.n_layers) if layers is None else layers
    keys = tuple(dict.fromkeys((layer, site) for layer in decoder.indices(asked)))
    if not keys:
        raise LensError("There is no layer to make a vector for.", "Name at least one.")
    rows = [lens.tokens.prompt(text, raw=raw).ids for text in (*positive, *negative)]
    read = _activations(lens, rows, keys, over)
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


def _activations(lens: LensModel, rows: Sequence[Ids], keys: Sequence[tuple[int, str]], over: Over) -> dict[Any, Array]:
    """Activations (texts, width) by site: of the last token, or the mean over tokens that are not special."""
    special = np.asarray(sorted(lens.tokens.special_ids()), np.int64)
    found: dict[Any, list[Any]] = {key: [None] * len(rows) for key in keys}
    for at, read in read_rows(lens, rows, keys):
        keep = ~np.isin(np.asarray(rows[at]), special)
        keep = keep if keep.any() else np.ones(len(rows[at]), dtype=bool)
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
