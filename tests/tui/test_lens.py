"""The Lens screen, its grid and what it says of a cell."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from lens_tui.records.interventions import amount_of
from lens_tui.records.measures import Part
from lens_tui.tui.app import LensApp
from lens_tui.tui.format import signed
from lens_tui.tui.parts_text import (
    Lazily,
    columns_of,
    layer_parts,
    logit_lines,
    look_cells,
    look_lines,
    pattern_cells,
    signed_bar,
)
from lens_tui.tui.reading_text import cell_lines, cells, details, rank_level
from lens_tui.tui.screens.lens_screen import ReadoutScreen
from lens_tui.tui.session import Written
from lens_tui.tui.widgets.heat_grid import NAME, _beyond, window_start
from lens_tui.worker.jobs import LENS_TOKENS, RandomVector, ReadLens, ReadParts, ReadPattern, VectorFromToken
from tests.fake_lens import fake_lens, fake_parts, fake_pattern
from tests.fakes import FakeWorker

from .opened import PROMPT, app_on, fill, jobs_of, opened, screen_of, screen_text, settle


def asked(app: LensApp) -> list[ReadLens]:
    return jobs_of(app, ReadLens)


def test_ranks_have_levels_on_a_logarithmic_scale() -> None:
    assert [rank_level(rank, 8192) for rank in (0, 1, 9, 90, 900, 8191)] == [7, 6, 5, 3, 2, 0]


def test_a_window_moves_no_further_than_the_cursor_needs() -> None:
    assert [window_start(0, at, 4, 10) for at in (0, 3, 4, 9)] == [0, 0, 1, 6]
    assert window_start(6, 5, 4, 10) == 5
    assert window_start(6, 1, 20, 10) == 0


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


def test_a_cells_second_line_is_the_number_of_its_shade() -> None:
    lens = fake_lens(ReadLens(PROMPT))
    row, column = 6, 2
    best, followed, kl = (details(lens, measure)[row][column] for measure in ("probability", "target", "KL"))
    assert best == f"{float(np.exp(lens.top_logprobs[row, column, 0])):.3f}".lstrip("0")
    assert followed == f"{float(lens.target_probabilities[row, column]):.3f}".lstrip("0")
    assert kl == "1.00 nat"


@pytest.mark.parametrize(
    ("value", "drawn"),
    [
        (1.0, "    │████"),
        (0.5, "    │██  "),
        (-1.0, "████│    "),
        (-0.6, " ▐██│    "),
        (0.0, "    │    "),
        (9, "    │████"),
    ],
)
def test_a_bar_goes_right_for_more_and_left_for_less(value: float, drawn: str) -> None:
    assert signed_bar(value, 1.0, 9) == drawn
    assert signed_bar(value, 1.0, 4) == "    "


def test_a_layers_row_has_its_parts_and_their_sum() -> None:
    parts = fake_parts(ReadParts(PROMPT, target=5))
    values = dict(zip(parts.parts, parts.values[:, 0].tolist(), strict=True))
    rows = layer_parts(parts)
    assert [row.layer for row in rows] == list(range(8))
    assert rows[3].values == {
        "attn": values[Part("attn", 3)],
        "mlp": values[Part("mlp", 3)],
        "layer": pytest.approx(values[Part("attn", 3)] + values[Part("mlp", 3)]),
    }
    assert columns_of(rows, 90) == ["attn", "mlp", "layer"]


def test_a_logits_lines_have_the_heads_of_the_layer_and_stay_within_their_width() -> None:
    parts = fake_parts(ReadParts(PROMPT, target=5))
    lines = [line.plain for line in logit_lines(parts, 2, 26)]
    assert all(len(line) <= 26 for line in lines)
    place = lines.index("heads of L2")
    shown = [line.split()[1] for line in lines[place + 1 : place + 7]]
    assert shown == [signed(float(value), 2) for value in parts.heads[2].values[:, 0]]


def test_a_look_says_where_most_of_it_goes_and_what_the_head_adds() -> None:
    pattern, parts = fake_pattern(ReadPattern(PROMPT, layer=2)), fake_parts(ReadParts(PROMPT, target=5, position=4))
    texts = fake_lens(ReadLens(PROMPT)).texts
    lines = [line.plain for line in look_lines(pattern, texts, (1, 4, 1), parts, 30)]
    assert all(len(line) <= 30 for line in lines)
    assert lines[0].endswith(".80")  # three places back: a quarter over five tokens, and the rest there
    assert lines[3].startswith("1 Once")
    assert lines[-1].endswith(signed(float(parts.heads[2].values[1, 0]), 3))
    assert [cell[0] for cell in look_cells(pattern, 4)[-2]] == [".05", ".80", ".05", ".05", ".05"]


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_the_grid_shows_layers_and_tokens_and_moves(size: tuple[int, int]) -> None:
    async with opened("lens", size=size) as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
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
        screen = screen_of(app, ReadoutScreen)
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
        assert "▐read dogs +24.0" in screen_text(app)
        await pilot.press("b", "b")
        await settle(app, pilot)
        assert asked(app)[-1].arm is None


async def test_a_token_is_followed_by_key_or_by_name_and_let_go() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
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
        screen = screen_of(app, ReadoutScreen)
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
        screen, worker = screen_of(app, ReadoutScreen), cast("FakeWorker", app.worker)
        worker.hold()
        await pilot.press("b")
        await pilot.pause()
        assert "as of before: reading" in screen_text(app)
        assert screen.grid.has_class("-before")
        worker.release()
        await settle(app, pilot)
        assert "as of before" not in screen_text(app)
        assert not screen.grid.has_class("-before")


async def test_a_reading_that_waits_for_other_work_says_so_until_it_begins() -> None:
    async with opened("lens") as (app, pilot):
        worker = cast("FakeWorker", app.worker)
        for keys in (("b",), ("V", "{")):
            await pilot.press(*keys[:-1])
            await settle(app, pilot)
            worker.hold()
            app.submit(RandomVector("other", 4, 0), "other", lambda _: None)
            await pilot.press(keys[-1])
            await settle(app, pilot)
            assert "as of before: waits for what runs" in screen_text(app)
            while "waits" in screen_text(app):
                worker.release(1)
                await settle(app, pilot)
            assert "as of before: reading" in screen_text(app)
            worker.release()
            await settle(app, pilot)
            assert "as of before" not in screen_text(app)


async def test_a_first_reading_says_in_each_view_that_it_waits_is_read_or_was_stopped() -> None:
    app = app_on("generate")
    async with app.run_test(size=(120, 36)) as pilot:
        worker = cast("FakeWorker", app.worker)
        fill(app)
        await settle(app, pilot)
        worker.hold()
        app.submit(RandomVector("other", 4, 0), "other", lambda _: None)
        await pilot.press("5")
        for said in ("waits for what runs …", "stopped", "reading …"):
            for _ in range(3):
                await settle(app, pilot)
                assert said in screen_text(app)
                await pilot.press("V")
            if said == "stopped":
                await pilot.press("3", "5")
                worker.release(1)  # it has begun
            elif said != "reading …":
                await pilot.press("x")


async def test_a_text_that_is_too_long_is_refused_in_each_view_before_anything_is_read() -> None:
    refused = f"The text has {LENS_TOKENS + 77} tokens; the lens reads up to {LENS_TOKENS}. Choose a shorter text."
    async with opened("lens") as (app, pilot):
        screen, before = screen_of(app, ReadoutScreen), len(asked(app))
        app.store.update(prompt=" word" * (LENS_TOKENS + 76))  # and one that begins it
        await settle(app, pilot)
        for _ in range(3):
            assert refused in " ".join(screen_text(app).split())
            await pilot.press("V")
            await settle(app, pilot)
        long = tuple(range(LENS_TOKENS + 77))
        app.store.update(prompt=PROMPT, written=(Written("long", long),))
        await settle(app, pilot)
        assert (len(asked(app)), refused in screen_text(app)) == (before + 1, False)
        await pilot.press("right_square_bracket")
        await pilot.pause()
        assert refused in " ".join(screen_text(app).split())
        assert (len(asked(app)), app.screen) == (before + 1, screen)


async def test_a_long_text_of_few_tokens_is_counted_and_read_and_its_count_can_be_stopped() -> None:
    async with opened("lens") as (app, pilot):
        worker, before = cast("FakeWorker", app.worker), len(asked(app))
        worker.hold()
        app.store.update(prompt=" word" * (LENS_TOKENS // 4))
        await settle(app, pilot)
        assert len(asked(app)) == before
        await pilot.press("x")
        worker.release()
        await settle(app, pilot)
        assert "as of before: stopped" in screen_text(app)
        await pilot.press("4", "5")
        await settle(app, pilot)
        assert len(asked(app)) == before + 1
        assert f"{LENS_TOKENS // 4 + 1} tokens" in screen_text(app)


async def test_s_sends_the_cells_best_token_at_its_layer_and_the_followed_one_instead() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
        lens = screen.read_out
        assert lens is not None
        await pilot.press("<", "<")
        assert screen.grid.row == 5
        await pilot.press(">")
        best = int(lens.top_ids[6, screen.grid.column, 0])
        await pilot.press("s")
        await settle(app, pilot)
        jobs = jobs_of(app, VectorFromToken)
        assert (jobs[-1].token, jobs[-1].layer, jobs[-1].kind) == (f"id:{best}", 6, "unembedding")
        assert len(app.store.session.steers) == 3
        await pilot.press("/", "c", "a", "t", "enter")
        await settle(app, pilot)
        await pilot.press("s")
        await settle(app, pilot)
        assert screen.read_out is not None
        followed = int(screen.read_out.target_ids[screen.grid.column])
        jobs = jobs_of(app, VectorFromToken)
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
        lens = screen_of(app, ReadoutScreen).read_out
        assert lens is not None
        assert app.clipboard.startswith(f"baseline, layer 7, token {len(lens.token_ids) - 1} ")
        assert "KL from the last layer 0.00 nats" in app.clipboard
        assert "rank 0 (0 is best)" in app.clipboard


async def test_shades_have_twins_and_three_meanings() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
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


def of(app: LensApp, kind: type) -> list[Any]:
    return jobs_of(app, kind)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_the_views_are_of_the_grids_place(size: tuple[int, int]) -> None:
    async with opened("lens", size=size) as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
        lens = screen.read_out
        assert lens is not None
        assert not of(app, ReadParts)
        await pilot.press("V", "j", "h")
        await settle(app, pilot)
        last = len(lens.token_ids) - 1
        assert (screen.grid.row, screen.grid.column) == (6, last - 1)
        (job,) = of(app, ReadParts)[-1:]
        assert (job.text, job.position, job.target) == (PROMPT, last - 1, int(lens.target_ids[last - 1]))
        expected = fake_parts(job)
        text = screen_text(app)
        for value in (expected.values[1, 0], expected.heads[6].values[2, 0]):
            assert signed(float(value), 2) in text
        assert "▸L6" in text
        assert "heads of L6" in text
        await pilot.press("V")
        await settle(app, pilot)
        assert of(app, ReadPattern)[-1] == ReadPattern(PROMPT, layer=6)
        assert "Heads of L6 looking from" in screen_text(app)
        await pilot.press("<", "{")
        await settle(app, pilot)
        assert (screen.grid.row, screen.grid.column) == (5, last - 2)
        assert of(app, ReadPattern)[-1].layer == 5
        assert "Heads of L5 looking from" in screen_text(app)
        await pilot.press("V", "}", ">")
        await settle(app, pilot)
        assert screen.focused is screen.grid
        assert (screen.grid.row, screen.grid.column) == (6, last - 1)


async def test_a_head_is_chosen_by_moving_and_says_what_it_adds() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
        await pilot.press("V", "V")
        await settle(app, pilot)
        assert screen.heads.head == 0
        await pilot.press("j", "j")
        await settle(app, pilot)
        assert screen.heads.head == 2
        parts = fake_parts(of(app, ReadParts)[-1])
        assert signed(float(parts.heads[7].values[2, 0]), 3) in screen_text(app)


def test_a_heads_pattern_is_the_heads_weights_and_nothing_is_seen_of_what_comes_later() -> None:
    pattern = fake_pattern(ReadPattern("a b c d e", (), None, 2))
    count = len(pattern.token_ids)
    for head in (0, 3):
        cells = pattern_cells(pattern, head)
        assert len(cells) == len(cells[0]) == count
        for place in range(count):
            row = [text for text, _ in cells[count - 1 - place]]
            assert row[: place + 1] == [text for text, _ in look_cells(pattern, place)[len(pattern.weights) - 1 - head]]
            assert row[place + 1 :] == [""] * (count - place - 1)


@pytest.mark.parametrize(
    ("before", "behind", "said"),
    [(0, 0, ""), (2, 3, "‹2 3›"), (0, 83, "83›"), (3, 83, "‹ ›"), (12345, 0, "‹…"), (0, 12345, "…›")],
)
def test_the_corner_never_cuts_a_number(before: int, behind: int, said: str) -> None:
    assert _beyond(before, behind) == said
    assert len(said) <= NAME


def test_only_what_is_asked_for_is_made() -> None:
    made: list[int] = []

    def make(at: int) -> int:
        made.append(at)
        return at

    items = Lazily(10**9, make)
    assert items[7] == 7
    assert list(items[3:9:3]) == [3, 6]
    assert made == [7, 3, 6]
    assert len(items) == 10**9
    for beyond in (-1, 10**9):
        with pytest.raises(IndexError):
            items[beyond]


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_below_the_heads_is_the_pattern_of_the_one_under_the_cursor(size: tuple[int, int]) -> None:
    async with opened("lens", size=size) as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
        await pilot.press("V", "V")
        await settle(app, pilot)
        await pilot.press("j")
        await settle(app, pilot)
        pattern = fake_pattern(of(app, ReadPattern)[-1])
        every, last = screen.heads.every, len(pattern.token_ids) - 1
        assert "H1 from every token" in screen_text(app)
        assert every.region.bottom <= screen.heads.region.bottom
        assert (last - every.row, every.column) == (screen.grid.column, screen.heads.grid.column)
        assert every._cells[0][0][0] == look_cells(pattern, last)[-2][0][0]
        await pilot.press("{", "h")
        await settle(app, pilot)
        assert (last - every.row, every.column) == (screen.grid.column, screen.heads.grid.column)
        assert screen.grid.column == last - 1
        await pilot.press("tab")
        assert screen.focused is not every, "it is read only"


async def test_more_heads_than_leave_room_have_it_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.fake_pattern", lambda job: fake_pattern(job, heads=14))
    async with opened("lens", size=(80, 24)) as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
        await pilot.press("V", "V")
        await settle(app, pilot)
        assert not screen.heads.every.display
        assert screen.heads.grid.size.height >= 15
        await pilot.resize_terminal(120, 36)
        await settle(app, pilot)
        assert screen.heads.every.display
        assert "H13" in screen_text(app)


async def test_steering_is_a_part_under_an_arm_that_acts_at_the_layer() -> None:
    async with opened("lens") as (app, pilot):
        await pilot.press("V", "b")
        await settle(app, pilot)
        assert of(app, ReadParts)[-1].arm.name == "dogs"
        text = screen_text(app)
        assert "steering" in text
        assert "+1.50" in text


async def test_a_direction_is_sent_to_the_bench_from_a_cell() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
        lens = screen.read_out
        assert lens is not None
        await pilot.press("j", "h", "s")
        await settle(app, pilot)
        job = of(app, VectorFromToken)[-1]
        place = screen.grid.row, screen.grid.column
        assert (job.token, job.layer, job.kind) == (f"id:{int(lens.top_ids[(*place, 0)])}", 6, "unembedding")
        row = app.store.session.steers[-1]
        assert (row.layer, row.arm) == (6, 3)
        assert row.scale == pytest.approx(42.5 / 2, rel=0.01)
        assert any("The unembedding row of" in note.message for note in app._notifications)
        await pilot.press("V", "s")
        await settle(app, pilot)
        assert of(app, VectorFromToken)[-1].token == f"id:{int(lens.target_ids[place[1]])}"


async def test_a_layer_without_a_pattern_says_why() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
        await pilot.press("V", "V")
        await settle(app, pilot)
        await pilot.press(*["<"] * 6)
        await settle(app, pilot)
        assert screen.grid.row == 1
        assert "has no pattern that can be read" in screen_text(app)
        await pilot.press("{", ">")
        await settle(app, pilot)
        assert "Heads of L2 looking" in screen_text(app)


async def test_the_grid_fills_its_pane_and_a_click_finds_its_cell() -> None:
    async with opened("lens") as (app, pilot):
        screen = screen_of(app, ReadoutScreen)
        assert screen.grid.tall == 3
        assert screen.grid.cell_width * len(screen.read_out.token_ids if screen.read_out else ()) > 70
        await pilot.click(screen.grid, offset=(5 + screen.grid.cell_width + 1, 1 + 2 * 3 + 1))
        await settle(app, pilot)
        assert (screen.grid.row, screen.grid.column) == (5, 1)


async def test_parts_of_before_are_marked_and_what_was_stopped_is_asked_again() -> None:
    async with opened("lens") as (app, pilot):
        screen, worker = screen_of(app, ReadoutScreen), cast("FakeWorker", app.worker)
        await pilot.press("V")
        await settle(app, pilot)
        worker.hold()
        await pilot.press("{")
        await settle(app, pilot)
        assert "as of before: reading" in screen_text(app)
        asked_before = len(of(app, ReadParts))
        await pilot.press("x")
        worker.release()
        await settle(app, pilot)
        assert "as of before: stopped" in screen_text(app)
        await pilot.press("{")
        await settle(app, pilot)
        assert len(of(app, ReadParts)) == asked_before + 1
        assert "as of before" not in screen_text(app)
        assert not screen.parts.bars.has_class("-before")


async def test_m_reads_through_the_jacobian_lens_with_the_logit_lens_beside() -> None:
    async with opened("lens") as (app, pilot):
        assert not asked(app)[-1].jacobian
        await pilot.press("M")
        await settle(app, pilot)
        assert asked(app)[-1].jacobian
        text = screen_text(app)
        assert "Jacobian lens" in text
        assert "says what the model says" in text
        await pilot.press("s")
        await settle(app, pilot)
        assert of(app, VectorFromToken)[-1].kind == "jacobian"
        assert any("The direction along the Jacobian lens of" in note.message for note in app._notifications)
        await pilot.press("M")
        await settle(app, pilot)
        assert not asked(app)[-1].jacobian
        assert "says what the model says" not in screen_text(app)
