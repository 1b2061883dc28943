"""The Load screen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lens_tui.records import LensError
from lens_tui.tasks.models import MemoryEstimate, ModelEntry
from lens_tui.tui.screens.form import ErrorScreen
from lens_tui.tui.screens.load_screen import fit_glyph, matching
from lens_tui.worker import jobs
from tests.apps import MODELS, FakeCatalog, lens_app, screen_text, settle
from tests.fakes import FakeWorker


def shown(text: str) -> list[str]:
    """The names in the list, in its order."""
    names = ["demo", "gemma-3-1b", "gemma-3-27b", "own"]
    found = [(line.find(name), row, name) for row, line in enumerate(text.splitlines()) for name in names]
    rows = [(row, name) for place, row, name in found if 0 <= place < 24 and row > 3]
    return [name for _, name in sorted(rows)]


async def test_the_list_says_size_quantisation_fit_and_use() -> None:
    app = lens_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        lines = screen_text(app).splitlines()
        row = next(line for line in lines if "gemma-3-27b" in line)
        assert "4-bit" in row
        assert "15.9 GB" in row
        assert "░░░" in row
        assert "yesterday" in row
        assert "▸ demo" in next(line for line in lines if "bundled" in line)


async def test_enter_loads_what_the_cursor_is_on() -> None:
    worker = FakeWorker()
    app = lens_app(worker)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("j", "enter")
        await settle(pilot)
        assert worker.submitted == [jobs.LoadModel("mlx-community/gemma-3-1b-it-4bit")]


async def test_details_show_shape_memory_and_saes_then_ready() -> None:
    app = lens_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        text = screen_text(app)
        assert "8 layers · d_model 384" in text
        assert "Memory  of 16.0 GB" in text
        assert "layer_4_width_8k_l0_medium" in text
        await pilot.press("enter")
        await settle(pilot)
        assert "✓ ready" in screen_text(app)
        assert "● demo" in screen_text(app)


async def test_details_say_that_weights_are_held_in_float32() -> None:
    class Wide(FakeCatalog):
        def memory(self, entry: ModelEntry) -> MemoryEstimate:
            return replace(super().memory(entry), float32=True)

    app = lens_app(catalog=Wide(), dequantize="always")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        assert "Weights in float32: faster on this CPU." in screen_text(app)
        app.opening.load("demo")
        await settle(pilot)
        assert isinstance(app.worker, FakeWorker)
        assert app.worker.submitted[0] == jobs.LoadModel("demo", dequantize="always")
        model = app.store.session.model
        assert model is not None
        app.store.update(model=replace(model, weights="float32, dequantised on loading"))
        await settle(pilot)
        assert "Weights: float32, dequantised on loading" in screen_text(app)


async def test_a_model_that_cannot_be_loaded_says_why_and_is_not_tried() -> None:
    worker = FakeWorker()
    app = lens_app(worker)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("G", "enter")
        await settle(pilot)
        assert isinstance(app.screen, ErrorScreen)
        assert "2 of 3 weight files are missing." in screen_text(app)
        assert worker.submitted == []


async def test_the_filter_narrows_while_typing_and_escape_clears_it() -> None:
    app = lens_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("/", *"27b")
        await settle(pilot)
        assert shown(screen_text(app)) == ["gemma-3-27b"]
        await pilot.press("escape")
        await settle(pilot)
        assert shown(screen_text(app)) == ["demo", "gemma-3-1b", "gemma-3-27b", "own"]


async def test_sorting_goes_through_three_orders() -> None:
    app = lens_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("o")
        await settle(pilot)
        assert shown(screen_text(app)) == ["demo", "gemma-3-1b", "gemma-3-27b", "own"]
        await pilot.press("o")
        await settle(pilot)
        assert shown(screen_text(app)) == ["demo", "gemma-3-1b", "own", "gemma-3-27b"]


async def test_adding_a_hub_id_checks_it_lists_it_and_loads_it() -> None:
    worker, catalog = FakeWorker(), FakeCatalog()
    app = lens_app(worker, catalog=catalog)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("a", *"org/name", "enter")
        await settle(pilot)
        assert catalog.checked == ["org/name"]
        assert worker.submitted == [jobs.LoadModel("org/name")]
        assert "on the hub" in screen_text(app)


async def test_adding_nonsense_is_one_sentence() -> None:
    worker = FakeWorker()
    app = lens_app(worker)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("a", *"wibble", "enter")
        await settle(pilot)
        assert "There is no model at wibble." in screen_text(app)
        assert worker.submitted == []


async def test_a_failed_load_leaves_its_sentence_in_the_details() -> None:
    worker = FakeWorker(failures={jobs.LoadModel: LensError("The hub cannot be reached.", "Check the network.")})
    app = lens_app(worker)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("enter")
        await settle(pilot)
        await pilot.press("escape")
        await settle(pilot)
        assert screen_text(app).count("The hub cannot be reached.") == 2  # details and status row
        worker.failures.clear()
        await pilot.press("enter")
        await settle(pilot)
        assert "The hub cannot be reached." not in screen_text(app)


async def test_stages_are_ticked_off_while_loading() -> None:
    worker = FakeWorker(hold=True)
    app = lens_app(worker)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("enter")
        worker.release(5)
        await settle(pilot)
        assert "✓ config  ✓ tokenizer  ● weights" in screen_text(app)


async def test_tab_reaches_the_saes_and_enter_loads_one() -> None:
    worker = FakeWorker()
    app = lens_app(worker)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("tab", "enter")
        await settle(pilot)
        assert worker.submitted == []  # no model yet: it says so
        await pilot.press("escape", "enter")
        await settle(pilot)
        before = len(worker.submitted)
        await pilot.press("tab", "enter")
        await settle(pilot)
        assert worker.submitted[before:] == [jobs.LoadSAE("layer_4_width_8k_l0_medium")]


async def test_unloading_frees_the_model() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("D")
        await settle(pilot)
        assert app.store.session.model is None
        assert "no model" in screen_text(app).splitlines()[0]


async def test_no_models_at_all_names_the_next_key() -> None:
    app = lens_app(catalog=FakeCatalog(()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "a adds a folder or a hub id" in screen_text(app)


@pytest.mark.parametrize(("total", "glyph"), [(5, "███"), (7, "██░"), (9, "█░░"), (10, "█░░"), (11, "░░░")])
def test_fit_in_memory(total: int, glyph: str) -> None:
    assert fit_glyph(MemoryEstimate(total - 3, 1, 1, 1, 10)) == glyph


def test_an_unknown_size_says_nothing_of_fit() -> None:
    assert fit_glyph(MemoryEstimate(0, 0, 0, 0, 10)).strip() == ""


def test_matching_wants_every_word() -> None:
    assert [entry.name for entry in matching(MODELS, "gemma 4-bit 1b", "name")] == ["mlx-community/gemma-3-1b-it-4bit"]
    assert matching(MODELS, "gemma demo", "name") == []
