"""The Causes screen: what is asked, the map that fills, what is said of a cell, and where it goes from there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from textual.widgets import Input, Static

from lens_tui.records import AblateHeads, Add, LensError
from lens_tui.records.cause_plan import EXAMPLE, METRICS, SITES, GraphPlan, PatchFound, PatchPlan
from lens_tui.records.cause_store import CauseStore
from lens_tui.records.run import MadeWith
from lens_tui.tui.app import LensApp
from lens_tui.tui.causes_text import cell_lines, cells, details, legend, map_of, question
from lens_tui.tui.format import signed
from lens_tui.tui.screens.causes_screen import CauseHistoryScreen, CausesScreen
from lens_tui.tui.widgets.frame import Scroll
from lens_tui.tui.widgets.heat_grid import HeatGrid
from lens_tui.worker.events import GraphMade, Patched
from lens_tui.worker.jobs import Encode, KeepGraph, MakeGraph, Patch, PruneGraph, VectorFromPatch
from tests.apps import lens_app
from tests.fake_causes import fake_patch
from tests.fake_graphs import fake_graph
from tests.fakes import DEMO_MODEL, DEMO_SAE, FakeWorker

from .opened import fill, jobs_of, opened, screen_of, screen_text, settle


def found_of(plan: PatchPlan = EXAMPLE) -> PatchFound:
    last = list(fake_patch(1, Patch(plan)))[-1]
    assert isinstance(last, Patched)
    return last.found


def asked(app: LensApp) -> list[PatchPlan]:
    return [job.plan for job in cast("FakeWorker", app.worker).submitted if isinstance(job, Patch)]


def test_a_map_has_the_figures_of_its_grid() -> None:
    found = found_of()
    grid, estimate = found.grid, found.estimate
    assert grid is not None
    assert grid.random is not None
    assert estimate is not None
    shown = map_of(found)
    assert (shown.rows[3], shown.columns[5], shown.tokens[5], shown.others[5]) == ("L3", "5", " car", " ball")
    for name, of in (("effect", grid.effect), ("random", grid.random), ("estimate", estimate.effect)):
        assert cells(shown, name)[3][5][0] == signed(float(of[3, 5]), 2)
    assert cells(shown, "value")[3][5][0] == signed(float(grid.values[3, 5]), 2)
    assert details(shown, "effect")[3][5] == signed(float(grid.values[3, 5]), 2)
    assert details(shown, "value")[3][5] == signed(float(grid.effect[3, 5]), 2)
    top = float(abs(grid.effect).max())
    assert shown.top == top
    assert cells(shown, "effect")[0][5][1] == 7
    assert cells(shown, "random")[0][5][1] <= 1
    assert shown.strongest()[0] == divmod(int(abs(grid.effect).argmax()), len(grid.columns))
    assert f"{top:.2f} of clean − corrupted (+11.50 logits)" in legend(shown, "effect", 100).plain
    assert all(len(legend(shown, "effect", width).plain) <= width for width in (100, 60, 50, 30))
    assert shown.floor == pytest.approx(float(abs(grid.random).max()))


def test_a_noised_clean_run_moves_down_from_one() -> None:
    shown = map_of(found_of(replace(EXAMPLE, direction="noise")))
    assert shown.start == 1.0
    assert cells(shown, "effect")[0][5][1] == 7
    assert float(cells(shown, "effect")[0][5][0]) < 0.1
    assert cells(shown, "effect")[0][1][1] <= 1


def test_what_is_not_known_yet_is_a_dot_and_counts_for_nothing() -> None:
    half = next(event for event in fake_patch(1, Patch(EXAMPLE)) if isinstance(event, Patched))
    shown = map_of(half.found)
    assert not half.whole
    assert cells(shown, "effect")[-1][5] == ("·", 0)
    assert details(shown, "effect")[-1][5] == ""
    assert (shown.done, shown.size) == (shown.size // 2, shown.size)
    assert all(row < 4 for row, _ in shown.strongest())
    assert "not patched yet" in [line.plain for line in cell_lines(half.found, shown, 7, 5, 34)]


@pytest.mark.parametrize("width", [26, 34, 60])
@pytest.mark.parametrize("by", ["layer-position", "head", "trace"])
def test_a_cell_says_effect_value_controls_and_what_was_put_where(by: Any, width: int) -> None:
    found = found_of(replace(EXAMPLE, by=by))
    shown = map_of(found)
    lines = [line.plain.rstrip() for line in cell_lines(found, shown, 2, 4, width)]
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    effect = found.effect
    assert effect is not None
    assert f"effect{signed(float(effect[2, 4]), 3).rjust(width - len('effect'))}" in text
    assert "random" in text
    if by == "trace":
        assert "noised runs" in text
        assert "value, share" in text
    else:
        assert found.check is not None
        assert found.check.pearson is not None
        assert f"{found.check.pearson:.3f}" in text
        assert "estimate" in text
    if by == "layer-position":
        assert "becomes ‘·red’ of clean" in text


def test_a_question_is_two_lines_of_the_width() -> None:
    for plan in (EXAMPLE, replace(EXAMPLE, by="trace"), replace(EXAMPLE, pairs="/x/pairs.jsonl")):
        lines = [line.plain for line in question(plan, 50)]
        assert len(lines) == 2
        assert all(len(line) <= 50 for line in lines)
    assert question(EXAMPLE, 100)[1].plain.endswith("→ ‘·car’")


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_an_empty_map_names_its_key_and_fills_as_it_is_computed(size: tuple[int, int]) -> None:
    async with opened("causes", size=size) as (app, pilot):
        assert "⏎ patches" in " ".join(screen_text(app).split())
        worker = cast("FakeWorker", app.worker)
        worker.hold()
        await pilot.press("enter")
        await settle(app, pilot)
        worker.release(3)
        await settle(app, pilot)
        screen = screen_of(app, CausesScreen)
        assert screen.patches.cause_map is not None
        assert screen.patches.cause_map.done * 2 == screen.patches.cause_map.size
        assert "patching …" in screen.patches.note
        assert "·" in screen_text(app)
        worker.release()
        await settle(app, pilot)
        assert screen.patches.cause_map.done == screen.patches.cause_map.size
        assert (screen.patches.grid.row, screen.patches.grid.column) == screen.patches.cause_map.strongest()[0]
        text = screen_text(app)
        assert "estimates r" in text
        assert "becomes ‘·ball’ of clean" in text
        assert "random ≤" in text


async def test_a_map_behind_another_job_says_that_it_waits() -> None:
    async with opened("causes") as (app, pilot):
        worker = cast("FakeWorker", app.worker)
        worker.hold()
        app.submit(Encode(DEMO_SAE.id, "a door", ()), "before", lambda event: None)
        await pilot.press("enter")
        await settle(app, pilot)
        assert "waits for what runs" in screen_text(app)
        assert "patching …" not in screen_text(app)
        for _ in range(8):
            if "waits for what runs" in screen_text(app):
                worker.release(1)
                await settle(app, pilot)
        assert "patching …" in screen_text(app)
        worker.release()


async def test_without_a_model_the_way_to_one_is_named() -> None:
    async with opened("causes") as (app, pilot):
        app.store.update(model=None)
        await settle(app, pilot)
        assert "No model: 1 goes to Load." in screen_text(app)
        await pilot.press("enter")
        await settle(app, pilot)
        assert asked(app) == []


async def test_keys_turn_the_question_and_old_numbers_say_so() -> None:
    async with opened("causes") as (app, pilot):
        patches = screen_of(app, CausesScreen).patches
        await pilot.press("enter")
        await settle(app, pilot)
        for key, part, value in (
            ("right_square_bracket", "site", SITES[1]),
            ("left_square_bracket", "site", SITES[0]),
            ("M", "metric", METRICS[1]),
            ("b", "direction", "noise"),
        ):
            await pilot.press(key)
            await settle(app, pilot)
            assert getattr(patches.plan, part) == value
        assert patches.stale
        assert "as of before" in screen_text(app)
        assert patches.grid.has_class("-before")
        await pilot.press("enter")
        await settle(app, pilot)
        assert asked(app)[-1] == patches.plan == replace(EXAMPLE, metric=METRICS[1], direction="noise")
        assert not patches.stale
        assert not patches.grid.has_class("-before")


async def test_views_keep_their_maps_and_the_history_brings_one_back() -> None:
    async with opened("causes") as (app, pilot):
        patches = screen_of(app, CausesScreen).patches
        for _ in range(3):
            await pilot.press("enter")
            await settle(app, pilot)
            await pilot.press("V")
            await settle(app, pilot)
        assert [plan.by for plan in asked(app)] == ["layer-position", "head", "trace"]
        assert screen_of(app, CausesScreen).of_graph
        await pilot.press("V")
        await settle(app, pilot)
        assert (patches.plan.by, patches.cause_map is not None) == ("layer-position", True)
        await pilot.press("H", "j", "enter")
        await settle(app, pilot)
        assert patches.plan.by == "head"
        assert "head" in patches.kept[1].plan.by
        assert "H4" in screen_text(app)


async def test_the_form_asks_and_answers_at_once() -> None:
    async with opened("causes") as (app, pilot):
        await pilot.press("i")
        await settle(app, pilot)
        app.screen.query_one("#corrupted", Input).value = "Lily saw a red hat. She wanted to play with the red"
        app.screen.query_one("#wrong", Input).value = " hat"
        await pilot.press("enter")
        await settle(app, pilot)
        assert asked(app) == [replace(EXAMPLE, corrupted=EXAMPLE.corrupted.replace("car", "hat"), wrong=" hat")]
        await pilot.press("V", "V", "i")
        await settle(app, pilot)
        app.screen.query_one("#subject", Input).value = "red ball"
        await pilot.press("enter")
        await settle(app, pilot)
        assert (asked(app)[-1].by, asked(app)[-1].subject) == ("trace", "red ball")


async def test_n_goes_through_the_cells_by_strength_and_v_through_the_shades() -> None:
    async with opened("causes") as (app, pilot):
        patches = screen_of(app, CausesScreen).patches
        await pilot.press("enter")
        await settle(app, pilot)
        shown = patches.cause_map
        assert shown is not None
        order = shown.strongest()
        for key, at in (("n", 1), ("n", 2), ("N", 1), ("N", 0), ("N", -1)):
            await pilot.press(key)
            await pilot.pause()
            assert (patches.grid.row, patches.grid.column) == order[at]
        seen = []
        for _ in range(5):
            await pilot.press("v")
            await settle(app, pilot)
            seen.append(patches.shade)
        assert seen == ["random", "estimate", "value", "effect", "random"]
        assert patches.explains[0] == "patch_random"


async def test_cells_are_found_by_words_and_n_goes_through_those_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("causes") as (app, pilot):
        said: list[str] = []
        monkeypatch.setattr(app, "say", said.append)
        await pilot.press("slash")
        await settle(app, pilot)
        assert said[-1].startswith("There is no map yet")
        patches = screen_of(app, CausesScreen).patches
        await pilot.press("enter")
        await settle(app, pilot)
        shown = patches.cause_map
        assert shown is not None
        found = [cell for cell in shown.strongest() if shown.place(*cell).startswith("L2 ")]
        assert 1 < len(found) < len(shown.strongest())
        await pilot.press("slash", "l", "2", "enter")
        await settle(app, pilot)
        assert said[-1] == f"{len(found)} cells with “l2”: n and N go through them."
        for at in (0, 1):
            assert (patches.grid.row, patches.grid.column) == found[at]
            await pilot.press("n")
            await pilot.pause()
        await pilot.press("slash", *"nowhere", "enter")
        await settle(app, pilot)
        assert said[-1] == "No cell has “nowhere”."
        before = shown.strongest().index((patches.grid.row, patches.grid.column))
        await pilot.press("n")
        await pilot.pause()
        assert (patches.grid.row, patches.grid.column) == shown.strongest()[before + 1]


async def test_a_cell_goes_to_the_bench_as_a_vector_and_a_head_to_be_taken_away() -> None:
    async with opened("causes", steers=0) as (app, pilot):
        await pilot.press("s")
        await settle(app, pilot)
        assert not app.store.session.steers
        await pilot.press("enter")
        await settle(app, pilot)
        await pilot.press("s")
        await settle(app, pilot)
        row = app.store.session.steers[-1]
        record = row.intervention()
        assert isinstance(record, Add)
        assert (record.layer, record.site) == (screen_of(app, CausesScreen).patches.grid.row, "resid_pre")
        assert row.scale == pytest.approx(row.vector.norm, rel=1e-2)
        await pilot.press("V", "enter")
        await settle(app, pilot)
        await pilot.press("s")
        await settle(app, pilot)
        off = app.store.session.steers[-1].intervention()
        assert isinstance(off, AblateHeads)
        assert (off.layer, off.heads, off.site) == (0, (4,), "attn_z")
        await pilot.press("V", "enter")
        await settle(app, pilot)
        await pilot.press("s")
        await settle(app, pilot)
        assert len(app.store.session.steers) == 2
        sent = jobs_of(app, VectorFromPatch)
        assert [(job.layer, job.column) for job in sent] == [(0, 5), (0, 4)]


async def test_copies_and_files_hold_what_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    async with opened("causes") as (app, pilot):
        monkeypatch.setattr(app, "copy", lambda text, what: copied.append(text))
        await pilot.press("enter")
        await settle(app, pilot)
        await pilot.press("y", "Y")
        await settle(app, pilot)
        assert EXAMPLE.clean in copied[0]
        assert "effect" in copied[0]
        assert copied[1].startswith("mlx-lens-tui patch --model ")
        assert copied[1].endswith(f"--answer ' ball' --wrong ' car' -- '{EXAMPLE.clean}' '{EXAMPLE.corrupted}'")
        for _ in range(2):
            await pilot.press("e")
            await settle(app, pilot)
            app.screen.query_one("#where", Input).value = str(tmp_path)
            await pilot.press("enter")
            await settle(app, pilot)
        names = sorted(os.listdir(tmp_path))
        assert names == [f"patch-layer-position{end}" for end in ("-2.csv", "-2.json", ".csv", ".json")]
        shown = screen_of(app, CausesScreen).patches.cause_map
        assert shown is not None
        data = json.loads((tmp_path / names[3]).read_text())
        np.testing.assert_allclose(data["effect"], shown.figures["effect"])
        line = (tmp_path / names[2]).read_text().splitlines()[1 + 5]
        assert line.split(",")[:3] == ["L0", "5", " car"]
        assert float(line.split(",")[4]) == pytest.approx(float(shown.figures["effect"][0, 5]))


async def test_a_failure_is_said_and_a_stop_keeps_what_there_is() -> None:
    failures: Any = {Patch: LensError("The prompts have 3 and 4 tokens.", "Make them equally long.")}
    async with opened("causes", failures=failures) as (app, pilot):
        await pilot.press("enter")
        await settle(app, pilot)
        assert "Make them equally long" in screen_text(app)
    async with opened("causes") as (app, pilot):
        worker = cast("FakeWorker", app.worker)
        worker.hold()
        await pilot.press("enter")
        await settle(app, pilot)
        worker.release(3)
        await settle(app, pilot)
        app.worker.stop()
        worker.release()
        await settle(app, pilot)
        assert screen_of(app, CausesScreen).patches.cause_map is not None


async def test_another_model_forgets_the_maps() -> None:
    async with opened("causes") as (app, pilot):
        await pilot.press("enter")
        await settle(app, pilot)
        model = app.store.session.model
        assert model is not None
        app.store.update(model=replace(model, name="other"))
        await settle(app, pilot)
        assert screen_of(app, CausesScreen).patches.cause_map is None
        assert "patches resid_pre" in screen_text(app)


@pytest.mark.parametrize("text", ["[b]x[/b] [@click=app.quit]y[/]", "\x1b]52;c;aGk=\x07\x1b[2J", "\u202eabc \ud800"])
async def test_hostile_prompts_are_shown_and_not_acted_on(text: str) -> None:
    async with opened("causes") as (app, pilot):
        patches = screen_of(app, CausesScreen).patches
        patches.change(clean=text, corrupted=text, answer=text, wrong=text)
        await pilot.press("enter")
        await settle(app, pilot)
        shown = screen_text(app)
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        if text.startswith("[b]"):
            assert "[b]x[/b]" in shown


async def test_maps_and_graphs_of_other_sessions_are_opened_again_and_a_changed_model_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "h.db"
    made = MadeWith(source="demo", weights=DEMO_MODEL.weights)
    *_, patched = fake_patch(1, Patch(replace(EXAMPLE, by="head")))
    *_, drawn = fake_graph(1, MakeGraph(GraphPlan("The old man sat")))
    assert isinstance(patched, Patched)
    assert isinstance(drawn, GraphMade)
    with CauseStore(database).store as store:
        for found in (patched.found, drawn.found):
            CauseStore(store).keep(found, made)
    app = lens_app(FakeWorker(), screen="causes", history=database)
    async with app.run_test(size=(120, 36)) as pilot:
        fill(app)
        await settle(app, pilot)
        screen = screen_of(app, CausesScreen)
        await pilot.press("H")
        await settle(app, pilot)
        text = screen_text(app)
        assert "The old man sat" in text
        assert "Attribution graph → the likeliest tokens · demo" in text
        await pilot.press("enter")
        await settle(app, pilot)
        assert screen.of_graph
        assert screen.graph.found is not None
        assert [node.id for node in screen.graph.found.pruned.nodes] == [node.id for node in drawn.found.pruned.nodes]
        assert not screen.graph.stale
        pin = screen.graph.chosen
        assert pin is not None
        await pilot.press("space", "plus")
        await settle(app, pilot)
        worker = app.worker
        assert isinstance(worker, FakeWorker)
        wanted = [job for job in worker.submitted if isinstance(job, MakeGraph | KeepGraph | PruneGraph)]
        assert [type(job) for job in wanted] == [KeepGraph, MakeGraph]  # what pruning left out was not kept
        assert isinstance(wanted[1], MakeGraph)
        assert (wanted[1].plan.nodes, wanted[1].kept) == (0.7, 2)
        assert screen.graph.found.whole.pinned == (pin.id,)
        assert screen.graph.chosen is not None
        assert screen.graph.chosen.id == pin.id  # where the cursor was
        app.store.update(model=replace(DEMO_MODEL, name="other"))
        await settle(app, pilot)
        await pilot.press("H")
        await settle(app, pilot)
        await pilot.press("slash", *"lily", "enter")
        await settle(app, pilot)
        await pilot.press("enter")
        await settle(app, pilot)
        assert not screen.of_graph
        assert screen.patches.plan.by == "head"
        assert "of another model: demo" in screen_text(app)
        said: list[str] = []
        monkeypatch.setattr(app, "say", said.append)
        await pilot.press("s")
        await settle(app, pilot)
        assert "This map is of demo" in said[0]


async def test_a_map_in_the_history_is_found_by_its_models_folder_and_one_that_is_gone_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "h.db"
    grid = found_of().grid
    assert grid is not None
    store = CauseStore(database)
    store.keep(replace(found_of(), grid=replace(grid, model="/models/kit/small")), MadeWith())
    store.keep(found_of(), MadeWith())
    app = lens_app(FakeWorker(), screen="causes", history=database)
    async with app.run_test(size=(120, 36)) as pilot:
        fill(app)
        await settle(app, pilot)
        await pilot.press("H", "slash", *"kit", "enter")
        await settle(app, pilot)
        screen = app.screen
        assert isinstance(screen, CauseHistoryScreen)
        assert [(row.kept, row.model) for row in screen.rows.rows] == [(1, "small")]
        with store.store.write() as connection:
            connection.execute("DELETE FROM cause")
        said: list[str] = []
        monkeypatch.setattr(screen, "notify", lambda message, **_: said.append(message))
        await pilot.press("enter")
        await settle(app, pilot)
        assert app.screen is screen
        assert said == ["That one no longer exists."]
        await pilot.press("escape", "slash", *"no such words")
        await settle(app, pilot)
        assert "none has these words" in screen_text(app)


@pytest.mark.parametrize(("screen", "keys"), [("lens", ("V",)), ("causes", ("enter",))])
async def test_all_that_is_said_of_a_cell_can_be_reached_by_keys_in_a_narrow_terminal(
    screen: str, keys: tuple[str, ...]
) -> None:
    async with opened(screen, size=(80, 18)) as (app, pilot):
        await pilot.press(*keys)
        await settle(app, pilot)
        page = next(scroll for scroll in app.screen.query(Scroll) if scroll.display)
        await pilot.press("tab")
        assert app.focused is page
        last = str(page.query_one(Static).content).splitlines()[-1].strip()
        assert last not in screen_text(app)
        await pilot.press("G")
        await settle(app, pilot)
        assert last in screen_text(app)


async def test_a_nodes_page_follows_the_edge_and_takes_no_keys_from_the_graph() -> None:
    async with opened("causes", size=(80, 24)) as (app, pilot):
        await pilot.press("V", "V", "V", "enter")
        await settle(app, pilot)
        await pilot.press("tab")
        assert app.focused is screen_of(app, CausesScreen).graph.map


async def test_the_corner_of_a_map_says_how_many_columns_are_out_of_sight() -> None:
    async with opened("causes", size=(80, 24)) as (app, pilot):
        await pilot.press("enter")
        await settle(app, pilot)
        grid = screen_of(app, CausesScreen).query_one(HeatGrid)
        beyond = len(map_of(found_of()).tokens) - grid.across
        said = []
        for column in (0, beyond + grid.across - 1, beyond - 1):
            grid.column = column
            await settle(app, pilot)
            said.append(str(grid.render()).splitlines()[0][:5].strip())
        assert beyond > 1
        assert said == [f"{beyond}›", f"‹{beyond}", f"‹{beyond - 1} 1›"]
