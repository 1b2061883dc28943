"""The session, its undo, and which job belongs to whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_tui.records import SteeringVector, TokenWeight
from lens_tui.records.interventions import BenchRow
from lens_tui.tui.bench_text import arm_words
from lens_tui.tui.host import BUSY, FAILED, IDLE, TITLES, Activity, JobBook, advance
from lens_tui.tui.session import MAX_ARMS, Session, SessionStore, absorb
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.fakes import DEMO_MODEL, DEMO_SAE, unit_vector


def store_with(*names: str) -> SessionStore:
    store = SessionStore()
    for name in names:
        store.add_steer(unit_vector(name), scale=10.0)
    return store


def test_each_new_row_takes_the_next_free_arm() -> None:
    store = store_with("a", "b", "c", "d", "e")
    assert [row.arm for row in store.session.steers] == [1, 2, 3, 4, MAX_ARMS]
    assert len({row.id for row in store.session.steers}) == 5
    assert [arm.name for arm in store.session.arms()] == ["baseline", "a", "b", "c", "d + e"]


def test_where_no_arm_is_free_it_is_said_what_a_new_row_acts_with() -> None:
    store = store_with("a", "b", "c", "d")
    rows = store.session.steers
    assert [arm_words(row, rows) for row in rows] == ["arm 1", "arm 2", "arm 3", "arm 4"]
    new = store.add_steer(unit_vector("e"), scale=1.0)
    assert arm_words(new, store.session.steers) == "arm 4 (none is free: with d)"


def test_arms_leave_out_what_is_off_and_carry_layer_and_scale() -> None:
    store = store_with("a", "b")
    first, second = store.session.steers
    store.edit_steer(first.id, enabled=False)
    store.edit_steer(second.id, layer=6, scale=-3.5)
    arms = store.session.arms()
    assert [arm.name for arm in arms] == ["baseline", "b"]
    (item,) = arms[1].interventions
    assert (item.layer, item.scale, item.id) == (6, -3.5, second.id)  # type: ignore[attr-defined]


def test_every_edit_can_be_undone_and_redone() -> None:
    store = store_with("a", "b")
    states = [store.session.steers]
    store.edit_steer("s1", scale=1.0)
    states.append(store.session.steers)
    store.remove_steer("s2")
    states.append(store.session.steers)
    assert store.undo()
    assert store.session.steers == states[1]
    assert store.undo()
    assert store.session.steers == states[0]
    assert store.redo()
    assert store.redo()
    assert store.session.steers == states[2]
    assert not store.redo()


def test_a_new_edit_ends_redo_and_a_change_of_nothing_is_none() -> None:
    store = store_with("a")
    store.edit_steer("s1", scale=1.0)
    store.undo()
    store.edit_steer("s1", scale=10.0)  # as it is: no edit
    assert store.redo()
    store.undo()
    store.edit_steer("s1", scale=2.0)
    assert not store.redo()


def test_an_edit_between_rows_that_come_with_the_model_can_be_undone_and_takes_none_of_them() -> None:
    store = SessionStore()
    first = store.add_steer(unit_vector("a"), scale=10.0)
    store.comes_with_the_model(first)
    store.edit_steer(first.id, scale=20.0)
    second = store.add_steer(unit_vector("b"), scale=5.0)
    store.comes_with_the_model(second)
    store.edit_steer(first.id, scale=30.0)
    seen = []
    while store.undo():
        seen.append([(row.vector.name, row.scale) for row in store.session.steers])
    assert seen == [[("a", 20.0), ("b", 5.0)], [("a", 10.0), ("b", 5.0)]]
    assert store.newest == 0
    assert store.redo()
    assert [row.scale for row in store.session.steers] == [20.0, 5.0]


def test_a_row_like_another_acts_where_and_as_that_one_does() -> None:
    store = store_with("a")
    row = store.session.steers[0]
    store.edit_steer(row.id, layer=6, mode="project_out", enabled=False)
    like = store.add_like(store.session.steers[0], 12.0, 2)
    assert (like.layer, like.mode, like.scale, like.arm, like.enabled) == (6, "project_out", 12.0, 2, True)
    assert like.id != row.id


def test_what_is_said_of_a_vector_is_in_every_row_with_it_and_no_edit() -> None:
    store = store_with("a", "b")
    first, other = store.session.steers
    store.add_like(first, 12.0, 3)
    store.remove_steer(first.id)
    words = (TokenWeight(1, " dog", 2.0),)
    store.describe(first.vector, ev.VectorMade(1, first.vector, 40.0, words))
    assert [row.residual_norm for row in store.session.steers] == [None, 40.0]
    assert store.session.steers[0] == other
    assert store.undo()
    assert [(row.residual_norm, row.promoted) for row in store.session.steers] == [
        (40.0, words),
        (None, ()),
        (40.0, words),
    ]
    assert store.redo()
    assert [row.residual_norm for row in store.session.steers] == [None, 40.0]
    assert store.described((first,)) == (replace(first, residual_norm=40.0, promoted=words),)


def test_prompt_changes_are_not_steering_edits() -> None:
    store = store_with("a")
    store.forget_edits()
    store.update(prompt="hello")
    assert not store.undo()
    assert store.session.prompt == "hello"


@pytest.mark.parametrize(("unit", "step"), [(22.0, 2.0), (42.5, 5.0), (7.0, 0.5), (9.0, 1.0), (1300.0, 100.0)])
def test_a_step_is_a_round_tenth_of_the_unit(unit: float, step: float) -> None:
    row = BenchRow("s", replace(unit_vector("v"), max_activation=unit), 4, 0.0)
    assert row.step == pytest.approx(step)


@given(st.floats(-200, 200), st.floats(0.01, 500), st.integers(-7, 7))
def test_steps_add_up_and_as_many_the_other_way_lead_back(scale: float, unit: float, steps: int) -> None:
    row = BenchRow("s", replace(unit_vector("v"), max_activation=unit), 4, scale)
    there = row.moved(steps)
    assert there.scale == pytest.approx(scale + steps * row.step, abs=1e-5)
    assert there.moved(-steps).scale == pytest.approx(scale, abs=1e-5)


def test_the_unit_is_max_then_norm_then_ten() -> None:
    vector = unit_vector("v")
    assert BenchRow("s", vector, 4, 1.0).unit == 10.0
    assert BenchRow("s", vector, 4, 1.0, residual_norm=40.0).unit == 40.0
    assert BenchRow("s", replace(vector, max_activation=20.0), 4, 1.0, residual_norm=40.0).unit == 20.0


def test_absorb_keeps_only_vectors_that_fit_the_model() -> None:
    store = store_with("a")
    store.add_steer(SteeringVector.of("other", [1.0, 2.0, 3.0], 1), scale=1.0)
    absorb(store, ev.ModelLoaded(1, DEMO_MODEL, (DEMO_SAE,)))
    assert [row.vector.name for row in store.session.steers] == ["a"]
    before = store.session
    absorb(store, ev.SAELoaded(2, DEMO_SAE))
    assert (before.sae, store.session.sae, store.session.saes) == (None, DEMO_SAE.id, (DEMO_SAE,))
    absorb(store, ev.ModelUnloaded(3))
    after = store.session
    assert after.model is None
    assert after.sae is None
    assert after.saes == ()


def test_listeners_hear_of_changes_until_they_leave() -> None:
    store, heard = SessionStore(), []
    leave = store.subscribe(lambda old, new: heard.append((old.prompt, new.prompt)))
    store.update(prompt="a")
    leave()
    store.update(prompt="b")
    assert heard == [("", "a")]


def test_a_replaced_job_is_no_longer_heard() -> None:
    book, heard = JobBook(), []
    assert book.open(1, "run", lambda event: heard.append(event)) is None
    assert book.open(2, "other", lambda event: None) is None
    assert book.open(3, "run", lambda event: None) == 1
    assert book.take(ev.Progress(1, "late")) is None
    assert book.in_slot("run") == 3
    owned = book.take(ev.JobDone(3))
    assert owned is not None
    assert owned.id == 3
    assert book.in_slot("run") is None
    assert book.busy
    assert book.drop("other") == 2
    assert not book.busy


def test_activity_tells_amount_speed_and_time_left_of_the_stage() -> None:
    steps = [
        (ev.JobStarted(1, "loading demo"), 0.0),
        (ev.Progress(1, "config"), 10.0),
        (ev.Progress(1, "weights", 100_000_000, 731_000_000, "bytes"), 20.0),
        (ev.Progress(1, "weights", 480_000_000, 731_000_000, "bytes"), 30.0),
    ]
    activity = Activity()
    for event, now in steps:
        activity = advance(activity, event, now)
    assert activity.state == BUSY
    assert activity.facts() == "480 MB of 731 MB · 38.0 MB/s · 7 s left"
    assert activity.fraction == pytest.approx(480 / 731)


def test_activity_of_a_run_and_its_end() -> None:
    activity = advance(Activity(), ev.JobStarted(4, "comparing"), 0.0)
    activity = advance(activity, ev.Speed(4, 120.0, 1, 80), 1.0)
    activity = advance(activity, ev.Speed(4, 120.0, 41, 80), 2.0)
    assert activity.facts() == "41/80 tok · 120 tok/s · 1 s left"
    assert advance(activity, ev.JobDone(4), 3.0).note == "41 tokens each · 120 tok/s"
    assert advance(activity, ev.JobDone(4, stopped=True), 3.0).note == "comparing: stopped"


def test_the_stage_of_a_prompt_that_was_read_does_not_stay_while_tokens_come() -> None:
    activity = advance(Activity(), ev.JobStarted(4, "comparing"), 0.0)
    activity = advance(activity, ev.Progress(4, "prompt", 0, 8, "tokens"), 0.0)
    activity = advance(activity, ev.Progress(4, "prompt", 8, 8, "tokens"), 30.0)
    activity = advance(activity, ev.Speed(4, 120.0, 1, 81), 31.0)
    assert (activity.title, activity.stage) == ("comparing", "")
    activity = advance(activity, ev.Speed(4, 120.0, 41, 81), 32.0)
    assert activity.facts() == "41/81 tok · 120 tok/s · 1 s left"


def test_a_failure_stays_to_be_read() -> None:
    activity = advance(Activity(BUSY, 1, "loading"), ev.JobFailed(1, "No such model.", "Check the id."), 1.0)
    assert (activity.state, activity.note) == (FAILED, "No such model. Check the id.")


def test_the_end_of_another_job_does_not_end_this_one() -> None:
    activity = advance(Activity(), ev.JobStarted(2, "comparing"), 0.0)
    assert advance(activity, ev.JobDone(1), 1.0) == activity
    assert advance(activity, ev.JobDone(2), 1.0).state == IDLE


def test_session_finds_rows() -> None:
    store = store_with("a")
    assert store.session.steer("s1") is not None
    assert store.session.steer("gone") is None
    assert Session().arms()[0].is_baseline


def test_every_job_is_called_by_words() -> None:
    records = {name for name, item in vars(jobs).items() if isinstance(item, type) and issubclass(item, jobs.Job)}
    assert records - {"Job"} == set(TITLES)
