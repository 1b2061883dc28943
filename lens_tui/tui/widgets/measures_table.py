"""The measures of a run's arms side by side, a row an arm, under the lanes where a tall terminal has room."""

from __future__ import annotations

from rich.cells import cell_len
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from lens_tui.records.interventions import Z, moved_of
from lens_tui.records.measures import distinct
from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import figure, fit, fit_left, nats
from lens_tui.tui.run_text import ArmText, RunText
from lens_tui.tui.set_text import has_amount

from .lane import strength

HEADS = ("tokens", "KL nat", "reverse", "ppl plain", "ppl own", "distinct-2", "moved ‖h‖", "parts at")
COLUMN = 11
NAME = 24


class MeasuresTable(Widget):
    """What the lanes say, in columns: of each arm that has ended."""

    DEFAULT_CSS = "MeasuresTable { height: auto; padding: 0 1; }"

    run: reactive[RunText | None] = reactive["RunText | None"](None, layout=True)

    def show(self, run: RunText | None) -> None:
        """Show a run as it stands."""
        if run is not self.run:
            self.run = run
        else:
            self.refresh()

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """An empty line, one of heads, and one an arm."""
        return 0 if self.run is None else 2 + len(self.run.arms)

    def render(self) -> RenderResult:
        """The heads and the rows."""
        if self.run is None:
            return Content("")
        room = max(1, (self.size.width - NAME) // COLUMN)
        name = self.size.width - min(room, len(HEADS)) * COLUMN
        head = fit("measures", name) + "".join(fit_left(word, COLUMN) for word in HEADS[:room])
        rows = [
            Content.assemble(
                (fit(one_line(arm.arm.name), max(0, name - 1 - cell_len(amount))) + amount + " ", "$muted"),
                "".join(fit_left(cell, COLUMN) for cell in cells(arm)[:room]),
            )
            for arm in self.run.arms
            for amount in [amount_of_arm(arm)]
        ]
        return Content("\n").join([Content(""), Content.styled(head, "$muted"), *rows])


def amount_of_arm(arm: ArmText) -> str:
    """The scale of an arm behind a blank, by which arms of one vector are told apart; nothing where its name has it."""
    amount = strength(arm.interventions).partition(" · ")[0]
    return f" {amount}" if amount and not has_amount(arm.arm.name, amount) else ""


def cells(arm: ArmText) -> tuple[str, ...]:
    """An arm's numbers in the order of ``HEADS``; ``–`` for what is not known, or has no meaning for the baseline."""
    if not arm.reason:
        return ("…", *[""] * (len(HEADS) - 1))
    steered = arm.number > 0
    return (
        str(len(arm.tokens)),
        nats(arm.mean_kl) if steered else "–",
        nats(arm.mean_reverse_kl) if steered else "–",
        figure(arm.plain_perplexity if steered else arm.perplexity, 1),
        figure(arm.perplexity, 1),
        figure(distinct([token.token_id for token in arm.tokens], 2), 2),
        figure(arm.dose, 2) + (f" {Z}" if moved_of(item.site for item in arm.interventions) == Z else ""),
        "–" if arm.parted is None else str(arm.parted),
    )
