"""Monitors in the worker: what comes with tokens and at an arm's end is what one forward over the text reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lens_tui import LensModel
from lens_tui.lens.forward import as_float, read_sites
from lens_tui.records import Add, Arm, Sampling, SteeringVector
from lens_tui.records.gates import Watched, monitor_of
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.folders import D_MODEL
from tests.worker.drive import Driver, of, only


def test_readings_come_with_the_token_after_and_the_last_one_with_the_end(loaded: Driver, tiny: Path) -> None:
    rng = np.random.default_rng(3)
    vector = SteeringVector.of("push", rng.standard_normal(D_MODEL), 1)
    monitor = replace(monitor_of(SteeringVector.of("read", rng.standard_normal(D_MODEL), 2)), scale=2.0, bias=-0.5)
    assert monitor.vector is not None
    arms = (Arm("baseline"), Arm("push", (Add(id="a", layer=1, vector=vector, scale=2.0),)))
    asked = jobs.Compare("the cat", arms, Sampling(max_tokens=5), monitors=(Watched(monitor, 1.0),))
    events = loaded.done(asked)
    prompt = only(events, ev.RunStarted).prompt_ids
    lens = LensModel(str(tiny))
    for at, arm in enumerate(arms):
        tokens = [event.token for event in of(events, ev.TokenEvent) if event.token.arm == at]
        ids = [*prompt, *(token.token_id for token in tokens)]
        h = as_float(read_sites(lens, ids, [(2, "resid_post")], arm.interventions)[2, "resid_post"])
        expected = 2.0 * (h.astype(np.float64) @ monitor.vector.direction.astype(np.float64)) - 0.5
        (end,) = [event for event in of(events, ev.ArmDone) if event.arm == at]
        read = [*(token.readings[0] for token in tokens), *end.readings]
        assert len(read) == len(tokens) + 1
        np.testing.assert_allclose(read, expected[len(prompt) - 1 :], atol=2e-3, rtol=2e-3)


def test_a_monitor_of_an_sae_that_is_not_there_is_refused(loaded: Driver) -> None:
    monitor = replace(monitor_of(SteeringVector.of("x", np.ones(D_MODEL), 1)), vector=None, sae="gone", feature=3)
    failed = loaded.failed(jobs.Compare("the cat", (), Sampling(max_tokens=2), monitors=(Watched(monitor),)))
    assert "'gone'" in failed.message
