"""The history screen: this session's runs before those kept on disk, filtered, put back, killed ones marked."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from textual.pilot import Pilot

from lens_tui.records import Add, Arm, Candidate, Origin, Sampling, Token
from lens_tui.records.judgements import JudgementStore
from lens_tui.records.run_store import RunStore
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.tui.screens.history_screen import HistoryScreen, PastRun, load, of_session, run_text
from lens_tui.tui.widgets.row_list import RowList
from tests.apps import lens_app, screen_text, settle
from tests.fakes import FakeWorker, unit_vector
from tests.tui.opened import fill

OLD = "The captain looked at"


def token(arm: int, index: int, text: str, scale: float | None = None) -> Token:
    scales = (("s", scale),) if scale is not None else ()
    top = (Candidate(7, text, -0.5), Candidate(8, " other", -1.5))
    return Token(
        index, 7 + index, text, text, -0.5 - index, arm=arm, kl=0.25 * arm, top=top, scales=scales, plain_logprob=-1.0
    )


def kept_run(database: Path, prompt: str = OLD, *, owner: int | None = None) -> int:
    """A run on disk of two arms and three tokens; the scale was moved before the third. ``owner``: left open by it."""
    store = RunStore(database)
    steer = Add(id="s", layer=3, vector=unit_vector("sea", 3, Origin("random", {"seed": 1})), scale=12.0)
    settings = Sampling(seed=5, max_tokens=3)
    run = store.begin("demo", prompt, (Arm("baseline"), Arm("sea", (steer,))), settings, prompt_ids=(1, 2))
    scales = (12.0, 12.0, 14.0)
    for index, word in enumerate((" the", " blue", " \x1b[31msea")):
        store.add(run, [token(0, index, " the"), token(1, index, word, scales[index])])
    if owner is None:
        store.end_arm(run, 0, "length")
        store.end_arm(run, 1, "length", 0.4)
        store.end(run, "done")
    else:
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE run SET owner = ? WHERE id = ?", (owner, run))
    return run


async def history(pilot: Pilot[None]) -> HistoryScreen:
    await pilot.press("H")
    await settle(pilot)
    screen = pilot.app.screen
    assert isinstance(screen, HistoryScreen)
    return screen


def prompts(screen: HistoryScreen) -> list[str]:
    return [row.prompt for row in screen.query_one(RowList).rows]


def test_a_kept_run_comes_back_with_every_token_its_bench_and_its_dials(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    run = load(database, kept_run(database))
    assert run is not None
    assert (run.prompt, run.sampling.seed, run.state, run.prompt_ids) == (OLD, 5, "done", (1, 2))
    steered = run.arms[1]
    assert [t.token_id for t in steered.tokens] == [7, 8, 9]
    assert [t.logprob for t in steered.tokens] == [-0.5, -1.5, -2.5]
    assert steered.mean_kl == pytest.approx(0.25)
    assert steered.plain_perplexity == pytest.approx(math.e)
    assert (steered.reason, steered.dose, steered.parted) == ("length", 0.4, None)
    assert [(index, item.scale) for index, (item,) in steered.dials if isinstance(item, Add)] == [(2, 14.0)]
    (row,) = run.steers
    assert (row.arm, row.layer, row.scale, row.vector.name) == (1, 3, 12.0, "sea")
    assert run.written()[1].token_ids == (1, 2, 7, 8, 9)


def test_what_was_written_on_disk_comes_back_as_it_was_and_is_shown_safely(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    run = load(database, kept_run(database, "a\x1b]52;c;x\x07b"))
    assert run is not None
    assert run.prompt == "a\x1b]52;c;x\x07b"
    assert "\x1b" not in run.arms[1].arm.name + run.arms[1].tokens[2].token
    assert run.arms[1].tokens[0].token == " the"


def test_a_run_that_is_gone_is_none(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    kept_run(database)
    assert load(database, 99) is None


def test_an_unfinished_run_counts_as_stopped(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    store = RunStore(database)
    run = kept_run(database, owner=2**22 - 3)
    assert store.broken() == [run]
    record = store.get(run)
    assert record is not None
    assert record.state == "killed"
    assert run_text(record).state == "stopped"
    assert len(run_text(record).arms[1].tokens) == 3


async def test_runs_of_the_disk_follow_this_sessions_newest_first_and_killed_ones_say_so(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    kept_run(database)
    kept_run(database, "killed in the middle", owner=2**22 - 3)
    app = lens_app(FakeWorker(), screen="generate", history=database)
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app)
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        screen = await history(pilot)
        assert prompts(screen)[1:] == ["killed in the middle", OLD]
        assert "killed: what had come is kept" in screen_text(app)


async def test_a_run_that_was_judged_blind_says_so(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    kept_run(database, "not judged")
    JudgementStore(RunStore(database)).add(kept_run(database, "judged"), (1, 0), None)
    app = lens_app(FakeWorker(), screen="generate", history=database)
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app)
        await settle(pilot)
        screen = await history(pilot)
        assert prompts(screen) == ["judged", "not judged"]
        said = [line for line in screen_text(app).splitlines() if "judged blind" in line]
        assert len(said) == 1
        assert "sea · judged blind · demo" in said[0]


def test_runs_of_many_arms_are_told_apart_by_their_seeds() -> None:
    run = PastRun(
        "The door", ", ".join(["cookery +19.0 · 1.2×max", "dialogue +12.0", "king +25.7"]), "80 tokens · seed 8"
    )
    said = HistoryScreen([], None).draw(run, 60)[1].plain
    assert "cookery +19.0 · 1.2×max, dialog… · 80 tokens · seed 8" in said
    assert len(said) == 60


async def test_filter_reaches_what_was_written_and_enter_puts_the_run_back(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    kept_run(database)
    kept_run(database, "something else")
    app = lens_app(FakeWorker(), screen="generate", history=database)
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app)
        await settle(pilot)
        screen = await history(pilot)
        await pilot.press("slash", *"captain", "enter")
        await settle(pilot)
        assert prompts(screen) == [OLD]
        await pilot.press("enter")
        await settle(pilot)
        shown = app.screen
        assert isinstance(shown, GenerateScreen)
        assert app.store.session.prompt == OLD
        assert [row.vector.name for row in app.store.session.steers] == ["sea"]
        assert shown.run is not None
        assert [t.token_id for t in shown.run.arms[1].tokens] == [7, 8, 9]
        assert "blue" in screen_text(app)


async def test_a_run_of_another_width_leaves_the_bench_alone(tmp_path: Path) -> None:
    import numpy as np

    from lens_tui.records import SteeringVector

    database = tmp_path / "runs.db"
    steer = Add(id="s", layer=0, vector=SteeringVector.of("small", np.arange(1.0, 9.0), 0), scale=2.0)
    store = RunStore(database)
    store.end(store.begin("tiny", OLD, (Arm("baseline"), Arm("small", (steer,))), Sampling()))
    app = lens_app(FakeWorker(), screen="generate", history=database)
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app)
        await settle(pilot)
        await history(pilot)
        await pilot.press("enter")
        await settle(pilot)
        assert app.store.session.prompt == OLD
        assert [row.vector.name for row in app.store.session.steers] == ["dogs", "sadness"]


def test_words_choose_among_this_sessions_runs() -> None:
    from lens_tui.tui.run_text import RunText
    from lens_tui.tui.session import Session

    runs = [RunText.begin(n, Session(prompt=prompt)) for n, prompt in enumerate(("one dog", "two cats"), 1)]
    assert [row.prompt for row in of_session(runs)] == ["two cats", "one dog"]
    assert [row.prompt for row in of_session(runs, "DOG one")] == ["one dog"]
    assert of_session(runs, "dog cats") == []


async def test_runs_have_the_numbers_they_are_named_by_and_each_is_listed_once(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    kept = [kept_run(database), kept_run(database, "another")]
    app = lens_app(FakeWorker(), screen="generate", history=database)
    async with app.run_test(size=(100, 30)) as pilot:
        fill(app)
        await settle(pilot)
        screen = await history(pilot)
        shown = screen_text(app)
        assert "by number, for `mlx-lens-tui replay`" in shown
        for number, prompt in zip(kept, (OLD, "another"), strict=True):
            assert f"{number:>5} {prompt}" in shown
        late = load(database, kept[0])
        assert late is not None
        assert isinstance(app.screen_stack[-2], GenerateScreen)
        app.screen_stack[-2].history.append(late)  # it was kept after the disk was read
        screen.fill()
        await settle(pilot)
        assert prompts(screen) == [OLD, "another"]
        await pilot.press("escape", "S", "enter")
        await settle(pilot)
        await history(pilot)
        assert "set 1 ▸ bundled:" in screen_text(app)


async def test_the_runs_of_a_set_are_listed_under_it_and_found_by_words() -> None:
    app = lens_app(FakeWorker(), screen="generate")
    async with app.run_test(size=(80, 24)) as pilot:
        fill(app)
        await settle(pilot)
        await pilot.press("S", "down", "down", "3", "enter")
        await settle(pilot)
        screen = await history(pilot)
        assert len(prompts(screen)) == 1
        assert "⏎ open  r again  space beside  l h set  / find  esc back" in screen_text(app)
        await pilot.press("l")
        asked = prompts(screen)[1:]
        assert len(asked) == 3
        assert "▾ " in screen_text(app)
        await pilot.press("j", "j", "h")
        assert (len(prompts(screen)), screen.query_one(RowList).cursor) == (1, 0)
        await pilot.press("/", *asked[1].split()[-1], "enter")
        await settle(pilot)
        assert asked[1] in prompts(screen)
        await pilot.press("G", "enter")
        await settle(pilot)
        generate = app.screen
        assert isinstance(generate, GenerateScreen)
        assert generate.run is not None
        assert generate.set is None
        assert (generate.run.prompt, app.store.session.prompt) == (asked[1], asked[1])


async def test_the_keys_of_the_history_are_those_that_have_something_to_act_on() -> None:
    app = lens_app(FakeWorker(), screen="generate")
    async with app.run_test(size=(80, 24)) as pilot:
        fill(app)
        await settle(pilot)
        await history(pilot)
        assert "  esc back" in screen_text(app)
        assert not any(word in screen_text(app) for word in ("⏎ open", "r again", "/ find", "space beside"))
        await pilot.press("escape", "r")
        await settle(pilot)
        await history(pilot)
        assert "⏎ open  r again  / find  esc back" in screen_text(app)
        await pilot.press("space")
        assert "is taken" not in screen_text(app)
        for _ in range(8):
            await pilot.press("escape", "r")
            await settle(pilot)
            await history(pilot)
        assert "⏎ open  r again  space beside  / find  esc back" in screen_text(app)
        await pilot.press("/")
        await settle(pilot)
        assert "⏎ open  r again  space beside  / find  esc back" in screen_text(app)
