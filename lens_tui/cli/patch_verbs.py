"""The verb that asks which part did it: ``patch``."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.cells import set_cell_size

from lens_tui.records import LensError
from lens_tui.records.patch_grid import Agreement, By, Direction, PatchGrid, PromptPair, agreement
from lens_tui.records.read_files import parse_json, read_lines
from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import share_level, signed

from .lens_verbs import read_target, whole_numbers
from .output import Meter, note, print_json, say, say_shaded, sentences
from .sources import Json, Model, SAEName, open_model, open_sae, read_text

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel

_CELL, _NAME, _LISTED = 8, 10, 8
verbs = typer.Typer()


@verbs.command()
@sentences
def patch(
    clean: Annotated[str, typer.Argument(help="The prompt in question; '-' reads standard input.")] = "",
    corrupted: Annotated[str, typer.Argument(help="One of as many tokens that asks about something else.")] = "",
    model: Model = "demo",
    answer: Annotated[str, typer.Option("--answer", "-a", help="The token clean leads to: ' door', or id:17.")] = "",
    wrong: Annotated[str, typer.Option("--wrong", "-w", help="The token corrupted leads to.")] = "",
    pairs: Annotated[str, typer.Option(help="JSONL with clean, corrupted, answer and wrong on each line.")] = "",
    by: Annotated[By, typer.Option(help="What one patch is.")] = "layer-position",
    site: Annotated[str, typer.Option(help="resid_pre (default), resid_post, attn_out, mlp_out.")] = "",
    layers: Annotated[str, typer.Option("--layers", "-l", help="Layers, as 0,4,-1. Default: all.")] = "",
    metric: Annotated[
        str, typer.Option(help="logit-difference, log-probability, probability, kl or rank.")
    ] = "logit-difference",
    direction: Annotated[Direction, typer.Option(help="Clean into corrupted, or the other way.")] = "denoise",
    method: Annotated[
        Literal["exact", "attribution", "both"], typer.Option(help="Patch each, estimate all, or compare both.")
    ] = "exact",
    controls: Annotated[bool, typer.Option(help="Patch at random, and from other pairs, too.")] = True,
    sae: SAEName = "",
    features: Annotated[str, typer.Option(help="Features, as 12,340. Default: the 20 that differ most.")] = "",
    seed: Annotated[int, typer.Option(help="Of random patches and intervals.")] = 0,
    json: Json = False,
) -> None:
    """Patch activations of one prompt into another: what matters."""
    asked = _pairs(clean, corrupted, answer, wrong, pairs)
    options: dict[str, Any] = {"site": site, "by": by, "direction": direction, "seed": seed, "controls": controls}
    options["layers"] = whole_numbers(layers)
    with open_model(model) as lens:
        if by.startswith("feature"):
            options |= {"sae": open_sae(sae, model), "features": whole_numbers(features)}
        grid, check = patched(lens, asked, metric, method, options)
    print_json(grid_record(grid, check)) if json else _print_grid(grid, check)


def patched(
    lens: LensModel, pairs: list[PromptPair], metric: str, method: str, options: dict[str, Any]
) -> tuple[PatchGrid, Agreement | None]:
    """The grid, and with method ``both`` how well estimates of the same cells agree with it.

    Args:
        lens: The model.
        pairs: The prompts.
        metric: By name.
        method: ``exact``, ``attribution`` or ``both``.
        options: The others of :func:`lens_tui.patch`.
    """
    from lens_tui.lens.causes.patching import patch as run_patches

    with Meter() as meter:

        def progress(done: int, total: int) -> None:
            meter.say("patching", f"{done:,} of {total:,}", done / max(1, total))

        first: Any = "exact" if method == "both" else method
        grid = run_patches(lens, pairs, metric, method=first, progress=progress, **options)
        if method != "both":
            return grid, None
        quick = run_patches(lens, pairs, metric, method="attribution", **options)
    return grid, agreement(quick.effect - grid.start, grid.effect - grid.start)


def _pairs(clean: str, corrupted: str, answer: str, wrong: str, file: str) -> list[PromptPair]:
    """The pair of the arguments, or those of a file."""
    if not file:
        if not clean or not corrupted:
            raise LensError("There are not two prompts.", "Give CLEAN and CORRUPTED, or --pairs FILE.")
        return [PromptPair(read_text(clean), corrupted, read_target(answer), read_target(wrong))]
    if clean or corrupted or answer or wrong:
        raise LensError("Prompts were given beside a file of pairs.", "Give one or the other.")
    path = Path(file).expanduser()
    found = []
    for number, line in read_lines(path):
        if line.strip():
            where = f"Line {number} of {one_line(path.name, 80)}"
            found.append(_pair(parse_json(line, where), where))
    if not found:
        raise LensError(f"There are no pairs in {one_line(path.name, 80)}.", "Write an object on each line.")
    return found


def _pair(value: Any, where: str) -> PromptPair:
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("clean", "corrupted")):
        raise LensError(f"{where} is not an object with texts under 'clean' and 'corrupted'.")
    tokens = [value.get(key) for key in ("answer", "wrong")]
    if not all(token is None or (isinstance(token, (str, int)) and not isinstance(token, bool)) for token in tokens):
        raise LensError(f"{where} has an answer that is no token.", "Give a text of one token, or its id.")
    answer, wrong = (read_target(token) if isinstance(token, str) else token for token in tokens)
    return PromptPair(value["clean"], value["corrupted"], answer, wrong)


def grid_record(grid: PatchGrid, check: Agreement | None) -> dict[str, Any]:
    """The grid as plain data; ``null`` where there is nothing to be said."""

    def table(values: Any) -> Any:
        return None if values is None else values.tolist()

    names = ("model", "site", "by", "direction", "method", "metric", "n_pairs", "clean", "corrupted", "noise_floor")
    return {
        **{name: getattr(grid, name) for name in names},
        **{name: list(getattr(grid, name)) for name in ("rows", "columns", "tokens", "layers", "heads", "features")},
        **{name: table(getattr(grid, name)) for name in ("values", "effect", "low", "high", "random", "shuffled")},
        "agreement": None if check is None else asdict(check),
    }


def _print_grid(grid: PatchGrid, check: Agreement | None) -> None:
    """The effects as a map: layers from the last to the first, shaded in a terminal by how far they moved."""
    heads = list(grid.columns)
    if grid.by.endswith("position") and all(name.isdigit() for name in heads):
        heads = [grid.tokens[int(name)] for name in heads]
    order = range(len(grid.rows) - 1, -1, -1) if grid.layers else range(len(grid.rows))
    across = max(1, (shutil.get_terminal_size((120, 24)).columns - _NAME) // _CELL)
    moved = abs(grid.effect - grid.start)
    top = max(1e-9, float(moved.max()))
    for begin in range(0, len(heads), across):
        block = range(begin, min(begin + across, len(heads)))
        _say_row("", [(heads[at], 0) for at in block])
        for row in order:
            levels = [share_level(float(moved[row, at]), top) for at in block]
            texts = [signed(float(grid.effect[row, at]), 2) for at in block]
            _say_row(grid.rows[row], [(t, level if level > 1 else 0) for t, level in zip(texts, levels, strict=True)])
        say()
    for row, column in grid.strongest(min(_LISTED, grid.effect.size)):
        say(_in_words(grid, row, column, heads[column]))
    _print_notes(grid, check)


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
    pieces = [(set_cell_size(name, _NAME), 0)]
    for text, level in cells:
        pieces += [(set_cell_size(one_line(text, _CELL - 1), _CELL - 1), level), (" ", 0)]
    last, level = pieces[-2]
    say_shaded([*pieces[:-2], (last.rstrip(), level)])
