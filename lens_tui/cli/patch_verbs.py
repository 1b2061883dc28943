"""The verb that asks which part did it: ``patch``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.cells import set_cell_size

from lens_tui.records import LensError
from lens_tui.records.cause_plan import PatchFound, PatchPlan, read_receiver, read_sender, read_token
from lens_tui.records.patch_grid import (
    Agreement,
    By,
    CausalTrace,
    Direction,
    Doubles,
    EdgeGrid,
    PatchGrid,
    PathEffects,
    PromptPair,
    agreement,
)
from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import share_level, signed

from .output import Meter, note, print_json, say, say_shaded, sentences
from .read_verbs import whole_numbers
from .sources import Json, Model, SAEName, open_model, open_sae, read_text

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel

To = Annotated[
    list[str] | None,
    typer.Option("--to", help="Direct paths from every head, MLP and the embedding to logits, attn:6, mlp:6, q:6.1."),
]
From = Annotated[
    list[str] | None, typer.Option("--from", help="With --to or --edges: these senders, as head:6.1, mlp:3, embed.")
]
Edges = Annotated[
    bool, typer.Option("--edges", help="Every edge between parts, each patched alone; --method attribution estimates.")
]
CELL, NAME, LISTED = 8, 10, 8
verbs = typer.Typer()

Clean = Annotated[str, typer.Argument(help="The prompt in question; '-' reads standard input.", show_default=False)]
Corrupted = Annotated[
    str, typer.Argument(help="One of as many tokens that asks about something else.", show_default=False)
]
Answer = Annotated[str, typer.Option("--answer", "-a", help="The token clean leads to: ' door', or id:17.")]
Wrong = Annotated[str, typer.Option("--wrong", "-w", help="The token corrupted leads to.")]
Pairs = Annotated[str, typer.Option(help="JSONL with clean, corrupted, answer, wrong (and spans) on each line.")]
PatchBy = Annotated[By, typer.Option(help="What one patch is.")]
Site = Annotated[str, typer.Option(help="resid_pre (default), resid_post, attn_out, mlp_out.")]
Layers = Annotated[str, typer.Option("--layers", "-l", help="Layers, as 0,4,-1. Default: all.")]
MetricName = Annotated[str, typer.Option(help="logit-difference, log-probability, probability, kl or rank.")]
Into = Annotated[Direction, typer.Option(help="Clean into corrupted, or the other way.")]
How = Annotated[
    Literal["exact", "attribution", "both"], typer.Option(help="Patch each, estimate all, or compare both.")
]
Controls = Annotated[bool, typer.Option(help="Patch at random, and from other pairs, too.")]
Features = Annotated[str, typer.Option(help="Features, as 12,340. Default: the 20 that differ most.")]
Seed = Annotated[int, typer.Option(min=0, help="Of random patches, noise and intervals.")]
Trace = Annotated[str, typer.Option("--trace", help="Causal tracing of CLEAN: the words whose embeddings are noised.")]
Noise = Annotated[float, typer.Option(help="With --trace: its deviation, in that of the subject's embeddings.")]
Samples = Annotated[int, typer.Option(min=1, help="With --trace: how many noised runs.")]
Window = Annotated[int, typer.Option(min=1, help="With --trace: layers restored together, of attn_out and mlp_out.")]


@verbs.command()
@sentences
def patch(
    clean: Clean = "",
    corrupted: Corrupted = "",
    model: Model = "demo",
    answer: Answer = "",
    wrong: Wrong = "",
    pairs: Pairs = "",
    by: PatchBy = "layer-position",
    site: Site = "",
    layers: Layers = "",
    metric: MetricName = "logit-difference",
    direction: Into = "denoise",
    method: How = "exact",
    controls: Controls = True,
    sae: SAEName = "",
    features: Features = "",
    trace: Trace = "",
    noise: Noise = 3.0,
    samples: Samples = 10,
    window: Window = 10,
    to: To = None,
    senders: From = None,
    edges: Edges = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Patch activations of one prompt into another: what matters."""
    from lens_tui.tasks.causes import grid_record

    given: dict[str, Any] = {
        "--by": by, "--site": site, "--layers": layers, "--metric": metric, "--direction": direction,
        "--method": method, "--no-controls": controls, "--sae": sae, "--features": features, "--noise": noise,
        "--samples": samples, "--window": window, "--to": to, "--from": senders, "--edges": edges,
    }  # fmt: skip
    _check_options(given, trace)
    if trace:
        _only_one(corrupted, pairs, wrong)
        plan = PatchPlan(read_text(clean), answer=answer, by="trace", site=site or "resid_post", subject=trace)
        _trace(model, replace(plan, noise=noise, samples=samples, window=window, seed=seed), json=json)
        return
    asked = _pairs(clean, corrupted, answer, wrong, pairs)
    if to or edges:
        _paths(model, asked, metric, direction, (to or [], senders or [], method, controls, seed), json=json)
        return
    options: dict[str, Any] = {"site": site, "by": by, "direction": direction, "seed": seed, "controls": controls}
    options["layers"] = whole_numbers(layers)
    with open_model(model) as lens:
        if by.startswith("feature"):
            options |= {"sae": open_sae(sae, model), "features": whole_numbers(features)}
        grid, quick, check = patched(lens, asked, metric, method, options)
    print_json(grid_record(grid, check, quick)) if json else print_grid(grid, check)


_PLAIN: dict[str, Any] = {
    "--by": "layer-position", "--metric": "logit-difference", "--direction": "denoise", "--method": "exact",
    "--no-controls": True, "--noise": 3.0, "--samples": 10, "--window": 10,
}  # fmt: skip
"""What options are where nothing is said; the others are empty."""


def _check_options(given: dict[str, Any], trace: str) -> None:
    """Raises :class:`LensError` for an option that would be passed over: what is printed would not be what was asked.

    Args:
        given: The options and their values.
        trace: The subject of a causal trace, where one is asked for.
    """
    by = given["--by"]
    both = {"--metric", "--direction", "--no-controls"}
    if trace:
        what, used = "a causal trace", {"--site", "--noise", "--samples", "--window"}
    elif given["--to"]:
        what, used = "paths", both | {"--to", "--from"}
    elif given["--edges"]:
        what, used = "edges", both | {"--edges", "--from", "--method"}
        if given["--method"] == "both":
            raise LensError("Edges are patched or estimated.", "Give --method exact, or attribution.")
    else:
        what, used = f"a map by {by}", both | {"--by", "--layers", "--method"}
        used |= {"--sae", "--features"} if by.startswith("feature") else set()
        used |= {"--site"} if by in ("layer", "position", "layer-position") else set()
    for name, value in given.items():
        if name not in used and (value or None) != _PLAIN.get(name):
            raise LensError(f"{name} says nothing of {what}.", "Leave it out.")


def _paths(
    model: str,
    pairs: list[PromptPair],
    metric: str,
    direction: Direction,
    how: tuple[list[str], list[str], str, bool, int],
    *,
    json: bool,
) -> None:
    """Paths to some receivers, or every edge."""
    from lens_tui.lens.causes.direct_paths import patch_edges, path_patch
    from lens_tui.tasks.causes import edges_record, paths_record

    to, chosen, method, controls, seed = how
    ends = [read_receiver(text) for text in to]
    options: dict[str, Any] = {"direction": direction, "controls": controls, "seed": seed}
    options["senders"] = [read_sender(text) for text in chosen] or None
    with open_model(model) as lens:
        if ends:
            paths = path_patch(lens, pairs, metric, receivers=ends, **options)
            print_json(paths_record(paths)) if json else _print_paths(paths)
            return
        way: Any = "attribution" if method == "attribution" else "exact"
        found = patch_edges(lens, pairs, metric, method=way, **options)
    print_json(edges_record(found)) if json else _print_edges(found)


def _print_paths(found: PathEffects) -> None:
    """The senders whose paths carry most, with their controls."""
    order = (-abs(found.effect - found.start)).argsort(kind="stable")[: 2 * LISTED].tolist()
    for at in order:
        parts = [f"{signed(float(found.effect[at]), 3):>7}  {found.senders[at].label:<10}"]
        parts.append(f"raw {signed(float(found.raw[at]), 3)}")
        if found.low is not None and found.high is not None:
            parts.append(f"[{signed(float(found.low[at]), 3)}, {signed(float(found.high[at]), 3)}]")
        parts += [] if found.random is None else [f"random {signed(float(found.random[at]), 3)}"]
        say("  ".join(parts))
    ends = ", ".join(end.label for end in found.receivers)
    many = f"{found.n_pairs} pairs, " if found.n_pairs > 1 else ""
    note(
        f"{found.model}, direct paths to {ends}, {found.direction}, {many}{found.metric}: clean {found.clean:.3f}, "
        f"corrupted {found.corrupted:.3f}; effect 0 is the corrupted run, 1 the clean one"
    )


def _print_edges(found: EdgeGrid) -> None:
    """The edges that carry most."""
    for sender, receiver, value in found.strongest(2 * LISTED):
        at = found.senders.index(sender), found.receivers.index(receiver)
        parts = [f"{signed(value, 3):>7}", f"{sender.label} → {receiver.label}".ljust(21)]
        parts.append(f"effect {signed(float(found.effect[at]), 3)}")
        if found.low is not None and found.high is not None:
            parts.append(f"[{signed(float(found.low[at]), 3)}, {signed(float(found.high[at]), 3)}]")
        parts += [] if found.random is None else [f"random {signed(float(found.random[at]), 3)}"]
        say("  ".join(parts))
    how = "first-order estimates" if found.method == "attribution" else "each patched alone"
    how = f"{found.n_pairs} pairs, {how}" if found.n_pairs > 1 else how
    note(f"{found.model}, every edge, {how}: change of {found.metric}, {found.clean - found.corrupted:.3f} in all")


def _only_one(corrupted: str, pairs: str, wrong: str) -> None:
    if corrupted or pairs or wrong:
        raise LensError("A trace is of one prompt: there is nothing to compare it with.", "Leave out the others.")


def _trace(model: str, plan: PatchPlan, *, json: bool) -> None:
    from lens_tui.tasks.causes import answer as answer_plan
    from lens_tui.tasks.causes import trace_record

    with open_model(model) as lens, Meter() as meter:

        def progress(done: int, total: int) -> None:
            meter.say("tracing", f"{done:,} of {total:,}", done / max(1, total))

        found = answer_plan(lens, plan, progress=progress)
    assert found.trace is not None
    print_json(trace_record(found.trace)) if json else print_trace(found)


def patched(
    lens: LensModel, pairs: list[PromptPair], metric: str, method: str, options: dict[str, Any]
) -> tuple[PatchGrid, PatchGrid | None, Agreement | None]:
    """The grid, and with method ``both`` the estimates of the same cells and how well they agree with it.

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
            return grid, None, None
        quick = run_patches(lens, pairs, metric, method="attribution", **options)
    return grid, quick, agreement(quick.effect - grid.start, grid.effect - grid.start)


def _pairs(clean: str, corrupted: str, answer: str, wrong: str, file: str) -> list[PromptPair]:
    """The pair of the arguments, or those of a file."""
    if not file:
        if not clean or not corrupted:
            raise LensError("There are not two prompts.", "Give CLEAN and CORRUPTED, or --pairs FILE.")
        return [PromptPair(read_text(clean), corrupted, read_token(answer), read_token(wrong))]
    if clean or corrupted or answer or wrong:
        raise LensError("Prompts were given beside a file of pairs.", "Give one or the other.")
    from lens_tui.tasks.causes import read_pairs

    return read_pairs(file)


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
