"""The top of Generate: the conversation so far, and the prompt, which in a chat is what the user says next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult, RenderResult
from textual.containers import Horizontal
from textual.content import Content
from textual.geometry import Size
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Label

from lens_tui.records.chat import Turn
from lens_tui.tui.chat_text import LABEL, Spans, answered, as_read, rewritten_at, system_of, transcript, with_system
from lens_tui.tui.host import focus_now
from lens_tui.tui.run_text import ArmText, RunText
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.entry import lines_of
from lens_tui.tui.widgets.frame import Scroll, SessionPart
from lens_tui.worker.events import Event, JobFailed, PromptRead
from lens_tui.worker.jobs import ReadPrompt

from .form import Field, FormScreen

if TYPE_CHECKING:
    from lens_tui.tui.widgets.prompt_area import PromptArea

KEEP_SECONDS = 0.5
"""After so long without a key the prompt that is being written is the session's."""
_GO_ON, _ANEW = "go on with it", "begin a new one"


class TurnLines(Widget):
    """The lines of the conversation, or of the prompt token by token, in the width there is."""

    DEFAULT_CSS = "TurnLines { height: auto; }"

    def __init__(self) -> None:
        super().__init__()
        self.turns: tuple[Turn, ...] = ()
        self.unfolded = False
        self.read: tuple[tuple[str, ...], Spans | None] | None = None
        self.problem = ""

    def lines(self, width: int) -> list[Content]:
        """What shows, line by line."""
        if self.problem:
            return Content.styled(self.problem, "$warning").wrap(max(8, width))
        if self.read is not None:
            return as_read(*self.read, width)
        return transcript(self.turns, width, unfolded=self.unfolded)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many as there are lines."""
        return len(self.lines(width))

    def render(self) -> RenderResult:
        """The lines."""
        return Content("\n").join(self.lines(self.size.width))


class Transcript(Scroll):
    """Scrolls the conversation."""

    DEFAULT_CSS = """
    Transcript {
        height: auto; max-height: 9; padding: 0 1; display: none; border-left: blank; scrollbar-size-vertical: 1;
        &:focus { border-left: wide $accent; }
    }
    """


class ChatPane(SessionPart):
    """The conversation and the prompt. ``area`` is where it is written, from the second frame on."""

    DEFAULT_CSS = "ChatPane { height: auto; }"

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.lines = TurnLines()
        self.area: PromptArea | None = None
        self.template = False
        self._keeping: Timer | None = None
        self._said: dict[tuple[Turn, ...], tuple[int, ...]] = {}

    def compose(self) -> ComposeResult:
        """The turns, then the row with the prompt."""
        with Transcript(id="turns"):
            yield self.lines
        with Horizontal(id="prompt-row"):
            yield Label("prompt ▏", id="prompt-label")

    def on_mount(self) -> None:
        """A text area is the most expensive widget to build, and blank until something is written in it."""
        self.lens.after_first_frame(self._mount_area)

    def _mount_area(self) -> None:
        from lens_tui.tui.widgets.prompt_area import PromptArea

        self.area = PromptArea(id="prompt")
        self.area.show(self.session.prompt)
        row = self.query_one("#prompt-row")
        if row.is_attached:  # not if the app is leaving
            row.mount(self.area)

    # -- the prompt

    def on_text_area_changed(self) -> None:
        """The prompt is being written: a short while after the last key it is the session's, and so on the disk."""
        self._show_label()
        if self._keeping is not None:
            self._keeping.stop()
        self._keeping = self.set_timer(KEEP_SECONDS, self.keep)
        self.lens.store.writing = self._written

    def _written(self) -> str:
        return self.session.prompt if self.area is None else self.area.text

    def keep(self) -> None:
        """What is written is the session's prompt."""
        self.lens.store.writing = None
        if self.area is not None and self.is_running:
            self.lens.store.update(prompt=self.area.text)

    def is_ready(self) -> bool:
        """Whether there is a model, and something is asked; says so if not. What is written is the session's then."""
        self.keep()
        if self.session.model is None:
            self.lens.say(self.lens.no_model())
        elif not self.session.prompt:
            self.lens.say(f"Write a prompt first: {self.lens.key_text('generate.prompt')}.")
        return self.session.model is not None and bool(self.session.prompt)

    def _show_label(self) -> None:
        """Who speaks, and of how many lines, where there are several: fewer may be in sight."""
        chatting, text = self.session.chatting, self.session.prompt if self.area is None else self.area.text
        label, lines = self.query_one("#prompt-label", Label), text.count("\n") + 1
        width = LABEL + 1 if chatting else len("prompt")
        said = f"{'user' if chatting else 'prompt':>{width}} ▏"
        if lines > 1:
            said += f"\n{f'{lines} ln' if lines > 999 else f'{lines} lines':>{max(width, 7)}}"
        label.update(Content(said))
        label.styles.width = LABEL + 4 if chatting else None

    def paste(self, text: str) -> None:
        """What was pasted while nothing was being written is the prompt, or goes into it."""
        if self.area is None:
            self.lens.store.update(prompt=self.session.prompt + "\n".join(lines_of(text)))
            return
        self.focus_area()
        self.area.put(text)

    # -- the conversation

    def follow(self, old: Session, new: Session) -> None:
        """Show the session's prompt and turns."""
        if self.area is not None and old.prompt != new.prompt:  # else what is being written would go
            self.area.show(new.prompt)
        self._show_label()
        if self.template and old.question != new.question:
            self._read()
        if (old.turns, old.chatting) != (new.turns, new.chatting) or new.turns != self.lines.turns:
            self._show()

    def _show(self) -> None:
        self.lines.turns = self.session.turns if self.session.chatting else ()
        turns = self.query_one("#turns", Transcript)
        turns.display = bool(self.lines.turns) or self.template
        turns.can_focus = turns.display
        self.lines.refresh(layout=True)
        if not self.template:
            turns.call_after_refresh(turns.scroll_end, animate=False)

    def fold(self) -> bool:
        """Open the thinking of the turns, or fold it; returns whether it is open."""
        self.lines.unfolded = not self.lines.unfolded
        self._show()
        return self.lines.unfolded

    def toggle_template(self) -> None:
        """Show the prompt as the model reads it, token by token, or the turns again."""
        if self.session.model is None:
            self.lens.say(self.lens.no_model())
            return
        self.keep()
        self.template = not self.template
        if self.template:
            self._read()
            return
        self.lines.read, self.lines.problem = None, ""
        self._show()

    def _read(self) -> None:
        prompt, turns, raw = self.session.question
        if prompt or turns:
            self.lens.submit(ReadPrompt(prompt, turns, raw), "prompt", self._take)
        else:
            self.lines.read, self.lines.problem = ((), None), ""
            self._show()

    def _take(self, event: Event) -> None:
        if not self.template:
            return
        if isinstance(event, PromptRead):
            self.lines.read, self.lines.problem = (event.tokens, event.spans), ""
        elif isinstance(event, JobFailed):
            self.lines.problem = f"{event.message} {event.hint}".strip()
        else:
            return
        self._show()

    def go_on(self, run: RunText | None, arm: ArmText | None) -> None:
        """Take an arm's answer into the conversation, or its text into the prompt, and write what comes next."""
        if run is None or arm is None or not arm.tokens:
            self.lens.say(f"There is no text to go on with: {self.lens.key_text('app.run')} writes one.")
        elif not arm.reason and run.going:
            self.lens.say(f"It is still being written: {self.lens.key_text('app.stop')} stops it.")
        elif self.session.chatting and not run.raw:
            turns = answered(run, arm)
            self._said[turns] = (*run.prompt_ids, *(token.token_id for token in arm.tokens))
            self.lens.store.speak(turns, "")
            self.focus_area()
        else:
            self.lens.store.speak(self.session.turns, run.prompt + arm.text)
            self.focus_area()

    def asked(self, run: RunText) -> dict[str, Any]:
        """What makes the session ask what a run has asked."""
        changes: dict[str, Any] = {"prompt": run.prompt, "turns": run.turns[:-1]}
        model = self.session.model
        if run.turns or (model is not None and model.takes_chat):
            changes["chat"] = bool(run.turns) or (not run.raw and model is not None and model.has_chat_template)
        return changes

    def focus_area(self) -> None:
        """Write the prompt."""
        if self.area is not None:
            focus_now(self.area)

    def check_start(self, run: RunText) -> None:
        """A run has begun: say so if its template shows the model earlier turns otherwise than they were."""
        said = self._said.get(run.turns[:-1]) if run.turns else None
        at = None if said is None else rewritten_at(said, run.prompt_ids)
        if at is not None:
            self.lens.tell(f"The chat template rewrites earlier turns: from token {at} on it is not as it was said.")

    def switch(self) -> None:
        """Prompts go in as turns of a chat, or as they are."""
        model = self.session.model
        if model is None or not model.takes_chat:
            self.lens.say(self.lens.no_model() if model is None else "This model has no chat template.")
            return
        self.keep()
        self.lens.store.update(chat=not self.session.chatting)
        if self.session.chatting:
            self.lens.say("What is written is what the user says next, in the template; the turns so far go before it.")
        else:
            self.lens.say("The prompt goes in as it is, without the template and without turns before it.")

    def edit(self) -> None:
        """Ask for the system prompt, and whether to begin anew."""
        if not self.session.chatting:
            chat = self.lens.key_text("generate.chat")
            self.lens.say(f"Prompts go in as they are: {chat} makes them turns of a chat, if the model has a template.")
            return
        self.keep()

        def take(values: dict[str, str] | None) -> None:
            if values is None:
                return
            anew = values["turns"] == _ANEW
            turns = with_system(() if anew else self.session.turns, values["system"])
            if turns != self.session.turns:
                self.lens.store.speak(turns, "" if anew else self.session.prompt)

        fields = [
            Field("system", "system", system_of(self.session), "no system prompt"),
            Field("turns", "conversation", _GO_ON, options=(_GO_ON, _ANEW)),
        ]
        self.lens.push_screen(FormScreen("Chat", fields), take)
