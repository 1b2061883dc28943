"""A run whose scale was dialled while it was written is made again by the worker, changed at the same token."""

from __future__ import annotations

from pathlib import Path

from lens_tui import LensModel
from lens_tui.lens.vectors import random_unit
from lens_tui.records import Add, Arm, Sampling
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.tasks.kept_runs import made_run
from tests.worker.drive import Driver


def test_changes_fall_to_the_token_that_is_asked(loaded: Driver, tiny: Path) -> None:
    lens = LensModel(str(tiny))
    vector = random_unit(lens, "v", 1, seed=2)
    before, after = (Add(id="a", layer=1, vector=vector, scale=scale) for scale in (1.0, 60.0))
    arms, settings = (Arm("baseline"), Arm("v", (before,))), Sampling(max_tokens=8)
    kept = made_run(lens, arms, settings, prompt="the cat", dials={3: (1, (after,))})
    changes = tuple((arm, at, items) for arm, one in enumerate(kept.arms) for at, items in one.changes)
    assert changes == ((1, 5, (after,)),)
    events = loaded.done(jobs.Compare("the cat", arms, settings, changes=changes))
    tokens = [event.token for event in events if isinstance(event, ev.TokenEvent)]
    for arm in (0, 1):
        assert [t.token_id for t in tokens if t.arm == arm] == [t.token_id for t in kept.arms[arm].tokens]
        assert [t.scales for t in tokens if t.arm == arm] == [t.scales for t in kept.arms[arm].tokens]
    dialled = [(event.arm, event.index) for event in events if isinstance(event, ev.Dialed)]
    assert dialled == [(1, 5)]
    plain = loaded.done(jobs.Compare("the cat", arms, settings))
    steady = [event.token.token_id for event in plain if isinstance(event, ev.TokenEvent) and event.token.arm == 1]
    assert steady != [token.token_id for token in kept.arms[1].tokens]


def test_what_a_run_was_made_with_is_said_and_kept(loaded: Driver) -> None:
    events = loaded.done(jobs.Compare("the cat", (Arm("baseline"),), Sampling(max_tokens=2)))
    (started,) = (event for event in events if isinstance(event, ev.RunStarted))
    made = started.made_with
    assert "" not in (made.version, made.mlx, made.machine, made.device)
    assert (made.batch_rows, made.dtype) == (1, "float32")
