"""Arms written on the command line: ``cookery=f2666*22``, ``f7*20+f9*-4``, ``random:3@5*12``, ``verse.safetensors*8``.

An arm is one or more terms joined by ``+``; a term is a source, an optional
layer after ``@`` and a scale after ``*``. A source is a feature id of the SAE
(``f2666`` or ``2666``), ``random:SEED``, the path of a vector file, or the name of a
bundled vector.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lens_tui.records.errors import LensError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"^(?P<source>.+?)(?:@(?P<layer>-?\d+))?\*(?P<scale>{_NUMBER})$")
_BETWEEN = re.compile(rf"(?<=\*)({_NUMBER})\s*\+\s*")
_NAME = re.compile(r"^(?P<name>[^=*@]+)=(?P<rest>.+)$")

_HELP = "Write it as [NAME=]SOURCE[@LAYER]*SCALE, for example f2666*22, kjv=f75*22+f2666*5 or random:0@4*22."


@dataclass(frozen=True, slots=True)
class Term:
    """One intervention of an arm before its vector is found. ``layer`` is None where the source says it."""

    kind: Literal["feature", "random", "file"]
    source: str
    layer: int | None
    scale: float


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """An arm as written: its name and its terms, in order."""

    name: str
    terms: tuple[Term, ...]


def parse_arm(text: str) -> ArmSpec:
    """Read one ``--arm``; raises :class:`LensError` with the form that is expected."""
    named = _NAME.match(text.strip())
    name, body = (named["name"].strip(), named["rest"]) if named else ("", text.strip())
    terms = tuple(_term(part, text) for part in _split(body))
    return ArmSpec(name or text.strip(), terms)


def _split(body: str) -> list[str]:
    # A '+' ends a term only right after its scale, so that paths and exponents may hold one.
    parts = _BETWEEN.split(body)
    return ["".join(parts[i : i + 2]) for i in range(0, len(parts), 2)]


def _term(part: str, whole: str) -> Term:
    match = _TERM.match(part.strip())
    if match is None:
        raise LensError(f"The arm {whole!r} cannot be read at {part.strip()!r}.", _HELP)
    source, layer = match["source"].strip(), int(match["layer"]) if match["layer"] else None
    scale = float(match["scale"])
    if re.fullmatch(r"f?\d+", source):
        return Term("feature", source.lstrip("f"), layer, scale)
    if source.startswith("random:"):
        if not re.fullmatch(r"random:\d+", source):
            raise LensError(f"The arm {whole!r} names a random vector without a seed.", "Write random:0.")
        return Term("random", source.removeprefix("random:"), layer, scale)
    return Term("file", source, layer, scale)
