"""Whether a prompt of a batch has what its interventions are to touch."""

from __future__ import annotations

from lens_tui.records import LensError

from .batch_rows import Row
from .positions import reach


def check_reach(row: Row) -> None:
    """Refuse positions that no token of the row can have."""
    prompt = row.plan.prompt
    last = len(prompt.ids) + row.sampling.max_tokens - 2
    for entry in row.plan.entries:
        positions = getattr(entry.item, "positions", None)
        if positions is None:
            continue
        if not reach(positions, len(prompt.ids), last):
            raise LensError(
                f"{entry.item.id!r} touches no position of prompt {row.index} (0 to {last}).", "Change its positions."
            )
        if positions.kind == "role":
            _check_role(positions.role, row)


def _check_role(role: str, row: Row) -> None:
    spans = row.plan.prompt.spans
    if spans is None:
        raise LensError(
            f"Positions of role {role!r} cannot be told: prompt {row.index} was not made from chat messages.",
            "Give a prompt that goes through the chat template.",
        )
    known = {name for name, _, _ in spans}
    if role not in known | {"assistant", "thinking"}:
        raise LensError(f"Prompt {row.index} has no {role!r} part.", f"It has: {', '.join(sorted(known))}.")
