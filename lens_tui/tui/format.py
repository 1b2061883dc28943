"""How numbers look, on the screen and on the command line: as text, as a shade, a bar or a digit. Pure.

A level is an integer from 0 (nothing worth showing) to 7 (full). Every widget that shows a number by colour takes
levels, so colour and its glyph twin can never disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.cells import cell_len, set_cell_size

from lens_tui.records.run import KL_STEPS, step_level

N_LEVELS = 8
NEWLINE = "⏎"
"""How a line break in a token looks."""
BARS = "▁▂▃▄▅▆▇█"
DIGITS = "01234567"
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")

SURPRISAL_STEPS = (3.0, 4.0, 5.0, 6.0, 7.0, 8.5, 10.0)
"""Lower bounds of levels 1 to 7 for ``-logprob`` in nats.

A token likelier than 1 in 20 stays plain: shading what is common would shade nearly every token of ordinary text.
"""

LAYER_KL_STEPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Lower bounds of levels 1 to 7 for the KL of a layer's readout from the last layer's, in nats: each step doubles."""


def layer_kl_level(value: float | None) -> int:
    """The level of a layer's KL from the last one, in nats."""
    return step_level(value, LAYER_KL_STEPS)


def kl_key() -> str:
    """What the bars of :func:`kl_level` stand for: ``▂0.01 ▄0.1 ▆1 █10 nat``."""
    return " ".join(f"{BARS[level]}{KL_STEPS[level - 1]:g}" for level in (1, 3, 5, 7)) + " nat"


def surprisal_level(logprob: float | None) -> int:
    """The level of a log-probability (nats): 0 for a sure token, 7 from 10 nats of surprise."""
    return 0 if logprob is None else step_level(-logprob, SURPRISAL_STEPS)


def share_level(value: float, maximum: float) -> int:
    """The level of a value as a share of a maximum; anything above zero is at least 1."""
    if not value > 0.0 or not maximum > 0.0:
        return 0
    return min(N_LEVELS - 1, 1 + int((N_LEVELS - 1) * value / maximum))


def leading_dot(text: str) -> str:
    """A token's text with its leading blank as a dot, so that it can be seen."""
    return "·" + text[1:] if text.startswith(" ") else text


def bar(share: float, width: int) -> str:
    """A horizontal bar, in eighths of a cell, of ``share`` (0 to 1) of ``width`` cells. Not padded."""
    if not share > 0.0 or width <= 0:
        return ""
    eighths = max(1, round(min(1.0, share) * width * 8))
    whole, rest = divmod(eighths, 8)
    return "█" * whole + _EIGHTHS[rest]


def sparkline(levels: Sequence[int]) -> str:
    """Levels as a row of bars, one cell each."""
    return "".join(BARS[level] for level in levels)


def histogram(counts: Sequence[float], width: int) -> tuple[str, str]:
    """Two rows of bars (upper, lower) for a histogram, sixteen heights; a non-zero count always shows.

    More bins than cells are summed into neighbours, fewer are drawn one cell each.
    """
    bins = _rebin(counts, width)
    top = max(bins, default=0.0)
    upper, lower = [], []
    for count in bins:
        height = 0 if top <= 0 or count <= 0 else max(1, round(16 * count / top))
        lower.append(" " if height == 0 else BARS[min(height, 8) - 1])
        upper.append(" " if height <= 8 else BARS[height - 9])
    return "".join(upper), "".join(lower)


def _rebin(counts: Sequence[float], width: int) -> list[float]:
    if width <= 0 or not counts:
        return []
    if len(counts) <= width:
        return [float(count) for count in counts]
    bins = [0.0] * width
    for index, count in enumerate(counts):
        bins[index * width // len(counts)] += float(count)
    return bins


class Trail:
    """A growing series squeezed into a fixed number of cells, each the mean of equally many values.

    Appending costs the same however long the series is: when the cells are
    full, neighbours are merged and each cell holds twice as many values.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = max(2, capacity)
        self.per_cell = 1
        self._sums: list[float] = []
        self._counts: list[int] = []

    def append(self, value: float) -> None:
        """Add one value at the end."""
        if not self._counts or self._counts[-1] >= self.per_cell:
            if len(self._sums) == self.capacity:
                self._halve()
            if not self._counts or self._counts[-1] >= self.per_cell:
                self._sums.append(0.0)
                self._counts.append(0)
        self._sums[-1] += value
        self._counts[-1] += 1

    def means(self) -> list[float]:
        """The mean of each cell, oldest first."""
        return [total / count for total, count in zip(self._sums, self._counts, strict=True)]

    def _halve(self) -> None:
        self._sums = [sum(self._sums[i : i + 2]) for i in range(0, len(self._sums), 2)]
        self._counts = [sum(self._counts[i : i + 2]) for i in range(0, len(self._counts), 2)]
        self.per_cell *= 2


def scale_bar(value: float, limit: float, width: int) -> str:
    """A slider of ``width`` cells from ``-limit`` to ``+limit``: ``┼`` zero, ``●`` the value, ``◀ ▶`` beyond the ends.

    The cells between zero and the value are drawn heavy, so that the size is
    seen without colour.
    """
    width = max(5, width | 1)
    middle = width // 2
    cells = ["─"] * width
    cells[middle] = "┼"
    share = max(-1.0, min(1.0, value / limit)) if limit > 0 else 0.0
    knob = middle + round(share * middle)
    for place in range(min(knob, middle) + 1, max(knob, middle)):
        cells[place] = "━"
    beyond = abs(value) > limit > 0
    cells[knob] = ("▶" if value > 0 else "◀") if beyond else "●"
    return "".join(cells)


def nice_limit(unit: float, values: tuple[float, ...] = ()) -> float:
    """The end of a slider: twice the unit, or as far as the largest value needs, in whole units."""
    steps = max([2.0, *(abs(value) / unit for value in values)]) if unit > 0 else 2.0
    return unit * (2 if steps <= 2 else -(-steps // 1))


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


def model_name(name: str, room: int = 60) -> str:
    """What a model is called in ``room`` cells: of a folder's address, and of an id that is too long, the end."""
    if name.startswith(("/", "~", ".")) or cell_len(name) > room:
        return name.rstrip("/").rpartition("/")[2] or name
    return name
