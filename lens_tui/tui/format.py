"""How numbers look, on the screen and on the command line: pure functions, the same everywhere."""

from __future__ import annotations

from datetime import datetime

from rich.cells import cell_len, set_cell_size

_EIGHTHS = " ▏▎▍▌▋▊▉"


def size(nbytes: float) -> str:
    """Bytes in decimal units, three significant digits: ``19.1 MB``, ``731 MB``, ``2.61 GB``."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{_three(value)} {unit}"
        value /= 1000
    return f"{_three(value)} TB"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def count(number: float) -> str:
    """A count in short form: ``950``, ``18.4 M``, ``1.2 B``."""
    value = float(number)
    for unit in ("", " k", " M", " B"):
        if abs(value) < 999.5 or unit == " B":
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """A time span in its largest sensible unit: ``8 s``, ``3 min``, ``2 h``; ``?`` where it is not known."""
    if seconds is None:
        return "?"
    if seconds < 99.5:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def ago(then: float, now: float) -> str:
    """When something was, relative to now: ``just now``, ``5 min ago``, ``yesterday``, ``12 Mar 2026``."""
    past = now - then
    if past < 90:
        return "just now"
    if past < 86400:
        return f"{duration(past)} ago"
    if past < 2 * 86400:
        return "yesterday"
    if past < 30 * 86400:
        return f"{past / 86400:.0f} days ago"
    return datetime.fromtimestamp(then).strftime("%-d %b %Y")


def bar(fraction: float, width: int) -> str:
    """A horizontal bar of exactly ``width`` cells, filled to the eighth of a cell."""
    eighths = round(min(1.0, max(0.0, fraction)) * width * 8)
    full, part = divmod(eighths, 8)
    text = "█" * full + (_EIGHTHS[part] if part else "")
    return text.ljust(width)


def signed(value: float, places: int = 1) -> str:
    """A number with its sign, zero without one: ``+8.0``, ``-4.5``, ``0.0``."""
    text = f"{value:+.{places}f}"
    return f"{0:.{places}f}" if float(text) == 0 else text


def figure(value: float | None, places: int) -> str:
    """A number, ``–`` where it is not known (``None`` or NaN)."""
    return "–" if value is None or value != value else f"{value:.{places}f}"


def nats(value: float | None) -> str:
    """A divergence in nats, without its unit: ``0.016``, ``0.77``, ``12.3``; ``–`` where it is not known."""
    if value is None or value != value:
        return "–"
    if value == float("inf"):
        return "∞"
    return f"{value:.{3 if value < 0.0995 else 2 if value < 9.995 else 1}f}"


def fit(text: str, width: int) -> str:
    """``text`` in exactly ``width`` cells: padded, or cut with an ellipsis. Never splits a wide character."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text + " " * (width - cell_len(text))
    return (
        set_cell_size(text, width - 1).rstrip()
        + "…"
        + " " * (width - 1 - cell_len(set_cell_size(text, width - 1).rstrip()))
    )


def fit_end(text: str, width: int) -> str:
    """Like :func:`fit`, but what is cut is the beginning: for paths and ids, whose end tells them apart."""
    if cell_len(text) <= width or width <= 1:
        return fit(text, width)
    kept = text
    while cell_len(kept) > width - 1:
        kept = kept[max(1, cell_len(kept) - width) :] if kept.isascii() else kept[1:]
    return fit("…" + kept, width)


def fit_left(text: str, width: int) -> str:
    """Like :func:`fit`, but right aligned."""
    return " " * (width - cell_len(text)) + text if cell_len(text) <= width else fit(text, width)
