"""Arms written on the command line: ``cookery=f2666*22``, ``f7*20+f9*-4``, ``random:3@5*12``, ``verse.safetensors*8``.

An arm is one or more terms joined by ``+``; a term is a source, an optional
layer after ``@`` and a scale after ``*``. A source is a feature id of the SAE
(``f2666`` or ``2666``), ``random:SEED``, the path of a vector file, or the name of a
bundled vector. After the scale may come a mode and positions, each after a colon:
``f2666*0.5:norm_match``, ``f75:project_out``, ``f2666*22:generated``. They are those
of ``records.modes``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from lens_tui.records.errors import LensError
from lens_tui.records.modes import MODES, POSITIONS, mode_of

_WORDS = rf"(?::(?:{'|'.join([mode.id for mode in MODES] + list(POSITIONS))})\b)*"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"^(?P<source>.+?)(?:@(?P<layer>-?\d+))?(?:\*(?P<scale>{_NUMBER}))?(?P<words>{_WORDS})$")
_BETWEEN = re.compile(rf"(?<=\*)({_NUMBER}{_WORDS})\s*\+\s*|(?<=:project_out)()\s*\+\s*")
_NAME = re.compile(r"^(?P<name>[^=*@]+)=(?P<rest>.+)$")

_HELP = "Write it as [NAME=]SOURCE[@LAYER]*SCALE, for example f2666*22, kjv=f75*22+f2666*5 or random:0@4*22."


@dataclass(frozen=True, slots=True)
class Term:
    """One intervention of an arm before its vector is found. ``layer`` is None where the source says it."""

    kind: Literal["feature", "random", "file"]
    source: str
    layer: int | None
    scale: float
    mode: str = "add"
    positions: str = "all"


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """An arm as written: its name and its terms, in order."""

    name: str
    terms: tuple[Term, ...]


def parse_arm(text: str, scale: float | None = None) -> ArmSpec:
    """Read one ``--arm``; raises :class:`LensError` with the form that is expected.

    ``scale`` is that of a term which has none written; without it, such a term is refused.
    """
    named = _NAME.match(text.strip())
    name, body = (named["name"].strip(), named["rest"]) if named else ("", text.strip())
    terms = tuple(_term(part, text, scale) for part in _split(body))
    return ArmSpec(name or text.strip(), terms)


def _split(body: str) -> list[str]:
    # A '+' ends a term only right after its scale, so that paths and exponents may hold one.
    parts = [part or "" for part in _BETWEEN.split(body)]
    return ["".join(parts[i : i + 3]) for i in range(0, len(parts), 3)]


def _term(part: str, whole: str, default: float | None) -> Term:
    match = _TERM.match(part.strip())
    words = match["words"].split(":")[1:] if match else []
    modes, places = [word for word in words if word not in POSITIONS], [word for word in words if word in POSITIONS]
    mode = modes[0] if modes else "add"
    if mode_of(mode).amount == "":
        default = 0.0
    scale = float(match["scale"]) if match and match["scale"] else default
    if match is None or scale is None or len(modes) > 1 or len(places) > 1:
        why = ": it has no scale" if match is not None and scale is None else ""
        raise LensError(f"The arm {whole!r} cannot be read at {part.strip()!r}{why}.", _HELP)
    term = _source(match["source"].strip(), int(match["layer"]) if match["layer"] else None, scale, whole)
    return replace(term, mode=mode, positions=places[0] if places else "all")


def _source(source: str, layer: int | None, scale: float, whole: str) -> Term:
    if re.fullmatch(r"f?\d+", source):
        return Term("feature", source.lstrip("f"), layer, scale)
    if source.startswith("random:"):
        if not re.fullmatch(r"random:\d+", source):
            raise LensError(f"The arm {whole!r} names a random vector without a seed.", "Write random:0.")
        return Term("random", source.removeprefix("random:"), layer, scale)
    return Term("file", source, layer, scale)
