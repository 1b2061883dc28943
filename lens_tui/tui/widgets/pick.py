"""One of a few words, chosen in place: ``◂ mean difference ▸``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import RenderResult
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui.tui.bindings import bindings


class Pick(Widget, can_focus=True):
    """Choose with left and right; enter posts :class:`Submitted`. ``value`` is the word chosen."""

    BINDINGS = [*bindings("move"), ("enter", "submit", "done"), ("space", "cursor_right", "next")]
    DEFAULT_CSS = "Pick { height: 1; width: 1fr; padding: 0 1; } Pick:focus { background: $panel; }"

    place: reactive[int] = reactive(0)

    @dataclass
    class Submitted(Message):
        """Enter was pressed."""

        pick: Pick

    def __init__(self, options: Sequence[str], value: str = "", id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.options = tuple(options)
        self.set_reactive(Pick.place, self.options.index(value) if value in self.options else 0)

    @property
    def value(self) -> str:
        """The option chosen."""
        return self.options[self.place]

    def render(self) -> RenderResult:
        """The word between two arrows, and which of how many it is."""
        count = f"   {self.place + 1} of {len(self.options)}" if self.has_focus else ""
        return Content.assemble(("◂ ", "$accent"), (self.value, "bold"), (" ▸", "$accent"), (count, "$muted"))

    def on_focus(self) -> None:
        """Say how many there are."""
        self.refresh()

    def on_blur(self) -> None:
        """And no more."""
        self.refresh()

    def action_cursor_right(self) -> None:
        """The next one."""
        self.place = (self.place + 1) % len(self.options)

    def action_cursor_left(self) -> None:
        """The one before."""
        self.place = (self.place - 1) % len(self.options)

    def action_cursor_down(self) -> None:
        """The next field."""
        self.screen.focus_next()

    def action_cursor_up(self) -> None:
        """The field before."""
        self.screen.focus_previous()

    def action_first(self) -> None:
        """The first."""
        self.place = 0

    def action_last(self) -> None:
        """The last."""
        self.place = len(self.options) - 1

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There are no pages of options."""
        return action not in ("page_down", "page_up")

    def action_submit(self) -> None:
        """Enter."""
        self.post_message(self.Submitted(self))

    def on_click(self) -> None:
        """A click chooses the next one."""
        self.action_cursor_right()
