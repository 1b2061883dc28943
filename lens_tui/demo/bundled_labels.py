"""Labels that come with the bundled SAEs. They are read, never written; people's own come before them."""

from __future__ import annotations

import json
from pathlib import Path

from lens_tui.records.labels import NewLabel

from . import LABEL_SOURCE

FILE = Path(__file__).parent / "labels.jsonl"
"""One object a line: ``feature``, ``sae`` (its folder's name), ``text``, ``score``, ``method``, ``scorer``."""


def bundled_labels() -> dict[str, tuple[NewLabel, ...]]:
    """The labels by the folder's name of their SAE; none in an installation without them."""
    if not FILE.exists():
        return {}
    found: dict[str, list[NewLabel]] = {}
    for row in [json.loads(line) for line in FILE.read_text("utf-8").split("\n") if line]:
        label = NewLabel(
            int(row["feature"]),
            str(row["text"]),
            LABEL_SOURCE,
            method=str(row["method"]),
            score=float(row["score"]),
            scorer=str(row["scorer"]),
        )
        found.setdefault(str(row["sae"]), []).append(label)
    return {folder: tuple(labels) for folder, labels in found.items()}
