"""Keep what was found on Causes, and find it again: with what made it, and whether the model is still the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lens_tui.records import ModelInfo
from lens_tui.records.cause_store import CauseRecord, CauseStore, CauseSummary
from lens_tui.records.graph_plan import GraphFound
from lens_tui.records.patch_plan import PatchFound
from lens_tui.records.sanitise import one_line

from .made_with import made_with, model_stamp

if TYPE_CHECKING:
    from lens_tui.records.store import Store

One = TypeVar("One", PatchFound, GraphFound)


def keep_cause(store: Store, model: ModelInfo, found: One) -> One:
    """Keep what a model was found to do; returns it with its number. Raises :class:`LensError` if the disk refuses."""
    number = CauseStore(store).keep(found, made_with(model), model_stamp(model))
    return replace(found, kept=number)


def kept_causes(database: Path, words: str = "", without: frozenset[int] = frozenset()) -> list[CauseSummary]:
    """The newest of those that are kept, but these; with words, those that have them all. Raises ``LensError``."""
    if not database.exists():
        return []
    return [each for each in CauseStore(database).list(words) if each.id not in without]


def open_cause(database: Path, number: int, model: ModelInfo | None) -> tuple[CauseRecord, str] | None:
    """One that is kept, and what has changed since, in a few words; ``None`` if it is gone. Raises ``LensError``."""
    record = CauseStore(database).get(number)
    return None if record is None else (record, changed_since(record, model))


def changed_since(record: CauseRecord, model: ModelInfo | None) -> str:
    """What is no longer as it was made with, in a few words; nothing where the model is the same."""
    known = one_line(record.summary.model.rstrip("/").rpartition("/")[2], 60)
    if model is None:
        return f"of {known}, which is not loaded"
    stamp = model_stamp(model)
    if model.name != record.summary.model and not (stamp and stamp == record.stamp):
        return f"of another model: {known}"
    if record.made.adapter != model.adapter:
        return "made with another adapter" if record.made.adapter else "made without the adapter"
    if record.stamp and stamp and record.stamp != stamp:
        return f"the files of {known} have changed since"
    if record.made.weights != model.weights:
        return "its weights were held otherwise"
    return ""
