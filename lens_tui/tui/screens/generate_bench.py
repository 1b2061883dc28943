"""What can be done to the arm in the focused lane: its scale, another like it, away with it. What Generate mixes in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lens_tui.tui.session import MAX_ARMS, Steer

if TYPE_CHECKING:
    from lens_tui.tui.widgets.lane_row import LaneRow

    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object


class BenchActions(_Base):
    """Needs ``lanes`` of the screen."""

    if TYPE_CHECKING:
        lanes: LaneRow

    def _rows(self) -> list[Steer]:
        """The rows of the bench that act in the focused lane; says so if there are none."""
        lane = self.lanes.focused_lane
        rows = [row for row in self.session.steers if lane is not None and row.arm == lane.number and row.enabled]
        if not rows:
            keys = f"{self.lens.key_text('generate.lane_left')} {self.lens.key_text('generate.lane_right')}"
            self.lens.say(f"Nothing is steered in this lane; {keys} go to the others.")
        return rows

    def _replace(self, rows: list[Steer]) -> None:
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
                self.lens.say(f"{MAX_ARMS} arms beside the baseline are the most.")
            return
        free = self.session.free_arm()
        for row in rows:
            self.lens.store.add_steer(
                row.vector,
                scale=row.moved(5).scale,
                arm=free,
                residual_norm=row.residual_norm,
                promoted=row.promoted,
                suppressed=row.suppressed,
                mode=row.mode,
                positions=row.positions,
            )

    def action_delete_arm(self) -> None:
        """Take the focused lane's rows off the bench; undo brings them back."""
        if rows := self._rows():
            gone = {row.id for row in rows}
            self.lens.store.update(steers=tuple(row for row in self.session.steers if row.id not in gone))
