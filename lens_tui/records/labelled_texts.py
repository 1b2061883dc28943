"""Texts with labels, as a file holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LensError
from .read_files import parse_json, read_lines
from .sanitise import one_line


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts, a label for each, and what each belongs to (``None`` where the file names no groups)."""

    texts: tuple[str, ...]
    labels: tuple[float, ...]
    groups: tuple[str, ...] | None = None


def read_labelled(path: Path | str) -> LabelledTexts:
    """Read JSONL with ``text`` and ``label`` (a number, ``true`` or ``false``), and ``group`` on every line or none.

    Raises :class:`LensError` with the number of the line that is wrong.
    """
    file = Path(path).expanduser()
    name = one_line(file.name, 80)
    rows = [_row(line, f"Line {number} of {name}") for number, line in read_lines(file) if line.strip()]
    if not rows:
        raise LensError(f"{name} has no labelled texts.", 'Write {"text": ..., "label": 1} on each line.')
    groups = [group for *_, group in rows]
    if any(group is None for group in groups) and any(group is not None for group in groups):
        raise LensError(f"Some lines of {name} have a group and others have none.", "Give every line one, or none.")
    named = None if groups[0] is None else tuple(str(group) for group in groups)
    return LabelledTexts(tuple(text for text, *_ in rows), tuple(label for _, label, _ in rows), named)


def _row(line: bytes, where: str) -> tuple[str, float, Any]:
    row = parse_json(line, where)
    text, label = (row.get("text"), row.get("label")) if isinstance(row, dict) else (None, None)
    if not isinstance(text, str) or not text or not isinstance(label, (int, float)):
        raise LensError(f"{where} is not an object with a text and a label.", 'Write {"text": ..., "label": 1}.')
    group = row.get("group")
    if group is not None and not isinstance(group, (str, int)):
        raise LensError(f"{where} has a group that is neither a text nor a number.")
    return text, float(label), group
