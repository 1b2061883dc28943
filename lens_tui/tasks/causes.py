"""Answer a question of cause: patch, trace, and take what was found elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui.records import LensError, Origin, SteeringVector
from lens_tui.records.disk import free_files, json_text, write_text
from lens_tui.records.patch_grid import Agreement, CausalTrace, EdgeGrid, PatchGrid, PathEffects, PromptPair, agreement
from lens_tui.records.patch_plan import PatchFound, PatchPlan, read_token
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import parse_json, read_lines
from lens_tui.records.sanitise import one_line

from .run_command import quoted

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel

Progress = Callable[[int, int], None]
Partial = Callable[[PatchFound], None]
FORMATS = ("json", "csv")


def answer(
    lens: LensModel, plan: PatchPlan, *, progress: Progress | None = None, partial: Partial | None = None
) -> PatchFound:
    """Patch, with estimates of the same cells beside, or trace.

    Args:
        lens: The model.
        plan: What is asked.
        progress: Is called with (patches done, in all).
        partial: Is called with what there is so far, after each batch of patches.

    Raises:
        LensError: As :func:`lens_tui.patch` and :func:`lens_tui.causal_trace`.
    """
    from lens_tui.lens.causes.patching import patch
    from lens_tui.lens.causes.tracing import causal_trace

    if plan.by == "trace":

        def traced(trace: CausalTrace) -> None:
            if partial is not None:
                partial(PatchFound(plan, trace=trace))

        trace = causal_trace(
            lens, plan.clean, plan.subject, answer=read_token(plan.answer), site=plan.site, window=plan.window,
            noise=plan.noise, samples=plan.samples, seed=plan.seed, progress=progress, partial=traced,
        )  # fmt: skip
        return PatchFound(plan, trace=trace)
    pairs = pairs_of(plan)
    options: dict[str, Any] = {"site": plan.site, "by": plan.by, "direction": plan.direction, "seed": plan.seed}
    estimate, why = None, ""
    try:
        estimate = patch(lens, pairs, plan.metric, method="attribution", **options)
    except LensError as error:  # a metric without a gradient, a model that cannot be differentiated
        why = error.message

    def patched(grid: PatchGrid) -> None:
        if partial is not None:
            partial(PatchFound(plan, grid, estimate=estimate, why=why))

    grid = patch(lens, pairs, plan.metric, progress=progress, partial=patched, **options)
    check = None if estimate is None else agreement(estimate.effect - grid.start, grid.effect - grid.start)
    return PatchFound(plan, grid, estimate=estimate, check=check, why=why)


def pairs_of(plan: PatchPlan) -> list[PromptPair]:
    """The pair of a plan, or those of its file. Raises :class:`LensError`."""
    if plan.pairs:
        return read_pairs(plan.pairs)
    return [PromptPair(plan.clean, plan.corrupted, read_token(plan.answer), read_token(plan.wrong))]


def read_pairs(file: str) -> list[PromptPair]:
    """Pairs of a JSONL file: ``clean``, ``corrupted`` and, where the metric needs them, ``answer`` and ``wrong``.

    ``spans`` names words of both: ``{"subject": ["the king", "the queen"]}``, or places ``[[1, 3], [1, 4]]``. Raises
    :class:`LensError` with the line that is none.
    """
    path = expanded(file)
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
    first, second = (read_token(token) if isinstance(token, str) else token for token in tokens)
    return PromptPair(value["clean"], value["corrupted"], first, second, _spans(value.get("spans"), where))


def _spans(value: Any, where: str) -> dict[str, tuple[Any, Any]]:
    if value is None:
        return {}
    good = isinstance(value, dict) and all(
        isinstance(ends, list) and len(ends) == 2 and all(map(_is_span, ends)) for ends in value.values()
    )
    if not good:
        raise LensError(
            f"{where} has spans that cannot be read.", "Write them as a name with the words of both prompts."
        )
    return {name: (_span(ends[0]), _span(ends[1])) for name, ends in value.items()}


def _is_span(value: Any) -> bool:
    places = isinstance(value, list) and len(value) == 2 and all(type(place) is int for place in value)
    return places or isinstance(value, str)


def _span(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(value)


def direction_of(lens: LensModel, plan: PatchPlan, layer: int, column: int, name: str) -> SteeringVector:
    """What a patch at one place adds there: the clean activation less the corrupted one, as a vector of its length.

    Of a head it is what the head writes into ``attn_out`` at the last token, and the vector's origin names the head.

    Args:
        lens: The model.
        plan: The first pair of it counts.
        layer: Whose site.
        column: The token (or the span, whose last token it is).
        name: Of the vector.

    Raises:
        LensError: For prompts that cannot be aligned, and where both activations are the same.
    """
    import mlx.core as mx

    from lens_tui.lens.causes.cells import read_run
    from lens_tui.lens.causes.direct_paths import head_output
    from lens_tui.lens.causes.prompt_pairs import align

    aligned = align(lens, pairs_of(plan)[0])
    of_head = plan.by == "head"
    key = (layer, "attn_z" if of_head else plan.site)
    ends = (-1, -1) if of_head else tuple(where[-1] for where in aligned.columns("noise")[column][1])
    found = []
    for ids, at in zip((aligned.clean, aligned.corrupted), ends, strict=True):
        tensor = read_run(lens, ids, [key]).hidden[key]
        found.append(np.array((head_output(lens, layer, column, tensor) if of_head else tensor).astype(mx.float32))[at])
    clean, corrupted = found
    if np.array_equal(clean, corrupted):
        raise LensError(
            "Both prompts have the same activation there, so that there is no direction from one to the other.",
            "Choose a token at or after the first one that differs.",
        )
    facts: dict[str, Any] = {"patch": "clean less corrupted", "clean": plan.clean, "corrupted": plan.corrupted}
    facts |= {"heads": [column]} if of_head else {"token": ends[0]}
    site = "attn_out" if of_head else plan.site
    made = Origin("given", facts)
    return SteeringVector.of(name, clean - corrupted, layer, model=lens.info.name, site=site, origin=made)


def command_of(plan: PatchPlan, model: str) -> str:
    """The ``mlx-lens-tui patch`` that gives the same numbers."""
    words = ["mlx-lens-tui", "patch", "--model", model]
    if plan.by == "trace":
        words += ["--trace", plan.subject, "--site", plan.site]
        words += [*_token("--answer", plan.answer), "--noise", f"{plan.noise:g}", "--samples", str(plan.samples)]
        words += ["--window", str(plan.window), "--seed", str(plan.seed), "--", plan.clean]
        return " ".join(map(quoted, words))
    words += ["--by", plan.by, *(() if plan.by.startswith("head") else ("--site", plan.site))]
    words += ["--metric", plan.metric, "--direction", plan.direction, "--method", "both", "--seed", str(plan.seed)]
    if plan.pairs:
        return " ".join(map(quoted, [*words, "--pairs", plan.pairs]))
    words += [*_token("--answer", plan.answer), *_token("--wrong", plan.wrong), "--", plan.clean, plan.corrupted]
    return " ".join(map(quoted, words))


def _token(option: str, text: str) -> list[str]:
    return [option, text] if text else []


def grid_record(grid: PatchGrid, check: Agreement | None, estimate: PatchGrid | None = None) -> dict[str, Any]:
    """A grid as plain data; ``null`` where there is nothing to be said."""
    names = ("model", "site", "by", "direction", "method", "metric", "n_pairs", "clean", "corrupted", "noise_floor")
    lists = ("rows", "columns", "tokens", "other_tokens", "layers", "heads", "features")
    return {
        **{name: getattr(grid, name) for name in names},
        **{name: list(getattr(grid, name)) for name in lists},
        **{name: _table(getattr(grid, name)) for name in ("values", "effect", "low", "high", "random", "shuffled")},
        "estimate": None if estimate is None else _table(estimate.effect),
        "agreement": None if check is None else asdict(check),
    }


def trace_record(trace: CausalTrace) -> dict[str, Any]:
    """A trace as plain data."""
    names = ("model", "site", "answer", "answer_text", "clean", "noised", "total_effect", "noise_floor")
    return {
        **{name: getattr(trace, name) for name in (*names, "sigma", "samples", "window")},
        **{name: list(getattr(trace, name)) for name in ("tokens", "subject", "layers")},
        **{name: _table(getattr(trace, name)) for name in ("values", "indirect_effect", "random")},
    }


def paths_record(found: PathEffects) -> dict[str, Any]:
    """Paths as plain data."""
    lists = ("raw", "effect", "random", "low", "high")
    return {
        **{name: getattr(found, name) for name in ("model", "metric", "direction", "n_pairs", "clean", "corrupted")},
        "senders": [sender.label for sender in found.senders],
        "receivers": [end.label for end in found.receivers],
        **{name: None if getattr(found, name) is None else getattr(found, name).tolist() for name in lists},
    }


def edges_record(found: EdgeGrid) -> dict[str, Any]:
    """Edges as plain data: tables of senders by receivers, ``null`` where there is no edge."""
    return {
        **{
            name: getattr(found, name)
            for name in ("model", "metric", "direction", "method", "n_pairs", "clean", "corrupted")
        },
        "senders": [sender.label for sender in found.senders],
        "receivers": [end.label for end in found.receivers],
        **{name: _table(getattr(found, name)) for name in ("raw", "effect", "random", "low", "high")},
    }


def _table(values: Any) -> Any:
    return None if values is None else [[None if x != x else x for x in row] for row in values.tolist()]


def found_record(found: PatchFound) -> dict[str, Any]:
    """What was found, as ``patch --json`` prints it."""
    if found.trace is not None:
        return trace_record(found.trace)
    if found.grid is None:
        raise LensError("Nothing was patched yet.")
    return grid_record(found.grid, found.check, found.estimate)


def as_text(found: PatchFound, form: str) -> str:
    """What was found as JSON or as CSV (a row a cell), by one of ``FORMATS``."""
    return json_text(found_record(found)) if form == "json" else _csv(found)


def write(found: PatchFound, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Write what was found as JSON and CSV (a row a cell); returns the files. Raises :class:`LensError`."""
    files = free_files(folder, name, formats)
    for file, form in zip(files, formats, strict=True):
        write_text(file, as_text(found, form))
    return files


def _csv(found: PatchFound) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["row", "column", "token", "value", "effect", "random", "shuffled", "estimate"])
    grid, trace, effect = found.grid, found.trace, found.effect
    assert effect is not None
    if trace is not None:
        rows, columns = tuple(f"L{layer}" for layer in trace.layers), tuple(map(str, range(len(trace.tokens))))
        tokens, values, shuffled = trace.tokens, trace.values, None
    else:
        assert grid is not None
        rows, columns, tokens, values, shuffled = grid.rows, grid.columns, grid.tokens, grid.values, grid.shuffled
    others = (found.random, shuffled, None if found.estimate is None else found.estimate.effect)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            token = tokens[int(column)] if column.isdigit() else ""
            more = ["" if of is None else of[i, j] for of in others]
            table.writerow([row, column, token, values[i, j], effect[i, j], *more])
    return out.getvalue()
