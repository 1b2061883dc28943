"""What can be done to the rows of the bench that act in one lane: their scale, their positions, more like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lens_tui.records.interventions import ALL, BenchRow, next_positions, positions_text
from lens_tui.tui.chat_text import roles_of
from lens_tui.tui.host import LensHost
from lens_tui.tui.session import MAX_ARMS

__all__ = ["add_arm", "delete_arm", "move_scale", "next_place", "zero_scale"]


def next_place(lens: LensHost, rows: Sequence[BenchRow]) -> None:
    """The next positions."""
    positions = next_positions(rows[0].positions, roles=roles_of(lens.store.session))
    lens.store.replace_steers([replace(row, positions=positions) for row in rows])
    lens.say(f"Steered: {positions_text(positions or ALL)}.")


def move_scale(lens: LensHost, rows: Sequence[BenchRow], steps: int) -> None:
    """Scale, by steps."""
    lens.store.replace_steers([row.moved(steps) for row in rows])


def zero_scale(lens: LensHost, rows: Sequence[BenchRow]) -> None:
    """Scale zero."""
    lens.store.replace_steers([replace(row, scale=0.0) for row in rows])


def add_arm(lens: LensHost, rows: Sequence[BenchRow]) -> int | None:
    """A new arm like these rows, half as strong again.

    Returns:
        Its number; None where there are as many as there may be, which is said.
    """
    session = lens.store.session
    if len({row.arm for row in session.steers}) >= MAX_ARMS:
        lens.say(f"There can be at most {MAX_ARMS} arms beside the baseline.")
        return None
    free = session.free_arm()
    for row in rows:
        lens.store.add_like(row, row.moved(5).scale, free)
    return free


def delete_arm(lens: LensHost, rows: Sequence[BenchRow]) -> None:
    """Take the rows off the bench; undo brings them back."""
    gone = {row.id for row in rows}
    lens.store.update(steers=tuple(row for row in lens.store.session.steers if row.id not in gone))


def from_to(ran: str, now: str) -> str:
    """What is done in a lane, as :func:`strength` has it: what it was when it ran, and what it is since."""
    if now == ran:
        return now
    before = ran.partition(" · ")[0]
    return f"→ {now}" if before == now.partition(" · ")[0] else f"{before} → {now}"
