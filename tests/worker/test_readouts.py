"""The job of the Lens screen is the library's logit lens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lens_tui.records import Add, Arm, SteeringVector
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.folders import D_MODEL, N_LAYERS
from tests.worker.drive import Driver, only

TEXT = "Once upon a time"


def test_the_lens_is_read_plain_and_under_an_arm(driver: Driver, tiny: Path, home: Path) -> None:
    from lens_tui import LensModel, logit_lens

    driver.done(jobs.LoadModel(str(tiny)))
    vector = SteeringVector.of("v", np.cos(np.arange(D_MODEL)), 0)
    arm = Arm("v", (Add(id="a", layer=0, vector=vector, scale=6.0),))
    model = LensModel(str(tiny))
    for job, steering in ((jobs.ReadLens(TEXT), ()), (jobs.ReadLens(TEXT, arm=arm), arm.interventions)):
        found = only(driver.done(job), ev.LensRead).lens
        direct = logit_lens(model, TEXT, interventions=steering, top_k=10)
        np.testing.assert_array_equal(found.top_ids, direct.top_ids)
        np.testing.assert_allclose(found.target_logprobs, direct.target_logprobs, atol=1e-5)
        assert found.layers == tuple(range(N_LAYERS))
    by_id = only(driver.done(jobs.ReadLens(token_ids=(1, 2, 3), target=5)), ev.LensRead).lens
    assert by_id.token_ids == (1, 2, 3)
    assert set(by_id.target_ids.tolist()) == {5}


def test_what_cannot_be_read_is_said(driver: Driver, tiny: Path, home: Path) -> None:
    assert "model" in driver.failed(jobs.ReadLens(TEXT)).message
    driver.done(jobs.LoadModel(str(tiny)))
    assert "up to 1024" in driver.failed(jobs.ReadLens(token_ids=(1,) * 1025)).message
    assert "not one token" in driver.failed(jobs.ReadLens(TEXT, target="several words here")).message
