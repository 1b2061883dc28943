"""An error the user can act on: one sentence, the next step, and where the details are."""

from __future__ import annotations

from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.tui.screens.dialog import Dialog


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
        self.app.copy_to_clipboard(text)
        self.notify("Copied.", markup=False, timeout=2)
