"""Probes as the stand-in gives them: better in the middle of the model, the same every time."""

from __future__ import annotations

import zlib

import numpy as np

from lens_tui.records import LensError, Origin, SteeringVector
from lens_tui.records.probe import HeldOut, Probe, ProbeReport, probe_facts
from lens_tui.worker import events as ev
from lens_tui.worker import jobs


def fake_probes(number: int, job: jobs.TrainProbes, width: int, n_layers: int) -> ev.ProbesTrained:
    """A probe for each layer that is asked for."""
    if not job.path and min(len(job.positive), len(job.negative)) < 2:
        raise LensError("There are too few examples to hold some out of each label.", "Give at least two.")
    metric = "r2" if job.kind == "ridge" else "auc"
    facts = {"probe": job.kind, "over": job.over, "n_texts": 8, "sha256": "0" * 64, "folds": 5, "seed": 0, "l2": 1.0,
             "raw": job.raw}  # fmt: skip
    probes = []
    for layer in range(n_layers) if job.layers is None else job.layers:
        value = round(0.95 - 0.05 * abs(layer - 5), 3)
        held = HeldOut(metric, value, (value,) * 4, 8, 4, 100, 0.5, 0.75, 0.02)
        weights = np.random.default_rng(zlib.crc32(f"{job.name} {layer}".encode())).standard_normal(width)
        origin = Origin("probe", probe_facts(facts, -0.5, held))
        vector = SteeringVector.of(job.name, weights, layer, model="demo", origin=origin)
        probes.append(Probe(vector, -0.5, held))
    return ev.ProbesTrained(number, ProbeReport(job.name, "demo", tuple(probes), facts))


def fake_readings(monitors: int, arm: int, step: int) -> tuple[float, ...]:
    """What each monitor reads at a token of an arm: up and down about 0."""
    return tuple(float((7 * step + 3 * arm + at) % 9 - 4) / 2 for at in range(monitors))
