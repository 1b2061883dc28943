"""Hostile text in lists of features, of vector files and of kept maps, in sets of vectors, and through either lens."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lens_tui.records import paths
from lens_tui.records.cause_plan import EXAMPLE, GraphPlan
from lens_tui.records.cause_store import CauseStore
from lens_tui.records.feature_lists import FeatureLists
from lens_tui.records.run import MadeWith
from lens_tui.records.store import Store
from lens_tui.records.vector_formats import save_vectors
from lens_tui.tui.keys import SCREENS
from lens_tui.tui.screens.feature_list_pane import FeatureListsScreen
from lens_tui.tui.screens.steer_forms import VectorFileScreen
from lens_tui.worker.events import GraphMade, Patched
from lens_tui.worker.jobs import MakeGraph, Patch
from tests.apps import lens_app
from tests.fake_causes import fake_patch
from tests.fake_graphs import fake_graph
from tests.fakes import DEMO_SAE, FakeWorker, unit_vector
from tests.hostile.test_generate_places import SIZES, WRITABLE
from tests.hostile.test_screen import HOSTILE, assert_tame
from tests.tui.opened import fill, opened, screen_text, settle


@SIZES
async def test_names_of_lists(size: tuple[int, int]) -> None:
    with Store() as store:
        lists = FeatureLists(store)
        for place, text in enumerate(WRITABLE):
            if text.strip():
                lists.keep(DEMO_SAE.id, text[:80], [place, place + 1])
    async with opened("features", size) as (app, pilot):
        await pilot.press("W")
        await settle(app, pilot)
        assert isinstance(app.screen, FeatureListsScreen)
        for _ in range(3):
            await pilot.press("e")
            await pilot.pause()
            assert_tame(app)
            await pilot.press("escape", "d")
            await pilot.pause()
            assert_tame(app)
            await pilot.press("u", "j", "j")
            await pilot.pause()
            assert_tame(app)
        await pilot.press("enter")
        await settle(app, pilot)
        assert_tame(app)
        assert app.is_running


@SIZES
async def test_layers_read_through_either_lens(size: tuple[int, int]) -> None:
    async with opened("lens", size) as (app, pilot):
        for text in HOSTILE[:-1]:
            app.store.update(prompt=text[:200])
            await settle(app, pilot)
            await pilot.press("M", "l", "k")
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("enter")
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("escape")
        assert app.is_running


@SIZES
async def test_names_of_vector_files(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path))
    folder = paths.vectors_folder()
    folder.mkdir(parents=True)
    good = save_vectors(unit_vector("v"), tmp_path / "v.safetensors").read_bytes()
    names = [text.replace("/", "").replace("\0", "").encode("utf-8", "replace")[:120] for text in HOSTILE]
    for at, name in enumerate([*names, b"\xff\xfe"]):
        file = Path(os.fsdecode(b"%d" % at + name + b".safetensors"))
        (folder / file).write_bytes(good if at % 2 else b"nothing")
    async with opened("steer", size) as (app, pilot):
        await pilot.press("a", "7")
        await settle(app, pilot)
        assert isinstance(app.screen, VectorFileScreen)
        assert "[INST] [b]bold[b]" in screen_text(app)
        for _ in range(len(HOSTILE)):
            assert_tame(app)
            await pilot.press("down")
        for place in range(3):
            await pilot.press("enter")
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("escape", "escape", "a", "7", *(["down"] * (place + 1)))
            await settle(app, pilot)
            assert_tame(app)
        assert app.is_running


@SIZES
async def test_sets_of_vectors_and_probes_on_every_screen(size: tuple[int, int]) -> None:
    async with opened("steer", size, steers=0) as (app, pilot):
        for arm, text in enumerate(HOSTILE, 1):
            first, second = (replace(unit_vector("v"), name=text, site=text, layer=layer) for layer in (2, 5))
            facts = {"path": text, "name": text, "labels": [text], "base": text}
            probe = replace(first, origin=replace(first.origin, kind="probe", facts=facts))
            app.store.add_steer(replace(first, origin=replace(first.origin, facts=facts)), arm=arm, rest=(second,))
            app.store.add_steer(probe, scale=1.0, arm=arm)
        for mode, _ in SCREENS:
            app.action_show(mode)
            await settle(app, pilot)
            assert_tame(app)
        app.action_show("steer")
        for _ in range(2 * len(HOSTILE)):
            await pilot.press("j")
            await settle(app, pilot)
            assert_tame(app)
        await pilot.press("K")
        await settle(app, pilot)
        assert_tame(app)
        assert app.is_running


@SIZES
async def test_kept_maps_and_graphs(size: tuple[int, int], tmp_path: Path) -> None:
    with CauseStore(tmp_path / "h.db").store as store:
        for text in (text[:300] for text in WRITABLE):
            plan = replace(EXAMPLE, site=text, metric=text, pairs=text)
            *_, patched = fake_patch(1, Patch(plan))
            *_, drawn = fake_graph(1, MakeGraph(GraphPlan(text)))
            assert isinstance(patched, Patched)
            assert isinstance(drawn, GraphMade)
            for found in (patched.found, drawn.found):
                CauseStore(store).keep(found, MadeWith(source=text, weights=text))
    app = lens_app(FakeWorker(), screen="causes", history=tmp_path / "h.db")
    async with app.run_test(size=size) as pilot:
        fill(app)
        await settle(app, pilot)
        await pilot.press("H")
        await settle(app, pilot)
        for _ in range(2 * len(WRITABLE)):
            assert_tame(app)
            await pilot.press("j")
        for place in range(2):
            await pilot.press("enter")
            await settle(app, pilot)
            assert_tame(app)
            await pilot.press("H", *(["j"] * (2 * place + 3)))
            await settle(app, pilot)
            assert_tame(app)
        assert app.is_running
