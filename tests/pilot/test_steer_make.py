"""Making directions on the bench: contrasting texts with the layer chosen, tokens, sums; and how a row acts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from lens_tui.records import Add, LensError, NormMatch, Positions, ProjectOut
from lens_tui.records.interventions import BenchRow
from lens_tui.tui.app import LensApp
from lens_tui.tui.bench_text import read_sum
from lens_tui.tui.screens.form import FormScreen
from lens_tui.tui.screens.steer_forms import LayersScreen, name_of_sum
from lens_tui.worker import jobs
from tests.apps import lens_app, screen_text, settle
from tests.fakes import FakeWorker, unit_vector
from tests.folders import read_session

Run = tuple[LensApp, FakeWorker]


async def opened(pilot: Pilot[Any]) -> Run:
    await settle(pilot)
    app = pilot.app
    assert isinstance(app, LensApp)
    assert isinstance(app.worker, FakeWorker)
    return app, app.worker


async def typed(pilot: Pilot[Any], *texts: str) -> None:
    """Each text into the field that has the focus, and enter."""
    for text in texts:
        await pilot.press(*("space" if letter == " " else letter for letter in text), "enter")
    await settle(pilot)


def rows(app: LensApp) -> tuple[BenchRow, ...]:
    return app.store.session.steers


async def add(pilot: Pilot[Any], choice: str) -> None:
    await pilot.press("a", choice)
    await settle(pilot)


async def test_pairs_at_all_layers_and_the_layer_chosen_from_the_ranking() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        _, worker = await opened(pilot)
        await add(pilot, "2")
        await typed(pilot, "joy", "so glad | hurrah", "so sad | alas")
        assert worker.submitted[-1] == jobs.VectorFromPrompts("joy", ("so glad", "hurrah"), ("so sad", "alas"), None)
        assert isinstance(app.screen, LayersScreen)
        text = screen_text(app)
        assert "joy: which layer?  (2 pairs)" in text
        assert "1.000" in text
        before = len(rows(app))
        await pilot.press("j", "enter")
        await settle(pilot)
        assert len(rows(app)) == before + 1
        made = rows(app)[-1]
        assert (made.vector.name, made.layer) == ("joy", 6)  # the second of the ranking
        assert made.promoted
        assert "toward  “so glad” and 1 more" in screen_text(app)


async def test_method_layer_and_tokens_are_chosen_in_the_form() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await add(pilot, "2")
        await pilot.press(*"joy", "tab", *"a|b", "tab", *"c|d", "tab", "right", "down", *"3", "tab", "left", "enter")
        await settle(pilot)
        assert worker.submitted[-1] == jobs.VectorFromPrompts(
            "joy", ("a", "b"), ("c", "d"), 3, over="last", method="pca_diff"
        )
        assert rows(app)[-1].layer == 3


async def test_what_fails_comes_back_with_what_was_typed() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await add(pilot, "2")
        await typed(pilot, "joy", "one | two", "three")
        assert isinstance(app.screen, FormScreen)
        text = screen_text(app)
        assert "These texts are no pairs. Give as many of each." in text
        assert all(words in text for words in ("joy", "one | two", "three"))
        await pilot.press("tab", "tab", "end", *" | four", "enter")
        await settle(pilot)
        assert isinstance(worker.submitted[-1], jobs.VectorFromPrompts)
        assert worker.submitted[-1].negative == ("three", "four")
        await pilot.press("escape")  # the layers: back to what was typed
        await settle(pilot)
        assert "three | four" in screen_text(app)
        await pilot.press("escape")
        await settle(pilot)
        assert len(rows(app)) == 2


async def test_pairs_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mood.jsonl"
    file.write_text(json.dumps({"positive": "glad", "negative": "sad"}))
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await add(pilot, "3")
        await typed(pilot, str(tmp_path / "nothing"))
        assert "file needs a file that is there" in screen_text(app)
        await pilot.press("ctrl+u")
        await typed(pilot, str(file))
        job = worker.submitted[-1]
        assert isinstance(job, jobs.VectorFromPrompts)
        assert (job.name, job.path, job.layer) == ("mood", str(file), None)


async def test_a_token_and_one_that_is_none() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        await add(pilot, "4")
        await typed(pilot, " two words")
        assert "is not one token" in screen_text(app)
        await pilot.press("ctrl+u", "space", *"door", "tab", "l", "enter")
        await settle(pilot)
        assert worker.submitted[-1] == jobs.VectorFromToken(" door", 4, "embedding", "")
        assert "the embedding of “ door”" in screen_text(app) or "the embedding of" in screen_text(app)


async def test_sums_and_one_without_another() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        _, worker = await opened(pilot)
        for row in rows(app):
            app.store.edit_steer(row.id, layer=4)
        await add(pilot, "5")
        await typed(pilot, "1 - 3")
        assert "rows needs rows 1 to 2" in screen_text(app)
        await pilot.press("ctrl+u")
        await typed(pilot, "1 - 0.5*2")
        job = worker.submitted[-1]
        assert isinstance(job, jobs.VectorFromVectors)
        first, second = rows(app)[:2]
        one, other = first.vector.name, second.vector.name
        assert [(factor, vector.name) for factor, vector in job.terms] == [(1.0, one), (-0.5, other)]
        assert (job.less, job.unit) == (False, True)
        assert rows(app)[-1].vector.name == f"{one} - 0.5 {other}"
        assert f"1 × {one} -0.5 × {other}" in screen_text(app)
        await pilot.press("g", ">")  # rows of two layers have no sum, and what was typed stays
        await add(pilot, "5")
        await typed(pilot, "1 without 2")
        assert "They are not of one place" in screen_text(app)
        assert "1 without 2" in screen_text(app)
        assert isinstance(worker.submitted[-1], jobs.VectorFromVectors)
        assert worker.submitted[-1].less
        assert worker.submitted[-1].terms[0][1].layer == first.layer + 1
        assert worker.submitted[-1].terms[1][1].layer == second.layer


def test_sums_are_read() -> None:
    assert read_sum("1 + 2", 2) == ([(1.0, 0), (1.0, 1)], False)
    assert read_sum(" -.5*2-3 ", 3) == ([(-0.5, 1), (-1.0, 2)], False)
    assert read_sum("2 without 1, 3", 3) == ([(1.0, 1), (1.0, 0), (1.0, 2)], True)
    for wrong in ("", "0", "4", "1 2", "1 +", "1 + 1", "a", "1 without", "1 without 1", "1*2*3"):
        assert read_sum(wrong, 3) is None, wrong
    assert name_of_sum([(-1.0, 1), (2.0, 0)], False, ["a", "b"]) == "-b + 2 a"
    assert name_of_sum([(1.0, 1), (1.0, 0)], True, ["a", "b"]) == "b without a"


async def test_mode_and_positions_by_keys_reach_the_arms_and_can_be_undone() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        plain = rows(app)[0]
        await pilot.press("M")
        (item,) = app.store.session.arms()[1].interventions
        assert isinstance(item, NormMatch)
        # The push stays about as long: a share of the residual's length now.
        assert item.scale == pytest.approx(plain.scale / 42.5, rel=0.01)
        await pilot.press("P", "P")
        (item,) = app.store.session.arms()[1].interventions
        assert item.positions == Positions("generated")
        await settle(pilot)
        assert "norm-match · generated only" in screen_text(app)
        await pilot.press("M")
        (item,) = app.store.session.arms()[1].interventions
        assert isinstance(item, ProjectOut)
        await settle(pilot)
        assert "takes away what lies along the direction" in screen_text(app)
        await pilot.press("M", "M", "M", "M", "P", "P", "P")
        assert rows(app)[0].mode == "add"
        assert rows(app)[0].positions is None
        assert isinstance(app.store.session.arms()[1].interventions[0], Add)
        for _ in range(11):
            await pilot.press("u")
        assert rows(app)[0] == plain


async def test_mode_and_positions_in_the_form_the_copy_and_the_session_file() -> None:
    app = lens_app(screen="steer", model="demo", autosave=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("e", "tab", "right", "tab", "left", "enter")
        await settle(pilot)
        row = rows(app)[0]
        assert (row.mode, row.positions) == ("norm_match", Positions("role", role="template"))
        await pilot.press("c")
        assert (rows(app)[-1].mode, rows(app)[-1].positions) == (row.mode, row.positions)
        await settle(pilot)
        app.recovery.end(well=False)
        saved = read_session()
        assert saved is not None
        assert (saved.steers[0].mode, saved.steers[0].positions) == (row.mode, row.positions)
        assert (saved.steers[1].mode, saved.steers[1].positions) == ("add", None)


def test_each_mode_becomes_its_record_at_the_vectors_own_site() -> None:
    from dataclasses import replace

    from lens_tui.records.interventions import MODES, amount_of

    vector = replace(unit_vector("v"), site="attn_out")
    for mode in MODES:
        row = BenchRow("s", vector, 2, 3.5, mode=mode.id, positions=Positions("last"))
        record = row.intervention()
        assert (record.id, record.layer, record.site, record.positions.kind) == ("s", 2, "attn_out", "last")
        assert record.mode == mode.id
        assert amount_of(record) == (3.5 if mode.amount else 0.0)
    with pytest.raises(LensError, match="no mode 'push'"):
        BenchRow("s", vector, 2, 1.0, mode="push").intervention()
