"""A set of prompts on Generate: the form, the table as it fills, the lanes of a prompt, the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.events import Paste

from lens_tui.records import Arm, LensError, Sampling
from lens_tui.records.prompt_set import COLUMNS, PromptItem, column_of
from lens_tui.records.wording import texts_in
from lens_tui.tui.app import LensApp
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.tui.screens.set_pane import SetForm
from lens_tui.tui.set_text import SetText, asked_set, bare_name, has_amount, head_line, row_line, shape
from lens_tui.worker import jobs
from lens_tui.worker.events import SetStarted
from tests.fakes import PROMPTS, TEXTS, unit_vector

from .opened import PROMPT, app_on, fill, jobs_of, opened, screen_of, screen_text, settle
from .test_generate import worker_of

SWEEP = ("S", "down", "down", "3", "down", "9", "space", "1", "9", "space", "3", "8", "enter")


def sets(app: LensApp) -> list[jobs.ComparePrompts]:
    return jobs_of(app, jobs.ComparePrompts)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_three_scales_on_the_bundled_prompts_take_thirteen_keys(size: tuple[int, int]) -> None:
    async with opened("generate", size) as (app, pilot):
        await pilot.press(*SWEEP)
        await settle(app, pilot)
        (job,) = sets(app)
        assert (job.path, job.first, [arm.name for arm in job.arms]) == (
            "bundled",
            3,
            ["baseline", "dogs 9", "dogs 19", "dogs 38"],
        )
        made = screen_of(app, GenerateScreen).set
        assert made is not None
        shown = screen_text(app)
        for column in range(len(COLUMNS)):
            for arm in range(4):
                for row in made.rows:
                    value = made.value(COLUMNS[column], arm, row)
                    assert value is None or f"{value:.{COLUMNS[column].places}f}" in shown, (COLUMNS[column].id, row)
            await pilot.press("v")
            await settle(app, pilot)
            shown = screen_text(app)
        cells = [cell for cell in made.cells.values() if cell.arm == 3]
        mean = sum(cell.mean_kl or 0.0 for cell in cells) / len(cells)
        assert f"{mean:.3f}" in shown


async def test_arms_that_come_as_the_screen_opens_are_what_keys_act_on() -> None:
    app = app_on("generate")
    async with app.run_test(size=(120, 36)) as pilot:
        fill(app)  # at once, before the focus has come to rest
        await pilot.pause(0.05)
        await pilot.press("plus")
        assert app.store.session.steers[0].scale == 25.0
        lane = screen_of(app, GenerateScreen).lanes.focused_lane
        assert lane is not None
        assert (lane.number, lane.has_focus_within) == (1, True)


async def test_the_keys_of_the_table_page_through_the_lanes() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press(*SWEEP)
        await settle(app, pilot)
        screen = screen_of(app, GenerateScreen)
        assert [lane.number for lane in screen.lanes.lanes] == [0, 1, 2, 3]
        assert "".join(screen.lanes.lanes[1].view.tokens) == TEXTS[1]
        assert screen.lanes.lanes[1].text is not None
        assert screen.lanes.lanes[1].text.mean_kl is not None
        for key, at in (("n", 1), ("n", 2), ("p", 1), ("N", 0), ("j", 1)):
            await pilot.press(key)
            await pilot.pause()
            assert screen.run is not None
            assert screen.run.prompt == PROMPTS[at]
            assert f"prompt {at + 1} of 3 “{PROMPTS[at]}”" in screen_text(app)
        screen.lanes.focus_lane()
        await pilot.press("n", "right_square_bracket")
        await pilot.pause()
        assert screen.run is not None
        assert screen.run.prompt == PROMPTS[2]
        assert screen.table is not None
        assert screen.table.arm == screen.lanes.lanes[screen.lanes.position].number


async def test_lanes_that_come_late_leave_the_focus_with_the_table() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press(*SWEEP)
        await settle(app, pilot)
        screen = screen_of(app, GenerateScreen)
        assert screen.table is not None
        screen.lanes._settled(had_focus=True)  # on a slow machine it comes when the table has been focused
        await pilot.pause()
        assert screen.focused is screen.table.table
        await pilot.press("escape")
        await settle(app, pilot)
        assert any(lane.has_focus_within for lane in screen.lanes.lanes)


async def test_the_bench_is_left_alone_and_escape_goes_back_to_it() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        before = app.store.session
        await pilot.press(*SWEEP)
        await settle(app, pilot)
        await pilot.press("plus", "d")
        assert app.store.session.steers == before.steers
        await pilot.press("escape")
        await settle(app, pilot)
        screen = screen_of(app, GenerateScreen)
        assert (screen.set, screen.run) == (None, screen.history[0])
        assert [lane.title for lane in screen.lanes.lanes] == ["baseline", "dogs", "sadness"]
        await pilot.press("H")
        await pilot.pause()
        assert "set 1 ▸ bundled: 3 prompts" in screen_text(app)
        await pilot.press("enter")
        await settle(app, pilot)
        assert screen.set is not None
        assert "dogs 38" in screen_text(app)


async def test_a_stopped_set_keeps_what_came_and_the_table_fills_meanwhile() -> None:
    async with opened("generate", hold=True) as (app, pilot):
        await pilot.press(*SWEEP)
        worker_of(app).release(30)
        await pilot.pause(0.3)
        screen = screen_of(app, GenerateScreen)
        assert screen.set is not None
        assert "…" in screen_text(app)
        assert screen.lanes.lanes[1].view.streaming
        await pilot.press("x")
        await settle(app, pilot)
        assert screen.set.state == "stopped"
        assert {cell.reason for cell in screen.set.cells.values()} == {"stopped"}
        assert not screen.lanes.lanes[1].view.streaming


async def test_what_cannot_be_is_said_in_the_form_with_what_was_typed_kept() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("S", "down", "down", "down", "down", "1", "space", "2", "enter")
        await pilot.pause()
        assert "At temperature 0 every seed gives the same text." in screen_text(app)
        assert "1 2" in screen_text(app)
        assert not sets(app)
        await pilot.press("escape")
        app.store.update(sampling=Sampling(temp=0.8))
        await pilot.press("S", "enter")
        await settle(app, pilot)
        assert sets(app)[0].seeds == (1, 2)
        assert "seed 2" in screen_text(app)
        assert [arm.name for arm in sets(app)[0].arms] == ["baseline", "dogs +24.0", "sadness +8.0"]


async def test_enter_begins_the_next_prompt_and_behind_an_empty_one_starts() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("S", "down", *"a b", "enter", *"c ", "enter")
        await pilot.pause()
        assert not sets(app)
        assert "starts the set" in screen_text(app)
        assert "typed" in screen_text(app)
        await pilot.press("enter")
        await settle(app, pilot)
        (job,) = sets(app)
        assert [item.text for item in job.prompts] == ["a b", "c "]


async def test_three_scales_on_five_prompts_of_ones_own_take_nine_keys_besides_the_text() -> None:
    async with opened("generate") as (app, pilot):
        keys = ["S", "down", *"a", "enter", *"b", "enter", *"c", "enter", *"d", "enter", *"e", "down", "down"]
        keys += [*("9 19 38".replace(" ", "_")), "enter"]
        await pilot.press(*("space" if key == "_" else key for key in keys))
        await settle(app, pilot)
        (job,) = sets(app)
        assert [item.text for item in job.prompts] == list("abcde")
        assert [arm.name for arm in job.arms] == ["baseline", "dogs 9", "dogs 19", "dogs 38"]
        assert len([key for key in keys if key in ("S", "down", "enter")]) == 9


async def test_a_file_that_is_not_there_is_said_in_the_form_and_what_was_shown_comes_back() -> None:
    async with opened("generate") as (app, pilot):
        for before in range(2):
            await pilot.press("S", "home", "right", "right", "down", "ctrl+u", *"nowhere", "enter")
            await settle(app, pilot)
            assert isinstance(app.screen, SetForm)
            assert "There is no file" in screen_text(app)
            assert "nowhere" in screen_text(app)
            await pilot.press("escape")
            await settle(app, pilot)
            screen = screen_of(app, GenerateScreen)
            assert screen.set is (screen.sets.all[0] if before else None)
            assert len(screen.sets.all) == before
            if not before:
                await pilot.press("S", "home", "down", "ctrl+u", "up", "home", "enter")
                await settle(app, pilot)
                assert screen.set is not None


async def test_a_path_that_is_typed_where_prompts_are_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my prompts.txt"
    file.write_text("One\nTwo\n")
    async with opened("generate") as (app, pilot):
        await pilot.press("S", "down")
        app.post_message(Paste(str(file)))
        await pilot.press("enter")
        await settle(app, pilot)
        (job,) = sets(app)
        assert (job.path, job.prompts) == (str(file), ())
        await pilot.press("S", "down", "ctrl+u", *"The", "space", *"sea", "enter", "enter")
        await settle(app, pilot)
        assert [item.text for item in sets(app)[-1].prompts] == ["The sea"]


async def test_a_name_is_cut_before_its_scale_and_arms_without_room_are_counted() -> None:
    async with opened("generate") as (app, pilot):
        app.store.edit_steer("s1", vector=unit_vector("a name that is longer than any column"))
        await pilot.press(*SWEEP)
        await settle(app, pilot)
        made = screen_of(app, GenerateScreen).set
        assert made is not None
        at = shape(40, 4, 3)
        assert (list(at.arms), at.away) == ([2, 3], 2)
        assert head_line(made, at).split()[-2:] == ["38", "+2"]
        assert len("".join(row_line(made, column_of("mean_kl"), at, (0, 0)))) == 40 - 3


def test_typed_prompts_and_this_one_reach_the_model_exactly() -> None:
    from lens_tui.tui.session import Session

    assert texts_in(r" a |b\\|c\|d| | ") == [" a ", "b\\", "c|d"]
    session = Session(prompt=PROMPT + " ")
    values = {"source": "this prompt", "prompts": "", "first": "", "scales": "", "seeds": ""}
    job = asked_set(values, session, None, ["baseline"])
    assert ([item.text for item in job.prompts], job.arms) == ([PROMPT + " "], (Arm("baseline"),))
    refused = (({"source": "typed"}, "no prompts"), ({"source": "file"}, "No file"), ({"scales": "1"}, "lane"))
    for changes, says in refused:
        with pytest.raises(LensError, match=says):
            asked_set(values | changes, session, None, ["baseline"])


def test_ids_of_prompts_have_a_column_and_texts_begin_below_each_other() -> None:
    from lens_tui.tui.session import Session
    from lens_tui.tui.set_text import SetText
    from lens_tui.worker.events import SetStarted

    ids = ("a", "tale-7", "an id that is far too long for a column")
    items = tuple(PromptItem(name, f"text of {place}") for place, name in enumerate(ids))
    made = SetText.begin(1, jobs.ComparePrompts((Arm("baseline"),), items), Session())
    made.apply(SetStarted(1, "mine", items, (Arm("baseline"),), (7,)))
    labels = [made.label(row) for row in made.rows]
    assert len({label.index("text of") for label in labels}) == 1
    assert labels[2].startswith("…")
    numbered = tuple(PromptItem(str(place), "text") for place in range(2))
    made.apply(SetStarted(1, "mine", numbered, (Arm("baseline"),), (7, 12)))
    assert [made.label(row) for row in made.rows[:2]] == ["seed 7   text", "seed 12  text"]


@pytest.mark.parametrize(
    ("name", "amount", "bare"),
    [
        ("dogs +24.0", "+24.0", "dogs"),
        ("dogs 24", "+24.0", "dogs"),
        ("dogs -9.5", "-9.5", "dogs"),
        ("dogs 100", "+100.0", "dogs"),
        ("model 12", "+24.0", "model 12"),
        ("baseline", "", "baseline"),
    ],
)
def test_a_scale_that_stands_beside_a_name_is_not_in_it_too(name: str, amount: str, bare: str) -> None:
    assert bare_name(name, amount) == bare
    assert has_amount(name, amount) == (name != bare)


async def test_heads_are_whole_where_there_is_room_and_lanes_say_a_scale_once() -> None:
    async with opened("generate", steers=3) as (app, pilot):
        await pilot.press("S", "enter")
        await settle(app, pilot)
        shown = screen_text(app)
        assert "sadness +8.0" in shown  # over its column
        assert "+8.0  +8.0" not in shown
        assert [lane.title for lane in screen_of(app, GenerateScreen).lanes.lanes] == [
            "baseline",
            "dogs",
            "sadness",
            "verse",
        ]


@pytest.mark.parametrize("width", [60, 77, 117, 200])
@pytest.mark.parametrize("arms", [1, 2, 5, 13])
@pytest.mark.parametrize("longest", [0, 8, 13, 40])
def test_a_table_is_as_wide_as_it_may_be(width: int, arms: int, longest: int) -> None:
    for focused in range(arms):
        at = shape(width, arms, focused, longest)
        assert focused in at.arms
        assert at.column >= 8
        assert at.name >= 13
        assert at.name + len(at.arms) * at.column + (3 if at.away else 0) == width


async def test_the_command_of_a_set_is_of_all_its_prompts_and_arms() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press(*SWEEP)
        await settle(app, pilot)
        await pilot.press("Y")
        await pilot.pause()
        words = app.clipboard.split()
        assert words[:2] == ["mlx-lens-tui", "compare"]
        assert words[-4:] == ["--first", "3", "--prompts", "bundled"]
        assert (words.count("--arm"), words.count("--raw")) == (3, 0)


async def test_the_runs_of_a_set_without_the_template_are_without_it() -> None:
    async with opened("generate") as (app, _):
        items = (PromptItem("1", "a"), PromptItem("2", "b"))
        made = SetText.begin(1, jobs.ComparePrompts((Arm("baseline"),), items, raw=True), app.store.session)
        made.apply(SetStarted(1, "typed", items, made.arms, (0,)))
        assert {run.record().raw for run in made.runs.values()} == {made.record().raw} == {True}
