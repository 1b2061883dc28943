"""Sets of prompts, what each arm wrote on each of them, and the columns of the table that compares them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import LensError
from .paths import expanded
from .read_files import parse_json, read_text
from .run import Token, mean, perplexity_of
from .sanitise import one_line

MAX_PROMPTS = 100_000
MAX_BYTES = 64 << 20
_LINE_END = re.compile(r"\r\n|\r|\n")  # a prompt may hold other separators


@dataclass(frozen=True, slots=True)
class PromptItem:
    """One prompt of a set. ``id`` is what its row is called: by default its number, counted from 1."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts under a name: the file's, or ``"bundled"``."""

    name: str
    items: tuple[PromptItem, ...]

    def first(self, count: int | None) -> PromptSet:
        """The set with its first ``count`` prompts, all of them for ``None``."""
        return PromptSet(self.name, self.items[:count])


def typed_prompts(texts: Iterable[str]) -> PromptSet:
    """A set of these texts. Raises :class:`LensError` where there is none, or an empty one."""
    items = tuple(PromptItem(str(number), text) for number, text in enumerate(texts, 1))
    if not items:
        raise LensError("There are no prompts.", "Give at least one.")
    if empty := next((item for item in items if not item.text.strip()), None):
        raise LensError(f"Prompt {empty.id} is empty.", "Give some words, or leave it out.")
    return PromptSet("typed", items)


def numbers_in(text: str) -> tuple[float, ...] | None:
    """Finite numbers, as scales and seeds of a set are written: with commas or blanks between. ``None`` for others."""
    try:
        found = tuple(float(part) for part in re.split(r"[,\s]+", text.strip()) if part)
    except ValueError:
        return None
    return found if all(math.isfinite(value) for value in found) else None


def read_prompt_set(path: Path | str, *, key: str = "prompt") -> PromptSet:
    """The prompts of a file: one on each line, exactly as it stands there, or in ``.jsonl`` an object on each line.

    An object holds its prompt under ``key`` (where that is ``prompt`` and there is none, under ``text``) and may hold
    an ``id``. In ``.json`` they stand in one list, prompts as strings or objects. Lines that are blank are left out.
    Raises :class:`LensError` with the line that is wrong.
    """
    file = expanded(path)
    text, name, suffix = read_text(file, MAX_BYTES, encoding="utf-8-sig"), one_line(file.name, 80), file.suffix.lower()
    if suffix == ".json":
        listed = parse_json(text, name)
        if not isinstance(listed, list):
            raise LensError(f"{name} is not a list of prompts.", "Write a list, or JSONL.")
        found = (_item(value, f"Item {number} of {name}", key) for number, value in enumerate(listed[:MAX_PROMPTS], 1))
        return _set_of(found, name)
    return parse_prompts(text, name, key=key, objects=suffix == ".jsonl")


def parse_prompts(text: str, name: str, *, key: str = "prompt", objects: bool | None = None) -> PromptSet:
    """The prompts of lines, as :func:`read_prompt_set` reads them.

    Args:
        text: The lines.
        name: Where they are from, for the set and for errors.
        key: What an object holds its prompt under.
        objects: Whether each line is an object; ``None``: those that begin with a brace are.
    """
    lines = enumerate(_LINE_END.split(text), 1)
    found = islice(((number, line) for number, line in lines if line.strip()), MAX_PROMPTS)
    return _set_of((_line(line, f"Line {number} of {name}", key, objects) for number, line in found), name)


def _line(line: str, where: str, key: str, objects: bool | None) -> PromptItem:
    as_object = line.startswith("{") if objects is None else objects
    return _item(parse_json(line, where), where, key) if as_object else PromptItem("", line)


def _set_of(found: Iterable[PromptItem], name: str) -> PromptSet:
    """The set of these prompts, each with its number where it has no id."""
    items = tuple(PromptItem(item.id or str(number), item.text) for number, item in enumerate(found, 1))
    if not items:
        raise LensError(f"There are no prompts in {name}.", "Write one on each line, or JSONL.")
    if len(items) == MAX_PROMPTS:
        raise LensError(f"{name} holds {MAX_PROMPTS} prompts or more.", "Give fewer.")
    return PromptSet(name, items)


def _item(value: Any, where: str, key: str) -> PromptItem:
    if isinstance(value, str) and value.strip():
        return PromptItem("", value)
    fields = value if isinstance(value, dict) else {}
    text = fields.get(key, fields.get("text") if key == "prompt" else None)
    if (isinstance(text, str) and not text.strip()) or isinstance(value, str):
        raise LensError(f"{where} has an empty prompt.", "Give it some words, or leave it out.")
    if not isinstance(text, str):
        has = ", ".join(repr(one_line(str(name), 20)) for name in islice(fields, 5))
        hint = f"It has {has}: call one 'prompt', or name it with --text-key." if has else 'Write {"prompt": "..."}.'
        raise LensError(f"{where} is not an object with a text under {key!r}.", hint)
    own = fields.get("id")
    return PromptItem("" if own is None else str(own), text)


@dataclass(frozen=True, slots=True)
class SetCell:
    """What one arm wrote on one prompt from one seed, and its measures.

    ``prompt``, ``arm`` and ``seed`` are places in the lists of the run, from 0. ``tokens`` carry ``kl``, ``reverse_kl``
    and ``plain_logprob`` as in a comparison; they are ``None`` where the cell was stopped (``reason``) before it was
    measured. ``dose`` is the mean ``||delta h|| / ||h||``, ``distinct_2`` the share of the token pairs that are
    different (``None`` for fewer than two tokens), ``read_back`` the mean activation of the run's feature on the text
    when the plain model reads it (``None`` without a feature).
    """

    prompt: int
    arm: int
    seed: int
    tokens: tuple[Token, ...] = ()
    text: str = ""
    reason: str = ""
    dose: float | None = None
    distinct_2: float | None = None
    read_back: float | None = None

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability a token (nats) to the arm's own model."""
        return mean(token.logprob for token in self.tokens)

    @property
    def mean_plain_logprob(self) -> float | None:
        """Mean log-probability a token (nats) to the plain model."""
        return mean(token.plain_logprob for token in self.tokens)

    @property
    def perplexity(self) -> float | None:
        """Perplexity of the text to the model that wrote it."""
        return perplexity_of(self.mean_logprob)

    @property
    def plain_perplexity(self) -> float | None:
        """Perplexity of the text to the plain model."""
        return perplexity_of(self.mean_plain_logprob)

    @property
    def mean_kl(self) -> float | None:
        """Mean D(arm || plain) a token (nats), both models on the arm's own text."""
        return mean(token.kl for token in self.tokens)

    @property
    def mean_reverse_kl(self) -> float | None:
        """Mean D(plain || arm) a token (nats), both models on the arm's own text."""
        return mean(token.reverse_kl for token in self.tokens)


@dataclass(frozen=True, slots=True)
class SetColumn:
    """A measure that a table of a set can show: its key in ``--json``, name, places after the point, what it is."""

    id: str
    label: str
    unit: str
    places: int
    says: str
    value: Callable[[SetCell], float | None]
    log: bool = False

    def over(self, cells: Sequence[SetCell]) -> float | None:
        """The mean over cells, of a perplexity the geometric one (``exp`` of the mean loss a text)."""
        values = [self.value(cell) for cell in cells]
        if not self.log:
            return mean(values)
        logs = mean(math.log(value) for value in values if value)
        return None if logs is None else math.exp(logs)


COLUMNS: tuple[SetColumn, ...] = (
    SetColumn(
        "mean_kl", "KL", "nat", 3,
        "Mean D(steered ‖ plain) of the next token, both models on the arm's own text.", lambda cell: cell.mean_kl,
    ),
    SetColumn(
        "plain_perplexity", "perplexity", "", 1,
        "Of what the arm wrote, to the plain model; means are geometric.", lambda cell: cell.plain_perplexity, log=True,
    ),
    SetColumn(
        "perplexity", "own perplexity", "", 1,
        "Of what the arm wrote, to the model that wrote it.", lambda cell: cell.perplexity, log=True,
    ),
    SetColumn(
        "distinct_2", "distinct-2", "", 2,
        "Share of the token pairs of what was written that are different.", lambda cell: cell.distinct_2,
    ),
    SetColumn(
        "read_back", "read-back", "", 2,
        "Mean activation of the feature on what was written, read again by the plain model.",
        lambda cell: cell.read_back,
    ),
    SetColumn(
        "dose", "moved", "‖h‖", 2,
        "Mean length of the change over that of the residual; of heads and patterns over what they hand on.",
        lambda cell: cell.dose,
    ),
)  # fmt: skip
"""The columns to choose from, in the order in which a key goes through them."""


def column_of(name: str) -> SetColumn:
    """The column of that id. Raises :class:`LensError` with those there are."""
    for column in COLUMNS:
        if column.id == name:
            return column
    raise LensError(f"There is no column {name!r}.", f"Use one of {', '.join(column.id for column in COLUMNS)}.")
