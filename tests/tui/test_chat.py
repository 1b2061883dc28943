"""Chat on Generate: turns, branches and the way back, roles, thinking, the template's tokens, the switch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from textual.pilot import Pilot

from lens_tui.records import LensError, Positions
from lens_tui.records.chat import Turn
from lens_tui.tui.app import LensApp
from lens_tui.tui.recovery import saved
from lens_tui.tui.screens.generate_screen import GenerateScreen
from lens_tui.tui.set_text import asked_set
from lens_tui.worker import jobs
from tests.fakes import DEMO_MODEL, TEXTS, FakeWorker

from .opened import PROMPT, jobs_of, opened, screen_of, screen_text, settle

TALKER = replace(DEMO_MODEL, takes_chat=True)
"""As the bundled model: texts go in as they are, unless a chat is asked for."""
TUNED = replace(TALKER, has_chat_template=True)
THOUGHT = "<think>\nIt is a dog .\n</think>\n\nA dog ."


@asynccontextmanager
async def chatting(model: Any = TALKER, **worker: Any) -> AsyncIterator[tuple[LensApp, Pilot[None]]]:
    async with opened("generate", **worker) as (app, pilot):
        app.store.update(model=model, chat=True)
        await settle(app, pilot)
        yield app, pilot


def asked(app: LensApp) -> list[jobs.Compare]:
    return jobs_of(app, jobs.Compare)


async def press(app: LensApp, pilot: Pilot[None], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await settle(app, pilot)


def turns_of(app: LensApp) -> list[Turn]:
    return list(app.store.session.turns)


def user(text: str) -> Turn:
    return Turn("user", text)


async def test_an_answer_is_gone_on_with_and_u_goes_back_to_branch_elsewhere() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "r")
        assert asked(app)[0].turns == (user(PROMPT),)
        first = screen_of(app, GenerateScreen).run
        await press(app, pilot, "[", "enter")
        assert app.store.session.turns == (user(PROMPT), Turn("assistant", TEXTS[0]))
        assert app.store.session.prompt == ""
        assert screen_of(app, GenerateScreen).run is None
        assert screen_of(app, GenerateScreen).prompt is app.focused
        await press(app, pilot, *"Why?", "enter")
        assert asked(app)[1].turns == (user(PROMPT), Turn("assistant", TEXTS[0]), user("Why?"))
        assert asked(app)[1].prompt == "Why?"
        assert "assistant ▏" in screen_text(app)
        await press(app, pilot, "u")
        assert turns_of(app) == []
        assert app.store.session.prompt == PROMPT
        assert screen_of(app, GenerateScreen).run is first
        screen_of(app, GenerateScreen).lanes.focus_arm(1)
        await press(app, pilot, "enter")
        assert app.store.session.turns[1] == Turn("assistant", TEXTS[1])
        await press(app, pilot, "escape", "u")
        assert turns_of(app) == []
        await press(app, pilot, "U")
        assert app.store.session.turns[1] == Turn("assistant", TEXTS[1])


async def test_undo_of_a_turn_and_of_a_steering_edit_keep_out_of_each_other_s_way() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "r")
        before = app.store.session.steers
        await press(app, pilot, "enter", "escape", "+")
        assert app.store.session.steers != before
        turns = app.store.session.turns
        await press(app, pilot, "u")
        assert (app.store.session.steers, app.store.session.turns) == (before, turns)
        await press(app, pilot, "u")
        assert app.store.session.steers == before
        assert turns_of(app) == []


async def test_raw_goes_on_writing_the_text_and_the_switch_is_in_sight() -> None:
    async with chatting() as (app, pilot):
        assert "● chat ○ raw C" in screen_text(app)
        assert "user ▏" in screen_text(app)
        await press(app, pilot, "C", "r", "[", "enter")
        assert "○ chat ● raw C" in screen_text(app)
        assert asked(app)[0].turns == ()
        assert app.store.session.prompt == PROMPT + TEXTS[0]
        await press(app, pilot, "escape", "u")
        assert app.store.session.prompt == PROMPT
    async with opened("generate") as (app, pilot):
        await press(app, pilot, "C")
        assert not app.store.session.chatting
        assert "raw C" not in screen_text(app)


async def test_a_tuned_model_chats_from_the_start_and_raw_reaches_the_job() -> None:
    async with chatting(TUNED) as (app, pilot):
        app.store.update(chat=None)
        await press(app, pilot, "r")
        job = asked(app)[0]
        assert (job.prompt, job.turns, job.raw) == (PROMPT, (), False)  # one turn: the template makes it that
        await press(app, pilot, "C", "r")
        assert asked(app)[1].raw is True
        await press(app, pilot, "C", "enter")
        assert "assistant" not in [
            turn.role for turn in app.store.session.turns
        ]  # it is a raw text that was gone on with


async def test_a_set_of_prompts_goes_in_as_the_prompt_does() -> None:
    form = {"source": "this prompt", "prompts": "", "first": "", "scales": "", "seeds": ""}
    async with chatting(TUNED) as (app, _pilot):
        for raw in (False, True):
            app.store.update(chat=not raw)
            job = asked_set(form, app.store.session, None, ["baseline", "a", "b"])
            assert job.raw is raw


async def test_a_system_prompt_and_a_new_conversation() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "I", *"Be", "space", *"kind", "enter")
        if app.screen is not screen_of(app, GenerateScreen):
            await press(app, pilot, "enter")
        assert app.store.session.turns == (Turn("system", "Be kind"),)
        await press(app, pilot, "r")
        assert asked(app)[0].turns == (Turn("system", "Be kind"), user(PROMPT))
        await press(app, pilot, "u")
        assert turns_of(app) == []


async def walked(app: LensApp, pilot: Pilot[None], times: int) -> list[Positions | None]:
    """The positions behind those that need no role, so many presses of the key on."""
    seen = []
    for _ in range(times):
        await press(app, pilot, "P")
        seen.append(app.store.session.steers[0].positions)
    return seen[4:]


async def test_a_lane_is_steered_on_a_role_s_tokens() -> None:
    async with chatting() as (app, pilot):
        rows = [row for row in app.store.session.steers if row.arm == 1]
        assert rows[0].positions is None
        roles = [Positions("role", role=name) for name in ("user", "assistant", "thinking", "template")]
        assert await walked(app, pilot, 9) == [*roles, None], "there is no system's turn to steer at"
        await press(app, pilot, "I", *"Be", "enter")
        assert await walked(app, pilot, 10) == [Positions("role", role="system"), *roles, None]
        await press(app, pilot, "P", "P", "P", "P", "P", "P", "r")
        (item,) = asked(app)[-1].arms[1].interventions
        assert item.positions == Positions("role", role="user")
        await press(app, pilot, "P")
        assert " → +24.0 · the assistant's turns" in screen_text(app)
        assert "+24.0 →" not in screen_text(app)
        await press(app, pilot, "u")
        await press(app, pilot, "2")
        assert "the user's turns" in screen_text(app)
    async with opened("generate") as (app, pilot):
        for _ in range(5):
            await press(app, pilot, "P")
        assert app.store.session.steers[0].positions is None


async def test_thinking_is_one_line_that_opens_and_the_cursor_knows_the_tokens_behind_it() -> None:
    async with chatting(texts=(THOUGHT, THOUGHT)) as (app, pilot):
        await press(app, pilot, "r")
        lane = screen_of(app, GenerateScreen).lanes.lanes[0]
        assert lane.text is not None
        pieces = lane.text.pieces
        shown = list(lane.view.tokens)
        assert shown[0].startswith("▸ thinking, ")
        assert "It is a dog" not in screen_text(app)
        behind = next(step for step in range(len(pieces)) if "".join(pieces[:step]).endswith("</think>\n\n"))
        assert shown[1:] == pieces[behind:]
        await press(app, pilot, "[", "l", "l")
        assert lane.step == behind
        await press(app, pilot, "h")
        assert lane.step == 0
        await press(app, pilot, "O")
        assert list(lane.view.tokens) == pieces
        assert "It is a dog" in screen_text(app)
        await press(app, pilot, "O", "escape", "enter", "escape")
        assert app.store.session.turns[-1] == Turn("assistant", THOUGHT)  # it goes to the model whole
        assert "▸ thinking, 5 words" in screen_text(app)


async def test_thinking_folds_while_it_is_written() -> None:
    async with chatting(texts=(THOUGHT,), hold=True) as (app, pilot):
        await pilot.press("r")
        worker = cast("FakeWorker", app.worker)
        worker.release(12)
        await pilot.pause(0.3)
        lane = screen_of(app, GenerateScreen).lanes.lanes[0]
        assert list(lane.view.tokens) == ["▸ thinking …"]
        worker.release()
        await settle(app, pilot)
        assert lane.view.tokens[0].startswith("▸ thinking, ")
        assert "".join(lane.view.tokens).endswith("A dog .")


async def test_the_prompt_is_shown_as_the_model_reads_it() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "c")
        assert "as the model reads it" in screen_text(app)
        assert "‹<|endoftext|>User:›" in screen_text(app)
        await press(app, pilot, "C")
        assert "‹" not in screen_text(app)
        await press(app, pilot, "c")
        assert "as the model reads it" not in screen_text(app)


async def test_a_template_that_refuses_says_so_in_its_place() -> None:
    refusal = LensError("The chat template does not take this prompt (no system).", "Change the roles.")
    async with chatting(failures={jobs.ReadPrompt: refusal}) as (app, pilot):
        await press(app, pilot, "c")
        assert "does not take this prompt (no system)" in screen_text(app)


async def test_a_template_that_rewrites_earlier_turns_is_one_sentence() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "r", "[", "enter", *"Why?", "enter")
        # The fake reads the prompt alone: all that was said before it is gone.
        said = [notice.message for notice in app._notifications]
        assert any("rewrites earlier turns: from token 1 on" in text for text in said)


async def test_a_template_that_leaves_earlier_turns_as_they_were_is_not_remarked_on() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "r", "[", "enter")
        screen = screen_of(app, GenerateScreen)
        (said,) = screen.talk._said.values()
        run = replace(screen.history[0], prompt="Why?", turns=(*app.store.session.turns, user("Why?")))
        run.prompt_ids = (*said, 7, 8)
        screen.talk.check_start(run)
        assert not [notice for notice in app._notifications if "rewrites" in notice.message]


async def test_the_conversation_is_kept_with_the_session_and_comes_back_from_the_history() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "r", "[", "enter", *"Why?", "enter")
        kept = saved(app.store.session, "demo", "generate")
        assert kept.turns == (user(PROMPT), Turn("assistant", TEXTS[0]))
        assert kept.chat is True
        await press(app, pilot, "C", "I", "H")
        await press(app, pilot, "enter")
        assert app.store.session.turns == kept.turns
        assert app.store.session.chatting
        assert screen_of(app, GenerateScreen).run is not None


async def test_hostile_turns_are_shown_as_signs_and_go_to_the_model_exactly() -> None:
    nasty = "\x1b[31m[bold]x[/] \x9b"
    async with chatting(texts=(nasty, nasty)) as (app, pilot):
        app.store.speak((user(nasty), Turn("assistant", nasty)), nasty)
        await press(app, pilot, "r")
        assert asked(app)[0].turns == (user(nasty), Turn("assistant", nasty), user(nasty))
        shown = screen_text(app)
        assert "\x1b[31m" not in shown.replace("\x1b[0m", "")
        assert "[bold]x[/]" in shown


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 16)])
async def test_a_long_conversation_leaves_the_lanes_their_room(size: tuple[int, int]) -> None:
    async with opened("generate", size=size) as (app, pilot):
        turns = tuple(Turn("user" if n % 2 == 0 else "assistant", f"line {n} " * 30) for n in range(20))
        app.store.update(model=TALKER, chat=True, turns=turns)
        await press(app, pilot, "r")
        assert screen_of(app, GenerateScreen).lanes.size.height >= 6
        assert "line 19" in screen_text(app)


async def test_tokens_that_end_an_answer_are_no_text_of_it_until_the_template_is_asked_for() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "r")
        screen = screen_of(app, GenerateScreen)
        assert screen.run is not None
        for form in ("<|im_end|>", "User", ":"):
            arm = screen.run.arms[1]
            arm.add(replace(arm.tokens[-1], index=len(arm.tokens), token=form, text=""))
        screen.run.arms[1].reason = "stop"
        screen._show_run(screen.run)
        await settle(app, pilot)
        lane = screen.lanes.lanes[1]
        assert list(lane.view.tokens[-3:]) == ["∎"] * 3
        assert "<|im_end|>" not in screen_text(app)
        lane.view.focus()
        await press(app, pilot, "G", "h")
        assert "“User”" in screen_text(app)  # the explanation says which token it is
        await press(app, pilot, "escape", "c")
        assert list(lane.view.tokens[-3:]) == ["<|im_end|>", "User", ":"]
        await press(app, pilot, "c")
        assert list(lane.view.tokens[-3:]) == ["∎"] * 3


async def test_the_switch_says_what_becomes_of_what_is_written() -> None:
    async with chatting() as (app, pilot):
        await press(app, pilot, "C", "C")
        raw, chat = [notice.message for notice in app._notifications][-2:]
        assert raw.startswith("The prompt goes in as it is")
        assert chat.startswith("What is written is what the user says next")
        assert app.store.session.prompt == PROMPT
        assert turns_of(app) == []


@pytest.mark.parametrize(("key", "kind"), [("4", jobs.Encode), ("5", jobs.ReadLens)])
async def test_what_is_read_of_a_conversation_is_what_the_model_reads(
    key: str, kind: type[jobs.Encode | jobs.ReadLens]
) -> None:
    def read(app: LensApp) -> tuple[str, tuple[int, ...]]:
        job = jobs_of(app, kind)[-1]
        return job.text, job.token_ids

    async with chatting() as (app, pilot):
        await press(app, pilot, key)
        first = app.store.session.chat_ids
        assert first
        assert read(app) == ("", first)
        app.store.speak((Turn("system", "Be brief."), user("Who?"), Turn("assistant", "I."), user("No.")), "Why?")
        await settle(app, pilot)
        longer = app.store.session.chat_ids
        assert len(longer) > len(first)
        assert read(app) == ("", longer)
        await press(app, pilot, "Y")
        assert key == "5" or any("A command reads" in note.message for note in app._notifications)
        app.store.update(chat=False)
        await settle(app, pilot)
        assert read(app) == ("Why?", ())


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("key", ["4", "5"])
async def test_before_the_first_reading_it_says_that_it_reads(key: str, chat: bool) -> None:
    async with opened("generate", hold=True) as (app, pilot):
        app.store.update(model=TALKER, chat=chat)
        await settle(app, pilot)
        await press(app, pilot, key)
        assert "reading …" in screen_text(app)
        assert "No text" not in screen_text(app)
