"""Two runs side by side: the same arm of each, what one has that the other has not, and what may be the cause."""

from __future__ import annotations

from collections.abc import Iterator

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line
from lens_tui.tasks.replay import held_against
from lens_tui.tui.format import figure
from lens_tui.tui.session import ArmText, RunText, summary
from lens_tui.tui.token_shades import changed_levels
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.lane import strength
from lens_tui.tui.widgets.token_view import TokenView

from .form import Dialog


class RunColumn(Pane):
    """One run's text of the arm that is looked at."""

    keeps_note = True
    DEFAULT_CSS = "RunColumn { width: 1fr; height: 1fr; } RunColumn > TokenView { margin: 1 0 0 1; }"

    def __init__(self, run: RunText) -> None:
        self.run = run
        self.facts = Static("", classes="muted")
        self.view = TokenView(empty="it has no such arm")
        super().__init__("", self.facts, self.view)

    def arm(self, index: int) -> ArmText | None:
        """The arm at a place, if there is one."""
        return self.run.arms[index] if index < len(self.run.arms) else None

    def show(self, index: int, other: ArmText | None) -> None:
        """Show an arm, shaded where it leaves the other run's."""
        text = self.arm(index)
        self.title = "–" if text is None else one_line(text.arm.name, 60)
        self.note = "" if text is None else strength(text.arm.interventions)
        ids, others = ([] if arm is None else [token.token_id for token in arm.tokens] for arm in (text, other))
        self.view.set_tokens([] if text is None else text.pieces, changed_levels(others, ids))
        parted = next((at for at, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)
        self.view.mark = parted
        facts = [one_line(self.run.model, 40) or "model", summary(self.run.sampling), self.run.state]
        if text is not None and text.mean_kl is not None and index:
            facts.append(f"KL {figure(text.mean_kl, 3)} nat")
        self.facts.update(Content.styled(" · ".join(facts), "$muted"))


class TwoRunsScreen(Dialog[None]):
    """Looks at one arm of both runs at a time; the token cursor is at the same token of both."""

    BINDINGS = [
        ("left_square_bracket", "arm(-1)", "arm before"),
        ("right_square_bracket", "arm(1)", "arm after"),
        ("escape,q", "dismiss", "back"),
    ]
    DEFAULT_CSS = """
    TwoRunsScreen .dialog { width: 100%; max-width: 100%; height: 100%; max-height: 100%; padding: 1 1 0 1; }
    TwoRunsScreen Horizontal { height: 1fr; }
    TwoRunsScreen #two-found { height: auto; max-height: 4; margin-top: 1; }
    TwoRunsScreen #two-keys { height: 1; margin-top: 1; color: $muted; }
    """

    def __init__(self, first: RunText, second: RunText) -> None:
        super().__init__()
        self.columns = (RunColumn(first), RunColumn(second))
        self.index = 0

    def compose(self) -> ComposeResult:
        """Prompt, the two columns, what was found, the keys."""
        prompts = list(dict.fromkeys(one_line(column.run.prompt, 200) for column in self.columns))
        with Vertical(classes="dialog"):
            yield Static(Content(" │ ".join(prompts)), classes="dialog-title")
            yield Horizontal(*self.columns)
            yield Static(Content(one_line(self._found(), 400)), id="two-found")
            keys = (("[ ]", " arm   "), ("tab", " other run   "), ("h l", " token of both   "), ("esc", " back"))
            parts = [part for key, word in keys for part in ((key, "bold"), word)]
            yield Static(Content.assemble(*parts), id="two-keys")

    def on_mount(self) -> None:
        """The first steered arm is of more interest than the baseline."""
        self.action_arm(1 if max(len(column.run.arms) for column in self.columns) > 1 else 0)
        self.columns[0].view.focus()

    def _found(self) -> str:
        first, second = (column.run for column in self.columns)
        if first.question != second.question:
            how = "prompts" if first.prompt != second.prompt else "conversations, or one of them raw"
            return f"They were asked different things ({how}): that their tokens differ needs no other cause."
        old, new = first.record(), second.record()
        try:
            found = held_against(old, new)
        except LensError as error:
            return error.message
        return " ".join([found.sentence(), *found.causes[2:]])

    def action_arm(self, step: int) -> None:
        """The arm before or after, of both runs."""
        count = max(len(column.run.arms) for column in self.columns)
        self.index = (self.index + step) % count
        first, second = self.columns
        first.show(self.index, second.arm(self.index))
        second.show(self.index, first.arm(self.index))

    def on_token_view_cursor_moved(self, event: TokenView.CursorMoved) -> None:
        """The same token in the other run."""
        if not event.view.has_focus:
            return
        for view in self._views():
            if view is not event.view and event.index is not None and event.index < len(view.tokens):
                view.move_to(event.index)

    def _views(self) -> Iterator[TokenView]:
        return (column.view for column in self.columns)
