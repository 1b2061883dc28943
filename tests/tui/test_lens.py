"""The Lens screen, its grid and what it says of a cell."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from lens_tui.records.interventions import amount_of
from lens_tui.tui.app import LensApp
from lens_tui.tui.reading_text import cell_lines, cells, rank_level
from lens_tui.tui.screens.lens_screen import ReadoutScreen
from lens_tui.tui.widgets.heat_grid import _window
from lens_tui.worker.jobs import ReadLens, VectorFromToken
from tests.fake_lens import fake_lens
from tests.fakes import FakeWorker

from .opened import PROMPT, opened, screen_text, settle


def screen_of(app: LensApp) -> ReadoutScreen:
    assert isinstance(app.screen, ReadoutScreen)
    return app.screen


def asked(app: LensApp) -> list[ReadLens]:
    return [job for job in cast("FakeWorker", app.worker).submitted if isinstance(job, ReadLens)]


def test_ranks_have_levels_on_a_logarithmic_scale() -> None:
    assert [rank_level(rank, 8192) for rank in (0, 1, 9, 90, 900, 8191)] == [7, 6, 5, 3, 2, 0]


def test_a_window_moves_no_further_than_the_cursor_needs() -> None:
    assert [_window(0, at, 4, 10) for at in (0, 3, 4, 9)] == [0, 0, 1, 6]
    assert _window(6, 5, 4, 10) == 5
    assert _window(6, 1, 20, 10) == 0


def test_the_shade_is_a_probability_of_the_best_or_the_followed_token_or_a_divergence() -> None:
    lens = fake_lens(ReadLens(PROMPT))
    best, followed, kl = (cells(lens, measure) for measure in ("probability", "target", "KL"))
    row, column = 6, 2
    assert best[row][column][0] == lens.texts[int(lens.top_ids[row, column, 0])]
    p = float(np.exp(lens.top_logprobs[row, column, 0]))
    assert best[row][column][1] == 1 + int(7 * p)
    assert followed[row][column][1] == 1 + int(7 * float(np.exp(lens.target_logprobs[row, column])))
    assert followed[0][column][1] == 0
    assert [kl[row][column][1] for row in (7, 6, 0)] == [0, 3, 5]


def test_a_cells_lines_say_best_tokens_and_the_followed_one_by_layer() -> None:
    lens = fake_lens(ReadLens(PROMPT))
    lines = [line.plain for line in cell_lines(lens, 6, 2, 34, 8192)]
    assert all(len(line) <= 34 for line in lines)
    assert lines[0] == "best next tokens"
    assert lines[1].startswith(lens.texts[int(lens.target_ids[2])].replace(" ", "·"))
    assert "rank 0" in lines[7]
    ranks = next(line for line in lines if line.startswith("rank "[:5]) and "█" in line)
    assert ranks.endswith("███")
    assert len(ranks) == 5 + 8


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_the_grid_shows_layers_and_tokens_and_moves(size: tuple[int, int]) -> None:
    async with opened("lens", size=size) as (app, pilot):
        screen = screen_of(app)
        lens = screen.read_out
        assert lens is not None
        assert (screen.grid.row, screen.grid.column) == (7, len(lens.token_ids) - 1)
        await pilot.press("g")
        await settle(app, pilot)
        text = screen_text(app)
        assert "Once" in text
        assert text.index("L7") < text.index("L0")
        assert "best next tokens" in text
        for key, place in (
            ("l", (7, 1)),
            ("j", (6, 1)),
            ("k", (7, 1)),
            ("h", (7, 0)),
            ("G", (7, len(lens.token_ids) - 1)),
        ):
            await pilot.press(key)
            await pilot.pause()
            assert (screen.grid.row, screen.grid.column) == place
        assert "▐5 Lens▌" in text.splitlines()[0]


async def test_the_next_arm_is_read_in_the_same_place() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app)
        before = screen.read_out
        await pilot.press("h")
        place = (screen.grid.row, screen.grid.column)
        await pilot.press("b")
        await settle(app, pilot)
        arm = asked(app)[-1].arm
        assert arm is not None
        assert arm.name == "dogs"
        assert screen.read_out is not before
        assert (screen.grid.row, screen.grid.column) == place
        assert "▐read dogs▌" in screen_text(app)
        await pilot.press("b", "b")
        await settle(app, pilot)
        assert asked(app)[-1].arm is None


async def test_a_token_is_followed_by_key_or_by_name_and_let_go() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app)
        assert screen.read_out is not None
        best = int(screen.read_out.top_ids[screen.grid.row, screen.grid.column, 0])
        await pilot.press("enter")
        await settle(app, pilot)
        assert asked(app)[-1].target == best
        await pilot.press("escape")
        await settle(app, pilot)
        assert asked(app)[-1].target == ""
        await pilot.press("/", "c", "a", "t", "enter")
        await settle(app, pilot)
        assert asked(app)[-1].target == "cat"
        assert "followed ‘cat’" in screen_text(app)
        await pilot.press("/", *"two words", "enter")
        await settle(app, pilot)
        assert "is not one token" in screen_text(app)
        assert screen.target == ""


async def test_no_line_of_a_cell_is_wrapped_in_a_narrow_terminal() -> None:
    async with opened("lens", size=(80, 24)) as (app, pilot):
        screen = screen_of(app)
        lens = screen.read_out
        assert lens is not None
        await pilot.resize_terminal(80, 18)  # now the cell has a scroll bar
        await settle(app, pilot)
        lines = str(screen.cell.content).splitlines()
        assert screen.cell.size.height == len(lines)
        assert max(map(len, lines)) <= screen.cell.size.width
        assert any(line.startswith("·the") and line.rstrip().endswith(".448") for line in lines)


async def test_numbers_of_before_are_marked_until_the_new_ones_are_there() -> None:
    async with opened("lens") as (app, pilot):
        screen, worker = screen_of(app), cast("FakeWorker", app.worker)
        worker.hold()
        await pilot.press("b")
        await pilot.pause()
        assert "as of before: reading" in screen_text(app)
        assert screen.grid.has_class("-before")
        worker.release()
        await settle(app, pilot)
        assert "as of before" not in screen_text(app)
        assert not screen.grid.has_class("-before")


async def test_s_sends_the_cells_best_token_at_its_layer_and_the_followed_one_instead() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app)
        lens = screen.read_out
        assert lens is not None
        await pilot.press("<", "<")
        assert screen.grid.row == 5
        await pilot.press(">")
        best = int(lens.top_ids[6, screen.grid.column, 0])
        await pilot.press("s")
        await settle(app, pilot)
        jobs = [job for job in cast("FakeWorker", app.worker).submitted if isinstance(job, VectorFromToken)]
        assert (jobs[-1].token, jobs[-1].layer, jobs[-1].kind) == (f"id:{best}", 6, "unembedding")
        assert len(app.store.session.steers) == 3
        await pilot.press("/", "c", "a", "t", "enter")
        await settle(app, pilot)
        await pilot.press("s")
        await settle(app, pilot)
        assert screen.read_out is not None
        followed = int(screen.read_out.target_ids[screen.grid.column])
        jobs = [job for job in cast("FakeWorker", app.worker).submitted if isinstance(job, VectorFromToken)]
        assert jobs[-1].token == f"id:{followed}"


async def test_plus_and_minus_are_the_scale_of_the_arm_that_is_read() -> None:
    async with opened("lens") as (app, pilot):
        await pilot.press("+")
        await settle(app, pilot)
        assert [row.scale for row in app.store.session.steers] == [24.0, 8.0]
        await pilot.press("b", "+")
        await settle(app, pilot)
        first = app.store.session.steers[0]
        assert (first.scale, app.store.session.steers[1].scale) == (24.0 + first.step, 8.0)
        arm = asked(app)[-1].arm
        assert arm is not None
        assert amount_of(arm.interventions[0]) == first.scale
        await pilot.press("-")
        await settle(app, pilot)
        assert app.store.session.steers[0].scale == 24.0


async def test_y_copies_the_cell_with_its_place() -> None:
    async with opened("lens") as (app, pilot):
        await pilot.press("y")
        await settle(app, pilot)
        lens = screen_of(app).read_out
        assert lens is not None
        assert app.clipboard.startswith(f"baseline, layer 7, token {len(lens.token_ids) - 1} ")
        assert "KL from the last layer 0.00 nats" in app.clipboard
        assert "rank 0 (0 is best)" in app.clipboard


async def test_shades_have_twins_and_three_meanings() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app)
        await pilot.press("v")
        await pilot.pause()
        assert screen.measure == "target"
        app.tint = "digits"
        await settle(app, pilot)
        row = next(line for line in screen_text(app).splitlines() if "L7" in line)
        assert any(digit in row for digit in "234567")


async def test_without_model_or_text_it_says_what_to_do() -> None:
    async with opened("lens") as (app, pilot):
        app.store.update(prompt="")
        await settle(app, pilot)
        assert "No text: write a prompt" in screen_text(app)
        app.store.update(model=None)
        await settle(app, pilot)
        assert "No model" in screen_text(app)
