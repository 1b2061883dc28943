"""Where the prompt is written: enter runs, shift+enter or ctrl+j is a new line, escape leaves."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.message import Message
from textual.widgets import TextArea

from lens_tui.records.sanitise import sanitise


class PromptArea(TextArea):
    """A text area as high as its text, up to ``max-height``."""

    takes_text = True
    DEFAULT_CSS = """
    PromptArea {
        height: auto; max-height: 4; min-height: 1; width: 1fr; padding: 0 1; border: none;
        background: transparent; scrollbar-size-vertical: 1;
        &:focus { border: none; background: $panel; }
        & .text-area--cursor-line { background: transparent; }
    }
    """

    @dataclass
    class Run(Message):
        """Enter: run this prompt."""

        prompt: str

    @dataclass
    class Left(Message):
        """Escape or a loss of focus: the prompt is this now."""

        prompt: str

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, show_line_numbers=False, soft_wrap=True, tab_behavior="focus", compact=True)
        self.highlight_cursor_line = False

    def show(self, prompt: str) -> None:
        """Show a prompt that came from elsewhere; foreign text is made safe."""
        if prompt != self.text:
            self.text = sanitise(prompt)
            self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        match event.key:
            case "enter":
                event.stop()
                event.prevent_default()
                self.post_message(self.Run(self.text))
            case "shift+enter" | "ctrl+j":
                event.stop()
                event.prevent_default()
                self.insert("\n")
            case "escape":
                event.stop()
                event.prevent_default()
                self.post_message(self.Left(self.text))
                self.screen.set_focus(None)

    def _on_paste(self, event: events.Paste) -> None:  # type: ignore[override]
        event.stop()
        event.prevent_default()
        self.replace(sanitise(event.text.replace("\r\n", "\n")), *self.selection)

    def on_blur(self) -> None:
        """Whoever leaves has said what they wanted."""
        self.post_message(self.Left(self.text))
