"""Long work that was begun and is not done, so that it can be gone on with after a stop, a restart or a kill.

What the work itself needs to continue lies in its own folder; here is what was asked for, to ask for it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import paths
from .disk import write_text
from .errors import LensError
from .read_files import read_json
from .sanitise import one_line

Kind = Literal["index", "train"]
MOST = 20
"""Works that are remembered; the one begun first is forgotten first."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """``kind`` of work on ``model`` (its id), the ``values`` of its form, and what it is called, safe to show.

    ``share`` is how much was done when that was last known, 0 to 1.
    """

    kind: Kind
    model: str
    title: str
    values: Mapping[str, str] = field(default_factory=dict)
    share: float = 0.0

    def is_same(self, other: Unfinished) -> bool:
        """Whether both ask for the same thing."""
        return (self.kind, self.model, dict(self.values)) == (other.kind, other.model, dict(other.values))


def unfinished(model: str = "", file: Path | None = None) -> tuple[Unfinished, ...]:
    """The works of a model (of all for ``""``), last begun first. What cannot be read is nothing."""
    found = [work for work in _read(file or paths.unfinished_file()) if model in ("", work.model)]
    return tuple(reversed(found))


def begin(work: Unfinished, file: Path | None = None) -> None:
    """Note a work as begun, or how far it is. Raises :class:`LensError` where nothing can be written."""
    place = file or paths.unfinished_file()
    _write(place, [*(other for other in _read(place) if not other.is_same(work)), work][-MOST:])


def finish(work: Unfinished, file: Path | None = None) -> None:
    """Forget a work: it is done, or nobody wants it. Raises :class:`LensError` where nothing can be written."""
    place = file or paths.unfinished_file()
    found = _read(place)
    left = [other for other in found if not other.is_same(work)]
    if len(left) < len(found):
        _write(place, left)


def _write(place: Path, works: list[Unfinished]) -> None:
    rows = [{**asdict(work), "values": dict(work.values)} for work in works]
    write_text(place, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def _read(place: Path) -> list[Unfinished]:
    try:
        rows = read_json(place)
    except LensError:
        return []
    found = [_work(row) for row in rows] if isinstance(rows, list) else []
    return [work for work in found if work is not None]


def _work(row: Any) -> Unfinished | None:
    if not isinstance(row, dict) or row.get("kind") not in ("index", "train"):
        return None
    values, share = row.get("values"), row.get("share")
    texts = (row.get("model"), row.get("title"))
    if not isinstance(values, dict) or not all(isinstance(text, str) for text in (*texts, *values.values())):
        return None
    known = float(share) if isinstance(share, int | float) and 0 <= share <= 1 else 0.0
    return Unfinished(row["kind"], row["model"], one_line(row["title"], 120), values, known)
