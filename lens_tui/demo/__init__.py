"""The bundled model and its SAEs, and how they are found.

Everything that is particular to the bundled model stands in ``demo.json`` beside
this file: its SAEs, known feature names, and what ``--demo`` opens with. Nothing
else in the package knows those facts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lens_tui.records import Sampling

NAME = "demo"
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class StarterSteer:
    """A feature to steer with in the opening comparison: its SAE, id, name, layer and scale."""

    name: str
    sae: str
    feature: int
    layer: int
    scale: float


@dataclass(frozen=True, slots=True)
class Starter:
    """What ``--demo`` opens with, chosen so that one key press shows the main job."""

    prompt: str
    sampling: Sampling
    steers: tuple[StarterSteer, ...]


@cache
def _facts() -> dict[str, object]:
    facts: dict[str, object] = json.loads((_HERE / "demo.json").read_text(encoding="utf-8"))
    return facts


def model_path() -> Path:
    """The folder of the bundled model, in mlx-lm's format."""
    return _HERE / "model"


def sae_paths() -> dict[str, Path]:
    """The bundled SAEs by name: folders in Gemma Scope 2's layout."""
    return {path.name: path for path in sorted((_HERE / "sae").glob("*/layer_*")) if (path / "config.json").exists()}


def default_sae() -> str:
    """The name of the SAE that the Features screen opens with."""
    return str(_facts()["default_sae"])


def starter() -> Starter:
    """The prompt, sampling and steers that ``--demo`` opens with."""
    facts = _facts()["starter"]
    assert isinstance(facts, dict)
    return Starter(
        facts["prompt"], Sampling(**facts["sampling"]), tuple(StarterSteer(**row) for row in facts["steers"])
    )
