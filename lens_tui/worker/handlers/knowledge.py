"""What is known of a feature beforehand: its label, and what a feature index holds. Read from disk, no MLX."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lens_tui import demo
from lens_tui.records import LensError, SAEInfo, paths
from lens_tui.records.dashboards import Dashboard, Dashboards
from lens_tui.records.sanitise import one_line, sanitise_token
from lens_tui.records.store import SHORT, Store
from lens_tui.sae.index import Example, FeatureIndex
from lens_tui.worker.known_labels import best_labels

from .sampled import sampled

_log = logging.getLogger(__name__)
_EXAMPLES = 12


def known_of(info: SAEInfo, feature: int, token_text: Callable[[int], str]) -> dict[str, Any]:
    """Plain data for ``FeaturePage.extras``; what is not known is left out.

    ``label``, ``label_source``, ``label_score`` and ``label_scorer`` (if somebody scored it), ``density``,
    ``max``, ``mean``, ``hist_edges``, ``hist_counts``, ``corpus`` and ``examples``, each ``{"tokens", "values",
    "peak", "value"}``. Without an index, what another tool's dashboard holds stands in, and ``corpus`` names the tool.
    ``index_problem`` says why an index that is there says nothing. All strings are safe to show.
    """
    found: dict[str, Any] = {}
    found |= _readable(lambda: _label(info, feature))
    index = index_of(info)
    if index is not None and 0 <= feature < index.width:
        try:
            found |= _indexed(index, feature, token_text)
        except LensError as error:
            _log.warning("the index %s cannot be read: %s", index.path, error)
            found["index_problem"] = one_line(str(error), 200)
    else:
        found |= _readable(lambda: _dashboard(info, feature))
    return found


def _indexed(index: FeatureIndex, feature: int, token_text: Callable[[int], str]) -> dict[str, Any]:
    numbers = index.statistics(feature)
    return {
        "density": numbers.density,
        "max": numbers.max,
        "mean": numbers.mean,
        "hist_edges": list(numbers.edges),
        "hist_counts": list(numbers.histogram),
        "corpus": one_line(index.identity.corpus, 80),
        "examples": [_example(example, token_text) for example in index.examples(feature, _EXAMPLES)],
        **sampled(index, feature, lambda example: _example(example, token_text)),
    }


def index_of(info: SAEInfo) -> FeatureIndex | None:
    """The newest index at hand for an SAE: bundled, or in the user's indexes folder. ``None`` if there is none."""
    folders = (demo.model_path().parent / "index", paths.indexes_folder())
    manifests = {manifest: _changed(manifest) for folder in folders for manifest in folder.glob("*/manifest.json")}
    for manifest in sorted(manifests, key=manifests.__getitem__, reverse=True):
        index = _open(manifest.parent, manifests[manifest])
        if index is not None and _is_of(index, info):
            return index
    return None


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # a broken link, or removed since
        return 0.0


def _is_of(index: FeatureIndex, info: SAEInfo) -> bool:
    identity = index.identity
    theirs = (identity.sae, identity.width, identity.layer, identity.site, identity.d_model)
    return theirs == (info.id, info.width, info.layer, info.site, info.d_model)


@lru_cache(maxsize=64)
def _open(folder: Path, changed: float) -> FeatureIndex | None:
    try:
        return FeatureIndex(folder)
    except LensError as error:
        _log.warning("the index %s is left out: %s", folder, error)
        return None


def _readable(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``ask`` finds. A database that cannot be read must not take the page away."""
    try:
        return ask()
    except LensError as error:
        _log.warning("labels cannot be read: %s", error)
        return {}


def _label(info: SAEInfo, feature: int) -> dict[str, Any]:
    label = best_labels(info, [feature]).get(feature)
    if label is None:
        return {}
    facts: dict[str, Any] = {"label": one_line(label.text, 200), "label_source": one_line(label.source, 60)}
    if label.score is not None:
        facts |= {"label_score": label.score, "label_scorer": one_line(label.scorer, 60)}
    return facts


def _dashboard(info: SAEInfo, feature: int) -> dict[str, Any]:
    """What another tool's dashboard holds of a feature, if one was imported."""
    if not paths.database_file().exists():
        return {}
    with Store(patience=SHORT) as store:
        dashboard = next(iter(Dashboards(store).of(info.id, feature)), None)
    return {} if dashboard is None else _from_dashboard(dashboard)


def _from_dashboard(dashboard: Dashboard) -> dict[str, Any]:
    """What another tool says, by its own definitions; ``corpus`` names the tool."""
    top = [example for example in dashboard.examples if example.tokens][:_EXAMPLES]
    facts = {
        "density": dashboard.density,
        "max": dashboard.maximum,
        "corpus": one_line(dashboard.source, 60),
        "examples": [
            {
                "tokens": list(example.tokens),
                "values": list(example.values),
                "peak": max(range(len(example.values)), key=example.values.__getitem__),
                "value": max(example.values),
            }
            for example in top
            if example.values
        ],
    }
    return {name: value for name, value in facts.items() if value is not None}


def _example(example: Example, token_text: Callable[[int], str]) -> dict[str, Any]:
    tokens = [sanitise_token(token_text(int(token))) for token in example.token_ids]
    values = [0.0 if value != value else float(value) for value in example.values]  # NaN: not kept
    return {"tokens": tokens, "values": values, "peak": example.peak, "value": example.value}
