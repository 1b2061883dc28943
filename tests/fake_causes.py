"""What patches find, for tests of the screen: the same question in, the same numbers out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lens_tui.records import LensError, Origin
from lens_tui.records.cause_plan import PatchFound, PatchPlan
from lens_tui.records.patch_grid import CausalTrace, Doubles, PatchGrid, agreement
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.fake_words import noise, split

LAYERS, HEADS = 8, 6


def fake_patch(number: int, job: jobs.Patch) -> Iterator[ev.Event]:
    """Half of the map, then all of it."""
    plan = job.plan
    here, there = (["<s>", *split(text)] for text in (plan.corrupted, plan.clean))
    if plan.direction == "noise":
        here, there = there, here
    if plan.by != "trace" and len(here) != len(there):
        raise LensError(f"The prompts have {len(there)} and {len(here)} tokens.", "Make them equally long.")
    yield ev.Progress(number, "patches")
    found = _trace(plan, there) if plan.by == "trace" else _grid(plan, tuple(here), tuple(there))
    if plan.by != "trace":
        yield ev.Patched(number, _half(found), whole=False)
    yield ev.Patched(number, found)


def _effects(plan: PatchPlan, columns: int, more: str = "") -> Doubles:
    """Large where token 5 (or head 4) is, falling with the layer; a little everywhere else."""
    values = [
        [
            (0.95 - 0.08 * layer if at == (4 if plan.by == "head" else 5) else 0.0)
            + 0.02 * (noise(plan.site, plan.metric, plan.by, more, layer, at) - 0.5)
            for at in range(columns)
        ]
        for layer in range(LAYERS)
    ]
    found: Doubles = np.array(values)
    return found if plan.direction == "denoise" else 1.0 - found


def _grid(plan: PatchPlan, here: tuple[str, ...], there: tuple[str, ...]) -> PatchFound:
    by_head = plan.by == "head"
    columns = tuple(f"head {head}" for head in range(HEADS)) if by_head else tuple(map(str, range(len(here))))
    start = 0.0 if plan.direction == "denoise" else 1.0
    clean, corrupted = 6.0, -5.5
    effect, at_random = _effects(plan, len(columns)), start + (_effects(plan, len(columns), "random") - start) * 0.05

    def grid(effect: Doubles, at_random: Doubles | None, method: str) -> PatchGrid:
        values = corrupted + effect * (clean - corrupted)
        return PatchGrid(
            "demo", "attn_z" if by_head else plan.site, "head" if by_head else "layer-position", plan.direction,
            "attribution" if method == "attribution" else "exact", plan.metric,
            tuple(f"L{layer}" for layer in range(LAYERS)), columns, clean, corrupted, values, effect, values[None],
            random=at_random, layers=tuple(range(LAYERS)), heads=tuple(range(HEADS)) if by_head else (),
            tokens=here, other_tokens=there,
        )  # fmt: skip

    whole, quick = grid(effect, at_random, "exact"), grid(start + (effect - start) * 0.8, None, "attribution")
    check = agreement(quick.effect - start, whole.effect - start)
    return PatchFound(plan, whole, estimate=quick, check=check)


def _half(found: PatchFound) -> PatchFound:
    from dataclasses import replace

    grid = found.grid
    assert grid is not None
    effect, values = grid.effect.copy(), grid.values.copy()
    effect[LAYERS // 2 :] = values[LAYERS // 2 :] = np.nan
    return replace(found, grid=replace(grid, effect=effect, values=values, random=None), check=None)


def _trace(plan: PatchPlan, tokens: list[str]) -> PatchFound:
    if plan.subject not in plan.clean:
        raise LensError(f"The words {plan.subject!r} (the subject) are not there.", "Give words that the prompt has.")
    clean, noised = 0.97, 0.05
    values = noised + (clean - noised) * np.clip(_effects(plan, len(tokens)), 0, 1)
    return PatchFound(
        plan,
        trace=CausalTrace(
            "demo", plan.site, 17, " ball", tuple(tokens), (5, 6), tuple(range(LAYERS)), clean, noised, values,
            np.stack([values] * plan.samples), 0.3, plan.samples, 1, np.full(values.shape, noised + 0.01),
        ),
    )  # fmt: skip


def patch_origin(job: jobs.VectorFromPatch) -> tuple[Origin, str]:
    """Where a patch's direction is from, and its site."""
    facts: dict[str, object] = {
        "patch": "clean less corrupted",
        "clean": job.plan.clean,
        "corrupted": job.plan.corrupted,
    }
    of_head = job.plan.by == "head"
    facts |= {"heads": [job.column]} if of_head else {"token": job.column}
    return Origin("given", facts), "attn_out" if of_head else job.plan.site
