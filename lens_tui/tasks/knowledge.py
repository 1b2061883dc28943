"""What is known of SAEs: their labels, what other tools' dashboards say, the index of each, and all of it for upload.

Labels are those in the user's database, and behind them those that come with the bundled SAEs. The bundled ones
live in a database of their own in memory, so that words find them by the same rules; the user's is never written
to here. What asks for several things takes the database as ``store``, opened once by :func:`opened`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lens_tui import demo
from lens_tui.records import LensError, SAEInfo, paths
from lens_tui.records.features import DENSE
from lens_tui.records.label_files import Dashboard, Dashboards
from lens_tui.records.labels import ImportResult, Label, Labels, NewLabel
from lens_tui.records.read_files import changed_at
from lens_tui.records.sanitise import one_line
from lens_tui.records.store import SHORT, Store
from lens_tui.sae.index.index_reader import Example, FeatureIndex
from lens_tui.sae.index.index_settings import EDGES, read_manifest

T = TypeVar("T")


@contextmanager
def opened() -> Iterator[Store | None]:
    """The user's database, to be read and closed again; ``None`` if nobody ever kept anything in it."""
    if not paths.database_kept():
        yield None
        return
    with Store(patience=SHORT) as store:
        yield store


def labels_of(info: SAEInfo, feature: int, store: Store | None = None) -> tuple[Label, ...]:
    """All valid labels of a feature: yours first, then imported ones, then the bundled one."""
    stored = _stored(lambda labels: labels.of(info.id, feature), store) or ()
    return (*stored, *_plain(_bundled_of(info).of(info.id, feature)))


def label_texts(info: SAEInfo, features: Sequence[int], store: Store | None = None) -> dict[int, str]:
    """The text of the first label of each feature, as :func:`labels_of` orders them, where it has one."""
    if not features:
        return {}
    stored = _stored(lambda labels: labels.best(info.id, features), store) or {}
    return {feature: label.text for feature, label in (_bundled_of(info).best(info.id, features) | stored).items()}


def search_labels(
    words: str, sae: str | None, k: int = 20, store: Store | None = None, *, raw: bool = False
) -> tuple[Label, ...]:
    """Labels that hold all the words, of all SAEs if ``sae`` is ``None``; at most ``k``.

    ``raw``: as stored, not as it is safe to show. Yours come first. Imported and bundled ones take turns, each kind
    with its best match first.
    """
    stored = _stored(lambda labels: labels.search(words, sae=sae, k=k, raw=raw), store) or ()
    mine = [label for label in stored if label.is_mine]
    imported = [label for label in stored if not label.is_mine]
    turns = zip_longest(imported, _plain(bundled().search(words, sae=sae, k=k, raw=raw)))
    return tuple([*mine, *(label for turn in turns for label in turn if label is not None)][: max(k, 0)])


def standing_labels(info: SAEInfo, *, raw: bool = False) -> tuple[Label, ...]:
    """All labels of an SAE by feature, in the order of :func:`labels_of`; ``raw`` as in ``Labels.standing``."""
    stored = _stored(lambda labels: tuple(labels.standing(info.id, raw=raw))) or ()
    ready = _plain(tuple(_bundled_of(info).standing(info.id, raw=raw)))
    return tuple(sorted([*stored, *ready], key=lambda label: label.feature))


def take_labels(store: Store, info: SAEInfo, labels: Iterable[NewLabel], *, origin: str) -> ImportResult:
    """Import labels as ``Labels.take`` does; bundled ones that are here anyway are known and not stored again."""
    ready = {_key(label) for label in _bundled_of(info).standing(info.id, raw=True)}
    known = 0

    def others() -> Iterator[NewLabel]:
        nonlocal known
        for label in labels:
            if _key(label) in ready:
                known += 1
            else:
                yield label

    found = Labels(store).take(info.id, others(), origin=origin)
    return replace(found, known=found.known + known)


def _key(label: Label | NewLabel) -> tuple[int, str, str, str, str]:
    return (label.feature, label.source, label.method, label.explainer, label.text)


@cache
def bundled(only: str = "") -> Labels:
    """The bundled labels, by the ids of their SAEs: of all, or of the one in a folder of this name."""
    from lens_tui.sae.load_sae import sae_info

    labels = Labels(Store(":memory:"))
    folders = demo.sae_paths()
    for folder, some in demo.bundled_labels().items():
        if folder in folders and only in ("", folder):
            labels.take(sae_info(folders[folder]).id, some, origin="")
    return labels


def _bundled_of(info: SAEInfo) -> Labels:
    """Bundled labels, those of an SAE among them; the first run need not wait for all of them."""
    # An SAE that lies elsewhere may be a copy of a bundled one: only their ids tell.
    return bundled(bundled_names().get(info.path, ""))


@cache
def bundled_names() -> dict[str, str]:
    """The names of the bundled SAEs by their paths."""
    return {str(path): name for name, path in demo.sae_paths().items()}


def _stored(ask: Callable[[Labels], T], store: Store | None = None) -> T | None:
    """What the user's database answers, ``store`` if it is open; ``None`` if nobody ever kept anything in it."""
    if store is not None:
        return ask(Labels(store))
    with opened() as found:
        return None if found is None else ask(Labels(found))


def _plain(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Without the number and the time that the database in memory gave them."""
    return tuple(replace(label, id=0, created="") for label in labels)


def dashboard_of(info: SAEInfo, feature: int, store: Store | None) -> Dashboard | None:
    """What another tool's dashboard holds of a feature, if one was imported into ``store``."""
    return None if store is None else next(iter(Dashboards(store).of(info.id, feature)), None)


def largest_known(info: SAEInfo, feature: int, index: FeatureIndex | None) -> float | None:
    """The largest activation of a feature in the index, or without one in another tool's dashboard, if it is known."""
    try:
        if index is not None:
            return index.statistics(feature).max or None
        with opened() as store:
            dashboard = dashboard_of(info, feature, store)
    except LensError as error:  # as on the feature's page: what cannot be read takes nothing else away
        _log.warning("what is known of feature %d cannot be read: %s", feature, error)
        return None
    return None if dashboard is None else dashboard.maximum or None


_log = logging.getLogger(__name__)
_SETTLED = 2.0
"""Seconds after which a change of a folder is distinguished from the one before by its time alone, everywhere."""


def index_of(info: SAEInfo) -> FeatureIndex | None:
    """The newest index at hand for an SAE: bundled, or in the user's indexes folder. ``None`` if there is none."""
    found = [entry for folder in _index_folders() for entry in _manifests(folder)]
    for changed, manifest in sorted(found, reverse=True):
        if _sae_of(manifest.parent, changed) not in (info.id, None):  # its arrays need not be opened
            continue
        index = _open(manifest.parent, changed)
        if index is not None and _is_of(index, info):
            return index
    return None


def dense_features(index: FeatureIndex | None) -> dict[int, float]:
    """The dense features of an SAE, each with the share of tokens on which it is active; none without an index."""
    if index is None or not index.n_counted:
        return {}
    share = index.count / index.n_counted
    return {int(feature): float(share[feature]) for feature in (share > DENSE).nonzero()[0]}


def _index_folders() -> tuple[Path, Path]:
    return demo.model_path().parent / "index", paths.indexes_folder()


def _manifests(folder: Path) -> tuple[tuple[float, Path], ...]:
    """Manifests of a folder's indexes and when they were written; listed again when an index came or went."""
    changed = changed_at(folder)
    # A folder that has just changed may change again at the same time, as its file system counts time.
    listed = _listed if time.time() - changed > _SETTLED else _listed.__wrapped__
    return listed(folder, changed)


@lru_cache(maxsize=8)
def _listed(folder: Path, _changed_at: float) -> tuple[tuple[float, Path], ...]:
    return tuple((changed_at(manifest), manifest) for manifest in folder.glob("*/manifest.json"))


def _is_of(index: FeatureIndex, info: SAEInfo) -> bool:
    identity = index.identity
    theirs = (identity.sae, identity.width, identity.layer, identity.site, identity.d_model)
    return theirs == (info.id, info.width, info.layer, info.site, info.d_model)


@lru_cache(maxsize=64)
def _sae_of(folder: Path, _changed_at: float) -> str | None:
    """The SAE that a manifest names; ``None`` where that cannot be said before the index is opened."""
    try:
        named = read_manifest(folder).get("identity")
    except LensError:
        return None
    sae = named.get("sae") if isinstance(named, dict) else None
    return one_line(sae, 400) if isinstance(sae, str) else None


@lru_cache(maxsize=64)
def _open(folder: Path, changed: float) -> FeatureIndex | None:
    try:
        return FeatureIndex(folder)
    except LensError as error:
        _log.warning("the index %s is left out: %s", folder, error)
        return None


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
