"""What ``patch`` found as maps and lines for a terminal or a pipe."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import set_cell_size

from lens_tui.records.patch_grid import Agreement, CausalTrace, Doubles, PatchGrid
from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import share_level, signed

from .output import note, say, say_shaded

if TYPE_CHECKING:
    from lens_tui.records.patch_plan import PatchFound

CELL, NAME, LISTED = 8, 10, 8


def print_grid(grid: PatchGrid, check: Agreement | None) -> None:
    """The effects as a map, then the strongest cells with their controls, then what they are."""
    heads = list(grid.columns)
    if grid.by.endswith("position") and all(name.isdigit() for name in heads):
        heads = [grid.tokens[int(name)] for name in heads]
    print_map(grid.rows, heads, grid.effect, grid.start, upward=bool(grid.layers))
    for row, column in grid.strongest(min(LISTED, grid.effect.size)):
        say(_in_words(grid, row, column, heads[column]))
    _print_notes(grid, check)


def print_trace(found: PatchFound) -> None:
    """The trace as a map of the share of the total effect that each state gives back."""
    trace, effect, random = found.trace, found.effect, found.random
    assert trace is not None
    assert effect is not None
    rows = [f"L{layer}" for layer in trace.layers]
    print_map(rows, trace.tokens, effect, 0.0, upward=True)
    order = (-abs(effect)).reshape(-1).argsort(kind="stable")[:LISTED].tolist()
    for row, column in (divmod(at, len(trace.tokens)) for at in order):
        parts = [f"{signed(float(effect[row, column]), 3):>7}  {rows[row]} {column} {trace.tokens[column].strip()}"]
        parts += [] if random is None else [f"random {signed(float(random[row, column]), 3)}"]
        say("  ".join(parts))
    _print_trace_notes(trace)


def _print_trace_notes(trace: CausalTrace) -> None:
    note(
        f"{trace.model} {trace.site}, tokens {trace.subject[0]} to {trace.subject[1] - 1} noised, {trace.samples} "
        f"runs: probability of {trace.answer_text!r} {trace.clean:.3f}, noised {trace.noised:.3f}; effect 0 is the "
        "noised run, 1 the clean one"
    )
    if trace.window > 1:
        note(f"{trace.window} layers are restored together")
    if trace.noise_floor is not None:
        note(f"random steps of the same length move the probability by at most {trace.noise_floor:.3f}")


def print_map(rows: Sequence[str], heads: Sequence[str], effect: Doubles, start: float, *, upward: bool) -> None:
    """A map in as many blocks as the width needs, shaded in a terminal by how far a cell moved.

    Args:
        rows: Their names.
        heads: What is above the columns.
        effect: (rows, columns).
        start: The effect of nothing.
        upward: The last row first, as layers are read.
    """
    order = range(len(rows) - 1, -1, -1) if upward else range(len(rows))
    across = max(1, (shutil.get_terminal_size((120, 24)).columns - NAME) // CELL)
    moved = abs(effect - start)
    top = max(1e-9, float(moved[moved == moved].max(initial=0.0)))
    for begin in range(0, len(heads), across):
        block = range(begin, min(begin + across, len(heads)))
        _say_row("", [(heads[at], 0) for at in block])
        for row in order:
            levels = [share_level(float(moved[row, at]), top) for at in block]
            texts = [_written(float(effect[row, at])) for at in block]
            _say_row(rows[row], [(t, level if level > 1 else 0) for t, level in zip(texts, levels, strict=True)])
        say()


def _written(value: float) -> str:
    return "" if value != value else signed(value, 2)


def _in_words(grid: PatchGrid, row: int, column: int, head: str) -> str:
    """One cell: its effect, where it is, its interval and its controls."""
    parts = [f"{signed(float(grid.effect[row, column]), 3):>7}  {grid.rows[row]} {head.strip()}"]
    if grid.low is not None and grid.high is not None:
        parts.append(f"[{signed(float(grid.low[row, column]), 3)}, {signed(float(grid.high[row, column]), 3)}]")
    controls = (("random", grid.random), ("shuffled", grid.shuffled))
    parts += [f"{name} {signed(float(of[row, column]), 3)}" for name, of in controls if of is not None]
    return "  ".join(parts)


def _print_notes(grid: PatchGrid, check: Agreement | None) -> None:
    many = f"{grid.n_pairs} pairs, " if grid.n_pairs > 1 else ""
    note(
        f"{grid.model} {grid.site}, {grid.direction}, {many}{grid.metric}: clean {grid.clean:.3f}, corrupted "
        f"{grid.corrupted:.3f}; effect 0 is the corrupted run, 1 the clean one"
    )
    if grid.noise_floor is not None:
        note(f"random patches of the same length move it by at most {grid.noise_floor:.3f}")
    if grid.method == "attribution":
        note("these are first-order estimates; --method both compares them with exact patches")
    if check is not None and check.pearson is not None and check.spearman is not None:
        note(f"estimates by one backward pass: r {check.pearson:.3f}, rank r {check.spearman:.3f}, {check.n} cells")


def _say_row(name: str, cells: list[tuple[str, int]]) -> None:
    pieces = [(set_cell_size(name, NAME), 0)]
    for text, level in cells:
        pieces += [(set_cell_size(one_line(text, CELL - 1), CELL - 1), level), (" ", 0)]
    last, level = pieces[-2]
    say_shaded([*pieces[:-2], (last.rstrip(), level)])
