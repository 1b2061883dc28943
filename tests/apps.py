"""The app for tests: fake worker, fixed clocks, a catalogue of four models, no disk and no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from textual.pilot import Pilot

from lens_tui.records import LensError
from lens_tui.tasks.models import MemoryEstimate, ModelEntry, SAEEntry
from lens_tui.tui.app import LensApp
from lens_tui.tui.preferences import Start
from tests.fakes import FakeWorker
from tests.lean_textual import hash_rules_at_once, make_caches_when_used, share_parsed_styles
from tests.quick_pilot import ask_only_the_busy, in_a_thread, one_wait

ask_only_the_busy()
share_parsed_styles()
hash_rules_at_once()
make_caches_when_used()

NOW = 1_760_000_000.0
MACHINE = 16 * 10**9
PATIENCE = 60.0
"""How many seconds a test waits for what no machine needs so long for."""

MODELS = (
    ModelEntry(
        "demo", "demo", "demo", "/m/demo", 18_415_939, "llama", 8, 384, 8192, 1024, "8-bit, groups of 64", 12_288
    ),
    ModelEntry(
        "mlx-community/gemma-3-1b-it-4bit",
        "mlx-community/gemma-3-1b-it-4bit",
        "cache",
        "/m/1b",
        731_000_000,
        "gemma3_text",
        26,
        1152,
        262_144,
        32_768,
        "4-bit, groups of 64",
        26_624,
        used=NOW - 7200,
    ),
    ModelEntry(
        "mlx-community/gemma-3-27b-it-4bit",
        "mlx-community/gemma-3-27b-it-4bit",
        "cache",
        "/m/27b",
        15_900_000_000,
        "gemma3",
        62,
        5376,
        262_144,
        131_072,
        "4-bit, groups of 64",
        507_904,
        used=NOW - 90_000,
    ),
    ModelEntry(
        "/m/own", "own", "folder", "/m/own", 1_990_000_000, "llama", 26, 1152, 262_144, 32_768, "", 26_624,
        problem="2 of 3 weight files are missing.", used=NOW - 40 * 86_400,
    ),
)  # fmt: skip


class FakeCatalog:
    """Implements ``Catalog`` from memory."""

    def __init__(self, models: Sequence[ModelEntry] = MODELS) -> None:
        self.entries = list(models)
        self.checked: list[str] = []
        self.removed: list[str] = []

    def models(self) -> Sequence[ModelEntry]:
        return self.entries

    def saes(self, model: str) -> Sequence[SAEEntry]:
        name = "layer_4_width_8k_l0_medium"
        return [SAEEntry(name, name, "demo", 12_617_984)] if model == "demo" else []

    def remove(self, entry: ModelEntry | SAEEntry) -> int:
        self.removed.append(entry.path)
        self.entries = [other for other in self.entries if other is not entry]
        return 0 if entry.source == "folder" else entry.nbytes

    def check(self, typed: str) -> ModelEntry:
        self.checked.append(typed)
        if "/" not in typed:
            raise LensError(f"There is no model at {typed}.", "Give a folder, a hub id like org/name, or demo.")
        return ModelEntry(typed, typed, "hub")

    def memory(self, entry: ModelEntry) -> MemoryEstimate:
        return MemoryEstimate(
            entry.nbytes, entry.kv_bytes * 4096, 65_536 * entry.d_model, entry.vocab_size * 64, MACHINE
        )


def lens_app(worker: FakeWorker | None = None, **options: Any) -> LensApp:
    """A :class:`LensApp` whose every source of change is in the test's hands."""
    machine: dict[str, Any] = {"catalog": FakeCatalog(), "clock": lambda: 0.0, "wall": lambda: NOW}
    machine |= {name: options.pop(name) for name in machine.keys() & options.keys()}
    return LensApp(worker or FakeWorker(), Start(**options), **machine)


async def settle(pilot: Pilot[Any], until: Callable[[], bool] | None = None) -> None:
    """Let workers, timers and repaints finish; with ``until``, wait for it too."""
    app = pilot.app
    assert isinstance(app, LensApp)
    deadline = time.monotonic() + PATIENCE
    with one_wait(app):
        while True:
            await app.workers.wait_for_complete()
            await pilot.pause(0.01)
            worker = app.worker
            idle = not isinstance(worker, FakeWorker) or worker.idle or worker.held
            # What a thread brought may have another begin: the list of models that of the SAEs of the first.
            if idle and not in_a_thread(app) and (until is None or until()):
                break
            assert time.monotonic() < deadline, "the app did not settle"
        await pilot.pause()


def screen_text(app: LensApp) -> str:
    """What the screen shows, row by row, without styles."""
    return "\n".join("".join(segment.text for segment in strip) for strip in painted(app))


def painted(app: LensApp) -> list[Any]:
    """The strips of the whole screen as they would go to the terminal."""
    return app.screen._compositor.render_strips()
