"""The vector bench."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import Input

from lens_tui import demo
from lens_tui.records.interventions import BenchRow
from lens_tui.tui.app import LensApp
from lens_tui.tui.bench_text import relative, too_strong
from lens_tui.tui.screens.direction_text import bench_row
from lens_tui.tui.screens.form import ChoiceScreen, FormScreen, number, whole
from lens_tui.tui.screens.steer_forms import texts
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker import jobs
from lens_tui.worker.events import TokenWeight
from tests.apps import lens_app, screen_text, settle
from tests.fakes import FakeWorker, unit_vector
from tests.tui.opened import opened
from tests.tui.opened import settle as settle_opened


def rows(app: LensApp) -> tuple[BenchRow, ...]:
    return app.store.session.steers


async def open_bench(pilot: Pilot[Any]) -> LensApp:
    await settle(pilot)
    app = pilot.app
    assert isinstance(app, LensApp)
    return app


async def test_an_empty_bench_names_the_next_key() -> None:
    app = lens_app(screen="steer")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_bench(pilot)
        assert "1 goes there" in screen_text(app)
        await pilot.press("a")
        await settle(pilot)
        assert not isinstance(app.screen, FormScreen)


async def test_the_bench_opens_on_the_row_that_was_sent_to_it_before_it_was_seen() -> None:
    app = lens_app(screen="features", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        given = len(rows(app))
        await pilot.press("s")
        await settle(pilot, lambda: len(rows(app)) > given)
        await pilot.press("+", "2")
        await settle(pilot)
        assert app.screen.query_one("#rows", RowList).cursor == given


async def test_the_bench_opens_on_the_first_of_the_rows_that_came_with_the_model() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("2")
        await settle(pilot)
        assert len(rows(app)) > 1
        assert app.screen.query_one("#rows", RowList).cursor == 0


async def test_scale_keys() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await open_bench(pilot)
        row = rows(app)[0]
        assert row.scale == demo.starter().steers[0].scale
        for key, steps in (("+", 1), ("-", -1), ("=", 5), ("_", -5)):
            before = rows(app)[0]
            await pilot.press(key)
            assert rows(app)[0] == before.moved(steps)
            assert rows(app)[0].scale != before.scale
        await pilot.press("b")
        assert rows(app)[0].scale < 0
        await pilot.press("0")
        assert rows(app)[0].scale == 0.0
        assert rows(app)[1].scale == demo.starter().steers[1].scale


async def test_layer_arm_and_switch_stay_within_bounds() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await open_bench(pilot)
        await pilot.press(*[">"] * 9)
        assert rows(app)[0].layer == 7
        await pilot.press(*["<"] * 9)
        assert rows(app)[0].layer == 0
        await pilot.press(*["]"] * 9)
        assert rows(app)[0].arm == 4
        await pilot.press(*["["] * 9)
        assert rows(app)[0].arm == 1
        await pilot.press("space")
        assert not rows(app)[0].enabled
        await settle(pilot)
        assert "□ cookery" in screen_text(app)


async def test_every_edit_is_undone_by_u_and_redone_by_capital_u() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await open_bench(pilot)
        states = [rows(app)]
        for key in ("+", ">", "]", "space", "c", "0", "d"):
            await pilot.press(key)
            assert rows(app) != states[-1], key
            states.append(rows(app))
        for state in reversed(states[:-1]):
            await pilot.press("u")
            assert rows(app) == state
        for state in states[1:]:
            await pilot.press("U")
            assert rows(app) == state


async def test_the_direction_under_the_cursor_is_explained() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await open_bench(pilot)
        text = screen_text(app)
        assert "feature 2666 of demo layer 4, 8k" in text
        await pilot.press("j")
        await settle(pilot)
        text = screen_text(app)
        assert "toward" in text
        assert "promotes" in text
        assert "suppresses" in text
        assert "median ‖h‖ 42.5" in text
        assert f"resid_post of layer {rows(app)[1].layer}" in text


async def test_a_vector_from_a_feature() -> None:
    worker = FakeWorker()
    app = lens_app(worker, screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await open_bench(pilot)
        await pilot.press("a", "1")
        await settle(pilot)
        await pilot.press(*"99999", "enter")
        await settle(pilot)
        assert "a whole number from 0 to 8191" in screen_text(app)
        await pilot.press("ctrl+u", *"4821", "enter")
        await settle(pilot)
        assert worker.submitted[-1] == jobs.VectorFromFeature("layer_4_width_8k_l0_medium", 4821)
        made = rows(app)[-1]
        assert made.vector.name == "feature 4821"
        assert made.arm == 3
        assert made.scale == pytest.approx(made.vector.max_activation, rel=1e-2)


async def test_a_random_control_takes_layer_and_scale_of_the_row() -> None:
    worker = FakeWorker()
    app = lens_app(worker, screen="steer", model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await open_bench(pilot)
        await pilot.press("a", "6")
        await settle(pilot)
        await pilot.press("enter")
        await settle(pilot)
        assert worker.submitted[-1] == jobs.RandomVector("random 0", 4, 0)
        assert rows(app)[-1].scale == demo.starter().steers[0].scale


async def test_leaving_a_form_changes_nothing() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_bench(pilot)
        before = rows(app)
        await pilot.press("a", "escape")
        await pilot.press("a", "2", *"joy", "escape")
        await pilot.press("e", "escape")
        await settle(pilot)
        assert rows(app) == before


async def test_editing_by_typing() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_bench(pilot)
        await pilot.press("e")
        await settle(pilot)
        await pilot.press(*"nan", "enter")
        await settle(pilot)
        assert "scale needs a finite number" in screen_text(app)
        await pilot.press("ctrl+u", *"-7.25", "enter")
        await settle(pilot)
        assert rows(app)[0].scale == -7.25
        await pilot.press("u")
        assert rows(app)[0].scale == demo.starter().steers[0].scale


async def test_without_an_sae_the_feature_choice_says_why() -> None:
    worker = FakeWorker()
    app = lens_app(worker, screen="steer", model="org/name")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_bench(pilot)
        await pilot.press("a")
        await settle(pilot)
        assert "no SAE is loaded" in screen_text(app)
        await pilot.press("1")
        await settle(pilot)
        assert not isinstance(app.screen, FormScreen)


@pytest.mark.parametrize("width", [54, 60, 70, 90])
@pytest.mark.parametrize("scale", [22.0, -1234.5, 0.0])
def test_a_row_is_never_wider_than_its_list(width: int, scale: float) -> None:
    row = BenchRow("s", unit_vector("a name that is much longer than its column could ever be"), 12, scale)
    for line in bench_row(row, width):
        assert cell_len(line.plain) <= width


def test_multiples_of_what_is_known() -> None:
    vector = unit_vector("v", max_activation=11.0)
    assert relative(BenchRow("s", vector, 4, -22.0, residual_norm=44.0)) == "×2.00 max ×0.50 ‖h‖"
    assert relative(BenchRow("s", unit_vector("w"), 4, 22.0)) == ""


def test_texts_are_split_at_bars() -> None:
    assert texts(" a | b||c ") == ("a", "b", "c")


def test_checks_say_what_is_needed() -> None:
    assert whole(0, 7)("8") == "a whole number from 0 to 7"
    assert whole(0, 7)("x") == "a whole number"
    assert whole(0, 7)("7") == ""
    assert number()("inf") == "a finite number"
    assert number(0, 1)("2") == "0 to 1"


@pytest.mark.parametrize(("answer", "scale"), [("1", 24.0), ("2", 1e9)])
async def test_a_scale_beyond_reason_is_asked_back(answer: str, scale: float) -> None:
    async with opened("steer") as (app, pilot):
        app.screen.query_one("#rows", RowList).cursor = 0
        await pilot.press("enter")
        await settle_opened(app, pilot)
        await pilot.press("ctrl+u", *"1e9", "enter")
        for _ in range(6):
            if isinstance(app.screen, FormScreen):
                await pilot.press("enter")
        await settle_opened(app, pilot)
        assert isinstance(app.screen, ChoiceScreen)
        assert "25,000,000 × ‖h‖" in screen_text(app)
        await pilot.press(answer)
        await settle_opened(app, pilot)
        assert app.store.session.steers[0].scale == scale
        if answer == "1":
            assert isinstance(app.screen, FormScreen)
            assert app.screen.query_one("#scale", Input).value == "1e9"


@pytest.mark.parametrize(
    ("scale", "changes", "asked"),
    [
        (400.0, {"residual_norm": 40.0}, False),
        (-401.0, {"residual_norm": 40.0}, True),
        (9.0, {"mode": "norm_match"}, False),
        (11.0, {"mode": "norm_match"}, True),
        (1e9, {"mode": "project_out"}, False),
        (1e9, {}, True),
        (900.0, {}, False),
    ],
)
def test_what_is_beyond_reason_is_told_by_the_residuals_length(
    scale: float, changes: dict[str, Any], asked: bool
) -> None:
    assert bool(too_strong(BenchRow("", unit_vector("x"), 4, scale, **changes))) is asked


async def test_a_row_is_found_by_a_part_of_its_name_and_copied_as_text() -> None:
    async with opened("steer", steers=4) as (app, pilot):
        bench = app.screen.query_one("#rows", RowList)
        await pilot.press("/", *"ers")
        await settle_opened(app, pilot)
        assert bench.row is not None
        assert bench.row.vector.name == "verse"
        await pilot.press("enter", "y")
        await settle_opened(app, pilot)
        assert app.focused is bench
        assert "■ verse" in app.clipboard
        assert "median ‖h‖ 40" in app.clipboard
        await pilot.press("/", "escape")
        await settle_opened(app, pilot)
        assert app.focused is bench


def direction_shown(app: LensApp) -> list[str]:
    region = app.screen.query_one("#direction").region
    return [row[region.x : region.right] for row in screen_text(app).splitlines()[region.y : region.bottom]]


@pytest.mark.parametrize("tokens", [3, 4, 12])
async def test_a_direction_is_laid_out_alike_whatever_was_shown_before(tokens: int) -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        each = tuple(TokenWeight(place, f" word{place}", 2.0 - place / 20) for place in range(30))
        seen: set[tuple[str, ...]] = set()
        for beside in (tokens, 1, 30, tokens):
            first, second = rows(app)[:2]
            first = replace(first, promoted=each[:tokens], suppressed=())
            app.store.replace_steers((first, replace(second, promoted=each[:beside], suppressed=())))
            for key in "jk":
                await pilot.press(key)
                await settle(pilot)
            seen.add(tuple(direction_shown(app)))
        assert len(seen) == 1
