"""The Load screen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lens_tui.records import LensError
from lens_tui.tasks.models import MemoryEstimate, ModelEntry, SAEEntry
from lens_tui.tui.app import LensApp
from lens_tui.tui.screens.form import ErrorScreen
from lens_tui.tui.screens.load_screen import fit_glyph, matching
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.apps import MODELS, FakeCatalog, lens_app, screen_text, settle
from tests.fakes import DEMO_MODEL, DEMO_SAE, FakeWorker


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


async def test_a_row_stays_under_its_headings_while_an_address_is_typed() -> None:
    app = lens_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        row = next(line for line in screen_text(app).splitlines() if "gemma-3-27b" in line)
        await pilot.press("a")
        await settle(pilot)
        assert "a folder, or a Hugging Face id" in screen_text(app)
        assert row in screen_text(app).splitlines()


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


PARTIAL = replace(MODELS[1], source="hub", path="", nbytes=0, partial=300_000_000, problem="")


async def test_a_download_that_broke_off_says_what_came_and_goes_on_with_enter() -> None:
    worker = FakeWorker()
    app = lens_app(worker, catalog=FakeCatalog((MODELS[0], PARTIAL)))
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("j")
        await settle(pilot)
        text = screen_text(app)
        assert "300 MB of it are here" in text
        assert "goes on where it broke off" in text
        assert "paused" in next(
            line for line in text.splitlines() if "4bit" in line and "│" in line and "FIT" not in line
        )
        await pilot.press("enter")
        await settle(pilot)
        assert worker.submitted == [jobs.LoadModel(PARTIAL.id)]


async def test_a_download_shows_bytes_speed_and_time_left_and_is_looked_at_again_when_it_stops() -> None:
    now, catalog = [0.0], FakeCatalog()
    app = lens_app(FakeWorker(hold=True), catalog=catalog, clock=lambda: now[0])
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("a", *"org/name", "enter")
        await settle(pilot)
        job = app.book.in_slot("load")
        assert job is not None
        deliver(app, ev.JobStarted(job, "LoadModel"), ev.Progress(job, "download", 100_000_000, 731_000_000, "bytes"))
        now[0] = 2.0
        deliver(app, ev.Progress(job, "download", 176_000_000, 731_000_000, "bytes"))
        await settle(pilot)
        assert screen_text(app).count("176 MB of 731 MB · 38.0 MB/s · 15 s left") == 2  # status row and details
        assert "x stops it; what came is kept." in screen_text(app)
        catalog.entries = [*catalog.entries, replace(PARTIAL, id="org/name", name="org/name")]
        deliver(app, ev.JobDone(job, stopped=True))
        await settle(pilot)
        assert "goes on where it broke off" in screen_text(app)


def said(app: LensApp) -> str:
    """The last remark."""
    return [note.message for note in app._notifications][-1]


def deliver(app: LensApp, *events: ev.Event) -> None:
    for event in events:
        app.activity = app._deliver(event, app.activity)


async def test_removing_asks_and_takes_it_off_the_list() -> None:
    catalog = FakeCatalog()
    app = lens_app(catalog=catalog)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("j", "d")
        await settle(pilot)
        assert "frees 731 MB" in screen_text(app)
        await pilot.press("escape")
        await settle(pilot)
        assert catalog.removed == []
        await pilot.press("d", "2")
        await settle(pilot)
        assert catalog.removed == ["/m/1b"]
        assert shown(screen_text(app)) == ["demo", "gemma-3-27b", "own"]


async def test_what_is_loaded_or_bundled_is_not_removed() -> None:
    catalog = FakeCatalog()
    app = lens_app(catalog=catalog)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("d")
        await settle(pilot)
        assert said(app) == "demo is part of the app."
        await pilot.press("enter")
        await settle(pilot)
        await pilot.press("d")
        await settle(pilot)
        assert said(app) == "demo is loaded: D frees it first."
        assert catalog.removed == []


async def test_the_details_follow_the_size_of_the_terminal() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        assert "Memory  of 16.0 GB" in screen_text(app)
        assert "18.4 MB of 16.0 GB held" in screen_text(app)
        await pilot.resize_terminal(80, 24)
        await settle(pilot)
        assert "needs 94.4 MB of 16.0 GB (1%) for four arms" in screen_text(app)
        assert "layer_4_width_8k_l0_medium" in screen_text(app)


async def test_a_refused_removal_is_one_sentence() -> None:
    class Refusing(FakeCatalog):
        def remove(self, entry: ModelEntry | SAEEntry) -> int:
            raise LensError("/m/1b could not be removed: Permission denied.", "Check its permissions.")

    app = lens_app(catalog=Refusing())
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press("j", "d", "2")
        await settle(pilot)
        assert isinstance(app.screen, ErrorScreen)
        assert "Permission denied" in screen_text(app)


async def test_looking_again_says_so_and_finds_what_is_new() -> None:
    catalog = FakeCatalog(MODELS[:1])
    app = lens_app(catalog=catalog)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        catalog.entries = list(MODELS)
        await pilot.press("R")
        await settle(pilot)
        assert said(app) == "Looked again: 4 models, 3 of them new."
        assert shown(screen_text(app)) == ["demo", "gemma-3-1b", "gemma-3-27b", "own"]


@pytest.mark.parametrize(("keys", "path"), [(["j"], "/m/1b"), (["tab"], "layer_4_width_8k_l0_medium")])
async def test_y_copies_the_path_of_the_row(keys: list[str], path: str) -> None:
    app = lens_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press(*keys, "y")
        await settle(pilot)
        assert app.clipboard == path


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


async def test_a_folder_of_the_command_line_has_a_row_once_it_is_loaded() -> None:
    class Folder(FakeCatalog):
        def check(self, typed: str) -> ModelEntry:
            self.checked.append(typed)
            return replace(MODELS[3], id="/there/mine", name="mine", path="/there/mine", problem="")

    catalog = Folder()
    worker = FakeWorker()
    worker.model = replace(DEMO_MODEL, name="../there/mine", path="/there/mine")
    app = lens_app(worker, catalog=catalog, model="../there/mine", screen="load")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot, lambda: "mine" in screen_text(app))
        text = screen_text(app)
        assert "▸ ● mine" in text
        assert "✓ ready" in text
        assert catalog.checked == ["/there/mine"]
        await pilot.press("d")
        await settle(pilot)
        assert catalog.removed == []


async def test_a_loaded_model_that_is_listed_is_not_looked_for_again() -> None:
    catalog = FakeCatalog()
    app = lens_app(catalog=catalog, model="demo", screen="load")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        assert "● demo" in screen_text(app)
        assert catalog.checked == []


async def test_saes_have_room_under_all_that_is_said_of_a_loaded_model() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        model = app.store.session.model
        assert model is not None
        app.store.update(model=replace(model, weights="float32, dequantised on loading"))
        await settle(pilot)
        text = screen_text(app)
        assert "Weights: float32, dequantised on loading · 18.4 MB of 16.0 GB held" in text
        assert "layer_4_width_8k_l0_medium" in text
        assert app.screen.query_one("#saes").region.height >= 3


async def test_transcoders_are_not_counted_as_saes() -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        made = [replace(DEMO_SAE, id=f"t{n}", architecture="transcoder", site_out="mlp_out") for n in range(8)]
        app.store.update(saes=(DEMO_SAE, *made))
        await settle(pilot)
        head = screen_text(app).splitlines()[0]
        assert "1 SAE" in head
        assert "9 SAEs" not in head
        app.store.update(saes=tuple(made[:1]))
        await settle(pilot)
        assert "· 1 transcoder " in screen_text(app).splitlines()[0]


@pytest.mark.parametrize(
    ("name", "size", "shown"),
    [
        ("/home/someone/models/SmolLM2-135M-Instruct/", (120, 36), "SmolLM2-135M-Instruct ·"),
        ("/home/someone/models/SmolLM2-135M-Instruct", (80, 24), "SmolLM2-1"),
        ("mlx-community/gemma-3-1b-it-4bit", (120, 36), "mlx-community/gemma-3-1b-it-4bit ·"),
        ("mlx-community/gemma-3-1b-it-4bit", (80, 24), "gemma-3-1"),
    ],
)
async def test_the_header_names_a_model_by_the_end_of_its_address(name: str, size: tuple[int, int], shown: str) -> None:
    app = lens_app(model="demo")
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        model = app.store.session.model
        assert model is not None
        app.store.update(model=replace(model, name=name))
        await settle(pilot)
        assert f"lens ▏ {shown}" in screen_text(app).splitlines()[0]


@pytest.mark.parametrize(
    "keys", [("3", "S"), ("3", "A"), ("3", "C"), ("3", "c"), ("2", "a"), ("2", "v"), ("6", "enter")]
)
async def test_what_needs_a_model_says_that_it_is_loading(keys: tuple[str, ...]) -> None:
    app = lens_app(FakeWorker(hold=True))
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press(*keys)
        await settle(pilot)
        assert said(app).startswith("Load a model first")
        await pilot.press("1", "enter")
        await settle(pilot)
        assert app.opening.going
        await pilot.press(*keys)
        await settle(pilot)
        assert said(app) == "The model is still loading."


@pytest.mark.parametrize("mode", ["4", "5", "6"])
async def test_an_empty_pane_says_what_a_key_says_of_a_model_on_its_way(mode: str) -> None:
    worker = FakeWorker(failures={jobs.LoadModel: LensError("The folder is gone.")})
    app = lens_app(worker)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(pilot)
        await pilot.press(mode)
        await settle(pilot)
        assert "No model: 1 goes to Load." in screen_text(app)
        worker.hold()
        app.opening.load("demo")
        await settle(pilot)
        assert "The model is still loading." in screen_text(app)
        assert "No model: 1" not in screen_text(app)
        worker.release()
        await settle(pilot)
        assert not app.opening.going
        assert "No model: 1 goes to Load." in screen_text(app)
