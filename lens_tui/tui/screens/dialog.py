"""The shape all dialogues share: a surface in the middle, a bar down its left edge, a title over the rest."""

from __future__ import annotations

from typing import TypeVar

from textual.screen import ModalScreen

Result = TypeVar("Result")


class Dialog(ModalScreen[Result]):
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
