"""What can be done to the arm in the focused lane: its scale, its positions, another like it, away with it."""

from __future__ import annotations

from dataclasses import replace

from lens_tui.records.interventions import ALL, BenchRow, next_positions, positions_text
from lens_tui.tui.session import MAX_ARMS

from .gate_form import ask_gate
from .generate_lanes import GenerateLanes


class GenerateArms(GenerateLanes):
    """Edits the rows of the bench that act in the focused lane."""

    def action_positions(self) -> None:
        """The next positions for what steers the focused lane."""
        if rows := self._rows():
            positions = next_positions(rows[0].positions, by_role=self.session.chatting)
            self._replace([replace(row, positions=positions) for row in rows])
            self.lens.say(f"Steered: {positions_text(positions or ALL)}.")

    def action_gate(self) -> None:
        """Choose what lets the focused lane's rows act."""
        if rows := self._rows():
            ask_gate(self.lens, rows)

    def _rows(self) -> list[BenchRow]:
        """The rows of the bench that act in the focused lane; says so if there are none."""
        if self.set is not None:
            self.lens.say(
                f"These lanes are a set's: esc goes back to the bench, {self.lens.key_text('app.run')} runs it."
            )
            return []
        lane = self.lanes.focused_lane
        rows = [row for row in self.session.steers if lane is not None and row.arm == lane.number and row.enabled]
        if not rows:
            keys = f"{self.lens.key_text('generate.lane_left')} {self.lens.key_text('generate.lane_right')}"
            self.lens.say(f"Nothing is steered in this lane; {keys} go to the others.")
        return rows

    def _replace(self, rows: list[BenchRow]) -> None:
        by_id = {row.id: row for row in rows}
        self.lens.store.update(steers=tuple(by_id.get(row.id, row) for row in self.session.steers))

    def action_scale(self, steps: int) -> None:
        """Scale of the focused lane, by steps; live while it is written, else it runs again after a rest."""
        if rows := self._rows():
            self._replace([row.moved(steps) for row in rows])

    def action_zero(self) -> None:
        """Scale zero in the focused lane."""
        if rows := self._rows():
            self._replace([replace(row, scale=0.0) for row in rows])

    def action_add_arm(self) -> None:
        """A new lane like the focused one, half as strong again."""
        rows = self._rows()
        taken = {row.arm for row in self.session.steers}
        if not rows or len(taken) >= MAX_ARMS:
            if rows:
                self.lens.say(f"There can be at most {MAX_ARMS} arms beside the baseline.")
            return
        free = self.session.free_arm()
        for row in rows:
            self.lens.store.add_like(row, row.moved(5).scale, free)
        self.lanes.focus_arm(free)  # the next one added is higher again

    def action_delete_arm(self) -> None:
        """Take the focused lane's rows off the bench; undo brings them back."""
        if rows := self._rows():
            gone = {row.id for row in rows}
            self.lens.store.update(steers=tuple(row for row in self.session.steers if row.id not in gone))
