"""Pairs of contrasting texts out of a file."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import LensError
from .read_files import parse_json, read_text
from .sanitise import one_line

MAX_BYTES = 64 << 20
MAX_PAIRS = 20_000
_LINE = re.compile(r"[^\r\n]+")  # only these end a line: JSON may hold other separators
_KEYS = "positive and negative, or question, answer_matching_behavior and answer_not_matching_behavior"


def read_pairs(path: Path | str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Positive and negative texts, as many of one as of the other, pair by pair.

    ``.jsonl`` holds an object on each line and ``.json`` a list of them, with the keys ``positive`` and
    ``negative``, or those of Anthropic's model-written evaluations and of CAA: ``question``,
    ``answer_matching_behavior`` and ``answer_not_matching_behavior``, where each text is the question with one answer.
    Any other file has a pair on each line, the texts apart by a tab. Raises :class:`LensError` with the
    number of the pair that is none.
    """
    file = Path(path).expanduser()
    name = one_line(file.name, 80)
    text = read_text(file, MAX_BYTES, encoding="utf-8-sig")
    pairs = [_pair(row, f"{name}, pair {number}") for number, row in enumerate(_rows(file, text, name), 1)]
    if not pairs:
        raise LensError(f"{name} holds no pairs.", "Write one on each line, the texts apart by a tab, or JSONL.")
    if len(pairs) > MAX_PAIRS:
        raise LensError(f"{name} holds more than {MAX_PAIRS} pairs.", "Sample them.")
    return tuple(one for one, _ in pairs), tuple(other for _, other in pairs)


def _rows(file: Path, text: str, name: str) -> list[Any]:
    suffix = file.suffix.lower()
    if suffix == ".json":
        found = parse_json(text, name)
        return found if isinstance(found, list) else [found]
    # One more than is allowed is enough to say that there are too many.
    lines = list(islice((line[0] for line in _LINE.finditer(text) if line[0].strip()), MAX_PAIRS + 1))
    if suffix == ".jsonl":
        return [parse_json(line, f"{name}, pair {number}") for number, line in enumerate(lines, 1)]
    return [line.split("\t") for line in lines]


def _pair(row: Any, where: str) -> tuple[str, str]:
    if isinstance(row, dict) and {"positive", "negative"} <= row.keys():
        found = [row["positive"], row["negative"]]
    elif (
        isinstance(row, dict) and {"question", "answer_matching_behavior", "answer_not_matching_behavior"} <= row.keys()
    ):
        answers = [row["answer_matching_behavior"], row["answer_not_matching_behavior"]]
        found = [_answered(row["question"], answer) for answer in answers]
    elif isinstance(row, list) and len(row) == 2:
        found = row
    elif isinstance(row, list):
        raise LensError(f"{where} has {len(row)} texts, not two.", "Write two texts apart by a tab.")
    else:
        raise LensError(f"{where} has no two texts.", f"Its keys must be {_KEYS}.")
    if not all(isinstance(text, str) and text.strip() for text in found):
        raise LensError(f"{where} has a text that is empty or none.", "Give both.")
    return found[0], found[1]


def _answered(question: Any, answer: Any) -> Any:
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    return question + ("" if question[-1:].isspace() or answer[:1].isspace() else " ") + answer
