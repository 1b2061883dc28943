"""The form that asks what is patched: prompts, their answers, site, direction and metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lens_tui.records.patch_grid import Direction
from lens_tui.records.patch_plan import DIRECTIONS, METRICS, SITES, PatchPlan
from lens_tui.tui.host import LensHost

from .form import Field, FormScreen, filled, number, whole


def ask_plan(lens: LensHost, plan: PatchPlan, take: Callable[[PatchPlan], None]) -> None:
    """Ask for the parts of a question; ``take`` gets it when all are right."""
    trace = plan.by == "trace"
    fields = [*(_trace_fields(plan) if trace else _pair_fields(plan))]

    def done(values: dict[str, str] | None) -> None:
        if values is not None:
            take(_trace(plan, values) if trace else _pair(plan, values))

    note = (
        "The subject's embeddings are noised; the answer may stay empty: what the model predicts."
        if trace
        else "As many tokens in both. Answers are one token with its blank, or id:17; a file of pairs wins."
    )
    title = "Trace the cause of an answer" if trace else "Patch one prompt into another"
    lens.push_screen(FormScreen(title, fields, note), done)


def _pair_fields(plan: PatchPlan) -> list[Field]:
    return [
        Field("clean", "clean", plan.clean, "the prompt in question", filled),
        Field("answer", "leads to", plan.answer, "one token, such as ‘ ball’"),
        Field("corrupted", "corrupted", plan.corrupted, "one that asks about something else", filled),
        Field("wrong", "leads to", plan.wrong, "one token, such as ‘ car’"),
        Field("site", "site", plan.site, options=SITES),
        Field("direction", "direction", plan.direction, options=DIRECTIONS),
        Field("metric", "metric", plan.metric, options=METRICS),
        Field("pairs", "pairs", plan.pairs, "or a JSONL file of clean, corrupted, answer, wrong"),
        Field("seed", "seed", str(plan.seed), check=whole(0, 2**32 - 1)),
    ]


def _trace_fields(plan: PatchPlan) -> list[Field]:
    return [
        Field("clean", "prompt", plan.clean, "the prompt in question", filled),
        Field("subject", "subject", plan.subject, "words that it has once", filled),
        Field("answer", "answer", plan.answer, "one token; empty: what the model predicts"),
        Field("site", "site", plan.site, options=SITES),
        Field("noise", "noise", f"{plan.noise:g}", check=number(1e-3, 1e3)),
        Field("samples", "noised runs", str(plan.samples), check=whole(1, 1000)),
        Field(
            "window", "window", str(plan.window), "layers restored together, of attn_out and mlp_out", whole(1, 1000)
        ),
        Field("seed", "seed", str(plan.seed), check=whole(0, 2**32 - 1)),
    ]


def _pair(plan: PatchPlan, values: dict[str, str]) -> PatchPlan:
    direction: Direction = "noise" if values["direction"] == "noise" else "denoise"
    texts: dict[str, Any] = {name: values[name] for name in ("clean", "answer", "corrupted", "wrong", "site", "metric")}
    return replace(plan, **texts, pairs=values["pairs"].strip(), direction=direction, seed=int(values["seed"]))


def _trace(plan: PatchPlan, values: dict[str, str]) -> PatchPlan:
    texts: dict[str, Any] = {name: values[name] for name in ("clean", "subject", "answer", "site")}
    counts: dict[str, Any] = {name: int(values[name]) for name in ("samples", "window", "seed")}
    return replace(plan, **texts, **counts, noise=float(values["noise"]))
