"""The jobs of the Causes screen are the library's patching, told as it fills, and give way and stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui.lens.causes import cells
from lens_tui.records import AblateHeads
from lens_tui.records.cause_plan import PatchFound, PatchPlan
from lens_tui.records.cause_store import CauseStore
from lens_tui.records.interventions import HEADS_OFF, BenchRow
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker
from tests.worker.drive import Driver, of, only

PLAN = PatchPlan("Once upon a time", "Once upon a page", "id:5", "id:9")


def test_the_grid_is_the_librarys_and_fills_layer_by_layer(
    driver: Driver, tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_tui import LensModel, PromptPair, agreement, patch

    monkeypatch.setattr(cells, "MOST_ROWS", 5)
    driver.done(jobs.LoadModel(str(tiny)))
    told = of(driver.done(jobs.Patch(PLAN)), ev.Patched)
    lens = LensModel(str(tiny))
    pair = PromptPair(PLAN.clean, PLAN.corrupted, 5, 9)
    grid, quick = patch(lens, pair), patch(lens, pair, method="attribution")
    *partial, last = [event.found for event in told]
    assert [event.whole for event in told] == [False] * len(partial) + [True]
    assert last.grid is not None
    assert last.estimate is not None
    np.testing.assert_allclose(last.grid.effect, grid.effect, atol=1e-4)
    np.testing.assert_allclose(last.estimate.effect, quick.effect, atol=1e-4)
    expected = agreement(quick.effect, grid.effect)
    assert last.check is not None
    assert last.check.pearson == pytest.approx(expected.pearson, abs=1e-3)
    first = partial[0].grid
    assert first is not None
    known = np.isfinite(first.effect)
    assert known.sum() == 5
    np.testing.assert_allclose(first.effect[known], grid.effect[known], atol=1e-4)
    counts = [int(np.isfinite(found.grid.effect).sum()) for found in partial if found.grid is not None]
    assert counts == sorted(counts)


def test_a_map_is_kept_and_a_disk_that_refuses_does_not_stop_it(tiny: Path, home: Path, tmp_path: Path) -> None:
    database = tmp_path / "h.db"
    driver = Driver(Worker(history=database))
    driver.done(jobs.LoadModel(str(tiny)))
    *partial, last = of(driver.done(jobs.Patch(PLAN)), ev.Patched)
    assert [event.found.kept for event in partial] == [0] * len(partial)
    kept = CauseStore(database).get(last.found.kept)
    assert kept is not None
    assert isinstance(kept.found, PatchFound)
    assert kept.found.grid is not None
    assert last.found.grid is not None
    np.testing.assert_array_equal(kept.found.grid.effect, last.found.grid.effect)
    assert driver.worker.close(60)
    (tmp_path / "folder").mkdir()
    refused = Driver(Worker(history=tmp_path / "folder"))
    refused.done(jobs.LoadModel(str(tiny)))
    end = of(refused.done(jobs.Patch(PLAN)), ev.Patched)[-1]
    assert (end.found.kept, end.found.grid is not None) == (0, True)
    assert end.unkept
    assert refused.worker.close(60)


def test_a_metric_without_a_gradient_has_its_grid_and_says_why_no_estimates(
    driver: Driver, tiny: Path, home: Path
) -> None:
    driver.done(jobs.LoadModel(str(tiny)))
    found = of(driver.done(jobs.Patch(replace(PLAN, metric="rank"))), ev.Patched)[-1].found
    assert found.grid is not None
    assert (found.estimate, found.check) == (None, None)
    assert "gradient" in found.why


def test_a_stop_ends_between_two_batches(
    driver: Driver, tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "MOST_ROWS", 1)
    driver.done(jobs.LoadModel(str(tiny)))
    number = driver.worker.submit(jobs.Patch(PLAN))
    seen = driver.follow(number, lambda e: driver.worker.stop(number) if isinstance(e, ev.Patched) else None)
    assert isinstance(seen[-1], ev.JobDone)
    assert seen[-1].stopped
    assert not any(event.whole for event in of(seen, ev.Patched))


def test_directions_are_clean_less_corrupted_and_a_head_writes_through_its_own_weights(
    driver: Driver, tiny: Path, home: Path
) -> None:
    from lens_tui import LensModel

    driver.done(jobs.LoadModel(str(tiny)))
    lens = LensModel(str(tiny))
    clean, corrupted = (lens.tokens.encode(text) for text in (PLAN.clean, PLAN.corrupted))
    different = next(at for at, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b)
    vector = only(driver.done(jobs.VectorFromPatch(PLAN, 1, different, "v")), ev.VectorMade).vector

    def at(ids: Sequence[int], site: str) -> Any:
        return np.array(lens.residuals(list(ids), 1, site=site).astype(mx.float32))

    moved = at(clean, "resid_pre")[different] - at(corrupted, "resid_pre")[different]
    assert vector.norm == pytest.approx(np.linalg.norm(moved), rel=1e-3)
    np.testing.assert_allclose(vector.direction, moved / np.linalg.norm(moved), atol=1e-3)
    plan = replace(PLAN, by="head")
    head = only(driver.done(jobs.VectorFromPatch(plan, 1, 0, "h")), ev.VectorMade).vector
    z = (at(clean, "attn_z") - at(corrupted, "attn_z"))[-1]
    attention = lens.model.model.layers[1].self_attn
    size = z.shape[0] // attention.n_heads
    weight = np.array(attention.o_proj.weight.astype(mx.float32))
    written = weight[:, :size] @ z[:size]
    np.testing.assert_allclose(head.direction, written / np.linalg.norm(written), atol=1e-3)
    assert "same activation" in driver.failed(jobs.VectorFromPatch(PLAN, 1, 0, "v")).message
    row = BenchRow("h", head, head.layer, 1.0, mode=HEADS_OFF.id)
    assert row.intervention() == AblateHeads(id="h", layer=1, heads=(0,))
