"""Maps of patches and attribution graphs that were made on Causes, kept with what they were made of."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .attribution_graph import GraphScores
from .cause_plan import GraphFound, GraphPlan, PatchFound, PatchPlan
from .codec import from_json, to_json
from .errors import LensError
from .graph_file import graph_from_json, graph_json
from .patch_grid import Agreement, CausalTrace, PatchGrid
from .run import MadeWith
from .store import Family, Store, storable
from .wording import has_words

CAUSES = Family(
    "causes",
    (
        """
        CREATE TABLE cause (
            id INTEGER PRIMARY KEY,
            created REAL NOT NULL,
            kind TEXT NOT NULL,
            model TEXT NOT NULL,
            title TEXT NOT NULL,
            asked TEXT NOT NULL,
            made TEXT NOT NULL,
            stamp TEXT NOT NULL,
            record BLOB NOT NULL
        );
        """,
    ),
)
Found = PatchFound | GraphFound
_SUMMARY = "id, created, kind, model, title, asked"
MOST_BYTES = 256 << 20
"""Bytes of a record, unpacked, at most."""


@dataclass(frozen=True, slots=True)
class CauseSummary:
    """A line of the history of causes. Texts are as they were: make them safe to show."""

    id: int
    created: float
    kind: Literal["patch", "graph"]
    model: str
    title: str
    asked: str


@dataclass(frozen=True, slots=True, eq=False)
class CauseRecord:
    """What was kept: a map or a graph, what made it, and the stamp of the model's files (``""``: not known)."""

    summary: CauseSummary
    made_with: MadeWith
    stamp: str
    found: Found


class CauseStore:
    """The causes of a :class:`Store`."""

    def __init__(self, store: Store | Path | str | None = None) -> None:
        self.store = store if isinstance(store, Store) else Store(store)
        self.store.use(CAUSES)

    def keep(self, found: Found, made_with: MadeWith, stamp: str = "") -> int:
        """Keep what was found; returns its number. Of a graph that is what pruning keeps. Raises :class:`LensError`."""
        kind, plan = ("graph", found.plan.prompt) if isinstance(found, GraphFound) else ("patch", found.plan.asked)
        values = (time.time(), kind, storable(model_of(found)), storable(found.plan.title), storable(plan))
        with self.store.write() as connection:
            cursor = connection.execute(
                "INSERT INTO cause (created, kind, model, title, asked, made, stamp, record) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, json.dumps(to_json(made_with)), stamp, _packed(found)),
            )
        return int(cursor.lastrowid or 0)

    def change(self, number: int, found: Found) -> None:
        """Keep it as it is now: pruned, pinned or grouped anew."""
        with self.store.write() as connection:
            connection.execute("UPDATE cause SET record = ? WHERE id = ?", (_packed(found), number))

    def delete(self, number: int) -> bool:
        """Delete one; whether it was there. Raises :class:`LensError` if the disk refuses."""
        with self.store.write() as connection:
            return connection.execute("DELETE FROM cause WHERE id = ?", (number,)).rowcount > 0

    def list(self, words: str = "", most: int = 200) -> list[CauseSummary]:
        """The newest first; with ``words``, those whose question, title or model hold them all."""
        rows = self.store.all(f"SELECT {_SUMMARY} FROM cause ORDER BY id DESC")
        with self.store.reading():
            found = [_summary(row) for row in rows]
        return [each for each in found if has_words(f"{each.model} {each.title} {each.asked}", words)][:most]

    def summary(self, number: int) -> CauseSummary | None:
        """The line of one, whether or not the rest of it can be read; ``None`` if it is gone."""
        row = self.store.one(f"SELECT {_SUMMARY} FROM cause WHERE id = ?", (number,))
        with self.store.reading():
            return None if row is None else _summary(row)

    def get(self, number: int) -> CauseRecord | None:
        """One with all that was kept, ``None`` if it is gone. Raises :class:`LensError` for a damaged one."""
        row = self.store.one("SELECT * FROM cause WHERE id = ?", (number,))
        if row is None:
            return None
        with self.store.reading():
            summary = _summary(row)
            found = _unpacked(summary.kind, row["record"], f"Number {number} of the causes")
            made_with = from_json(MadeWith, json.loads(row["made"]))
            return CauseRecord(summary, made_with, str(row["stamp"]), replace(found, kept=number))


def _summary(row: Any) -> CauseSummary:
    kind: Literal["patch", "graph"] = "graph" if row["kind"] == "graph" else "patch"
    texts = (str(row[name]) for name in ("model", "title", "asked"))
    return CauseSummary(int(row["id"]), float(row["created"]), kind, *texts)


def model_of(found: Found) -> str:
    """The name of the model that something was found in."""
    if isinstance(found, GraphFound):
        return found.whole.model
    of = found.grid or found.trace
    return "" if of is None else of.model


def _packed(found: Found) -> bytes:
    if isinstance(found, GraphFound):
        graph = graph_json(found.pruned)
        value = {
            "plan": to_json(found.plan),
            "graph": graph,
            "scores": None if found.scores is None else to_json(found.scores),
            "sum_error": found.sum_error,
            "saes": {str(layer): path for layer, path in found.saes.items()},
        }
    else:
        value = {field.name: _plain(getattr(found, field.name)) for field in fields(found) if field.name != "kept"}
        value["plan"] = to_json(found.plan)
    return zlib.compress(json.dumps(value).encode(), 6)


def _unpacked(kind: str, data: bytes, where: str) -> Found:
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(data, MOST_BYTES)
    except zlib.error as error:
        raise LensError(f"{where} cannot be read: {error}.", "Make it again.") from None
    if unpack.unconsumed_tail:
        raise LensError(f"{where} is too large.", "Make it again.")
    if not unpack.eof:
        raise LensError(f"{where} cannot be read: its end is missing.", "Make it again.")
    value = json.loads(text)
    if kind == "graph":
        graph = graph_from_json(value["graph"], where)
        return GraphFound(
            from_json(GraphPlan, value["plan"]),
            graph,
            graph,
            None if value["scores"] is None else from_json(GraphScores, value["scores"]),
            None if value["sum_error"] is None else float(value["sum_error"]),
            saes={int(layer): str(path) for layer, path in value["saes"].items()},
            part=True,
        )
    parts: dict[str, Any] = {name: _grid_of(kind, value[name]) for name, kind in _PARTS.items()}
    found = PatchFound(from_json(PatchPlan, value["plan"]), why=str(value["why"]), **parts)
    _check(found)
    return found


_PARTS: dict[str, type] = {"grid": PatchGrid, "trace": CausalTrace, "estimate": PatchGrid, "check": Agreement}


def _plain(value: Any) -> Any:
    """A record of arrays as JSON data, to the last bit."""
    if type(value).__module__ == "numpy" and value.ndim:
        data = base64.b64encode(value.astype("<f8").tobytes()).decode("ascii")
        return {"shape": list(value.shape), "array": data}
    if type(value).__module__ == "numpy":
        return value.item()
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _grid_of(kind: type, value: Any) -> Any:
    return None if value is None else kind(**{name: _read(each) for name, each in value.items()})


def _read(value: Any) -> Any:
    import numpy as np

    if isinstance(value, Mapping):
        array = np.frombuffer(base64.b64decode(value["array"], validate=True), dtype="<f8")
        return array.reshape([int(size) for size in value["shape"]])
    return tuple(_read(each) for each in value) if isinstance(value, list) else value


def _check(found: PatchFound) -> None:
    """Raises ``ValueError`` where a table has not the rows and columns that it names."""
    grid, trace = found.grid, found.trace
    if (grid is None) == (trace is None):
        raise ValueError("neither a grid nor a trace")
    for each in (grid, found.estimate):
        if each is not None:
            shape = (len(each.rows), len(each.columns))
            tables = (each.values, each.effect, each.low, each.high, each.random, each.shuffled)
            if any(table is not None and table.shape != shape for table in tables):
                raise ValueError("a grid of another shape")
    if grid is not None and found.estimate is not None and found.estimate.effect.shape != grid.effect.shape:
        raise ValueError("an estimate of another shape")
    if trace is not None:
        shape = (len(trace.layers), len(trace.tokens))
        if any(table is not None and table.shape != shape for table in (trace.values, trace.random)):
            raise ValueError("a trace of another shape")
