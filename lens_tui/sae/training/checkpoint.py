"""A training run on disk: one safetensors file, replaced atomically, from which the run goes on exactly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from lens_tui.records import LensError
from lens_tui.records.activations import SourceFacts
from lens_tui.records.atomic import write_with
from lens_tui.records.read_files import explained, regular_size
from lens_tui.records.sanitise import one_line
from lens_tui.records.training import Evaluation, TrainConfig

from .parameters import Normalizer
from .pool import PoolPosition
from .step import State, flatten_state, unflatten_state

FILE = "checkpoint.safetensors"
_VERSION = 1
_RESIZABLE = ("evaluate_every",)
"""Settings that may differ between a run and its resumption: they change no number."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a run needs to go on: state, normaliser, stream position, evaluations so far, seconds spent."""

    state: State
    norm: Normalizer
    position: PoolPosition
    history: tuple[Evaluation, ...]
    seconds: float


def save_checkpoint(folder: Path, point: Checkpoint, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Replace the run's checkpoint. ``facts`` say what it learns from, see ``run_facts``."""
    arrays = {f"state.{name}": value for name, value in flatten_state(point.state).items()}
    arrays |= {"norm.mean": point.norm.mean, "norm.scale": point.norm.scale}
    mx.eval(arrays)
    metadata = {
        "version": str(_VERSION),
        "config": config.to_json(),
        "facts": json.dumps(facts, sort_keys=True),
        "position": json.dumps(point.position.to_dict()),
        "history": json.dumps([asdict(item) for item in point.history]),
        "seconds": repr(point.seconds),
    }
    write_with(folder / FILE, lambda file: mx.save_safetensors(file, arrays, metadata))


def load_checkpoint(folder: Path, config: TrainConfig, facts: dict[str, Any]) -> Checkpoint | None:
    """The run's checkpoint, ``None`` if there is none.

    Raises ``LensError`` if it is of other settings or learns from something else, saying which, or cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    hint = "Give another folder, or the run's own settings."
    name = one_line(folder.name, 60)
    try:
        with explained(path):
            regular_size(path)
            loaded: Any = mx.load(str(path), return_metadata=True)
            arrays, metadata = loaded
            saved, then = json.loads(metadata["config"]), json.loads(metadata["facts"])
            position = PoolPosition(**json.loads(metadata["position"]))
            history = tuple(_evaluation(item) for item in json.loads(metadata["history"]))
            seconds = float(metadata["seconds"])
            state = unflatten_state({n.removeprefix("state."): a for n, a in arrays.items() if n.startswith("state.")})
            norm = Normalizer(arrays["norm.mean"], arrays["norm.scale"])
            if not isinstance(saved, dict) or not isinstance(then, dict):
                raise TypeError("settings")
    except LensError as error:
        raise LensError(f"The checkpoint in {name} cannot be read.", "Delete it to begin anew.") from error
    now = json.loads(config.to_json())
    other = [key for key in sorted(set(now) | set(saved)) if now.get(key) != saved.get(key)]
    other = [key for key in other if key not in _RESIZABLE]
    if other:
        raise LensError(f"The run in {name} has other settings: {one_line(', '.join(other), 200)}.", hint)
    current = json.loads(json.dumps(facts))
    other = [key for key in sorted(set(current) | set(then)) if current.get(key) != then.get(key)]
    if other:
        raise LensError(f"The run in {name} learns from something else: {one_line(', '.join(other), 200)}.", hint)
    return Checkpoint(state, norm, position, history, seconds)


def run_facts(facts: SourceFacts, layer: int, site: str) -> dict[str, Any]:
    """What decides the activations of a run, as plain data."""
    return {**asdict(facts), "layer": layer, "site": site}


def _evaluation(item: dict[str, Any]) -> Evaluation:
    return Evaluation(**{**item, **{name: tuple(item[name]) for name in ("density_edges", "density_counts")}})
