"""A run as a Python program of its own: it makes the run again and says whether the tokens are the same."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lens_tui import demo
from lens_tui.records import ALL, Gate, Intervention, Monitor, Positions, Sampling, SteeringVector
from lens_tui.records.info import split_place
from lens_tui.records.run import RunRecord
from lens_tui.records.sanitise import one_line

from .made_with import attached_saes, held_as

_WIDTH = 96


@dataclass
class _Script:
    """The program as it is put together: the vectors and SAEs it needs, and the names it imports for them."""

    run: RunRecord
    imports: set[str] = field(default_factory=lambda: {"Arm", "LensModel", "Sampling"})
    sae_names: dict[str, str] = field(default_factory=dict)
    attached: list[str] = field(default_factory=list)
    vectors: dict[tuple[bytes, int, str], tuple[str, str]] = field(default_factory=dict)
    needs: set[str] = field(default_factory=set)

    def sae(self, sae_id: str) -> str:
        """The variable of an SAE."""
        self.imports.add("load_sae")
        if split_place(self.run.made_with.saes.get(sae_id, ""))[0] in demo.sae_paths():
            self.needs.add("demo")
        number = len(self.sae_names) + 1
        return self.sae_names.setdefault(sae_id, "sae" if number == 1 else f"sae{number}")

    def vector(self, vector: SteeringVector) -> str:
        """The variable of a vector; one direction has one."""
        key = (vector.direction.tobytes(), vector.layer, vector.site)
        if key not in self.vectors:
            stem = re.sub(r"\W+", "_", vector.name.lower(), flags=re.ASCII).strip("_")[:40]
            stem = stem if stem and not stem[0].isdigit() else f"vector_{stem}".rstrip("_")
            taken = {name for name, _ in self.vectors.values()}
            names = (f"{stem}_v{number or ''}" for number in range(10**6))
            name = next(name for name in names if name not in taken)
            self.vectors[key] = (name, self._vector_code(vector))
        return self.vectors[key][0]

    def _vector_code(self, vector: SteeringVector) -> str:
        """How a vector is made: as it was, where that gives it to the last bit, else from its numbers."""
        facts, kind = vector.origin.facts, vector.origin.kind
        if kind == "feature" and str(facts.get("sae")) in self.run.made_with.saes:
            return f"{self.sae(str(facts['sae']))}.vector({facts['feature']})"
        if kind == "random" and "seed" in facts:
            self.imports.add("random_unit")
            site = "" if vector.site == "resid_post" else f", site={vector.site!r}"
            return f"random_unit(lens, {vector.name!r}, {vector.layer}, seed={facts['seed']}{site})"
        ready = demo.ready_vector(str(facts.get("path", "")))
        if ready is not None:
            self.needs |= {"ready", "demo"}
            return f"ready_vector({ready.name!r})"
        self.needs.add("direction")
        origin = one_line(f"{kind}: {', '.join(f'{key} {value}' for key, value in facts.items())}", _WIDTH - 10)
        data = _pieces(base64.b64encode(vector.direction.astype("<f4").tobytes()).decode("ascii"), 8)
        place = f"{vector.name!r}, {vector.layer}, {vector.site!r}"
        return f"direction(  # {origin}\n        {place},\n        {data},\n    )"

    def intervention(self, item: Intervention) -> str:
        """The call that makes a record; what is at its default is left out."""
        kind = type(item).__name__
        self.imports.add(kind)
        return f"{kind}({', '.join(self._arguments(item))})"

    def _arguments(self, item: Intervention) -> Iterable[str]:
        for each in fields(item):
            value = getattr(item, each.name)
            if isinstance(value, Positions):
                if value != ALL:
                    self.imports.add("Positions")
                    yield f"positions={_call('Positions', value, Positions())}"
            elif isinstance(value, SteeringVector):
                yield f"vector={self.vector(value)}"
            elif isinstance(value, Gate):
                yield f"gate={self._gate(value)}"
            elif each.name == "mean" and value is not None:
                self.needs.add("array")
                data = base64.b64encode(value.astype("<f4").tobytes()).decode("ascii")
                yield f"mean=numbers(\n                {_pieces(data, 16)}\n            )"
            elif value is not None and (each.name, value) not in _PLAIN:
                yield f"{each.name}={value!r}"
        for name in attached_saes(item):
            self.sae(name)
            self.attached += [] if name in self.attached else [name]

    def _gate(self, gate: Gate) -> str:
        """The call that makes a gate."""
        self.imports.add("Gate")
        return f"Gate({self.monitor(gate.monitor)}, {gate.threshold!r}, {gate.side!r})"

    def monitor(self, read: Monitor) -> str:
        """The call that makes a monitor; the SAE that it reads a feature of is given to the model."""
        self.imports.add("Monitor")
        place = f"{read.name!r}, {read.layer}, {read.site!r}"
        if read.vector is not None:
            return f"Monitor({place}, {self.vector(read.vector)}, {read.scale!r}, {read.bias!r})"
        self.sae(read.sae)
        self.attached += [] if read.sae in self.attached else [read.sae]
        return f"Monitor({place}, sae={read.sae!r}, feature={read.feature})"

    def items(self, interventions: Sequence[Intervention]) -> str:
        """A tuple of records: those that act."""
        return _tuple(self.intervention(item) for item in interventions if item.enabled)


_PLAIN = {("site", "resid_post"), ("enabled", True), ("precision", "model")}


def as_python(run: RunRecord) -> str:
    """A program that makes the run again with this library, prints its texts and compares the tokens.

    Directions stand in it as they are made (a feature of an SAE, a seed, a bundled vector) or as their numbers, so that
    it needs the model, the SAEs it names and nothing else. Its exit status is 1 if a token differs.
    """
    script = _Script(run)
    arms = [f"        Arm({kept.arm.name!r}, {script.items(kept.arm.interventions)})," for kept in run.arms]
    changes = [
        f"        {(arm, index)}: {script.items(items)},"
        for arm, kept in enumerate(run.arms)
        for index, items in kept.changes
    ]
    monitors = [f"        {script.monitor(watched.monitor)}," for watched in run.monitors]
    read = ", monitors=monitors" if monitors else ""
    sampling = _call("Sampling", run.sampling_again, Sampling())
    return "\n".join(
        [
            *_head(run, script),
            *_asked(run),
            *_helpers(script),
            "",
            "",
            "def main() -> int:",
            f"    lens = LensModel({_source(run)})",
            *_saes(run, script),
            *(f"    {name} = {made}" for name, made in script.vectors.values()),
            "    arms = [",
            *arms,
            "    ]",
            *(["    changes = {", *changes, "    }"] if changes else []),
            *(["    monitors = [", *monitors, "    ]"] if monitors else []),
            f"    run = lens.compare(PROMPT, arms, {sampling}, raw={run.raw}{read})",
            *_loop(changes=bool(changes), whole=run.is_whole),
            "",
            "",
            'if __name__ == "__main__":',
            "    raise SystemExit(main())",
            "",
        ]
    )


def _asked(run: RunRecord) -> list[str]:
    """The prompt and the tokens that came of it."""
    rows = [_numbers([token.token_id for token in kept.tokens], "    ") for kept in run.arms]
    return [
        "",
        f"PROMPT = {run.asked!r}",
        f"PROMPT_IDS = {_numbers(run.prompt_ids)}",
        "EXPECTED = [",
        *(f"    {row}," for row in rows),
        "]",
        '"""The tokens of each arm as they were."""',
    ]


def _head(run: RunRecord, script: _Script) -> list[str]:
    made = run.made_with
    said = (made.mlx and f"mlx {made.mlx}", made.device, made.weights or made.dtype)
    facts = [_in_docstring(fact) for fact in said if fact]
    number = f"Run {run.id}" if run.id else "A run"
    lines = [
        f'"""{number} of {_in_docstring(run.model or "a model")}, written by mlx-lens-tui.',
        "",
        "It makes the run again and says whether the tokens are the same.",
        *([f"It was made with mlx-lens-tui {made.version}, {', '.join(facts)}."] if made.version else []),
        '"""',
        "",
    ]
    numeric = bool(script.needs & {"direction", "array"})
    vectors = {"SteeringVector"} if script.needs & {"direction", "ready"} else set()
    names = sorted(script.imports | vectors | ({"demo"} & script.needs))
    imports = [f"from lens_tui import {', '.join(names)}", "from lens_tui.records.sanitise import sanitise"]
    if "ready" in script.needs:
        imports.append("from lens_tui.records.vector_formats import load_one")
    return [*lines, *(["import base64", "", "import numpy as np", ""] if numeric else []), *imports]


def _in_docstring(text: str) -> str:
    return one_line(text, 80).replace("\\", "/").replace('"', "'")


def _helpers(script: _Script) -> list[str]:
    found: list[str] = []
    if script.needs & {"direction", "array"}:
        found += [
            "",
            "",
            "def numbers(data: str) -> np.ndarray:",
            '    """Little-endian float32 from base64."""',
            '    return np.frombuffer(base64.b64decode(data), dtype="<f4").astype(np.float32)',
        ]
    if "direction" in script.needs:
        found += [
            "",
            "",
            "def direction(name: str, layer: int, site: str, data: str) -> SteeringVector:",
            '    """A unit direction as it was, to the last bit."""',
            "    return SteeringVector(name, numbers(data), layer, site)",
        ]
    if "ready" in script.needs:
        found += [
            "",
            "",
            "def ready_vector(name: str) -> SteeringVector:",
            '    """A vector that comes with the bundled model."""',
            "    return load_one(next(ready.path for ready in demo.vectors() if ready.name == name))",
        ]
    return found


def _saes(run: RunRecord, script: _Script) -> list[str]:
    lines = []
    for sae_id, name in script.sae_names.items():
        path, layer, site = split_place(run.made_with.saes.get(sae_id, sae_id))
        site_words = "" if layer is None else f", layer={layer}, site={site!r}"
        place = f"demo.sae_paths()[{path!r}]" if path in demo.sae_paths() else repr(path)
        lines.append(f"    {name} = load_sae({place}{site_words})")
        lines += [f"    lens.attach_sae({sae_id!r}, {name})"] if sae_id in script.attached else []
    return lines


def _source(run: RunRecord) -> str:
    source = run.made_with.source or run.model
    if not run.made_with.version:
        return repr(source)
    adapter = f", adapter={run.made_with.adapter!r}" if run.made_with.adapter else ""
    return f"{source!r}, dequantize={held_as(run.made_with)!r}{adapter}"


def _loop(*, changes: bool, whole: bool) -> list[str]:
    dialled = [
        "    for event in run:",
        '        at = (event.arm, getattr(event, "index", -9) + 2)  # a step is always under way',
        "        if at in changes:",
        "            run.dial(event.arm, changes[at])",
    ]
    cut = [] if whole else ["        ids = ids[: len(expected)]  # it was stopped there"]
    return [
        "    if run.prompt_ids != tuple(PROMPT_IDS):",
        '        print("The prompt has become other tokens: is it the same model, with the same template?")',
        "        return 1",
        *(dialled if changes else ["    for _ in run:  # token by token", "        pass"]),
        "    same = True",
        "    for name, text, came, expected in zip(run.arms, run.texts, run.token_ids, EXPECTED, strict=True):",
        "        ids = list(came)",
        '        print(sanitise(f"── {name}\\n{text if isinstance(PROMPT, list) else PROMPT + text}\\n"))',
        *cut,
        "        if ids != expected:",
        "            pairs = zip(ids, expected, strict=False)",
        "            shorter = min(len(ids), len(expected))",
        "            place = next((i for i, (now, was) in enumerate(pairs) if now != was), shorter)",
        '            print(sanitise(f"{name} differs from token {place} on."))',
        "            same = False",
        '    print("The tokens are the same." if same else "`mlx-lens-tui replay` says what may be the cause.")',
        "    return 0 if same else 1",
    ]


def _call(name: str, record: Any, plain: Any) -> str:
    """The call that makes a record, with what is not at its default."""
    values: Mapping[str, Any] = {each.name: getattr(record, each.name) for each in fields(record)}
    given = [f"{key}={value!r}" for key, value in values.items() if value != getattr(plain, key)]
    return f"{name}({', '.join(given)})"


def _tuple(parts: Iterable[str]) -> str:
    found = list(parts)
    return f"({', '.join(found)}{',' if len(found) == 1 else ''})"


def _numbers(values: Sequence[int], indent: str = "") -> str:
    """A list of whole numbers, in lines of a readable length."""
    lines: list[str] = []
    line = ""
    for value in values:
        if len(line) + len(str(value)) > _WIDTH:
            lines, line = [*lines, line.rstrip()], ""
        line += f"{value}, "
    lines.append(line.rstrip().rstrip(","))
    if len(lines) == 1:
        return f"[{lines[0]}]"
    inner = "\n".join(f"{indent}    {line}" for line in lines)
    return f"[\n{inner},\n{indent}]"


def _pieces(data: str, indent: int) -> str:
    """A long text as literals one below the other, which Python joins."""
    pieces = [f'"{data[at : at + _WIDTH]}"' for at in range(0, len(data), _WIDTH)]
    return f"\n{' ' * indent}".join(pieces)
