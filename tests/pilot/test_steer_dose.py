"""The dose pane: measured in pieces, moved along, a scale taken and undone, stopped; and the search of a scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from lens_tui.records import Add, Positions
from lens_tui.records.gates import Gate, monitor_of
from lens_tui.records.interventions import BenchRow
from lens_tui.records.measures import DEFINITIONS, MULTIPLES
from lens_tui.tui.app import LensApp
from lens_tui.tui.bench_text import DoseView, short
from lens_tui.tui.screens.dose_pane import DoseChart
from lens_tui.worker import jobs
from tests.apps import lens_app, screen_text, settle
from tests.fakes import DEMO_SAE, FakeWorker


async def opened(pilot: Pilot[Any]) -> tuple[LensApp, FakeWorker]:
    await settle(pilot)
    app = pilot.app
    assert isinstance(app, LensApp)
    assert isinstance(app.worker, FakeWorker)
    return app, app.worker


def rows(app: LensApp) -> tuple[BenchRow, ...]:
    return app.store.session.steers


def chart(app: LensApp) -> DoseChart:
    return app.screen.query_one(DoseChart)


def dose_app(**worker: Any) -> LensApp:
    return lens_app(FakeWorker(**worker), screen="steer", model="demo")


async def press(pilot: Pilot[Any], *keys: str) -> None:
    await pilot.press(*keys)
    await settle(pilot)


async def test_the_row_is_measured_over_multiples_of_its_reference() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await press(pilot, "v")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.MeasureDose)
        row = rows(app)[0]
        assert job.scales == pytest.approx([multiple * (row.vector.max_activation or 0) for multiple in MULTIPLES])
        (record,) = job.interventions
        assert isinstance(record, Add)
        assert (record.scale, record.vector, record.layer) == (1.0, row.vector, row.layer)
        assert (job.prompt, job.sae, job.feature) == (app.store.session.prompt, DEMO_SAE.id, 2666)
        text = screen_text(app)
        assert "Dose of cookery" in text
        assert "11 scales" in text
        for name in ("Δ loss", "random", "KL", "perplexity", "distinct-2", "read-back"):
            assert name in text
        assert "Direction" in text  # beside the facts
        # The cursor stands on the scale nearest to the row's.
        nearest = min(range(11), key=lambda at: abs(job.scales[at] - row.scale))
        assert chart(app).column == nearest


async def test_every_number_of_a_scale_is_there_with_what_it_is() -> None:
    app = dose_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await press(pilot, "v", "G")
        assert not app.screen.query_one("#bench").display  # complete on its own
        seen = []
        for series in chart(app).series:
            text = screen_text(app)
            assert DEFINITIONS[series.name][1][:30] in text.replace("▎", "")
            seen.append(text)
            await press(pilot, "j")
        assert "Δ loss +2.420 nat [+1.936, +3.025], 16 texts; random +0.484, flipped +2.178" in seen[0]
        assert "random directions: Δ loss +0.484 nat; KL 0.91 nat" in seen[1]
        assert "KL 6.10 nat" in seen[2]
        assert "perplexity 46.8 to the plain model, 8.0 to the steered; the plain text 6.8" in seen[4]
        assert "distinct-2 0.37, plain 0.97" in seen[5]
        assert "read-back 18.00" in seen[6]
        assert "turns back from 29 to 59" in seen[6]
        assert "knee at 29" in seen[0]
        assert "×4.00 max" in seen[0]
        assert "moved 1.800 ‖h‖" in seen[0]
        assert "“a little dog named Max." in seen[0]


async def test_enter_takes_the_scale_and_u_takes_it_back() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        before = rows(app)[0].scale
        await press(pilot, "v", "g", "l", "l", "enter")
        view = chart(app)
        assert rows(app)[0].scale == pytest.approx(view.scales[2], rel=1e-3)
        assert view.now == rows(app)[0].scale
        await press(pilot, "u")
        assert rows(app)[0].scale == before
        await press(pilot, "escape", "enter")  # back on the bench enter edits again
        assert app.screen is not app.screen_stack[0]


async def test_curves_grow_and_a_stop_keeps_what_is_there() -> None:
    app = dose_app(hold=True)
    async with app.run_test(size=(120, 36)) as pilot:
        app_, worker = await opened(pilot)
        worker.release()
        await settle(pilot)
        worker._allowed = 0
        await pilot.press("v")
        worker.release(4)  # started, progress, the first two scales, progress
        await settle(pilot)
        text = screen_text(app_)
        assert "2 of 11 scales" in text
        assert chart(app_).series[0].values.count(None) == 9
        assert "◆" not in text  # a knee would wander while there is more to come
        await press(pilot, "x")
        assert "stopped at 2 of 11 scales" in screen_text(app_)
        assert [value for value in chart(app_).series[0].values if value is not None]


async def test_each_row_has_its_own_and_a_change_is_told() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await press(pilot, "v", "escape", "j")
        assert "v measures this row" in screen_text(app)
        await press(pilot, "k", "+")
        assert "changed since" not in screen_text(app)  # a scale changes no curve
        await press(pilot, ">")
        assert "changed since: v measures it" in screen_text(app)
        asked = len(worker.submitted)
        await press(pilot, "v")
        assert len(worker.submitted) == asked + 1
        await press(pilot, "v")  # again, in the pane: it is closed
        assert not chart(app).display or not app.screen.query_one("#dose").display
        await press(pilot, "v")
        assert len(worker.submitted) == asked + 1  # what was measured is shown


async def test_scales_tokens_and_controls_can_be_typed() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await press(pilot, "V")
        await press(pilot, "ctrl+u", *"1 x", "enter")
        assert "scales needs 1 to 24 numbers" in screen_text(app)
        await press(pilot, "ctrl+u", *"4, -2 0", "tab", *"12", "tab", *"5", "tab", *"0", "enter")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.MeasureDose)
        assert (job.scales, job.max_tokens, job.n_texts, job.controls) == ((-2.0, 0.0, 4.0), 12, 5, 0)
        assert [series.label for series in chart(app).series][:2] == ["Δ loss", "KL"]  # no controls, no rows for them


async def test_what_cannot_be_measured_says_why() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        _, worker = await opened(pilot)
        asked = len(worker.submitted)
        said: list[str] = []
        app.say = said.append  # type: ignore[method-assign, assignment]
        await press(pilot, "M", "M", "v", "F")
        await press(pilot, "M", "P", "v")
        app.store.edit_steer(rows(app)[0].id, positions=Positions("all"))
        app.store.update(prompt="")
        await press(pilot, "v")
        assert len(worker.submitted) == asked
        assert "no scale to multiply" in said[0]
        assert "a push that grows with its scale" in said[1]
        assert "prompt-only" in said[2]
        assert "Write a prompt first" in said[3]


async def test_a_scale_is_found_shown_and_taken() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await press(pilot, "F", "2")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.FindScale)
        assert (job.quantity, job.target) == ("kl", 1.0)
        text = screen_text(app)
        assert "Search of cookery" in text
        assert "10 scales tried" in text
        assert "reached at +12.4: +1.000 on half the texts, +1.050 on the half held out" in text
        assert chart(app).scales[chart(app).column] == 12.4
        before = rows(app)[0].scale
        await press(pilot, "enter")
        assert rows(app)[0].scale == 12.4
        await press(pilot, "u")
        assert rows(app)[0].scale == before


async def test_another_target_and_the_other_direction() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await press(pilot, "b", "F", "5")
        await press(pilot, "right", "right", "tab", *"0.25", "enter")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.FindScale)
        assert (job.quantity, job.target) == ("relative_norm", 0.25)
        (record,) = job.interventions
        assert isinstance(record, Add)
        assert record.scale == -1.0
        assert chart(app).scales == tuple(sorted(chart(app).scales))
        await press(pilot, "enter")
        assert rows(app)[0].scale == -12.4


QUESTIONS = str(Path(__file__).parents[2] / "examples" / "cooking_or_play.jsonl")


async def test_behaviour_is_measured_by_a_file_of_questions_and_by_the_same_for_other_rows() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await press(pilot, "V", *["down"] * 5, *QUESTIONS, "enter")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.MeasureDose)
        assert job.questions == QUESTIONS
        shown = chart(app)
        series = shown.series[-1]
        assert (series.name, series.label) == ("behaviour", "behaviour")
        heights = [series.height(value) for value in series.values if value is not None]
        assert heights == sorted(heights)
        assert (len(heights), heights[0], heights[-1]) == (11, 0.0, 1.0)
        await press(pilot, "G", *["j"] * len(shown.series))
        text = screen_text(app)
        assert "+2.000 [+1.500, +2.500] nat, plain -1.000; share 0.90, chosen 6 of 12" in text
        assert "Mean over questions of log p(answer that shows the behaviour)" in text
        await press(pilot, "escape", "j", "v")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.MeasureDose)
        assert job.questions == QUESTIONS
        await press(pilot, "V", *["down"] * 5, "ctrl+u", "enter")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.MeasureDose)
        assert job.questions == ""


async def test_a_file_that_is_not_of_questions_is_refused_in_the_form(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"text": "a", "label": 1}')
    app = dose_app()
    async with app.run_test(size=(80, 24)) as pilot:
        _, worker = await opened(pilot)
        asked = len(worker.submitted)
        for keys in (("V", *["down"] * 5), ("F", "4")):
            await press(pilot, *keys, *"/nowhere.json", "enter")
            assert "questions needs a file that is there" in screen_text(app)
            await press(pilot, "ctrl+u", *str(file), "enter")
            assert "labels.jsonl, question 1 has not all of question" in screen_text(app)
            await press(pilot, "escape")
        assert len(worker.submitted) == asked


@pytest.mark.parametrize(("typed", "target"), [("", 1.0), ("-0.5", -0.5)])
async def test_a_scale_is_found_by_behaviour_up_and_down(typed: str, target: float) -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await press(pilot, "P", "F", "1")
        assert not any(isinstance(job, jobs.FindScale) for job in worker.submitted)  # its texts have no prompt
        assert "its texts have no prompt to be steered" in screen_text(app)
        await press(pilot, "4", *QUESTIONS, "tab", *(["ctrl+u", *"0", "enter"] if typed else []))
        if typed:
            assert "grows by needs a number other than 0" in screen_text(app)
        await press(pilot, *(["ctrl+u", *typed] if typed else []), "enter")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.FindScale)
        assert (job.quantity, job.target, job.questions) == ("behaviour", target, QUESTIONS)
        text = screen_text(app)
        assert f"target behaviour {target:+g} nat" in text
        assert "on half the questions" in text
        (series,) = chart(app).series
        assert series.height(target) == 0.5
        await press(pilot, "escape", "F", "4")
        assert QUESTIONS[-20:] in screen_text(app)  # kept for the next one


async def test_another_gate_is_another_measurement() -> None:
    app = dose_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await press(pilot, "v")
        app.store.edit_steer(rows(app)[0].id, gate=Gate(monitor_of(rows(app)[0].vector), 1.0))
        await settle(pilot)
        assert "changed since: v measures it" in screen_text(app)


async def test_a_failure_leaves_the_pane_and_can_be_tried_again() -> None:
    worker = FakeWorker(failures={jobs.MeasureDose: ValueError("out of memory")})
    app = lens_app(worker, screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        await press(pilot, "v", "escape")
        assert "failed at 0 of 11 scales" in screen_text(app)
        worker.failures.clear()
        await press(pilot, "v")
        assert "11 scales" in screen_text(app)
        assert sum(isinstance(job, jobs.MeasureDose) for job in worker.submitted) == 2


async def test_a_new_measurement_ends_the_one_under_way() -> None:
    app = dose_app(hold=True)
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        worker.release()
        await settle(pilot)
        worker._allowed = 0
        await pilot.press("v")
        await settle(pilot)
        await pilot.press("escape", "j", "v")
        await settle(pilot)
        first, second = worker.job_ids(jobs.MeasureDose)
        assert first in worker.stopped
        worker.release()
        await settle(pilot)
        await press(pilot, "escape", "k")
        assert "stopped at 0 of 11 scales" in screen_text(app)
        assert second


@pytest.mark.parametrize("size", [(120, 36), (120, 24), (80, 24), (60, 16)])
async def test_the_chart_keeps_its_columns_at_every_size(size: tuple[int, int]) -> None:
    app = dose_app()
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        await press(pilot, "v")
        shown = chart(app)
        assert shown.display
        assert shown.size.width >= 12 + shown.step * 11
        assert shown.region.width <= size[0]


def test_short_scales() -> None:
    values = {0.0: "0", 22.0: "22", -88.5: "-88", 5.5: "5.5", 5.0: "5", 0.25: ".25", -0.052: "-.052", 1480.0: "1.5k"}
    assert {value: short(value) for value in values} == values


def test_an_unmeasured_view_has_empty_series() -> None:
    view = DoseView((0.0, 1.0), ())
    assert [series.values for series in view.series()] == [(None, None)] * 4
    assert view.note() == "0 of 2 scales"
