"""The Generate screen: what a run shows, live changes, and what leaves the screen."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from rich.cells import cell_len

from lens_tui.records import Add, LensError, Positions, Sampling, paths
from lens_tui.records.run import MadeWith
from lens_tui.tasks.run_command import as_command
from lens_tui.tasks.run_export import FORMATS, as_markdown
from lens_tui.tui.app import LensApp
from lens_tui.tui.format import kl_key, nats
from lens_tui.tui.run_text import summary
from lens_tui.tui.screens import generate_screen
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.tui.screens.run_settings import read_sampling, sampling_fields
from lens_tui.tui.widgets.lane import window
from lens_tui.worker import jobs
from tests.fake_words import split
from tests.fakes import DEMO_SAE, TEXTS, FakeWorker, unit_vector

from .opened import PROMPT, jobs_of, opened, screen_of, screen_text, settle


def worker_of(app: LensApp) -> FakeWorker:
    return cast("FakeWorker", app.worker)


def compares(app: LensApp) -> list[jobs.Compare]:
    return jobs_of(app, jobs.Compare)


async def test_a_run_streams_every_arm_and_says_where_they_part() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        (job,) = compares(app)
        assert job.prompt == PROMPT
        assert [arm.name for arm in job.arms] == ["baseline", "dogs", "sadness"]
        screen = screen_of(app, GenerateScreen)
        for lane, text in zip(screen.lanes.lanes, TEXTS, strict=False):
            assert "".join(lane.view.tokens) == text
            assert lane.view.streaming is False
        words = split(TEXTS[0])
        assert [lane.view.mark for lane in screen.lanes.lanes] == [None, 2, words.index(" She") + 1]
        shown = screen_text(app)
        assert "parts at 2 “ dog”" in shown
        assert " · 0.31 ‖h‖" in shown
        assert "+24.0 · 2.0×max" in shown
        assert f"{len(words)}/128" in shown


async def test_numbers_on_the_screen_are_the_means_of_the_tokens() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        run = screen_of(app, GenerateScreen).run
        assert run is not None
        for arm in run.arms[1:]:
            kls = [token.kl for token in arm.tokens if token.kl is not None]
            assert f"{nats(sum(kls) / len(kls))} nat" in screen_text(app)
            assert arm.perplexity is not None
            assert arm.plain_perplexity is not None
            assert f"ppl {arm.perplexity:.1f} own" in screen_text(app)
        assert f"KL to plain: {kl_key()}" in screen_text(app)


async def test_the_plain_text_in_an_arms_place_has_no_kl_and_a_step_after_the_parting_says_so() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        lane = screen_of(app, GenerateScreen).lanes.lanes[1]
        await pilot.press("l", "l", "l", "l")
        await pilot.pause()
        assert lane.view.cursor is not None
        assert lane.text is not None
        assert lane.text.parted == 2 < lane.view.cursor
        assert "other text since 2 “ dog”" in str(lane.foot.content)
        token = lane.text.tokens[lane.view.cursor]
        told = str(lane.inspector.render())
        assert f"KL {nats(token.kl)} nat" in told
        assert f"logp {token.logprob:.2f} own, plain {token.plain_logprob:.2f}" in told
        await pilot.press("escape")
        assert "other text" not in str(lane.foot.content)
        await pilot.press("b")
        await settle(app, pilot)
        assert lane.text.number == 0
        assert (lane.note, "same text" in str(lane.foot.content)) == ("", False)
        assert "nat" in str(lane.strip.render())
        assert "KL to plain" in str(lane.strip.render())  # the key to the bars, and no bars of the baseline's zeros


async def test_a_scale_changed_while_it_writes_is_dialled_live() -> None:
    async with opened("generate", hold=True) as (app, pilot):
        await pilot.press("r")
        worker_of(app).release(20)
        await pilot.pause(0.2)
        screen = screen_of(app, GenerateScreen)
        before = len(screen.lanes.lanes[1].view.tokens)
        assert 0 < before < len(split(TEXTS[1]))
        assert screen.lanes.lanes[1].view.streaming
        await pilot.press("plus")
        ((_, arm, interventions),) = worker_of(app).dialled
        assert arm == 1
        assert isinstance(interventions[0], Add)
        assert interventions[0].scale == 25.0
        worker_of(app).release()
        await settle(app, pilot)
        assert len(compares(app)) == 1
        assert "+25.0 from " in screen_text(app)


async def test_a_scale_changed_at_rest_runs_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_screen, "REST", 1.0)  # no machine takes so long from key to key
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("plus", "plus", "equals_sign", "minus")
        assert "+24.0 → +30.0 · 2.5×max" in screen_text(app)
        await pilot.pause(1.5)
        await settle(app, pilot)
        assert len(compares(app)) == 2
        (item,) = compares(app)[1].arms[1].interventions
        assert isinstance(item, Add)
        assert item.scale == 30.0
        await pilot.press("0")
        await pilot.pause(0.5)
        await settle(app, pilot)
        assert app.store.session.steers[0].scale == 0.0
        await pilot.press("u")
        assert app.store.session.steers[0].scale == 30.0


async def test_stopping_keeps_what_was_written() -> None:
    async with opened("generate", hold=True) as (app, pilot):
        await pilot.press("r")
        worker_of(app).release(20)
        await pilot.pause(0.2)
        await pilot.press("x")
        await settle(app, pilot)
        run = screen_of(app, GenerateScreen).run
        assert run is not None
        assert run.state == "stopped"
        assert 0 < len(run.arms[0].tokens) < len(split(TEXTS[0]))
        assert "stopped" in screen_text(app)


async def test_running_again_drops_what_the_old_run_still_says() -> None:
    async with opened("generate", hold=True) as (app, pilot):
        await pilot.press("r")
        worker_of(app).release(20)
        await pilot.pause(0.2)
        await pilot.press("r")
        worker_of(app).release()
        await settle(app, pilot)
        screen = screen_of(app, GenerateScreen)
        assert [run.state for run in screen.history] == ["stopped", "done"]
        assert "".join(screen.lanes.lanes[0].view.tokens) == TEXTS[0]


async def test_the_prompt_is_written_in_insert_mode_and_enter_runs() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("i")
        assert "INSERT" in screen_text(app)
        assert "⏎ run  ^j new line  esc leave" in screen_text(app).splitlines()[-1]
        await pilot.press("x", "r", "ctrl+j", "y")
        assert not compares(app)
        await pilot.press("enter")
        await settle(app, pilot)
        assert compares(app)[0].prompt == PROMPT + "xr\ny"
        assert "NORMAL" in screen_text(app)
        await pilot.press("i", "z", "escape")
        assert app.store.session.prompt == PROMPT + "xr\nyz"
        assert "changed since" in screen_text(app)


async def test_the_token_under_the_cursor_is_explained_in_every_lane() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("l", "l", "l")
        lanes = screen_of(app, GenerateScreen).lanes.lanes
        assert [lane.view.cursor for lane in lanes] == [2, 2, 2]
        run = screen_of(app, GenerateScreen).run
        assert run is not None
        for lane, arm in zip(lanes, run.arms, strict=True):
            token, others = lane.inspector.step
            assert token is arm.tokens[2]
            assert {item.token_id for item in others} == {item.token_id for item in arm.tokens[2].top}
        assert "“ dog”" in screen_text(app)
        await pilot.press("escape")
        assert [lane.view.cursor for lane in lanes] == [None] * 3
        assert not any(lane.has_class("-inspecting") for lane in lanes)


async def test_what_the_shade_says_can_be_changed() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        lane = screen_of(app, GenerateScreen).lanes.lanes[1]
        assert any(lane.view._levels)
        await pilot.press("D")
        assert "not in the baseline" in screen_text(app)
        marked = [token for token, level in zip(lane.view.tokens, lane.view._levels, strict=True) if level]
        assert " dog" in marked
        assert " park" not in marked
        assert not any(screen_of(app, GenerateScreen).lanes.lanes[0].view._levels)
        await pilot.press("D")
        assert "surprise" in screen_text(app)
        assert any(screen_of(app, GenerateScreen).lanes.lanes[0].view._levels)
        await pilot.press("v")
        assert "shade: KL to plain, 0.01 to 10 nats" in screen_text(app)
        await pilot.press("t")
        assert [lane.view.mode for lane in screen_of(app, GenerateScreen).lanes.lanes] == ["bars"] * 3


async def test_flip_shows_the_baseline_in_place() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("b")
        lane = screen_of(app, GenerateScreen).lanes.lanes[1]
        assert "".join(lane.view.tokens) == TEXTS[0]
        await pilot.press("b")
        assert "".join(lane.view.tokens) == TEXTS[1]


async def test_arms_are_added_and_taken_away() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("a")
        assert [lane.number for lane in screen_of(app, GenerateScreen).lanes.lanes] == [0, 1, 2, 3]
        assert app.store.session.steers[-1].scale == 29.0
        await pilot.press("a", "a")
        assert len(app.store.session.steers) == 4
        assert [row.scale for row in app.store.session.steers] == [24.0, 8.0, 29.0, 34.0]  # each higher than the last
        await pilot.press("d")
        assert [lane.number for lane in screen_of(app, GenerateScreen).lanes.lanes] == [0, 1, 2, 3]
        await pilot.press("u")
        assert len(screen_of(app, GenerateScreen).lanes.lanes) == 5


async def test_a_run_can_be_put_back() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        app.store.update(prompt="another", sampling=Sampling(seed=9))
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("H", "j", "enter")
        await pilot.pause()
        screen = screen_of(app, GenerateScreen)
        assert app.store.session.prompt == PROMPT
        assert app.store.session.sampling.seed == 0
        assert screen.run is screen.history[0]
        assert "changed since" not in screen_text(app)


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 16)])
async def test_every_arm_can_be_reached_at_any_size(size: tuple[int, int]) -> None:
    async with opened("generate", size, steers=4) as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        seen = set()
        for _ in range(5):
            await pilot.press("right_square_bracket")
            lane = screen_of(app, GenerateScreen).lanes.focused_lane
            assert lane is not None
            assert lane.display
            assert lane.region.width >= min(36 if size[0] < 100 else 23, size[0])
            assert lane.view.has_focus
            assert lane.view.size.height >= 1
            seen.add(lane.number)
        assert seen == {0, 1, 2, 3, 4}


async def test_facts_of_a_lane_are_whole_in_the_width_that_another_lane_leaves() -> None:
    async with opened("generate", (115, 36), steers=2) as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        lane = screen_of(app, GenerateScreen).lanes.lanes[1]
        wide = [lane.stats.content.plain, lane.foot.content.plain]
        await pilot.press("a", "a")
        await settle(app, pilot)
        narrow = [lane.stats.content.plain, lane.foot.content.plain]
        assert lane.size.width < 26
        for before, now in zip(wide, narrow, strict=True):
            assert cell_len(before) > cell_len(now)
            assert cell_len(now) <= lane.size.width - 1
        assert set(narrow[1].split(" · ")) < set(wide[1].split(" · "))


async def test_lanes_out_of_sight_are_counted_and_a_scale_never_gives_way_to_a_name() -> None:
    async with opened("generate", (80, 24), steers=3) as (app, pilot):
        app.store.edit_steer("s1", vector=unit_vector("a name that is longer than any lane", max_activation=12.0))
        await pilot.press("r")
        await settle(app, pilot)
        lane = screen_of(app, GenerateScreen).lanes.lanes[1]
        assert (lane.away, str(lane.note)) == ((0, 2), "+24.0 · 2.0×max")
        assert "… +24.0  2▸" in screen_text(app)
        await pilot.press("right_square_bracket", "right_square_bracket")
        assert screen_of(app, GenerateScreen).lanes.lanes[3].away == (2, 0)
        assert "◂2  verse" in screen_text(app)
        assert "+5.0" in screen_text(app)


async def test_the_multiple_of_the_maximum_goes_before_the_name_and_the_positions_after_it() -> None:
    async with opened("generate", (100, 30), steers=4) as (app, pilot):
        app.store.edit_steer("s1", vector=unit_vector("cooked food", max_activation=12.0))
        await settle(app, pilot)
        lane = screen_of(app, GenerateScreen).lanes.lanes[1]
        assert (str(lane.note), "×max" in screen_text(app)) == ("+24.0 · 2.0×max", False)
        assert re.search(r"cooked food +\+24\.0", screen_text(app))
        app.store.edit_steer("s1", positions=Positions("generated"))
        await pilot.resize_terminal(160, 30)
        await settle(app, pilot)
        assert re.search(r"cook.*… \+24\.0 · generated only(?! ·)", screen_text(app))
        await pilot.resize_terminal(250, 30)
        await settle(app, pilot)
        assert re.search(r"cooked food +\+24\.0 · generated only · 2\.0×max", screen_text(app))


async def test_an_arm_in_the_place_of_a_deleted_one_is_not_a_change_of_it() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("d")
        app.store.add_steer(unit_vector("verse"), scale=5.0)
        await pilot.pause()
        lane = screen_of(app, GenerateScreen).lanes.lanes[1]
        assert (lane.number, lane.title, lane.does, lane.text) == (1, "verse", "+5.0", None)
        assert "→" not in screen_text(app)


async def test_keys_act_on_the_first_arm_and_one_step_back_is_where_it_was() -> None:
    async with opened("generate") as (app, pilot):
        app.store.edit_steer("s1", scale=19.0)
        await pilot.press("plus")
        assert app.store.session.steers[0].scale == 20.0
        await pilot.press("minus")
        assert app.store.session.steers[0].scale == 19.0


async def test_a_tall_terminal_has_the_measures_of_all_arms_side_by_side() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        run = screen_of(app, GenerateScreen).run
        assert run is not None
        rows = [line.split() for line in screen_text(app).splitlines() if line.strip().startswith(("dogs", "sadness"))]
        for arm, (name, scale, *row) in zip(run.arms[1:], rows[-2:], strict=True):
            ids = [token.token_id for token in arm.tokens]
            pairs = list(pairwise(ids))
            assert (name, scale) == (arm.arm.name, {"dogs": "+24.0", "sadness": "+8.0"}[name])
            assert row[:3] == [str(len(ids)), nats(arm.mean_kl), nats(arm.mean_reverse_kl)]
            assert row[5] == f"{len(set(pairs)) / len(pairs):.2f}"
            assert row[6:] == ["0.31", str(arm.parted)]
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert not screen_of(app, GenerateScreen).measures.display


async def test_a_live_resize_keeps_text_and_focus() -> None:
    async with opened("generate", steers=4) as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        for size in ((80, 24), (200, 50), (61, 17), (120, 36)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            lane = screen_of(app, GenerateScreen).lanes.focused_lane
            assert lane is not None
            assert lane.display
            assert "Lily" in screen_text(app) or size[0] < 80


def test_the_window_of_lanes_holds_the_baseline_and_the_focus() -> None:
    assert window(3, 2, 5, 1) == (1, [0, 1, 2])
    assert window(5, 4, 2, 1) == (4, [0, 4])
    assert window(5, 0, 2, 4) == (4, [0, 4])
    assert window(5, 2, 3, 3) == (2, [0, 2, 3])
    assert window(5, 3, 1, 2)[1] == [3]
    assert window(1, 0, 1, 1)[1] == [0]


def test_sampling_goes_through_the_form_unchanged() -> None:
    for made in (
        Sampling(),
        Sampling(max_tokens=7, seed=3, temp=0.1234567, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1),
        Sampling(stop=("\n\n", "User:", " a | b ", "C:\\new")),
    ):
        form = sampling_fields(made)
        assert not any(field.problem(field.value) for field in form)
        assert read_sampling({field.id: field.value for field in form}, Sampling(repetition_context_size=20)) == made
    assert summary(Sampling(seed=3, temp=0.5, repetition_penalty=1.1)) == "seed 3 · temp 0.5 · rep 1.1 · max 128"
    bad = {"top_p": "1.5", "seed": "x", "max_tokens": "0", "temp": "nan"}
    assert all(field.problem(bad[field.id]) for field in sampling_fields(Sampling()) if field.id in bad)


async def test_the_sampling_form_says_what_is_wrong_and_takes_what_is_right() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("comma", "0", "enter")
        await pilot.pause()
        assert "max tokens needs a whole number from 1" in screen_text(app)
        await pilot.press("backspace", "1", "2", "enter")
        await pilot.pause()
        assert app.store.session.sampling == Sampling(max_tokens=12)
        await pilot.press("r")
        await settle(app, pilot)
        assert compares(app)[0].sampling.max_tokens == 12


async def test_a_run_leaves_as_text_json_markdown_and_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened("generate") as (app, pilot):
        app.store.add_steer(unit_vector("hand made"), scale=2.0, arm=2)
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("y")
        assert app.clipboard == TEXTS[1]
        await pilot.press("e")
        await pilot.pause()
        assert os.listdir(tmp_path) == []  # nothing is written before it was asked where
        assert not paths.exports_folder().exists()
        await pilot.press("tab", "ctrl+u", *"mine", "enter")
        await settle(app, pilot)
        run = screen_of(app, GenerateScreen).run
        assert run is not None
        folder = paths.exports_folder()
        assert sorted(os.listdir(folder)) == [f"mine.{kind}" for kind in sorted(FORMATS)]
        assert os.listdir(tmp_path) == []
        data: dict[str, Any] = json.loads((folder / "mine.json").read_text())
        assert [arm["text"] for arm in data["arms"]] == list(TEXTS[:3])
        assert data["arms"][1]["interventions"][0]["scale"] == 24.0
        told, kept = data["arms"][1]["tokens"][2], run.arms[1].tokens[2]
        assert (told["kl"], told["reverse_kl"]) == (kept.kl, kept.reverse_kl)
        assert (told["logprob"], told["plain_logprob"]) == (kept.logprob, kept.plain_logprob)
        assert (data["arms"][1]["mean_reverse_kl"], data["schema"][-2:]) == (run.arms[1].mean_reverse_kl, "/3")
        assert "both models on the arm's own text" in as_markdown(run.record())
        assert (folder / "mine.md").read_text() == as_markdown(run.record())
        assert "hand made" in as_command(run.record())
        await pilot.press("Y")
        assert app.clipboard.startswith("mlx-lens-tui compare")


async def test_an_error_of_the_run_is_shown_and_the_screen_lives_on() -> None:
    failures = {jobs.Compare: LensError("Steering moved nothing at layer 4.", "Raise the scale.")}
    async with opened("generate", failures=failures) as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        assert "Steering moved nothing at layer 4." in screen_text(app)
        await pilot.press("escape")
        assert screen_of(app, GenerateScreen).run is not None
        worker_of(app).failures.clear()
        await pilot.press("r")
        await settle(app, pilot)
        assert "".join(screen_of(app, GenerateScreen).lanes.lanes[0].view.tokens) == TEXTS[0]


async def test_hostile_text_stays_text() -> None:
    hostile = (" [@click=app.quit]x[/] [/INST] \x1b]52;c;QQ==\x07 \u202egnp " + "y" * 500,)
    async with opened("generate", texts=hostile) as (app, pilot):
        app.store.update(prompt="[red]a[/] [/")
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("l", "l", "l", "H")
        await pilot.pause()
        await pilot.press("escape")
        shown = screen_text(app)
        assert "[@click=app.quit]x[/]" in shown.replace("▐", " ").replace("▌", " ")
        assert not any(ord(char) < 32 and char != "\n" for char in shown)
        assert "\u202e" not in shown


def test_the_command_is_one_that_the_command_line_reads() -> None:
    import shlex

    from lens_tui.records import Arm, Origin
    from lens_tui.records.arm_syntax import parse_arm
    from lens_tui.tui.run_text import ArmText, RunText

    sae = replace(DEMO_SAE, path="/saes/mine")
    feature = unit_vector("x", origin=Origin("feature", {"feature": 1288, "sae": sae.id}))
    noise = unit_vector("y", origin=Origin("random", {"seed": 3}))
    items = (Add(id="a", layer=4, vector=feature, scale=22.0), Add(id="b", layer=5, vector=noise, scale=-4.5))
    sampling = Sampling(max_tokens=9, temp=0.7, seed=7, top_k=40)
    arms = (ArmText(0, Arm("baseline")), ArmText(1, Arm("x + y", items)))
    run = RunText(
        1, "it's \n--raw", sampling, arms, model="demo", made_with=MadeWith(source="demo", saes={sae.id: "/saes/mine"})
    )
    words = shlex.split(as_command(run.record()))
    assert words[:4] == ["mlx-lens-tui", "compare", "--model", "demo"]
    assert words[-2:] == ["--", "it's \n--raw"]
    spec = parse_arm(words[words.index("--arm") + 1])
    assert spec.name == "x + y"
    assert [(term.kind, term.source, term.layer, term.scale) for term in spec.terms] == [
        ("feature", "1288", 4, 22.0),
        ("random", "3", 5, -4.5),
    ]
    options = dict(zip(words[6:-2:2], words[7:-2:2], strict=True))
    assert options == {
        "--sae": "/saes/mine", "--max-tokens": "9", "--seed": "7", "--temp": "0.7", "--top-k": "40"
    }  # fmt: skip


@pytest.mark.parametrize(("width", "lanes"), [(60, 1), (80, 2), (99, 2), (100, 4), (120, 5), (200, 8)])
def test_a_whole_comparison_fits_side_by_side_at_120_columns(width: int, lanes: int) -> None:
    from lens_tui.tui.widgets.lane import room_for

    assert room_for(width) == lanes


async def test_a_lane_that_waits_for_its_text_does_not_ask_to_be_run() -> None:
    async with opened("generate", hold=True) as (app, pilot):
        assert "nothing yet: r runs it" in screen_text(app)
        await pilot.press("r")
        await pilot.pause(0.1)
        assert "waiting" in screen_text(app)
        assert "nothing yet" not in screen_text(app)
