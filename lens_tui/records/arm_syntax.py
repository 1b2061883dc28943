"""Arms as they are written: ``cookery=f2666*22``, ``f7*20+f9*-4``, ``random:3@5*12``, ``verse.safetensors*8``.

An arm is one or more terms joined by ``+``; a term is a source, an optional
layer after ``@`` and a scale after ``*``. A source is a feature id of the SAE
(``f2666`` or ``2666``), ``random:SEED``, the path of a vector file, or the name of a
bundled vector. After the scale may come a mode and positions, each after a colon:
``f2666*0.5:norm_match``, ``f75:project_out``, ``f2666*22:generated``, and in a chat
``f2666*22:user``. They are those of ``records.interventions``. Last may come a gate:
``f2666*22?f75>1.5`` acts where feature 75 reads more than 1.5, ``verse*8?probe.safetensors<0`` where that probe
scores below 0; its source is one of those of a term, its layer by default the source's own. ``king.gguf@all*0.5``
is a set: the vectors of every layer in a file, or in a folder of files, at half of the lengths they were made with.
``head:7.4`` (layer 7, head 4; ``head:7.4,5`` two of them) puts zero in the place of what heads hand on; it may have
positions and a gate, but no scale.
``edge:7.4:5`` cuts what heads attend to: nothing looks at token 5 through head 7.4, whose other weights make up for it
(``:zero`` behind it: they do not). ``edge:7.4:11/5`` is of token 11 alone, ``edge:7:0,1:last`` of every head of the
layer, ``edge:7.4:system`` of a chat's part. Token 0 is the first that the model reads, BOS where it has one; a negative
number counts from the end of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .errors import LensError
from .gates import Gate, Monitor, Side, Watched
from .interventions import (
    HEADS_OFF,
    MODES,
    POSITIONS,
    ROLES,
    AblateHeads,
    BenchRow,
    Intervention,
    Positions,
    mode_of,
    positions_name,
    positions_of,
)
from .pattern_record import EditPattern
from .steering_vector import SteeringVector

_WORDS = rf"(?::(?:{'|'.join([mode.id for mode in MODES] + [*POSITIONS, *ROLES])})\b)*"
_HEAD = r"(?<![^\s=+])head:\d{1,9}\.\d{1,9}(?:,\d{1,9})*"
_TOKENS = r"-?\d{1,9}(?:,-?\d{1,9})*"
_EDGE = (
    rf"(?<![^\s=+])edge:\d{{1,9}}(?:\.\d{{1,9}}(?:,\d{{1,9}})*)?"
    rf":(?:(?:{_TOKENS}/)?{_TOKENS}|{'|'.join([*POSITIONS, *ROLES])})(?::zero)?"
)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GATE = rf"(?:\?[^?<>]+[<>]{_NUMBER})?"
_TERM = re.compile(
    rf"^(?P<source>.+?)(?:@(?P<layer>-?[0-9]{{1,9}}|all))?(?:\*(?P<scale>{_NUMBER}))?(?P<words>{_WORDS})(?P<gate>{_GATE})$"
)
_CUT = re.compile(rf"^(?P<source>{_EDGE})(?P<words>{_WORDS})(?P<gate>{_GATE})$")
_GATED = re.compile(rf"^\?(?P<source>[^?<>]+?)(?:@(?P<layer>-?[0-9]{{1,9}}))?(?P<side>[<>])(?P<threshold>{_NUMBER})$")
_BETWEEN = re.compile(
    rf"(?<=\*)({_NUMBER}{_WORDS}{_GATE})\s*\+\s*|((?::project_out|{_HEAD}|{_EDGE}){_WORDS}{_GATE})\s*\+\s*"
)
_NAME = re.compile(r"^(?P<name>[^=*@]+)=(?P<rest>.+)$")

_HELP = "Write it as [NAME=]SOURCE[@LAYER]*SCALE, for example f2666*22, kjv=f75*22+f2666*5 or random:0@4*22."
BASELINE = "baseline"
"""What the arm without interventions is called beside others."""
Kind = Literal["feature", "random", "file", "head", "edge"]
_BEFORE = {"feature": "f", "random": "random:", "head": "head:", "edge": "edge:"}
_SIDES: dict[str, Side] = {">": "above", "<": "below"}


@dataclass(frozen=True, slots=True)
class GateTerm:
    """A gate as it is written: what is read, by a source as in :class:`Term`, and the threshold."""

    kind: Kind
    source: str
    layer: int | None
    threshold: float
    side: Side = "above"

    def watched(self, monitor: Monitor) -> Watched:
        """What is read, its monitor found, with the threshold."""
        return Watched(monitor, self.threshold)

    @property
    def written(self) -> str:
        """The gate as :func:`parse_arm` reads it."""
        source = {"feature": "f", "random": "random:"}.get(self.kind, "") + self.source
        where = "" if self.layer is None else f"@{self.layer}"
        return f"?{source}{where}{'>' if self.side == 'above' else '<'}{exact(self.threshold)}"

    def gate(self, monitor: Monitor) -> Gate:
        """The gate, its monitor found."""
        return Gate(monitor, self.threshold, self.side)


@dataclass(frozen=True, slots=True)
class Term:
    """A row as it is written down, before its vector is found: on the command line, or in the bundled comparison.

    ``source`` is the number of a feature (of ``sae``, where one is named), a seed, or a file's path. ``layer`` ``None``
    is that of the vector; ``every``: it is a set, of all layers there are. ``positions`` is one of ``POSITIONS`` or
    ``ROLES``.
    """

    kind: Kind
    source: str
    layer: int | None
    scale: float
    mode: str = "add"
    positions: str = "all"
    name: str = ""
    sae: str = ""
    gate: GateTerm | None = None
    every: bool = False

    @property
    def feature(self) -> int:
        """The number of the feature that is the source."""
        return int(self.source)

    @property
    def written(self) -> str:
        """The term as :func:`parse_arm` reads it."""
        source = _BEFORE.get(self.kind, "") + self.source
        where = "@all" if self.every else "" if self.layer is None else f"@{self.layer}"
        amount = f"*{exact(self.scale)}" if mode_of(self.mode).amount else ""
        mode = "add" if self.kind in ("head", "edge") else self.mode  # they have no other
        words = [word for word, usual in ((mode, "add"), (self.positions, "all")) if word != usual]
        return ":".join([source + where + amount, *words]) + ("" if self.gate is None else self.gate.written)

    def heads_off(self, name: str, gate: Gate | None = None) -> AblateHeads:
        """What takes the heads of a term of heads away."""
        layer, _, heads = self.source.partition(".")
        numbers = tuple(int(head) for head in heads.split(","))
        return AblateHeads(id=name, layer=int(layer), heads=numbers, positions=positions_of(self.positions), gate=gate)

    def edge_cut(self, name: str, gate: Gate | None = None) -> EditPattern:
        """What cuts the edges of a term of edges."""
        place, sources, *rest = self.source.split(":")
        layer, _, heads = place.partition(".")
        queries, _, keys = sources.rpartition("/")
        return EditPattern(
            id=name,
            layer=int(layer),
            heads=tuple(int(head) for head in heads.split(",") if head),
            sources=_tokens(keys),
            positions=_tokens(queries) if queries else positions_of(self.positions),
            renormalise=not rest,
            gate=gate,
        )

    def row(self, name: str, vector: SteeringVector, gate: Gate | None = None) -> BenchRow:
        """The row of this id, its vector and what its gate reads found."""
        layer = vector.layer if self.layer is None else self.layer
        positions = positions_of(self.positions)
        return BenchRow(name, vector, layer, self.scale, mode=self.mode, positions=positions, gate=gate)


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
    if name == BASELINE:
        raise LensError(f"The arm {text!r} has the name of the plain one.", f"Call it other than {BASELINE!r}.")
    terms = tuple(_term(part, text, scale) for part in _split(body))
    return ArmSpec(name or text.strip(), terms)


def _split(body: str) -> list[str]:
    # A '+' ends a term only right after its scale, so that paths and exponents may hold one.
    parts = [part or "" for part in _BETWEEN.split(body)]
    return ["".join(parts[i : i + 3]) for i in range(0, len(parts), 3)]


def _term(part: str, whole: str, default: float | None) -> Term:
    if part.strip().startswith("edge:"):
        return _edge(part.strip(), whole)
    match = _TERM.match(part.strip())
    words = match["words"].split(":")[1:] if match else []
    known = {mode.id for mode in MODES}
    if match is not None and re.fullmatch(_HEAD, match["source"].strip()):
        return _heads(match, words, whole)
    modes, places = [word for word in words if word in known], [word for word in words if word not in known]
    mode = modes[0] if modes else "add"
    if mode_of(mode).amount == "":
        default = 0.0
    scale = float(match["scale"]) if match and match["scale"] else default
    if match is None or scale is None or len(modes) > 1 or len(places) > 1:
        why = _why_no_scale(match["source"]) if match is not None and scale is None else ""
        raise LensError(f"The arm {whole!r} cannot be read at {part.strip()!r}{why}.", _HELP)
    kind, source = _source(match["source"].strip(), whole)
    every = match["layer"] == "all"
    if every and kind != "file":
        raise LensError(f"The arm {whole!r} has @all behind what is no file.", "Name a file or folder of vectors.")
    term = Term(kind, source, int(match["layer"]) if match["layer"] and not every else None, scale, every=every)
    return replace(term, mode=mode, positions=places[0] if places else "all", gate=_gate(match["gate"], whole))


def _why_no_scale(source: str) -> str:
    _, star, behind = source.rpartition("*")
    return f": {behind.strip()!r} behind the '*' is not a number" if star else ": it has no scale"


def parse_monitor(text: str) -> GateTerm:
    """Read what a gate reads, ``f75``, ``probe.safetensors@3``; ``>0.5`` behind it is from where on it counts.

    Raises :class:`LensError`.
    """
    written = text.strip()
    if "<" in written:
        raise LensError(f"The monitor {text!r} has a '<'.", "Write SOURCE[@LAYER] or SOURCE[@LAYER]>NUMBER.")
    found = _gate(f"?{written}" if ">" in written else f"?{written}>0", text)
    assert found is not None
    return found


def _heads(match: re.Match[str], words: Sequence[str], whole: str) -> Term:
    places = [word for word in words if word in POSITIONS or word in ROLES]
    if match["scale"] or match["layer"] or len(places) > 1 or len(places) < len(words):
        raise LensError(f"The arm {whole!r} gives heads more than positions.", "Write head:LAYER.HEAD, as head:7.4.")
    source, where = match["source"].strip().removeprefix("head:"), places[0] if places else "all"
    return Term("head", source, None, 0.0, HEADS_OFF.id, where, gate=_gate(match["gate"], whole))


_EDGES = "Write edge:LAYER.HEAD:SOURCE, as edge:7.4:5, or edge:LAYER.HEAD:TOKEN/SOURCE; :zero may stand behind it."


def _edge(part: str, whole: str) -> Term:
    match = _CUT.match(part)
    words = match["words"].split(":")[1:] if match else []
    if match is None or len(words) > ("/" not in match["source"]) or not set(words) <= {*POSITIONS, *ROLES}:
        raise LensError(f"The arm {whole!r} cannot be read at {part!r}.", _EDGES)
    source = match["source"].removeprefix("edge:")
    return Term("edge", source, None, 0.0, HEADS_OFF.id, words[0] if words else "all", gate=_gate(match["gate"], whole))


def _tokens(written: str) -> Positions:
    """Positions as an edge names them: numbers, or the name of a kind or role."""
    if written[-1:].isdigit():
        return Positions("indices", tuple(int(number) for number in written.split(",")))
    return positions_of(written)


def edge_term(item: Intervention, gate: GateTerm | None) -> Term | None:
    """An edit of a pattern as a term, ``None`` where there are no words for it."""
    if not isinstance(item, EditPattern) or item.weights is not None:
        return None
    sources, queries = _written(item.sources), _written(item.positions)
    if not sources or not queries:
        return None
    named = positions_name(item.positions)
    heads = "." + ",".join(map(str, item.heads)) if item.heads else ""
    looked = sources if named else f"{queries}/{sources}"
    if not named and not sources[-1:].isdigit():
        return None
    source = f"{item.layer}{heads}:{looked}" + ("" if item.renormalise else ":zero")
    return Term("edge", source, None, 0.0, HEADS_OFF.id, named or "all", gate=gate)


def _written(positions: Positions) -> str:
    return ",".join(map(str, positions.indices)) if positions.kind == "indices" else positions_name(positions)


def _gate(written: str, whole: str) -> GateTerm | None:
    if not written:
        return None
    match = _GATED.match(written)
    if match is None:
        raise LensError(
            f"The gate of the arm {whole!r} cannot be read at {written!r}.", "Write ?SOURCE[@LAYER]>NUMBER."
        )
    kind, source = _source(match["source"].strip(), whole)
    layer = int(match["layer"]) if match["layer"] else None
    return GateTerm(kind, source, layer, float(match["threshold"]), _SIDES[match["side"]])


def _source(source: str, whole: str) -> tuple[Kind, str]:
    if re.fullmatch(r"f?[0-9]{1,9}", source):
        return "feature", source.lstrip("f")
    if source.startswith("random:"):
        if not re.fullmatch(r"random:[0-9]{1,18}", source):
            raise LensError(f"The arm {whole!r} names a random vector without a seed.", "Write random:0.")
        return "random", source.removeprefix("random:")
    return "file", source


def written_arm(name: str, terms: Sequence[Term], unnamed: str) -> str:
    """An arm as :func:`parse_arm` reads it; ``unnamed`` is for a name that cannot be written but is needed."""
    body = "+".join(term.written for term in terms)
    if name.strip() not in ("", BASELINE) and not set("=*@") & set(name):
        return f"{name}={body}"
    return f"{unnamed}={body}" if "=" in body else body  # without a name the first '=' of a path would end one


def exact(value: float) -> str:
    """A number as short as can be and exactly this one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
