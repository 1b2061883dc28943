"""Monitors, which read one number of each token, and gates, which let an intervention act by what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .steering_vector import SteeringVector

Side = Literal["above", "below"]


@dataclass(frozen=True, slots=True)
class Monitor:
    """One number a token, read at a layer and site: of a probe, or of an SAE's feature.

    With a ``vector`` the reading is ``scale * (h . direction) + bias``: a probe's score, or a plain projection. Without
    one it is the activation of ``feature`` in the SAE that the model has been given as ``sae``
    (``LensModel.attach_sae``), as that SAE's own encoder has it. ``name`` is what it is called.
    """

    name: str
    layer: int
    site: str = "resid_post"
    vector: SteeringVector | None = None
    scale: float = 1.0
    bias: float = 0.0
    sae: str = ""
    feature: int = -1


@dataclass(frozen=True, slots=True)
class Gate:
    """Lets an intervention act on those tokens alone at which the monitor reads more than ``threshold``, or less.

    This is conditional steering (CAST, Lee et al. 2024, 2409.05907), decided anew at every token and in every row
    rather than once for the prompt. A monitor at the very place that is steered reads what the intervention is given;
    one at an earlier place reads what was left there, after all that acts on it.
    """

    monitor: Monitor
    threshold: float = 0.0
    side: Side = "above"


@dataclass(frozen=True, slots=True)
class Watched:
    """A monitor that reads every token of a run, and the number from which on its reading counts as there."""

    monitor: Monitor
    threshold: float = 0.0


def monitor_of(vector: SteeringVector) -> Monitor:
    """What a saved vector reads at its own place: of a probe its score, else the projection on the unit direction."""
    if vector.origin.kind != "probe":
        return Monitor(vector.name, vector.layer, vector.site, vector)
    bias = vector.origin.facts.get("bias", 0.0)
    return Monitor(vector.name, vector.layer, vector.site, vector, vector.norm, float(bias))


def gate_sign(gate: Gate) -> str:
    """A gate in a few cells: ``if verse>0.5``."""
    return f"if {gate.monitor.name}{'>' if gate.side == 'above' else '<'}{gate.threshold:g}"


def gate_text(gate: Gate) -> str:
    """A gate in words: ``where verse is above 0.5 at layer 2``."""
    return f"where {gate.monitor.name} is {gate.side} {gate.threshold:g} at layer {gate.monitor.layer}"
