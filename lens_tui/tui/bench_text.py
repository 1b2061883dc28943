"""A scale of a row of the bench in words: short, exact, and as multiples of what is known. Pure."""

from __future__ import annotations

from lens_tui.records.modes import mode_of, positions_text
from lens_tui.tui.format import signed
from lens_tui.tui.session import Steer


def short(value: float) -> str:
    """A scale in at most five cells, for the head of a column: ``-76``, ``4.8``, ``.25``, ``1.5k``."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 995:
        text = f"{size / 1000:.1f}".removesuffix(".0") if size < 9950 else f"{size / 1000:.0f}"
        text += "k"
    elif size >= 9.95:
        text = f"{size:.0f}"
    elif size >= 0.995:
        text = f"{size:.1f}".removesuffix(".0")
    else:
        text = f"{size:.2g}".lstrip("0")
    return f"-{text}" if value < 0 else text


def amount(row: Steer, scale: float | None = None) -> str:
    """The row's scale, or another, with its sign, as precisely as the row's steps need it."""
    scale = row.scale if scale is None else scale
    return signed(scale, 1 if row.step >= 0.1 else 2 if row.step >= 0.01 else 3)


def relative(row: Steer, scale: float | None = None) -> str:
    """The row's scale, or another, as multiples of what is known: the feature's maximum, the median residual norm."""
    parts, scale = [], row.scale if scale is None else scale
    if row.mode == "norm_match":
        return "× each token's ‖h‖"
    if row.mode == "project_out":
        return ""
    if row.vector.max_activation:
        parts.append(f"×{abs(scale) / row.vector.max_activation:.2f} max")
    if row.residual_norm:
        parts.append(f"×{abs(scale) / row.residual_norm:.2f} ‖h‖")
    return " ".join(parts)


def acts(row: Steer) -> str:
    """Mode and positions in a few words; nothing for what a row usually does: add, at all tokens."""
    parts = [] if row.mode == "add" else [mode_of(row.mode).label]
    parts += [] if row.positions is None else [positions_text(row.positions)]
    return " · ".join(parts)
