"""Keep what was found on Causes, and find it again: with what made it, and whether the model is still the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lens_tui.records import LensError, ModelInfo
from lens_tui.records.cause_store import CauseRecord, CauseStore, CauseSummary, Found
from lens_tui.records.disk import free_files, json_text, write_text
from lens_tui.records.graph_file import graph_json
from lens_tui.records.graph_plan import GraphFound
from lens_tui.records.patch_plan import PatchFound
from lens_tui.records.sanitise import one_line

from .causes import FORMATS, as_text, command_of
from .graph_plans import graph_command
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


def formats_of(found: Found, asked: str = "") -> tuple[str, ...]:
    """In which of its formats something is to be written: a graph as JSON, a map as JSON and CSV.

    Args:
        found: A map or a graph.
        asked: Formats with commas or blanks between; nothing for all.

    Raises:
        LensError: For a format that it has not.
    """
    known = ("json",) if isinstance(found, GraphFound) else FORMATS
    words = tuple(dict.fromkeys(asked.lower().replace(",", " ").split()))
    if wrong := [word for word in words if word not in known]:
        what = "a graph" if isinstance(found, GraphFound) else "a map"
        raise LensError(f"There is no format {one_line(repr(wrong[0]), 40)} of {what}.", f"Use {' or '.join(known)}.")
    return words or known


def cause_text(found: Found, form: str) -> str:
    """A graph as Neuronpedia and circuit-tracer read it; a map as ``patch --json`` has it, or as CSV."""
    return json_text(graph_json(found.pruned)) if isinstance(found, GraphFound) else as_text(found, form)


def write_cause(found: Found, folder: Path, name: str = "", formats: Sequence[str] = ("json",)) -> list[Path]:
    """Write something that was kept into a folder; nothing that is there is written over.

    Args:
        found: A map or a graph.
        folder: It is made if it is not there.
        name: The files' name without suffix; by default its kind and number. A number follows if it is taken.
        formats: As :func:`formats_of` gives them.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        LensError: If the disk refuses.
    """
    default = f"{'graph' if isinstance(found, GraphFound) else 'patch'}-{found.kept}"
    stem = re.sub(r"[^\w.-]+", "-", name.strip()).strip("-.")[:120] or default
    files = free_files(folder, stem, formats)
    for file, form in zip(files, formats, strict=True):
        write_text(file, cause_text(found, form))
    return files


def command_again(record: CauseRecord) -> str:
    """The command that makes it again; ``""`` where it has none: a direction that only the app had."""
    found, model = record.found, record.made_with.source or record.summary.model
    if isinstance(found, GraphFound):
        return "" if found.plan.direction is not None else graph_command(found, model)
    return command_of(found.plan, model)


def changed_since(record: CauseRecord, model: ModelInfo | None) -> str:
    """What is no longer as it was made with, in a few words; nothing where the model is the same."""
    known = one_line(record.summary.model.rstrip("/").rpartition("/")[2], 60)
    if model is None:
        return f"of {known}, which is not loaded"
    stamp = model_stamp(model)
    if model.name != record.summary.model and not (stamp and stamp == record.stamp):
        return f"of another model: {known}"
    if record.made_with.adapter != model.adapter:
        return "made with another adapter" if record.made_with.adapter else "made without the adapter"
    if record.stamp and stamp and record.stamp != stamp:
        return f"the files of {known} have changed since"
    if record.made_with.weights != model.weights:
        return "its weights were held otherwise"
    return ""
