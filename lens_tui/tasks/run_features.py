"""The features of what a run writes: while it is written, from the run's own activations, or of a text kept from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.lens.read.written import Watch
from lens_tui.records import FloatArray, LensError, SAEInfo
from lens_tui.sae.index.index_reader import describe

from .knowledge import index_of, label_texts

if TYPE_CHECKING:
    import mlx.core as mx

    from lens_tui.lens.model import LensModel
    from lens_tui.sae.load_sae import SAE

TOP = 16
"""Features of each token that are kept, strongest first."""


def place_of(info: SAEInfo) -> tuple[int, str]:
    """The layer and site that an SAE reads. Raises :class:`LensError` where its files do not say."""
    if info.layer < 0 or not info.site:
        raise LensError(
            f"It is not known which layer and site the SAE {info.name} reads.", "Load it with its layer and site."
        )
    return info.layer, info.site


@contextmanager
def watching(model: LensModel, sae: SAE, k: int = TOP) -> Iterator[Watch[tuple[mx.array, mx.array]]]:
    """Reads the ``k`` top features of every token that a run made inside writes: ids and values ``(n, rows, k)``."""
    watch = Watch(model.registry, place_of(sae.info), lambda hidden: sae.top_k(hidden, min(k, sae.d_sae)))
    model.registry.put(watch)
    try:
        yield watch
    finally:
        model.registry.take(watch)


def counted(model: LensModel, sae: SAE, ids: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens an SAE says something of: not the special ones, where it saw none of them in training."""
    specials = model.tokens.special_ids()
    return np.array([sae.info.bos or token not in specials for token in ids], bool)


def top_features(
    model: LensModel, sae: SAE, ids: Sequence[int], activations: mx.array, k: int = TOP
) -> tuple[NDArray[np.int32], FloatArray]:
    """The top features of tokens by their activations ``(n, width)``: ids and values ``(n, k)``, unused -1 and 0."""
    found, values = sae.top_k(activations, min(k, sae.d_sae))
    return silenced(model, sae, ids, np.array(found), np.array(values))


def silenced(
    model: LensModel, sae: SAE, ids: Sequence[int], found: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.int32], FloatArray]:
    """Top features with nothing at tokens that do not count."""
    kept = counted(model, sae, ids)[:, None]
    return np.where(kept, found, -1).astype(np.int32), np.where(kept, values, 0).astype(np.float32)


def features_read(
    model: LensModel, sae: SAE, watch: Watch[Any], texts: Sequence[Sequence[int]]
) -> list[list[list[dict[str, Any]]]]:
    """What a watch has read of a run that has ended: for each arm and token its features, strongest first, as data."""
    batches = [(start, np.array(ids), np.array(values)) for start, (ids, values) in watch.rest()]
    arms: list[list[list[dict[str, Any]]]] = []
    for arm, text in enumerate(texts):
        rows: list[list[dict[str, Any]]] = []
        for start, ids, values in batches:
            tokens = text[start : start + len(ids)]
            of_arm = ids[: len(tokens), arm], values[: len(tokens), arm]
            for found, strengths in zip(*silenced(model, sae, tokens, *of_arm), strict=True):
                pairs = zip(found.tolist(), strengths.tolist(), strict=True)
                rows.append([{"id": f, "activation": value} for f, value in pairs if f >= 0 and value > 0])
        arms.append(rows)
    return arms


def feature_values(model: LensModel, sae: SAE, ids: Sequence[int], activations: mx.array, feature: int) -> FloatArray:
    """One feature's activation on tokens, ``(n,)``, from the activations of its site ``(n, width)``."""
    values = np.array(sae.encode_features(activations, [feature])[:, 0], np.float32)
    return np.where(counted(model, sae, ids), values, np.float32(0.0)).astype(np.float32)


def feature_names(model: LensModel, info: SAEInfo, features: Sequence[int]) -> tuple[tuple[int, str, bool], ...]:
    """What features are called, each with whether that is a label; else what the index describes it by, if anything."""
    labels, index = label_texts(info, features), index_of(info)
    described = {
        feature: describe(index, feature, model.tokens.display).text
        for feature in features
        if index is not None and feature not in labels and feature < index.width
    }
    return tuple((f, labels.get(f) or described.get(f, ""), f in labels) for f in features)
