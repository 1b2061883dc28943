"""The jobs of the Lens screen are the library's logit lens, attribution and attention patterns."""

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


def test_parts_and_patterns_are_the_librarys(driver: Driver, tiny: Path, home: Path) -> None:
    from lens_tui import LensModel, attention_patterns, attribute_logits

    driver.done(jobs.LoadModel(str(tiny)))
    vector = SteeringVector.of("v", np.cos(np.arange(D_MODEL)), 0)
    arm = Arm("v", (Add(id="a", layer=0, vector=vector, scale=6.0),))
    model = LensModel(str(tiny))
    for chosen, steering in ((None, ()), (arm, arm.interventions)):
        parts = only(driver.done(jobs.ReadParts(TEXT, arm=chosen, target=5, position=1)), ev.PartsRead).parts
        direct = attribute_logits(model, TEXT, 5, positions=[1], interventions=steering, heads=True)
        assert parts.parts == direct.parts
        np.testing.assert_allclose(parts.values, direct.values, atol=1e-5)
        for mine, theirs in zip(parts.heads, direct.heads, strict=True):
            np.testing.assert_allclose(mine.values, theirs.values, atol=1e-5)
        pattern = only(driver.done(jobs.ReadPattern(TEXT, arm=chosen, layer=1)), ev.PatternRead).pattern
        (expected,) = attention_patterns(model, TEXT, 1, interventions=steering)
        np.testing.assert_allclose(pattern.weights, expected.weights, atol=1e-6)


def test_what_cannot_be_read_is_said(driver: Driver, tiny: Path, home: Path) -> None:
    assert "model" in driver.failed(jobs.ReadLens(TEXT)).message
    driver.done(jobs.LoadModel(str(tiny)))
    assert "up to 1024" in driver.failed(jobs.ReadLens(token_ids=(1,) * 1025)).message
    assert "not one token" in driver.failed(jobs.ReadLens(TEXT, target="several words here")).message
