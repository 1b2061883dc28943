"""Hostile text on every screen: nothing reaches the terminal that it would act on, nothing is read as markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.segment import Segment
from textual.color import Color
from textual.screen import Screen

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line, sanitise_token
from lens_tui.tasks.models import ModelEntry, SAEEntry
from lens_tui.tui.app import LensApp
from lens_tui.tui.guards import NoControls
from lens_tui.tui.keys import SCREENS
from lens_tui.tui.screens.form import Choice, ChoiceScreen, ErrorScreen, Field, FormScreen
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.apps import FakeCatalog, lens_app, painted, screen_text, settle
from tests.fakes import DEMO_MODEL, DEMO_SAE, FakeWorker, unit_vector

HOSTILE = (
    "[/INST] [b]bold[/b] [@click=app.quit]click me[/] [link=https://example.org]x[/link] \\[a] [[x",
    "\x1b]52;c;aGk=\x07 \x1b[2J\x1b[31m \x9b31m \x00\x08\x7f",
    "\u202eright to left\u2066 \u200bzero\ufeff \ud800 \U000e0041",
    "👩‍👩‍👧‍👦 ❤️ 日本語 e\u0301" + "\u0301" * 40,
    "x" * 10_000,
    "$accent $heat-0 {{}} %s \\",
    " \t\n\r\n\x0b\x0c ",
)

ACTING = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2066", "\ufeff", "\ud800"}


class HostileCatalog(FakeCatalog):
    """Every model and SAE is called something that wants to act."""

    def models(self) -> Sequence[ModelEntry]:
        return [
            ModelEntry(f"id{place}", text, "folder", text, 10**9, text, 4, 64, 100, 100, text, 100, text)
            for place, text in enumerate(HOSTILE)
        ]

    def saes(self, model: str) -> Sequence[SAEEntry]:
        return [SAEEntry(text, text, text, 1) for text in HOSTILE]


def assert_tame(app: LensApp) -> None:
    """No control character in any painted segment, no action, no link."""
    for strip in painted(app):
        for segment in strip:
            assert sanitise_token(segment.text) == segment.text, repr(segment.text)
            assert not ACTING & set(segment.text), repr(segment.text)
            if segment.style is not None:
                assert segment.style.link is None
                assert "@click" not in segment.style.meta


def hostile_bench(app: LensApp) -> None:
    weights = tuple(ev.TokenWeight(1, text, 1.0) for text in HOSTILE)
    for text in HOSTILE:
        vector = replace(unit_vector("v"), name=text, site=text)
        app.store.add_steer(vector, scale=3.0, arm=1, promoted=weights, suppressed=weights)
    info = replace(DEMO_MODEL, name=HOSTILE[0] + HOSTILE[1], architecture=HOSTILE[1])
    app.store.update(model=info, saes=(replace(DEMO_SAE, name=HOSTILE[0]),), sae=DEMO_SAE.id, prompt=HOSTILE[1])


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
@pytest.mark.parametrize("mode", [mode for mode, _ in SCREENS])
async def test_every_screen_stays_tame(mode: str, size: tuple[int, int]) -> None:
    app = lens_app(screen=mode, catalog=HostileCatalog())
    async with app.run_test(size=size, notifications=True) as pilot:
        await settle(pilot)
        hostile_bench(app)
        await settle(pilot)
        for _ in range(len(HOSTILE)):
            assert_tame(app)
            await pilot.press("j")
            await settle(pilot)
        assert app.is_running


async def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    app = lens_app(screen="load", catalog=HostileCatalog())
    async with app.run_test(size=(200, 50)) as pilot:
        await settle(pilot)
        assert "[/INST] [b]bold[/b] [@click=app.quit]click me[/]" in screen_text(app)


def dialogues(text: str) -> list[Screen[Any]]:
    return [
        ErrorScreen(text, text, text),
        FormScreen(text, [Field("a", text, text, text)], text),
        ChoiceScreen(text, [Choice("a", text, text), Choice("b", text, barred=text)]),
    ]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
async def test_dialogues_stay_tame(text: str) -> None:
    app = lens_app()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        for screen in dialogues(text):
            app.push_screen(screen)
            app.say(text)
            await settle(pilot)
            assert_tame(app)
            await pilot.press("escape")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
async def test_messages_of_a_failed_job_stay_tame(text: str) -> None:
    app = lens_app(FakeWorker(failures={jobs.LoadModel: LensError(text, text)}), model="x")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert_tame(app)
        await pilot.press("escape")
        await settle(pilot)
        assert_tame(app)


async def test_stage_names_and_titles_stay_tame() -> None:
    app = lens_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        from lens_tui.tui.host import Activity, advance

        for text in HOSTILE:
            activity = advance(Activity(), ev.JobStarted(1, text), 0.0)
            app.activity = advance(activity, ev.Progress(1, text, 1, 2, text), 1.0)
            await settle(pilot)
            assert_tame(app)


async def test_a_pasted_name_is_made_safe() -> None:
    app = lens_app(screen="steer", model="demo")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("e")
        await settle(pilot)
        app.screen.query_one("#name").value = HOSTILE[1]  # type: ignore[attr-defined]
        await pilot.press("enter")
        await settle(pilot)
        assert app.store.session.steers[0].vector.name == one_line(HOSTILE[1], 60)
        assert_tame(app)


def test_the_guard_leaves_clean_lines_alone() -> None:
    clean = [Segment("plain text ▏é日")]
    assert NoControls().apply(clean, Color(0, 0, 0)) is clean
    dirty = NoControls().apply([Segment("a\x1b[2J\x9b\ud800b")], Color(0, 0, 0))
    assert "".join(segment.text for segment in dirty) == "a␛[2J⟨9b⟩⟨U+D800⟩b"
