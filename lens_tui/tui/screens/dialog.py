"""The shape all dialogues share: a surface in the middle, a bar down its left edge, a title over the rest."""

from __future__ import annotations

from typing import TypeVar

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen, Screen

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


class Dialog(ModalScreen[Result], Once[Result]):
    """A dialogue; put its parts in a ``Vertical(classes="dialog")`` whose first child has class ``dialog-title``."""

    DEFAULT_CSS = """
    Dialog {
        align: center middle;
        background: $background 60%;
        & .dialog {
            width: 80%; max-width: 92; height: auto; max-height: 90%;
            background: $surface; border-left: wide $accent; padding: 1 2;
        }
        & .dialog-title { text-style: bold; height: 1; margin-bottom: 1; }
        & .muted { color: $muted; }
    }
    """
