"""Runs are kept while they happen, and a disk that refuses does not stop them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from lens_tui.records import Add, Arm, Sampling, SteeringVector
from lens_tui.records.run_store import RunStore
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker
from tests.folders import D_MODEL
from tests.worker.drive import Driver, of, only, tokens_of

ARM = Arm("v", (Add(id="a", layer=1, vector=SteeringVector.of("v", np.arange(1, D_MODEL + 1), 1), scale=2.0),))


def test_a_run_is_in_the_history_as_it_was_shown(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    driver = Driver(Worker(history=path))
    driver.done(jobs.LoadModel(str(tiny)))
    events = driver.done(jobs.Compare("Once upon a time", (ARM,), Sampling(max_tokens=6), top=2))
    with RunStore(path).store as store:
        kept = RunStore(store).get(only(events, ev.RunStarted).run)
    assert kept is not None
    assert kept.state == "done"
    assert kept.prompt_ids == only(events, ev.RunStarted).prompt_ids
    assert [arm.arm.name for arm in kept.arms] == list(only(events, ev.RunStarted).arms)
    shown = [
        (t.arm, t.index, t.token_id, t.logprob, t.kl, t.reverse_kl, t.plain_logprob, t.scales)
        for t in tokens_of(events)
    ]
    stored = [
        (t.arm, t.index, t.token_id, t.logprob, t.kl, t.reverse_kl, t.plain_logprob, t.scales)
        for arm in kept.arms
        for t in arm.tokens
    ]
    assert sorted(stored) == sorted(shown)
    assert [(arm.reason, arm.dose) for arm in kept.arms] == [(e.reason, e.dose) for e in of(events, ev.ArmDone)]
    assert driver.worker.close(60)


def test_a_stopped_run_is_kept_as_stopped(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    driver = Driver(Worker(history=path))
    driver.done(jobs.LoadModel(str(tiny)))
    job = driver.worker.submit(jobs.Compare("Once upon a time", (ARM,), Sampling(max_tokens=5000)))

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.TokenEvent) and event.token.index == 2:
            driver.worker.stop(job)

    events = driver.follow(job, look)
    with RunStore(path).store as store:
        kept = RunStore(store).get(only(events, ev.RunStarted).run)
    assert kept is not None
    assert kept.state == "stopped"
    assert {arm.reason for arm in kept.arms} == {"stopped"}
    assert [len(arm.tokens) for arm in kept.arms] == [end.n_tokens for end in of(events, ev.ArmDone)]
    assert driver.worker.close(60)


def test_without_a_history_nothing_is_written(tiny: Path, driver: Driver) -> None:
    from lens_tui.records import paths

    driver.done(jobs.LoadModel(str(tiny)))
    assert only(driver.done(jobs.Compare("x", (), Sampling(max_tokens=2))), ev.RunStarted).run == 0
    assert not paths.database_file().exists()


def test_a_disk_that_refuses_is_said_once_and_the_run_goes_on(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    driver = Driver(Worker(history=tmp_path / "folder"))
    driver.done(jobs.LoadModel(str(tiny)))
    events = driver.done(jobs.Compare("Once upon a time", (ARM,), Sampling(max_tokens=4)))
    assert "not in the history" in only(events, ev.Notice).message
    assert len(of(events, ev.TokenEvent)) == 8
    assert driver.worker.close(60)


@pytest.mark.parametrize("released", [True, False])
def test_no_token_waits_for_another_process(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    """The first token comes while the history is locked; with the lock gone by the end, the whole run is kept."""
    path = tmp_path / "runs.sqlite3"
    RunStore(path).store.close()
    # Whoever waited with patience before the end would wait for good.
    monkeypatch.setattr("lens_tui.records.store.PATIENCE", 100_000.0)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    driver = Driver(Worker(history=path))
    driver.done(jobs.LoadModel(str(tiny)))
    job = driver.worker.submit(jobs.Compare("Once upon a time", (ARM,), Sampling(max_tokens=6)))

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.TokenEvent) and (event.token.arm, event.token.index) == (0, 1):
            if released:
                other.execute("ROLLBACK")
            else:
                monkeypatch.setattr("lens_tui.records.store.PATIENCE", 0.05)

    events = driver.follow(job, look)
    assert len(of(events, ev.TokenEvent)) == 12
    notices = of(events, ev.Notice)
    with RunStore(path).store as store:
        kept = [RunStore(store).get(line.id) for line in RunStore(store).list()]
    assert driver.worker.close(60)
    other.close()
    if released:
        assert notices == []
        assert [only(events, ev.RunKept).run] == [run and run.id for run in kept]
        assert [run and (run.state, [len(arm.tokens) for arm in run.arms]) for run in kept] == [("done", [6, 6])]
    else:
        assert "in use by another process" in only(events, ev.Notice).message
        assert kept == []


def test_a_stopped_run_that_is_not_kept_is_said_too(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    driver = Driver(Worker(history=tmp_path / "folder"))
    driver.done(jobs.LoadModel(str(tiny)))
    job = driver.worker.submit(jobs.Compare("Once upon a time", (), Sampling(max_tokens=5000)))

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.TokenEvent):
            driver.worker.stop(job)

    events = driver.follow(job, look)
    assert only(events, ev.JobDone).stopped
    assert "not in the history" in only(events, ev.Notice).message
    assert driver.worker.close(60)
