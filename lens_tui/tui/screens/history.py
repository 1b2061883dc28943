"""The runs of this session, to look at again."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import fit
from lens_tui.tui.run_text import RunText
from lens_tui.tui.widgets.lane import strength
from lens_tui.tui.widgets.row_list import RowList

from .dialog import Dialog


class HistoryScreen(Dialog[RunText | None]):
    """Newest first; enter puts a run back with its prompt, settings and bench."""

    BINDINGS = [("escape,q", "dismiss", "cancel"), ("enter", "choose", "restore")]
    DEFAULT_CSS = """
    HistoryScreen RowList { height: auto; max-height: 18; }
    """

    def __init__(self, runs: Sequence[RunText]) -> None:
        super().__init__()
        self._runs = list(reversed(runs))

    def compose(self) -> ComposeResult:
        """The list."""
        with Vertical(classes="dialog"):
            yield Static("Runs of this session", classes="dialog-title")
            yield RowList[RunText](_rows, row_height=2, empty="nothing has run yet")
            yield Static(
                Content.assemble("\n", ("⏎", "bold"), " restore   ", ("esc", "bold"), " back"), classes="muted"
            )

    def on_mount(self) -> None:
        """Fill it."""
        rows: RowList[RunText] = self.query_one(RowList)
        rows.show(self._runs)
        rows.styles.height = min(2 * max(1, len(self._runs)), 18)
        rows.focus()

    def action_choose(self) -> None:
        """Give back the run under the cursor."""
        self.dismiss(self.query_one(RowList).row)

    def on_row_list_chosen(self) -> None:
        """A click on the row under the cursor."""
        self.action_choose()


def _rows(run: RunText, width: int) -> list[Content]:
    arms = ", ".join(f"{arm.arm.name} {strength(arm.interventions)}" for arm in run.arms[1:]) or "baseline alone"
    most = max((len(arm.tokens) for arm in run.arms), default=0)
    facts = f"{most} tokens · seed {run.sampling.seed} · {run.state}"
    head = Content.assemble((f"{run.number:>3}  ", "$muted"), fit(one_line(run.prompt, width), max(8, width - 5)))
    return [head, Content.styled(fit(f"     {arms} · {facts}", width), "$muted")]
