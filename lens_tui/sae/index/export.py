"""An index and its labels in Neuronpedia's upload form (``POST /api/feature/upload-batch``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.labels import Label

from .read import Example, FeatureIndex
from .settings import EDGES

PER_BATCH = 128
_MAX_LABEL = 512
_MAX_TOKENS = 1024
_MAX_LOGITS = 20


def upload_batches(
    index: FeatureIndex,
    features: Sequence[int],
    token_text: Callable[[int], str],
    labels: Mapping[int, Sequence[Label]],
    *,
    model_id: str,
    source: str,
    convention: str = "raw",
    k: int = 20,
) -> Iterator[dict[str, Any]]:
    """Upload batches of at most 128 features, plain JSON data.

    Features that never fired are left out: the form asks for at least one
    activation. ``convention`` names the token table; ``raw`` is what Neuronpedia
    shows. Labels are cut at 512 characters. Top examples carry quantile -1, the
    form's mark for them; random ones the octave they were drawn from, with its share of active tokens.
    """
    if not model_id or not source:
        raise LensError("An upload needs a model id and a source.", "For example gemma-2-2b and 20-my-sae.")
    batch: list[dict[str, Any]] = []
    for feature in features:
        row = _feature(index, int(feature), token_text, labels.get(int(feature), ()), convention, k)
        if row is not None:
            batch.append(row)
        if len(batch) == PER_BATCH:
            yield {"modelId": model_id, "source": source, "features": batch}
            batch = []
    if batch:
        yield {"modelId": model_id, "source": source, "features": batch}


def _feature(
    index: FeatureIndex,
    feature: int,
    token_text: Callable[[int], str],
    labels: Sequence[Label],
    convention: str,
    k: int,
) -> dict[str, Any] | None:
    top = index.examples(feature, k)
    if not top:
        return None
    activations = [_activation(example, token_text, -1.0, -1.0, -1.0) for example in top]
    total = int(index.count[feature])
    histogram = index.statistics(feature).histogram
    for number, (lower, examples) in enumerate(index.sample(feature) if index.full else ()):
        octave = EDGES.tolist().index(lower) // 2
        share = sum(histogram[2 * octave : 2 * octave + 2]) / total
        high = float(index.max[feature]) if number == 0 else 2 * lower
        activations += [_activation(example, token_text, high, lower, share) for example in examples]
    return {
        "index": feature,
        "density": float(index.density[feature]),
        "topLogits": _logits(index, feature, token_text, convention, "promoted"),
        "bottomLogits": _logits(index, feature, token_text, convention, "suppressed"),
        "explanations": [
            {
                "text": label.text if len(label.text) <= _MAX_LABEL else label.text[: _MAX_LABEL - 1] + "…",
                "methodName": label.method or label.source,
                "modelName": label.explainer or label.author or "human",
            }
            for label in labels
        ],
        "activations": activations,
    }


def _activation(
    example: Example, token_text: Callable[[int], str], high: float, low: float, share: float
) -> dict[str, Any]:
    return {
        "tokens": [token_text(int(token)) for token in example.token_ids[:_MAX_TOKENS]],
        "values": [float(value) for value in np.nan_to_num(example.values[:_MAX_TOKENS])],
        "quantileMax": high,
        "quantileMin": low,
        "quantileFraction": share,
    }


def _logits(
    index: FeatureIndex, feature: int, token_text: Callable[[int], str], convention: str, side: str
) -> list[dict[str, Any]]:
    if convention not in index.conventions:
        return []
    row = index.pushed(feature, convention)
    ids, values = row[:2] if side == "promoted" else row[2:]
    pairs = zip(ids[:_MAX_LOGITS].tolist(), values[:_MAX_LOGITS].tolist(), strict=True)
    return [{"token": token_text(token), "value": value} for token, value in pairs]
