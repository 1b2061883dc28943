"""Answer a question of cause: patch, trace, and take what was found elsewhere; keep it, and find it again.

What is kept is kept with what made it, and with whether the model is still the same.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lens_tui.records import LensError, ModelInfo, Origin, SteeringVector
from lens_tui.records.cause_plan import GraphFound, PatchFound, PatchPlan, read_token
from lens_tui.records.cause_store import CauseRecord, CauseStore, CauseSummary, Found
from lens_tui.records.disk import free_files, json_text, write_text
from lens_tui.records.graph_file import graph_json
from lens_tui.records.patch_grid import Agreement, CausalTrace, EdgeGrid, PatchGrid, PathEffects, PromptPair, agreement
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import parse_json, read_lines
from lens_tui.records.sanitise import one_line

from .graphs import graph_command
from .made_with import made_with, model_stamp
from .run_command import quoted

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records.store import Store


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


One = TypeVar("One", PatchFound, GraphFound)


def keep_cause(store: Store, model: ModelInfo, found: One) -> One:
    """Keep what a model was found to do; returns it with its number. Raises :class:`LensError` if the disk refuses."""
    number = CauseStore(store).keep(found, made_with(model), model_stamp(model))
    return replace(found, kept=number)


def kept_causes(database: Path, words: str = "", without: frozenset[int] = frozenset()) -> list[CauseSummary]:
    """The newest of those that are kept, but these; with words, those that have them all. Raises ``LensError``."""
    if not database.exists():
        return []
    return [each for each in CauseStore(database).list(words) if each.id not in without]


def open_cause(database: Path, number: int, model: ModelInfo | None) -> tuple[CauseRecord, str] | None:
    """One that is kept, and what has changed since, in a few words; ``None`` if it is gone. Raises ``LensError``."""
    record = CauseStore(database).get(number)
    return None if record is None else (record, changed_since(record, model))


def formats_of(found: Found, asked: str = "") -> tuple[str, ...]:
    """In which of its formats something is to be written: a graph as JSON, a map as JSON and CSV.

    Args:
        found: A map or a graph.
        asked: Formats with commas or blanks between; nothing for all.

    Raises:
        LensError: For a format that it has not.
    """
    known = ("json",) if isinstance(found, GraphFound) else FORMATS
    words = tuple(dict.fromkeys(asked.lower().replace(",", " ").split()))
    if wrong := [word for word in words if word not in known]:
        what = "a graph" if isinstance(found, GraphFound) else "a map"
        raise LensError(f"There is no format {one_line(repr(wrong[0]), 40)} of {what}.", f"Use {' or '.join(known)}.")
    return words or known


def cause_text(found: Found, form: str) -> str:
    """A graph as Neuronpedia and circuit-tracer read it; a map as ``patch --json`` has it, or as CSV."""
    return json_text(graph_json(found.pruned)) if isinstance(found, GraphFound) else as_text(found, form)


def write_cause(found: Found, folder: Path, name: str = "", formats: Sequence[str] = ("json",)) -> list[Path]:
    """Write something that was kept into a folder; nothing that is there is written over.

    Args:
        found: A map or a graph.
        folder: It is made if it is not there.
        name: The files' name without suffix; by default its kind and number. A number follows if it is taken.
        formats: As :func:`formats_of` gives them.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        LensError: If the disk refuses.
    """
    default = f"{'graph' if isinstance(found, GraphFound) else 'patch'}-{found.kept}"
    stem = re.sub(r"[^\w.-]+", "-", name.strip()).strip("-.")[:120] or default
    files = free_files(folder, stem, formats)
    for file, form in zip(files, formats, strict=True):
        write_text(file, cause_text(found, form))
    return files


def command_again(record: CauseRecord) -> str:
    """The command that makes it again; ``""`` where it has none: a direction that only the app had."""
    found, model = record.found, record.made_with.source or record.summary.model
    if isinstance(found, GraphFound):
        return "" if found.plan.direction is not None else graph_command(found, model)
    return command_of(found.plan, model)


def changed_since(record: CauseRecord, model: ModelInfo | None) -> str:
    """What is no longer as it was made with, in a few words; nothing where the model is the same."""
    known = one_line(record.summary.model.rstrip("/").rpartition("/")[2], 60)
    if model is None:
        return f"of {known}, which is not loaded"
    stamp = model_stamp(model)
    if model.name != record.summary.model and not (stamp and stamp == record.stamp):
        return f"of another model: {known}"
    if record.made_with.adapter != model.adapter:
        return "made with another adapter" if record.made_with.adapter else "made without the adapter"
    if record.stamp and stamp and record.stamp != stamp:
        return f"the files of {known} have changed since"
    if record.made_with.weights != model.weights:
        return "its weights were held otherwise"
    return ""
