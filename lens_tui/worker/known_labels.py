"""Every label that stands: those in the user's database, and behind them those that come with the bundled SAEs.

The bundled ones live in a database of their own in memory, so that words find
them by the same rules; the user's is never written to here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from typing import TypeVar

from lens_tui import demo
from lens_tui.demo.labels import bundled_labels
from lens_tui.records import SAEInfo, paths
from lens_tui.records.labels import ImportResult, Label, Labels, NewLabel
from lens_tui.records.store import SHORT, Store

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
