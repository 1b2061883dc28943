"""Probes: a direction with a bias that was fitted to labels, how well it does on what it has not seen, and its file.

A saved probe is a steering vector (a unit direction, with the length of its weights as ``norm``) whose origin says what
it was fitted to: whatever reads vectors reads probes, and a monitor or gate made of one reads its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import paths
from .codec import from_json, to_json
from .errors import LensError
from .gates import Monitor, monitor_of
from .sanitise import one_line
from .steering_vector import FloatArray, SteeringVector
from .vector_formats import load_one, save_vectors

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How well a probe does on examples that it was not fitted to.

    ``metric`` is ``auc`` (the chance that an example of label 1 scores above one of label 0) or ``r2``; ``value`` is
    the mean over ``folds``. ``null_mean`` and ``null_high`` are the mean and the 95th percentile of the same with
    labels dealt at random ``permutations`` times, and ``p`` the share of these that reach ``value``, both counted
    with it: ``(1 + reached) / (1 + permutations)``. They are ``None`` without permutations. ``n`` counts examples,
    ``n_groups`` what was held out together.
    """

    metric: str
    value: float
    folds: tuple[float, ...]
    n: int
    n_groups: int
    permutations: int = 0
    null_mean: float | None = None
    null_high: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A fitted probe: its score of an activation ``h`` is ``vector.norm * (h . vector.direction) + bias``.

    Of a logistic probe that is the log-odds of label 1, of a mean difference it is above 0 on the side of label 1, of
    a linear one it is the label that is expected. ``held_out`` says how well it does on what it has not seen.
    """

    vector: SteeringVector
    bias: float
    held_out: HeldOut

    @property
    def layer(self) -> int:
        """The layer it reads."""
        return self.vector.layer

    @property
    def monitor(self) -> Monitor:
        """What reads its score token by token, in a run or for a gate."""
        return monitor_of(self.vector)

    def scores(self, activations: ArrayLike) -> FloatArray:
        """The score of each of some activations ``(..., width)``, shape ``(...)``, float32."""
        direction = self.vector.direction.astype(np.float64)
        found = np.asarray(activations, dtype=np.float64) @ direction * self.vector.norm + self.bias
        return np.asarray(found, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ProbeReport:
    """A probe for each layer, in order of layers, and what they were fitted to.

    ``facts`` are those that every probe's file has: kind, what of a text was read, folds, seed, penalty and the hash of
    texts and labels.
    """

    name: str
    model: str
    probes: tuple[Probe, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Probe:
        """The one that does best on held-out examples; of equals the first."""
        return max(self.probes, key=lambda probe: probe.held_out.value)

    def at(self, layer: int) -> Probe:
        """The probe of a layer, counted from 0. Raises :class:`LensError` if there is none."""
        for probe in self.probes:
            if probe.layer == layer:
                return probe
        raise LensError(f"There is no probe at layer {layer}.", "Ask for it among the layers.")


@dataclass(frozen=True, slots=True)
class SparseProbe:
    """A logistic probe on ``k`` columns of a matrix of features: which, with what weights, and how well it does.

    ``held_out`` chooses the columns anew in each fold. ``features`` are those chosen of all examples.
    """

    features: tuple[int, ...]
    weights: tuple[float, ...]
    bias: float
    held_out: HeldOut


def save_probe(probe: Probe, path: Path | str | None = None) -> Path:
    """Write a probe as a vector of this library (``.safetensors``); by default in the vectors folder, under its name.

    Raises :class:`LensError` for a format that cannot hold a bias.
    """
    if path is not None and Path(path).suffix != ".safetensors":
        raise LensError(f"{one_line(str(path), 80)} cannot hold a probe's bias.", "Name it .safetensors.")
    return save_vectors(probe.vector, path)


def load_probe(path: Path | str) -> Probe:
    """A probe as it was saved. Raises :class:`LensError` for a file that is none."""
    return probe_of(load_one(path))


def kept_probes() -> list[tuple[Path, Probe]]:
    """The probes of the vectors folder, by the names of their files; what is no probe is left out."""
    found = []
    for path in sorted(paths.vectors_folder().glob("*.safetensors")):
        try:
            found.append((path, load_probe(path)))
        except LensError:  # a vector that is no probe
            continue
    return found


def probe_of(vector: SteeringVector) -> Probe:
    """The probe that a vector is of. Raises :class:`LensError` for one that is of none, or whose file is damaged."""
    facts = vector.origin.facts
    if vector.origin.kind != "probe" or not isinstance(facts.get("bias"), (int, float)):
        raise LensError(f"{one_line(vector.name, 60)!r} is a vector, and no probe.", "Make one with `probe train`.")
    return Probe(vector, float(facts["bias"]), from_json(HeldOut, facts.get("held_out")))


def probe_facts(facts: Mapping[str, Any], bias: float, held_out: HeldOut) -> dict[str, Any]:
    """The facts of a probe's origin."""
    return {**facts, "bias": bias, "held_out": to_json(held_out)}
