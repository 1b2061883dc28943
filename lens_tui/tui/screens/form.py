"""The shape all dialogues share: a surface in the middle, a bar down its left edge, a title over the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from textual import events
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.geometry import Size
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

from lens_tui.tui.format import fit
from lens_tui.tui.host import host
from lens_tui.tui.widgets.entry import Entry, Pick
from lens_tui.tui.widgets.frame import TooSmall, is_too_small
from lens_tui.tui.widgets.row_list import RowList

Result = TypeVar("Result")


class Once(Screen[Result]):
    """A screen that is dismissed once. Keys that come in one read (enter, escape) both reach it before it is gone.

    Named after Textual's class among the bases: the first one's style sheet and component classes are inherited.
    """

    def dismiss(self, result: Result | None = None) -> AwaitComplete:
        """Leave with ``result``; nothing happens where this is not the screen on top any more."""
        if self.app.screen is not self:
            return AwaitComplete()
        return super().dismiss(result)

    def _screen_resized(self, size: Size) -> None:
        """Nothing but what is needed shows in a terminal that is too small. What had the focus keeps it."""
        super()._screen_resized(size)
        covers, small = self.query(TooSmall), is_too_small(size)
        self.set_class(small, "-covered")
        covers.set(display=small)  # and not removed: one that is still going would be taken for one that is there
        if small and not covers:
            self.mount(TooSmall(classes="-cover"))


class Dialog(ModalScreen[Result], Once[Result]):
    """A dialogue; put its parts in a ``Vertical(classes="dialog")`` whose first child has class ``dialog-title``."""

    DEFAULT_CSS = """
    Dialog {
        align: center middle;
        background: $background 60%;
        layers: base cover;
        & .dialog {
            width: 80%; max-width: 92; height: auto; max-height: 90%;
            background: $surface; border-left: wide $accent; padding: 1 2;
        }
        & .dialog-title { text-style: bold; height: 1; margin-bottom: 1; }
        & .muted { color: $muted; }
    }
    """


class ErrorScreen(Dialog[None]):
    """Shows an error's sentence and hint as plain text; ``y`` copies it, escape or enter closes it."""

    BINDINGS = [
        ("escape,enter,q", "dismiss", "close"),
        ("y", "copy", "copy"),
    ]

    def __init__(self, message: str, hint: str = "", detail: str = "", log_path: Path | None = None) -> None:
        super().__init__()
        self.message, self.hint, self.detail, self.log_path = message, hint, detail, log_path

    def compose(self) -> ComposeResult:
        """The sentence, the hint, the log, the keys."""
        with Vertical(classes="dialog"):
            yield Static(Content.assemble(("✗ ", "$error"), ("That did not work", "bold")), classes="dialog-title")
            yield Static(Content(self.message))
            if self.hint:
                yield Static(Content("\n" + self.hint), classes="muted")
            if self.log_path is not None and self.detail:
                yield Static(Content(f"\nDetails are in {self.log_path}"), classes="muted")
            yield Static(Content.assemble("\n", ("esc", "bold"), " close   ", ("y", "bold"), " copy"), classes="muted")

    def action_copy(self) -> None:
        """Copy message, hint and details."""
        text = "\n".join(part for part in (self.message, self.hint, self.detail) if part)
        host(self).copy(text, "the message")


Check = Callable[[str], str]
"""Given what was typed, says what the field needs instead (``a number``), or nothing if it is right."""


@dataclass(frozen=True, slots=True)
class Field:
    """One line of a form.

    ``hint`` shows while it is empty; with ``options`` one of them is chosen, not typed. ``between`` stands in the place
    of a line end in what is pasted, where the field takes several texts; see :class:`Entry`. What is typed in it is
    meant: it ``chooses`` an option of another field, named by that field's id and the option.
    """

    id: str
    label: str
    value: str = ""
    hint: str = ""
    check: Check | None = None
    options: tuple[str, ...] = ()
    between: str | None = None
    chooses: tuple[str, str] | None = None

    def problem(self, text: str) -> str:
        """What is wrong with ``text`` for this field, or an empty string."""
        return self.check(text) if self.check else ""


def whole(low: int, high: int | None = None) -> Check:
    """A check for whole numbers from ``low`` to ``high``, both included."""

    def check(text: str) -> str:
        try:
            value = int(text.strip())
        except ValueError:
            return "a whole number"
        if value < low or (high is not None and value > high):
            return f"a whole number from {low} to {high}" if high is not None else f"at least {low}"
        return ""

    return check


def number(low: float | None = None, high: float | None = None) -> Check:
    """A check for finite numbers, bounded on either side if asked."""

    def check(text: str) -> str:
        try:
            value = float(text.strip())
        except ValueError:
            return "a number"
        if value - value != 0:
            return "a finite number"
        if (low is not None and value < low) or (high is not None and value > high):
            return f"{low:g} to {high:g}" if low is not None and high is not None else f"at least {low or 0:g}"
        return ""

    return check


def filled(text: str) -> str:
    """A check for text that must not be empty."""
    return "" if text.strip() else "some text"


def optional(check: Check) -> Check:
    """A check for a field that may stay empty."""
    return lambda text: check(text) if text.strip() else ""


class FormScreen(Dialog["dict[str, str] | None"]):
    """Asks for the fields; dismisses with what was typed by field id, or ``None`` on escape.

    Enter goes to the next field that is not right yet and commits when all are. ``problem`` is what was wrong with what
    was typed before, said until something is typed; ``done`` what enter does, in a few words: by default done,
    or the next field first where one is not right as it begins.
    """

    BINDINGS = [("escape", "cancel", "cancel"), ("down", "app.focus_next", ""), ("up", "app.focus_previous", "")]
    DEFAULT_CSS = """
    FormScreen .dialog { width: 76; }
    FormScreen .field { height: 1; margin-bottom: 1; }
    FormScreen .-dense .field { margin-bottom: 0; }
    FormScreen .-dense #problem { margin-top: 1; }
    FormScreen .field Static { width: 14; color: $muted; }
    FormScreen .field:focus-within Static { color: $foreground; text-style: bold; }
    FormScreen .field Input { width: 1fr; }
    FormScreen .note { color: $muted; margin-bottom: 1; }
    FormScreen #problem { height: auto; min-height: 1; max-height: 3; color: $warning; }
    """

    def __init__(self, title: str, fields: Sequence[Field], note: str = "", problem: str = "", done: str = "") -> None:
        super().__init__()
        self._title, self._fields, self._note, self._problem = title, tuple(fields), note, problem
        right = not any(item.problem(item.value) for item in self._fields)
        self._done = done or ("done" if right else "next, or done")

    def compose(self) -> ComposeResult:
        """Title, note, one row for each field, what is wrong, the keys."""
        with Vertical(classes="dialog -dense" if len(self._fields) > 4 else "dialog"):
            yield Static(Content(self._title), classes="dialog-title")
            if self._note:
                yield Static(Content(self._note), classes="note")
            for item in self._fields:
                with Horizontal(classes="field"):
                    yield Static(Content(item.label))
                    if item.options:
                        yield Pick(item.options, item.value, id=item.id)
                    else:
                        yield Entry(item.value, placeholder=item.hint, id=item.id, between=item.between)
            yield Static(Content(self._problem), id="problem")
            keys = [("⏎", f" {self._done}   "), ("↑ ↓", " fields   "), ("esc", " leave it")]
            if any(item.options for item in self._fields):
                keys.insert(2, ("← →", " choose   "))
            yield Static(
                Content.assemble(*(part for key, word in keys for part in ((key, "bold"), word))), classes="muted"
            )

    def on_mount(self) -> None:
        """Begin with the first field."""
        self._widget(self._fields[0]).focus()

    def _widget(self, item: Field) -> Input | Pick:
        kind: type[Input | Pick] = Pick if item.options else Input
        return self.query_one(f"#{item.id}", kind)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Say what the field needs while it is not right."""
        item = self._field(event.input.id)
        if event.value == item.value and self._problem:
            return
        if item.chooses is not None and event.value.strip() and event.value != item.value:
            pick = self.query_one(f"#{item.chooses[0]}", Pick)
            pick.place = pick.options.index(item.chooses[1])
        self._problem = ""
        problem = item.problem(event.value) if event.value else ""
        self.query_one("#problem", Static).update(Content(f"{item.label} needs {problem}" if problem else ""))

    def on_entry_shortened(self, event: Entry.Shortened) -> None:
        """Say what was left out of a paste, until something is typed."""
        event.stop()
        self.query_one("#problem", Static).update(Content(event.said))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in a field that is typed in."""
        event.stop()
        self._commit()

    def on_pick_submitted(self, event: Pick.Submitted) -> None:
        """Enter in a field that is chosen from."""
        event.stop()
        self._commit()

    def _commit(self) -> None:
        """Dismiss when every field is right, else go to the first that is not."""
        values = {item.id: self._widget(item).value for item in self._fields}
        for item in self._fields:
            if problem := item.problem(values[item.id]):
                self.query_one("#problem", Static).update(Content(f"{item.label} needs {problem}"))
                self._widget(item).focus()
                return
        self.dismiss(values)

    def _field(self, field_id: str | None) -> Field:
        return next(item for item in self._fields if item.id == field_id)

    def action_cancel(self) -> None:
        """Leave everything as it was."""
        self.dismiss(None)


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing to choose: its id, what it is called, a word on it, and why it cannot be chosen (empty: it can)."""

    id: str
    label: str
    note: str = ""
    barred: str = ""


class ChoiceScreen(Dialog["str | None"]):
    """Choose one of a few things with the arrows or its number; dismisses with its id, or ``None`` on escape."""

    BINDINGS = [("escape,q", "cancel", "cancel"), ("enter", "choose", "choose")]
    DEFAULT_CSS = """
    ChoiceScreen .dialog { width: 76; }
    ChoiceScreen RowList { height: auto; }
    """

    def __init__(self, title: str, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._title, self._choices = title, tuple(choices)

    def compose(self) -> ComposeResult:
        """Title, the choices, the keys."""
        with Vertical(classes="dialog"):
            yield Static(Content(self._title), classes="dialog-title")
            yield RowList[Choice](self._draw, id="choices")
            yield Static(
                Content.assemble("\n", ("⏎", "bold"), " choose   ", ("esc", "bold"), " leave it"), classes="muted"
            )

    def on_mount(self) -> None:
        """Show the choices."""
        choices = self.query_one(RowList)
        choices.styles.height = len(self._choices)
        choices.show(self._choices, 0)
        choices.focus()

    def _draw(self, choice: Choice, width: int) -> list[Content]:
        place = self._choices.index(choice) + 1
        style = "$muted" if choice.barred else ""
        note = choice.barred or choice.note
        return [Content.assemble((f"{place}  ", "$muted"), (fit(choice.label, 22), style), (note, "$muted"))]

    def on_key(self, event: events.Key) -> None:
        """A digit chooses at once."""
        key = event.key
        if key.isdigit() and 1 <= int(key) <= len(self._choices):
            event.stop()
            self._take(self._choices[int(key) - 1])

    def on_row_list_chosen(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_choose(self) -> None:
        """Choose what the cursor is on."""
        choice = self.query_one(RowList).row
        if isinstance(choice, Choice):
            self._take(choice)

    def _take(self, choice: Choice) -> None:
        if choice.barred:
            self.notify(choice.barred, markup=False, timeout=3)
        else:
            self.dismiss(choice.id)

    def action_cancel(self) -> None:
        """Choose nothing."""
        self.dismiss(None)
