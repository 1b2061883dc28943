"""Every label that stands: those in the user's database, and behind them those that come with the bundled SAEs.

The bundled ones live in a database of their own in memory, so that words find
them by the same rules; the user's is never written to here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from lens_tui import demo
from lens_tui.demo.labels import bundled_labels
from lens_tui.records import LensError, SAEInfo, paths
from lens_tui.records.label_files import Dashboard, Dashboards
from lens_tui.records.labels import ImportResult, Label, Labels, NewLabel
from lens_tui.records.sanitise import one_line, sanitise_token
from lens_tui.records.store import SHORT, Store
from lens_tui.sae.index import Example, FeatureIndex

T = TypeVar("T")


def labels_of(info: SAEInfo, feature: int) -> tuple[Label, ...]:
    """All labels of a feature that stand: yours first, then imported ones, then the bundled one."""
    return (*(_stored(lambda labels: labels.of(info.id, feature)) or ()), *_plain(bundled().of(info.id, feature)))


def best_labels(info: SAEInfo, features: Sequence[int]) -> dict[int, Label]:
    """The first label of each feature, as :func:`labels_of` orders them; features without one are left out."""
    if not features:
        return {}
    found = {feature: _plain([label])[0] for feature, label in bundled().best(info.id, features).items()}
    return found | (_stored(lambda labels: labels.best(info.id, features)) or {})


def label_texts(info: SAEInfo, features: Sequence[int]) -> dict[int, str]:
    """The text of the best label of each feature that has one."""
    return {feature: label.text for feature, label in best_labels(info, features).items()}


def search_labels(words: str, sae: str | None, k: int = 20) -> tuple[Label, ...]:
    """Labels that hold all the words, of all SAEs if ``sae`` is ``None``; at most ``k``.

    Yours come first. Imported and bundled ones take turns, each kind with its best match first.
    """
    stored = _stored(lambda labels: labels.search(words, sae=sae, k=k)) or ()
    mine = [label for label in stored if label.is_mine]
    imported = [label for label in stored if not label.is_mine]
    turns = zip_longest(imported, _plain(bundled().search(words, sae=sae, k=k)))
    return tuple([*mine, *(label for turn in turns for label in turn if label is not None)][: max(k, 0)])


def standing_labels(info: SAEInfo, *, raw: bool = False) -> tuple[Label, ...]:
    """All labels of an SAE by feature, in the order of :func:`labels_of`; ``raw`` as in ``Labels.standing``."""
    stored = _stored(lambda labels: tuple(labels.standing(info.id, raw=raw))) or ()
    ready = _plain(tuple(bundled().standing(info.id, raw=raw)))
    return tuple(sorted([*stored, *ready], key=lambda label: label.feature))


def take_labels(store: Store, info: SAEInfo, labels: Iterable[NewLabel], *, origin: str) -> ImportResult:
    """Import labels as ``Labels.take`` does; bundled ones that are here anyway are known and not stored again."""
    ready = {_key(label) for label in bundled().standing(info.id, raw=True)}
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
def bundled() -> Labels:
    """The bundled labels, by the ids of their SAEs."""
    from lens_tui.sae import sae_info

    labels = Labels(Store(":memory:"))
    folders = demo.sae_paths()
    for folder, some in bundled_labels().items():
        if folder in folders:
            labels.take(sae_info(folders[folder]).id, some, origin="")
    return labels


def _stored(ask: Callable[[Labels], T]) -> T | None:
    """What the user's database answers; ``None`` if nobody ever kept anything in it."""
    if not paths.database_file().exists():
        return None
    with Store(patience=SHORT) as store:
        return ask(Labels(store))


def _plain(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Without the number and the time that the database in memory gave them."""
    return tuple(replace(label, id=0, created="") for label in labels)


def sampled(index: FeatureIndex, feature: int, plain: Callable[[Example], dict[str, Any]]) -> dict[str, Any]:
    """Plain data for ``FeaturePage.extras``.

    ``counted``: tokens the index is over. ``samples``: for each octave of activation with any, strongest first,
    ``{"from": its lower edge, "examples": [...]}`` with examples drawn at random, as ``plain`` gives them.
    """
    groups = index.sample(feature)
    samples = [{"from": edge, "examples": [plain(example) for example in examples]} for edge, examples in groups]
    return {"counted": index.n_counted, "samples": samples}


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
