"""Pictures of Generate and Features. After a change that was meant: `pytest tests/snapshots --snapshot-update`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.apps import lens_app
from tests.fakes import DEMO_MODEL, FakeWorker
from tests.tui.opened import fill, settle

pytestmark = [pytest.mark.usefixtures("still_cursor")]
SIZES = {"wide": (120, 36), "narrow": (80, 24)}
Before = Callable[[Pilot[Any]], Awaitable[None]]


def after(*keys: str, steers: int = 2, release: int = 0) -> Before:
    """Open the model, press keys one after the other, let a held worker go on for a while."""

    async def run(pilot: Pilot[Any]) -> None:
        fill(pilot.app, steers)  # type: ignore[arg-type]
        await pilot.pause(0.05)
        for key in keys:
            await pilot.press(key)
            if release:
                await pilot.pause(0.05)
            else:
                await settle(pilot.app, pilot)  # type: ignore[arg-type]
        if release:
            pilot.app.worker.release(release)  # type: ignore[attr-defined]
            await pilot.pause(0.3)
        else:
            await settle(pilot.app, pilot)  # type: ignore[arg-type]
        pilot.app.clear_notifications()  # they go by the clock
        await pilot.pause(0.05)

    return run


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_generate(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="generate")
    assert snap_compare(app, terminal_size=size, run_before=after("r", "]", steers=4))


def test_generate_before_the_first_run(snap_compare: Any) -> None:
    assert snap_compare(lens_app(screen="generate"), terminal_size=(80, 24), run_before=after(steers=0))


def test_generate_while_it_writes(snap_compare: Any) -> None:
    app = lens_app(FakeWorker(hold=True), screen="generate")
    assert snap_compare(app, terminal_size=(120, 36), run_before=after("r", release=60))


def test_generate_explains_a_token_in_bars(snap_compare: Any) -> None:
    app = lens_app(screen="generate")
    assert snap_compare(app, terminal_size=(120, 36), run_before=after("r", "t", "v", "]", "l", "l", "l", "l"))


def test_generate_diff_on_paper(snap_compare: Any) -> None:
    app = lens_app(screen="generate", theme="paper")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("r", "]", "D"))


def test_generate_without_colour(snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(lens_app(screen="generate"), terminal_size=(80, 24), run_before=after("r", "l", "l"))


SET = ("r", "S", "down", "down", "down", "9", "space", "1", "9", "enter", "n", "]")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_set_of_prompts(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="generate")
    assert snap_compare(app, terminal_size=size, run_before=after(*SET))


def test_a_set_without_colour(snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(lens_app(screen="generate"), terminal_size=(80, 24), run_before=after(*SET))


def test_set_form(snap_compare: Any) -> None:
    app = lens_app(screen="generate")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("S"))


def test_sampling_form(snap_compare: Any) -> None:
    app = lens_app(screen="generate")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("comma", "0", "enter"))


def test_history(snap_compare: Any) -> None:
    app = lens_app(screen="generate")
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("r", "r", "H"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_features(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="features")
    assert snap_compare(app, terminal_size=size, run_before=after("h", "j"))


def test_features_pinned_in_digits(snap_compare: Any) -> None:
    app = lens_app(screen="features", theme="ember")
    assert snap_compare(app, terminal_size=(120, 36), run_before=after("h", "enter", "t", "t", "h"))


def test_features_by_strength(snap_compare: Any) -> None:
    app = lens_app(screen="features", theme="paper")
    assert snap_compare(app, terminal_size=(120, 36), run_before=after("h", "v"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_features_like_one(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="features")
    assert snap_compare(app, terminal_size=size, run_before=after("h", "v", "v", "tab", "j"))


def test_features_with_nothing_loaded(snap_compare: Any) -> None:
    async def nothing(pilot: Pilot[Any]) -> None:
        await settle(pilot.app, pilot)  # type: ignore[arg-type]

    assert snap_compare(lens_app(screen="features"), terminal_size=(80, 24), run_before=nothing)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_lens(snap_compare: Any, size: tuple[int, int]) -> None:
    assert snap_compare(lens_app(screen="lens"), terminal_size=size, run_before=after("h", "j"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("keys", ["V", "bV", "VVj"], ids=["parts", "steered parts", "heads"])
def test_lens_views(snap_compare: Any, size: tuple[int, int], keys: str) -> None:
    app = lens_app(screen="lens")
    assert snap_compare(app, terminal_size=size, run_before=after("h", "j", *keys))


def test_lens_of_a_steered_model_in_bars(snap_compare: Any) -> None:
    app = lens_app(screen="lens", theme="paper")
    assert snap_compare(app, terminal_size=(120, 36), run_before=after("b", "t", "v", "h"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_generate_lists_features_and_shades_by_one(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="generate")
    assert snap_compare(app, terminal_size=size, run_before=after("F", "r", "]", "right_curly_bracket"))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_features_contrast(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(screen="features")
    keys = ("D", *"a|b|c|d", "tab", "tab", *"e|f|g|h", "enter", "space", "j")
    assert snap_compare(app, terminal_size=size, run_before=after(*keys))


TALKER = replace(DEMO_MODEL, takes_chat=True)
THOUGHT = "<think>\nIt is about a dog .\n</think>\n\nA dog , I should think ."


def talking(*keys: str) -> Before:
    """A conversation of which one answer was thought about, gone on with."""

    async def run(pilot: Pilot[Any]) -> None:
        await after("r")(pilot)
        pilot.app.store.update(model=TALKER, chat=True, prompt="Who was there?")  # type: ignore[attr-defined]
        for key in ("r", "enter", *"And", "space", *"why?", "enter", *keys):
            await pilot.press(key)
            await settle(pilot.app, pilot)  # type: ignore[arg-type]
        pilot.app.clear_notifications()
        await pilot.pause(0.05)

    return run


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_generate_in_a_conversation(snap_compare: Any, size: tuple[int, int]) -> None:
    app = lens_app(FakeWorker(texts=(THOUGHT,)), screen="generate")
    assert snap_compare(app, terminal_size=size, run_before=talking())


def test_generate_with_the_prompt_as_the_model_reads_it(snap_compare: Any) -> None:
    app = lens_app(FakeWorker(texts=(THOUGHT,)), screen="generate")
    assert snap_compare(app, terminal_size=(120, 36), run_before=talking("c", "O"))
