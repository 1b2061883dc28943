"""A key that opens a field and what is typed into it, in one burst: nothing of it is taken for commands."""

from __future__ import annotations

import pytest
from textual import events
from textual.widgets import Input, TextArea

from lens_tui.tui.widgets.token_view import TokenView
from tests.apps import lens_app, settle
from tests.tui.opened import opened
from tests.tui.opened import settle as settle_all


@pytest.mark.parametrize("words", ["hello", "rxad", "1245"])
async def test_what_follows_the_key_that_opens_the_prompt_is_the_prompt(words: str) -> None:
    app = lens_app(model="demo", screen="generate")
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        before = app.store.session.prompt
        for key in ["i", *words]:
            app.simulate_key(key)
        await settle(pilot)
        area = app.screen.query_one(TextArea)
        assert area.text == before + words
        assert app.focused is area


async def test_what_follows_a_search_key_is_searched() -> None:
    app = lens_app(model="demo", screen="steer")
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        before = app.store.session.arms()
        for key in ["slash", "a", "d", "d"]:
            app.simulate_key(key)
        await settle(pilot)
        assert app.store.session.arms() == before
        assert getattr(app.focused, "value", "") == "add"


async def test_a_form_filled_in_in_one_burst_has_each_word_in_its_field() -> None:
    async with opened("generate") as (app, pilot):
        scales = [*"9 19"]
        for key in ["S", "down", "down", "5", "down", *scales, "up", "up", *"The sea", "down", "2"]:
            app.simulate_key(key)
        await settle_all(app, pilot)
        fields = {entry.id: entry.value for entry in app.screen.query(Input)}
        assert fields == {"prompts": "The sea", "first": "2", "scales": "9 19", "seeds": ""}


async def test_a_paste_between_keys_comes_where_they_led() -> None:
    async with opened("generate") as (app, pilot):
        for key in ["S", "down"]:
            app.simulate_key(key)
        app.post_message(events.Paste("The sea"))
        for key in ["down", "5"]:
            app.simulate_key(key)
        await settle_all(app, pilot)
        fields = {entry.id: entry.value for entry in app.screen.query(Input)}
        assert (fields["prompts"], fields["first"]) == ("The sea", "5")


async def test_keys_that_overtake_each_other_leave_the_cursor_where_the_last_one_put_it() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle_all(app, pilot)
        await pilot.press("l")
        view = app.focused
        assert isinstance(view, TokenView)
        heard: list[int | None] = []
        view.watch(view, "cursor", lambda now: heard.append(now), init=False)
        for key in ["l", "l", "l", "h"]:
            app.simulate_key(key)
        await settle(pilot)
        assert heard == [1, 2, 3, 2]
