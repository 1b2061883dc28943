"""The bundled model, its SAEs and vectors, and how they are found.

Everything that is particular to the bundled model is in ``demo.json`` beside
this file: its SAEs, known feature names, and what ``--demo`` opens with. Nothing
else in the package knows those facts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records import Sampling
from lens_tui.records.arm_syntax import Term

if TYPE_CHECKING:
    from lens_tui.records.labels import NewLabel

NAME = "demo"
LABEL_SOURCE = "bundled"
"""What labels that come with the bundled SAEs name as their source."""
_HERE = Path(__file__).parent
LABELS = _HERE / "labels.jsonl"
"""One object a line: ``feature``, ``sae`` (its folder's name), ``text``, ``score``, ``method``, ``scorer``."""


@dataclass(frozen=True, slots=True)
class ReadyVector:
    """A bundled vector with the scale at which it works and what was measured there.

    ``steered``, ``baseline`` and ``random`` are the shares of 20 continuations that a classifier gave to ``target``:
    under the vector, without it, and under random directions of the same scale. ``distinct`` is the distinct-2 of the
    steered ones over the baseline's. ``says`` is one sentence on what it does.
    """

    name: str
    path: Path
    layer: int
    scale: float
    says: str
    target: str
    steered: float
    baseline: float
    random: float
    distinct: float


@dataclass(frozen=True, slots=True)
class Starter:
    """What ``--demo`` opens with, chosen so that one key press shows the main job."""

    prompt: str
    sampling: Sampling
    steers: tuple[Term, ...]


@cache
def _facts() -> dict[str, object]:
    facts: dict[str, object] = json.loads((_HERE / "demo.json").read_text(encoding="utf-8"))
    return facts


def model_path() -> Path:
    """The folder of the bundled model, in mlx-lm's format."""
    return _HERE / "model"


def prompts_path() -> Path:
    """The file of the bundled set of prompts."""
    return _HERE / "prompts.jsonl"


def sae_paths() -> dict[str, Path]:
    """The bundled SAEs and transcoders by name: folders in Gemma Scope 2's layout."""
    return {path.name: path for path in sorted((_HERE / "sae").glob("*/layer_*")) if (path / "config.json").exists()}


def transcoders_path() -> Path:
    """The folder of the bundled set of transcoders: one of each layer's MLP."""
    return _HERE / str(_facts()["transcoders"])


def transcoder_paths() -> tuple[Path, ...]:
    """The bundled transcoders, from layer 0 on."""
    return tuple(sorted(transcoders_path().glob("layer_*")))


def jacobian_lens_path() -> Path:
    """The file of the bundled model's Jacobian lens."""
    return _HERE / "jacobian_lens.safetensors"


def default_sae() -> str:
    """The name of the SAE that the Features screen opens with."""
    return str(_facts()["default_sae"])


@cache
def vectors() -> tuple[ReadyVector, ...]:
    """The bundled vectors, ready to steer with."""
    folder = _HERE / "vectors"
    rows = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
    return tuple(ReadyVector(path=folder / row.pop("file"), **row) for row in rows)


def ready_vector(named: str) -> ReadyVector | None:
    """The bundled vector of this name or path; ``None`` if there is no such."""
    return next((vector for vector in vectors() if named in (vector.name, str(vector.path))), None)


def starter() -> Starter:
    """The prompt, sampling and steers that ``--demo`` opens with."""
    facts = _facts()["starter"]
    assert isinstance(facts, dict)
    return Starter(facts["prompt"], Sampling(**facts["sampling"]), tuple(_term(row) for row in facts["steers"]))


def _term(row: dict[str, Any]) -> Term:
    """A row of ``demo.json``: a feature with all that is needed, or the name of a bundled vector."""
    ready = ready_vector(row["vector"]) if "vector" in row else None
    if ready is None:
        return Term("feature", str(row["feature"]), row["layer"], row["scale"], name=row["name"], sae=row["sae"])
    return Term("file", str(ready.path), ready.layer, ready.scale, name=ready.name)


def bundled_labels() -> dict[str, tuple[NewLabel, ...]]:
    """The labels of the bundled SAEs by the folder's name of their SAE; none in an installation without them.

    They are read, never written; people's own come before them.
    """
    from lens_tui.records.labels import NewLabel

    if not LABELS.exists():
        return {}
    found: dict[str, list[NewLabel]] = {}
    for row in [json.loads(line) for line in LABELS.read_text("utf-8").split("\n") if line]:
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
