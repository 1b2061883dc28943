"""Fields that text is written in: what they hold is what was typed or pasted, what they show is safe."""

from __future__ import annotations

import json
from typing import Any

import pytest
from textual import events
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input

from lens_tui.records.sanitise import sanitise_token, signs
from lens_tui.tasks.run_export import as_data
from lens_tui.tui.run_text import RunText
from lens_tui.tui.screens import chat_pane
from lens_tui.tui.screens.form import Field, FormScreen
from lens_tui.tui.screens.steer_forms import texts
from lens_tui.tui.widgets.entry import Entry, lines_of
from lens_tui.tui.widgets.prompt_area import PromptArea, PromptDocument

from .opened import PROMPT, opened, screen_text, settle
from .test_generate import compares

# Hebrew with marks of direction, an override, NFD accents, CJK with its own blank, a family, a flag, a separator,
# a tag character, C0 and C1 controls, DEL, zero widths.
TEXT = (
    "שלום\u200f! \u202eabc\u2066x\u2069 e\u0301 日本\u3000語 👩\u200d👩\u200d👧 🇩🇪 a\u2028b "
    "\U000e0041 \x1b]52;c;aGk=\x07 \x9b31m "
    "\x7f \u200bz\ufeff\u00ad \u00a0| \x85\x0b\x0c\x1c end"
)


class Alone(App[None]):
    """One widget and nothing else."""

    def __init__(self, widget: Any) -> None:
        super().__init__()
        self.widget = widget

    def compose(self) -> Any:
        yield self.widget

    def get_css_variables(self) -> dict[str, str]:
        return {**super().get_css_variables(), "muted": "#888888"}

    def shown(self) -> str:
        strips = self.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def paste(pilot: Pilot[Any], widget: Any, text: str) -> None:
    widget.focus()
    await pilot.pause()
    widget.post_message(events.Paste(text))
    await pilot.pause()
    await pilot.pause()


def test_signs_keep_every_place_and_leave_nothing_that_acts() -> None:
    shown = signs(TEXT)
    assert len(shown) == len(TEXT)
    assert sanitise_token(shown) == shown
    assert signs("e\u0301 日本 👩\u200d👧") == "e\u0301 日本 👩\u200d👧"


async def test_a_pasted_prompt_reaches_the_model_as_it_was() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("i")
        area = app.screen.query_one(PromptArea)
        await paste(pilot, area, TEXT + "\r\nsecond\rthird\n\rfourth")
        await pilot.press("enter")
        await settle(app, pilot)
        wanted = PROMPT + TEXT + "\nsecond\nthird\n\nfourth"
        assert compares(app)[0].prompt == wanted
        assert app.store.session.prompt == wanted
        strips = app.screen._compositor.render_strips()
        for segment in (segment for strip in strips for segment in strip):
            assert sanitise_token(segment.text) == segment.text, repr(segment.text)


async def test_a_prompt_that_is_being_written_outlives_what_else_changes_and_is_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr(chat_pane, "KEEP_SECONDS", 0.02)
    async with opened("generate") as (app, pilot):
        await pilot.press("i", "x", "y")
        app.store.update(written=())  # as the end of a run does
        app.store.update(written=None)
        await pilot.pause()
        area = app.screen.query_one(PromptArea)
        assert area.text == PROMPT + "xy"
        await pilot.pause(0.1)
        assert app.store.session.prompt == PROMPT + "xy"
        assert area.has_focus
        app.store.update(prompt="another")
        await pilot.pause()
        assert area.text == "another"


@pytest.mark.parametrize("text", [TEXT, "a\r\nb\rc\nd\n", "\u2028", "", "\n", "a\x85b\x1cc"])
async def test_a_prompt_that_is_shown_again_is_the_same_prompt(text: str) -> None:
    area = PromptArea()
    app = Alone(area)
    async with app.run_test() as pilot:
        area.show(text)
        await pilot.pause()
        assert area.text == text
        assert sanitise_token(app.shown().replace("\n", "")) == app.shown().replace("\n", "")


async def test_the_cursor_counts_characters_of_the_text_and_cells_of_what_is_shown() -> None:
    area = PromptArea()
    app = Alone(area)
    async with app.run_test(size=(60, 10)) as pilot:
        await paste(pilot, area, "ab\u200f\u202ecd\x1be")
        assert area.cursor_location == (0, 8)
        assert area.get_column_width(0, 8) == 8  # each sign has a cell of its own
        assert "ab␦␦cd␛e" in app.shown()
        await pilot.press("left", "left", "backspace", "x", "ctrl+z", "ctrl+z")
        assert area.text == "ab\u200f\u202ecd\x1be"
        area.move_cursor((0, 4))
        await pilot.press("backspace", "y")
        assert area.text == "ab\u200fycd\x1be"
        area.selection = type(area.selection)((0, 1), (0, 3))
        assert area.selected_text == "b\u200f"
        await pilot.press("Z")
        assert area.text == "aZycd\x1be"
        assert area.cursor_location == (0, 2)


async def test_what_python_calls_unprintable_can_be_typed() -> None:
    area, entry = PromptArea(), Entry()
    for widget in (area, entry):
        async with Alone(widget).run_test() as pilot:
            widget.focus()
            await pilot.pause()
            for character in "👩\u200d👧\u3000\u200f\u00a0é":
                widget.post_message(events.Key("x", character))
            await pilot.pause()
            held = widget.text if isinstance(widget, PromptArea) else widget.value
            assert held == "👩\u200d👧\u3000\u200f\u00a0é"


def test_a_document_splits_at_newlines_only_and_undoes_exactly() -> None:
    document = PromptDocument("a\u2028b\r\nc")
    assert document.text == "a\u2028b\r\nc"
    assert document.lines == ["a␦b␍", "c"]
    done = document.replace_range((0, 1), (1, 0), "1\x0b2\n3")
    assert (document.text, done.replaced_text) == ("a1\x0b2\n3c", "\u2028b\r\n")
    assert done.end_location == (1, 1)
    document.replace_range((0, 1), done.end_location, done.replaced_text)
    assert document.text == "a\u2028b\r\nc"
    assert document.get_size(4).width == 4


def form(**options: Any) -> FormScreen:
    return FormScreen("t", (Field("positive", "toward", **options), Field("negative", "away")))


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
async def test_a_field_of_several_texts_takes_every_line(end: str) -> None:
    app = Alone(Input())
    async with app.run_test(size=(100, 30)) as pilot:
        app.push_screen(form(between=" | "))
        await pilot.pause()
        entry = app.screen.query(Input).first()
        await paste(pilot, entry, end.join(("first", "", "second|half", "third", "")))
        assert entry.value == "first | second\\|half | third"
        assert texts(entry.value) == ("first", "second|half", "third")


async def test_a_field_of_one_line_says_what_it_left_out() -> None:
    app = Alone(Input())
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        app.push_screen(form())
        await pilot.pause()
        entry = app.screen.query(Input).first()
        await paste(pilot, entry, " door\r")
        assert entry.value == " door"
        assert "left out" not in app.shown()
        entry.value = ""
        await paste(pilot, entry, "one\rtwo\rthree")
        assert entry.value == "one"
        assert "This field takes one line; 2 lines were left out." in app.shown()
        await pilot.press("x")
        assert "left out" not in app.shown()


async def test_a_field_on_a_screen_says_what_it_left_out_too() -> None:
    async with opened("features") as (app, pilot):
        await pilot.press("slash")
        entry = app.screen.query_one("#find", Entry)
        await paste(pilot, entry, "sea\rship")
        assert entry.value == "sea ship"
    async with opened("lens") as (app, pilot):
        entry = app.screen.query_one("#token", Entry)
        entry.remove_class("-closed")
        await paste(pilot, entry, " sea\n ship\n")
        assert entry.value == " sea"
        assert [note.message for note in app._notifications] == ["This field takes one line; 1 line was left out."]


async def test_a_field_holds_what_was_pasted_and_shows_signs() -> None:
    entry = Entry()
    app = Alone(entry)
    async with app.run_test(size=(200, 10)) as pilot:
        pasted = TEXT.replace("\x0b", "").replace("\x0c", "").replace("\x85", "").replace("\x1c", "")
        await paste(pilot, entry, pasted)
        assert entry.value == pasted
        assert sanitise_token(app.shown().replace("\n", "")) == app.shown().replace("\n", "")
        entry.value = "a\u200f\u202eb"
        assert [entry._position_to_cell(place) for place in range(5)] == [0, 1, 2, 3, 4]
        assert [entry._cell_offset_to_index(cell) for cell in range(5)] == [0, 1, 2, 3, 4]


def test_every_field_of_the_app_is_an_entry() -> None:
    """Textual's own input drops every pasted line but the first without a word."""
    from pathlib import Path

    import lens_tui.tui

    folder = Path(lens_tui.tui.__file__).parent
    makers = [file.name for file in folder.rglob("*.py") if " Input(" in file.read_text(encoding="utf-8")]
    assert makers == []


def test_lines_of_a_paste() -> None:
    assert lines_of("a\r\nb\rc\nd\n\r") == ["a", "b", "c", "d", "", ""]


def test_a_run_is_exported_with_its_true_prompt() -> None:
    from lens_tui.records import Arm, Sampling
    from lens_tui.records.sanitise import json_escaped
    from lens_tui.tui.run_text import ArmText

    run = RunText(1, TEXT, Sampling(), (ArmText(0, Arm("baseline")),))
    written = json_escaped(json.dumps(as_data(run.record()), ensure_ascii=False, indent=1))
    assert json.loads(written)["prompt"] == TEXT
    assert sanitise_token(written.replace("\n", "")) == written.replace("\n", "")


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_a_long_prompt_shows_its_first_line_and_how_many_there_are(size: tuple[int, int]) -> None:
    async with opened("generate", size) as (app, pilot):
        app.store.update(prompt="\n".join(f"line {number} of it" for number in range(1, 13)))
        await settle(app, pilot)
        shown = screen_text(app)
        for number in range(1, 5 if size[1] > 30 else 3):
            assert f"line {number} of it" in shown
        assert "12 lines" in shown
        await pilot.press("i")
        await settle(app, pilot)
        assert "line 12 of it" in screen_text(app)
        await pilot.press("ctrl+j")
        await settle(app, pilot)
        assert "13 lines" in screen_text(app)
        await pilot.press("escape")
        await settle(app, pilot)
        assert "line 1 of it" in screen_text(app)
        app.store.update(prompt="one")
        await settle(app, pilot)
        assert " lines" not in screen_text(app)


async def test_what_is_pasted_among_the_lanes_goes_into_the_prompt() -> None:
    async with opened("generate") as (app, pilot):
        assert not isinstance(app.focused, PromptArea)
        (app.focused or app.screen).post_message(events.Paste(" and\r\x1b[31mso\r\non"))
        await settle(app, pilot)
        assert isinstance(app.focused, PromptArea)
        assert app.focused.text == f"{PROMPT} and\n\x1b[31mso\non"
        assert "3 lines" in screen_text(app)
        await pilot.press("enter")
        await settle(app, pilot)
        assert compares(app)[-1].prompt == f"{PROMPT} and\n\x1b[31mso\non"


async def test_what_is_pasted_where_nothing_is_written_is_told() -> None:
    async with opened("steer") as (app, pilot):
        (app.focused or app.screen).post_message(events.Paste("x"))
        await settle(app, pilot)
        assert "let go" in [notice.message for notice in app._notifications][-1]


async def test_enter_in_an_empty_prompt_says_so_and_goes_on_writing() -> None:
    async with opened("generate") as (app, pilot):
        app.store.update(prompt="")
        await pilot.press("i", "enter")
        await pilot.pause()
        assert "Write a prompt first" in [notice.message for notice in app._notifications][-1]
        await pilot.press("r", "u", "n", "enter")
        await settle(app, pilot)
        assert app.store.session.prompt == "run"
