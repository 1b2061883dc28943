"""What an index knows of a feature, read from the plain data of a page. What is malformed counts as missing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lens_tui.records.sanitise import one_line, sanitise_token

from .token_layout import NEWLINE, TAB, shown


@dataclass(frozen=True, slots=True)
class Example:
    """A stretch of text on which the feature was active, and the token where most."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int


@dataclass(frozen=True, slots=True)
class Extras:
    """What an index knows of a feature; everything may be missing, and ``problem`` says why if it should be there.

    ``samples`` are examples drawn at random from each octave of activation, by its lower edge, strongest first.
    """

    label: str = ""
    source: str = ""
    score: float | None = None
    scorer: str = ""
    density: float | None = None
    maximum: float | None = None
    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    corpus: str = ""
    counted: int | None = None
    examples: tuple[Example, ...] = ()
    samples: tuple[tuple[float, tuple[Example, ...]], ...] = ()
    problem: str = ""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Extras:
        """Read a page's ``extras``; what is malformed counts as missing."""
        return cls(
            one_line(str(data.get("label") or ""), 200),
            one_line(str(data.get("label_source") or ""), 60),
            _number(data.get("label_score")),
            one_line(str(data.get("label_scorer") or ""), 60),
            _number(data.get("density")),
            _number(data.get("max")),
            tuple(float(edge) for edge in data.get("hist_edges") or ()),
            tuple(float(count) for count in data.get("hist_counts") or ()),
            one_line(str(data.get("corpus") or ""), 80),
            data["counted"] if isinstance(data.get("counted"), int) else None,
            _examples(data.get("examples")),
            tuple((float(group["from"]), _examples(group["examples"])) for group in data.get("samples") or ()),
            one_line(str(data.get("index_problem") or ""), 200),
        )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _examples(items: Any) -> tuple[Example, ...]:
    return tuple(_example(item) for item in items or () if item.get("tokens"))


def _example(item: Mapping[str, Any]) -> Example:
    tokens = tuple(one_row(str(token)) for token in item["tokens"])
    values = [float(value) for value in item.get("values") or ()][: len(tokens)]
    values += [0.0] * (len(tokens) - len(values))
    peak = item.get("peak")
    top = max(range(len(values)), key=values.__getitem__)
    return Example(tokens, tuple(values), peak if isinstance(peak, int) and 0 <= peak < len(tokens) else top)


def one_row(token: str) -> str:
    """A token's text safe and in one row, its line breaks and tabs as marks."""
    return shown(sanitise_token(token)).replace("\n", NEWLINE).replace("\t", TAB)
