"""The verb that asks which part did it: ``patch``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_tui.records import LensError
from lens_tui.records.patch_grid import Agreement, By, Direction, PatchGrid, PromptPair, agreement
from lens_tui.records.patch_plan import PatchPlan, read_token
from lens_tui.tasks.causes import answer as answer_plan
from lens_tui.tasks.causes import grid_record, read_pairs, trace_record

from .cause_tables import print_grid, print_trace
from .lens_verbs import whole_numbers
from .output import Meter, print_json, sentences
from .sources import Json, Model, SAEName, open_model, open_sae, read_text

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel

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
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Patch activations of one prompt into another: what matters."""
    if trace:
        _only_one(corrupted, pairs, wrong)
        plan = PatchPlan(read_text(clean), answer=answer, by="trace", site=site or "resid_post", subject=trace)
        _trace(model, replace(plan, noise=noise, samples=samples, window=window, seed=seed), json=json)
        return
    asked = _pairs(clean, corrupted, answer, wrong, pairs)
    options: dict[str, Any] = {"site": site, "by": by, "direction": direction, "seed": seed, "controls": controls}
    options["layers"] = whole_numbers(layers)
    with open_model(model) as lens:
        if by.startswith("feature"):
            options |= {"sae": open_sae(sae, model), "features": whole_numbers(features)}
        grid, quick, check = patched(lens, asked, metric, method, options)
    print_json(grid_record(grid, check, quick)) if json else print_grid(grid, check)


def _only_one(corrupted: str, pairs: str, wrong: str) -> None:
    if corrupted or pairs or wrong:
        raise LensError("A trace is of one prompt: there is nothing to compare it with.", "Leave out the others.")


def _trace(model: str, plan: PatchPlan, *, json: bool) -> None:
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
    return read_pairs(file)
