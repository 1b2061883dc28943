"""What patches found, as a map of figures and shades and as lines about one cell. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len
from textual.content import Content

from lens_tui.records.cause_plan import PatchFound, PatchPlan
from lens_tui.records.patch_grid import Doubles
from lens_tui.records.wording import dotted_quote

from .format import BARS, bar, fit, fit_left, share_level, signed

SHADES = ("effect", "random", "shuffled", "estimate", "value")
"""What the figures and the shade of a map may be of."""
FIGURE = 9
"""Cells of a figure at the right end of a line."""
TOP = 5
"""How many cells are listed as the strongest."""


@dataclass(frozen=True, slots=True, eq=False)
class CauseMap:
    """A map of what was found: rows from the first layer up, a figure of each kind for every cell.

    ``start`` is the effect of patching nothing. ``tokens`` are those of the run that is patched, ``others`` those that
    activations come from; both are empty where a column is no token.
    """

    plan: PatchPlan
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    layers: tuple[int, ...]
    tokens: tuple[str, ...]
    others: tuple[str, ...]
    figures: dict[str, Doubles]
    start: float
    clean: float
    corrupted: float
    floor: float | None

    @property
    def done(self) -> int:
        """How many cells are known."""
        return int(np.isfinite(self.figures["effect"]).sum())

    @property
    def size(self) -> int:
        """How many cells there are."""
        return int(self.figures["effect"].size)

    def moved(self, shade: str) -> Doubles:
        """How far each cell's figure is from what it is with nothing patched, as a share of clean less corrupted."""
        name = "effect" if shade == "value" else shade
        moved: Doubles = np.abs(self.figures[name] - self.start)
        return moved

    @property
    def top(self) -> float:
        """The largest move of a patch: what a full shade stands for, in every kind of figure."""
        moved = self.moved("effect")
        return float(np.nanmax(moved)) if np.isfinite(moved).any() else 0.0

    def raw(self, value: float) -> str:
        """A value of the metric as it is written: signed where the metric has both signs."""
        places = places_of(self.figures["value"])
        two_sided = self.plan.by != "trace" and self.plan.metric in ("logit-difference", "log-probability")
        return signed(value, places) if two_sided else f"{value:.{places}f}"

    def strongest(self) -> list[tuple[int, int]]:
        """Row and column of every known cell, that which moves the metric most first."""
        moved = self.moved("effect").reshape(-1)
        order = [int(at) for at in np.argsort(-np.nan_to_num(moved, nan=-1.0), kind="stable") if moved[at] == moved[at]]
        return [divmod(at, len(self.columns)) for at in order]

    def place(self, row: int, column: int) -> str:
        """A cell's place in short: ``L5 @ 5 ‘ball’``, ``L7 H4``."""
        if self.tokens:
            return f"{self.rows[row]} @ {column} {dotted_quote(self.tokens[column])}"
        return f"{self.rows[row]} {self.columns[column]}"


def map_of(found: PatchFound) -> CauseMap:
    """The map of a grid or a trace."""
    effect = found.effect
    assert effect is not None
    figures = {"effect": effect}
    if found.random is not None:
        figures["random"] = found.random
    if found.trace is not None:
        trace = found.trace
        figures["value"] = trace.values
        rows = tuple(f"L{layer}" for layer in trace.layers)
        columns = tuple(map(str, range(len(trace.tokens))))
        floor = _floor(figures.get("random"), 0.0)
        of = (trace.layers, trace.tokens, trace.tokens, figures, 0.0, trace.clean, trace.noised, floor)
        return CauseMap(found.plan, rows, columns, *of)
    grid = found.grid
    assert grid is not None
    figures["value"] = grid.values
    if grid.shuffled is not None:
        figures["shuffled"] = grid.shuffled
    if found.estimate is not None:
        figures["estimate"] = found.estimate.effect
    placed = grid.by.endswith("position") and all(name.isdigit() for name in grid.columns)
    tokens, others = (grid.tokens, grid.other_tokens) if placed else ((), ())
    columns = tuple(name.replace("head ", "H") for name in grid.columns)
    floor = _floor(grid.random, grid.start)
    rest = (grid.layers, tokens, others, figures, grid.start, grid.clean, grid.corrupted, floor)
    return CauseMap(found.plan, grid.rows, columns, *rest)


def _floor(random: Doubles | None, start: float) -> float | None:
    if random is None or not np.isfinite(random).any():
        return None
    return float(np.nanmax(np.abs(random - start)))


def cells(shown: CauseMap, shade: str) -> list[list[tuple[str, int]]]:
    """Text and level of each cell, ``[row][column]``; a dot where it is not known yet."""
    values, moved, top = shown.figures[shade], shown.moved(shade), shown.top
    write = shown.raw if shade == "value" else _effect
    return [
        [_cell(float(value), float(far), top, write) for value, far in zip(row, some, strict=True)]
        for row, some in zip(values, moved, strict=True)
    ]


def _effect(value: float) -> str:
    return signed(value, 2)


def _cell(value: float, moved: float, top: float, write: Callable[[float], str]) -> tuple[str, int]:
    if value != value:
        return "·", 0
    # A hundredth of the largest is nothing to see, and shading it would shade every cell.
    return write(value), share_level(moved, top) if moved >= 0.01 * top else 0


def places_of(values: Doubles) -> int:
    """Decimal places for raw values: so that the largest has three digits or so."""
    top = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    return 1 if top >= 100 else 2 if top >= 1 else 3


def details(shown: CauseMap, shade: str) -> list[list[str]]:
    """The second line of each cell: the raw metric, or, where that is the first, the effect."""
    other = "effect" if shade == "value" else "value"
    write = _effect if other == "effect" else shown.raw
    return [["" if x != x else write(float(x)) for x in row] for row in shown.figures[other]]


def legend(shown: CauseMap, shade: str, width: int) -> Content:
    """What a full shade stands for, in its unit, and how much chance alone moves; in short where room is short."""
    gap = f"{shown.raw(shown.clean - shown.corrupted)} {shown.plan.unit}"
    other = "noised" if _is_trace(shown) else "corrupted"
    chance = "" if shown.floor is None else f" · random ≤ {shown.floor:.2f}"
    scale = f"{shade} {BARS[1]} 0.01 … {BARS[7]} {shown.top:.2f} of"
    forms = (f"{scale} clean − {other} ({gap}){chance}", f"{scale} {gap}{chance}", f"{shade} █ {shown.top:.2f}{chance}")
    text = next((form for form in forms if cell_len(form) <= width), forms[-1])
    return Content.styled(text, "$muted")


def _is_trace(shown: CauseMap) -> bool:
    return shown.plan.by == "trace"


def cell_lines(found: PatchFound, shown: CauseMap, row: int, column: int, width: int) -> list[Content]:
    """One cell: its effect, raw value and controls, what was put where; then what is common to all cells."""
    at = {name: float(of[row, column]) for name, of in shown.figures.items()}
    unit = shown.plan.unit
    lines = [*_placed(shown, row, column, width), Content("")]
    if at["effect"] != at["effect"]:
        lines.append(Content.styled("not patched yet", "$muted"))
    else:
        room = max(0, width - 8)
        share = abs(at["effect"] - shown.start) / shown.top if shown.top else 0.0
        lines += [
            _figure("effect", signed(at["effect"], 3), width),
            Content.assemble((fit(bar(share, room), room), "$heat-5")),
            _figure(f"value, {unit}", shown.raw(at["value"]), width),
            *_interval(found, row, column, width),
            *(
                _figure(said, signed(at[name], 3), width)
                for name, said in (("random", "random"), ("shuffled", "shuffled"), ("estimate", "estimate"))
                if name in at and at[name] == at[name]
            ),
        ]
    lines += [Content(""), *_common(found, shown, width), *_ranking(shown, width)]
    if found.why:
        lines += [Content(""), Content.styled(f"no estimates: {found.why}", "$muted")]
    return [line if line.plain.startswith("no estimates") else line.truncate(width, ellipsis=True) for line in lines]


def _placed(shown: CauseMap, row: int, column: int, width: int) -> list[Content]:
    plan = shown.plan
    what = shown.columns[column] if plan.by.startswith("head") else plan.site
    lines = [Content.assemble((f"{shown.rows[row]} {what}", "bold"))]
    if not shown.tokens:
        return [*lines, Content.styled(fit("at all tokens", width).rstrip(), "$muted")]
    here, there = shown.tokens[column], shown.others[column] if column < len(shown.others) else ""
    if _is_trace(shown):
        return [*lines, Content.assemble(("token ", "$muted"), f"{column} {dotted_quote(here)}")]
    into, source = ("corrupted", "clean") if plan.direction == "denoise" else ("clean", "corrupted")
    return [
        *lines,
        Content.assemble(("token ", "$muted"), f"{column} {dotted_quote(here)}", (f" of {into}", "$muted")),
        Content.assemble(("becomes ", "$muted"), dotted_quote(there), (f" of {source}", "$muted")),
    ]


def _interval(found: PatchFound, row: int, column: int, width: int) -> list[Content]:
    grid = found.grid
    if grid is None or grid.low is None or grid.high is None:
        return []
    low, high = float(grid.low[row, column]), float(grid.high[row, column])
    return [_figure("95 %", f"{signed(low, 2)} … {signed(high, 2)}", width)]


def _common(found: PatchFound, shown: CauseMap, width: int) -> list[Content]:
    noised = "noised" if _is_trace(shown) else "corrupted"
    lines = [
        _figure("clean", shown.raw(shown.clean), width),
        _figure(noised, shown.raw(shown.corrupted), width),
    ]
    if shown.floor is not None:
        lines.append(_figure("random at most", f"{shown.floor:.3f}", width))
    if found.check is not None and found.check.pearson is not None and found.check.spearman is not None:
        lines.append(_figure("estimates: r", f"{found.check.pearson:.3f}", width))
        lines.append(_figure("rank r", f"{found.check.spearman:.3f}", width))
    if found.trace is not None:
        lines.append(_figure("noised runs", str(found.trace.samples), width))
    return lines


def _ranking(shown: CauseMap, width: int) -> list[Content]:
    lines = [Content(""), Content.styled("strongest", "$muted")]
    for row, column in shown.strongest()[:TOP]:
        lines.append(
            _figure(shown.place(row, column), signed(float(shown.figures["effect"][row, column]), 2), width, "")
        )
    return lines


def _figure(name: str, value: str, width: int, style: str = "$muted") -> Content:
    cut = max(FIGURE, len(value) + 1)
    return Content.assemble((fit(name, max(0, width - cut)), style), fit_left(value, cut))


def question(plan: PatchPlan, width: int) -> list[Content]:
    """The two prompts with the tokens that they lead to, or the prompt with its subject."""
    if plan.by == "trace":
        rows: Sequence[tuple[str, str, str]] = (
            ("prompt", plan.clean, plan.answer),
            ("subject", plan.subject or "–", ""),
        )
    elif plan.pairs:
        rows = (("pairs", plan.pairs, ""), ("", "", ""))
    else:
        rows = (("clean", plan.clean, plan.answer), ("corrupted", plan.corrupted, plan.wrong))
    return [_asked(name, text, token, width) for name, text, token in rows]


def _asked(name: str, text: str, token: str, width: int) -> Content:
    leads = f" → {dotted_quote(token)}" if token else ""
    room = max(8, width - 11 - len(leads))
    return Content.assemble((fit(name, 10), "$muted"), " ", fit(text, room).rstrip(), (leads, "$muted"))
