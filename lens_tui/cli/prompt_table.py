"""``compare`` over a set of prompts: what it is asked for, its table for people, its JSON."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records import Arm, LensError, Sampling
from lens_tui.records.arm_syntax import ArmSpec
from lens_tui.records.gates import Gate
from lens_tui.records.interventions import amount_of
from lens_tui.records.prompt_set import (
    COLUMNS,
    PromptSet,
    SetCell,
    SetColumn,
    column_of,
    numbers_in,
    parse_prompts,
    read_prompt_set,
    typed_prompts,
)
from lens_tui.records.run import LIMITS, figures
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.format import figure, fit, fit_left

from .output import Asked, Meter, in_terminal, interruptible, note, print_json, say
from .sources import Vectors, open_model, read_text

if TYPE_CHECKING:
    from lens_tui.lens.measure.dose import FeatureProbe
    from lens_tui.tasks.prompt_sets import SetComparison

Prompts = Annotated[
    str, typer.Option(help="A file with a prompt on each line, or .jsonl; 'bundled'; '-' reads lines from stdin.")
]
First = Annotated[int | None, typer.Option(min=1, help="Of --prompts the first so many.", show_default=False)]
Scales = Annotated[str, typer.Option(help="Sweep the one --arm over these scales: 9.5,19,38.")]
Seeds = Annotated[str, typer.Option(help="A text from each of these seeds: 0,1,2; needs --temp.")]
ReadBackOf = Annotated[
    str, typer.Option("--read-back", help="The feature of --sae to read back; by default the first that steers.")
]
Column = Annotated[str, typer.Option(help=f"What the table shows: {', '.join(column.id for column in COLUMNS)}.")]
Texts = Annotated[bool, typer.Option("--texts", help="Print what was written too, under the table.")]
Rows = Annotated[int, typer.Option(min=1, help="Rows of a batch of a set: prompts times arms times seeds.")]


@dataclass(frozen=True, slots=True)
class AskedSet:
    """The options of ``compare`` that make it one of a set, as they were typed."""

    prompts: str
    prompt: str
    text_key: str
    first: int | None
    scales: str
    seeds: str
    read_back: str
    column: str
    texts: bool
    rows: int

    def read(self) -> PromptSet:
        """The prompts: those of ``--prompts``, or the one that was typed."""
        if self.prompts and self.prompt:
            raise LensError("A prompt and --prompts were both given.", "Give one of them.")
        if not self.prompts:
            check_prompt(self.prompt)
            return typed_prompts([read_text(self.prompt)])
        if self.prompts == "-":
            found = parse_prompts(read_text("-"), "standard input", key=self.text_key)
        elif self.prompts == "bundled":
            from lens_tui.tasks.prompt_sets import bundled_prompts

            found = bundled_prompts()
        else:
            found = read_prompt_set(self.prompts, key=self.text_key)
        return found.first(self.first)


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that was left out."""
    if not prompt:
        raise LensError("There is no prompt.", "Write one, '-' to read standard input, or --prompts FILE.")


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers with commas or blanks between them. Raises :class:`LensError` that names the option."""
    found = numbers_in(text)
    if found is None:
        raise LensError(
            f"{option} cannot be {one_line(text, 60)!r}.", "Write numbers with commas between, as 9.5,19,38."
        )
    return found


def _seeds(text: str) -> tuple[int, ...]:
    found = numbers(text, "--seeds")
    low, high = LIMITS["seed"]
    if any(value != int(value) or not low <= value <= high for value in found):
        raise LensError(f"--seeds cannot be {one_line(text, 60)!r}.", "Write whole numbers from 0, as 0,1,2.")
    return tuple(map(int, found))


def compare_set(
    asked: AskedSet,
    specs: Sequence[ArmSpec],
    model: str,
    sae: str,
    sampling: Sampling,
    *,
    raw: bool,
    json: bool,
    stream: bool,
) -> None:
    """Every prompt under every arm, as a table or as JSON; what has come by a first ctrl+c is kept and printed."""
    from lens_tui.tasks.prompt_sets import compare_prompts, sweep

    column, prompts = column_of(asked.column), asked.read()
    scales, seeds = numbers(asked.scales, "--scales"), _seeds(asked.seeds)
    if scales and len(specs) != 1:
        raise LensError("--scales sweeps one arm.", "Give --arm once.")
    with open_model(model) as lens, interruptible() as stop:
        vectors = Vectors(lens, sae, model)
        arms = [vectors.arm(spec) for spec in specs]
        if scales:  # an arm that was given no name is called as it is written, but for its scale
            arms = list(sweep(Arm(arms[0].name.partition("*")[0], arms[0].interventions), scales))
        probe = _probe(vectors, asked.read_back, specs)
        run = compare_prompts(lens, prompts, arms, sampling, seeds=seeds, probe=probe, raw=raw, rows=asked.rows)
        _go_through(run, stop, stream=json and stream)
        cells = [*run.cells.values(), *run.rest()]
        result = _record(lens.info.name, run, cells, probe, stopped=stop())
        lacks = lens.info.lacks_template and not raw
    if json:
        print_json({"event": "Run", **result} if stream else result)
    else:
        _print(run, cells, column, probe, texts=asked.texts)
        if lacks:
            note("the model has no chat template: the prompts were used as they are")
    if stop():
        raise SystemExit(stop.status)


def _go_through(run: SetComparison, stop: Asked, *, stream: bool) -> None:
    """The whole run, or as far as it is not stopped."""
    total = len(run.prompts) * len(run.arms) * len(run.seeds)
    with Meter() as meter:
        for event in run:
            if isinstance(event, SetCell):
                meter.say("texts", f"{len(run.cells)} of {total}", len(run.cells) / total)
                if stream:
                    print_json({"event": "Cell", **_cell(event, run)})
            if stop():
                run.close()
                return


def _probe(vectors: Vectors, named: str, specs: Sequence[ArmSpec]) -> FeatureProbe | None:
    """The feature to read back: the one that is named, else the first that an arm steers with."""
    from lens_tui.lens.measure.dose import FeatureProbe

    found = (term.feature for spec in specs for term in spec.terms if term.kind == "feature")
    feature = next(found, None)
    if named:
        if not re.fullmatch(r"f?[0-9]{1,9}", named):
            raise LensError(f"--read-back cannot be {one_line(named, 60)!r}.", "Give a feature: f2666.")
        feature = int(named.lstrip("f"))
    if feature is None:
        return None
    sae = vectors.sae
    if sae.info.layer < 0 or not sae.info.site or sae.info.is_transcoder:
        if named:
            raise LensError(f"The SAE {sae.info.name!r} does not say what it reads.", "Name it as PATH@LAYER:SITE.")
        return None
    return FeatureProbe(sae, feature, sae.info.layer, sae.info.site)


# -- as data


def _record(
    model: str, run: SetComparison, cells: Sequence[SetCell], probe: FeatureProbe | None, *, stopped: bool
) -> dict[str, Any]:
    return {
        "model": model,
        "prompts": [{"id": item.id, "prompt": item.text} for item in run.prompts],
        "sampling": asdict(run.sampling),
        "seeds": list(run.seeds),
        "read_back": None if probe is None else {"feature": probe.feature, "layer": probe.layer, "site": probe.site},
        "arms": [
            {
                "name": arm.name,
                "interventions": [intervention_in_words(item) for item in arm.interventions],
                "means": {column.id: column.over([cell for cell in cells if cell.arm == index]) for column in COLUMNS},
            }
            for index, arm in enumerate(run.arms)
        ],
        "cells": [_cell(cell, run) for cell in cells],
        "stopped": stopped,
    }


def _cell(cell: SetCell, run: SetComparison) -> dict[str, Any]:
    return {
        "id": run.prompts[cell.prompt].id,
        "arm": run.arms[cell.arm].name,
        "seed": run.seeds[cell.seed],
        "prompt_place": cell.prompt,
        "arm_place": cell.arm,
        "text": cell.text,
        "reason": cell.reason,
        "token_ids": [token.token_id for token in cell.tokens],
        **figures(cell.tokens),
        "distinct_2": cell.distinct_2,
        "read_back": cell.read_back,
        "dose": cell.dose,
    }


def intervention_in_words(item: Any) -> dict[str, Any]:
    """An intervention as plain data."""
    vector = getattr(item, "vector", None)
    origin = None if vector is None else {"kind": vector.origin.kind, **vector.origin.facts}
    what = {"heads": list(item.heads)} if vector is None else {"vector": vector.name, "origin": origin}
    return {
        "mode": item.mode,
        "layer": item.layer,
        "site": item.site,
        **what,
        "scale": amount_of(item),
        "positions": item.positions.kind,
        "gate": None if item.gate is None else gate_in_words(item.gate),
    }


def gate_in_words(gate: Gate) -> dict[str, Any]:
    """A gate as plain data."""
    read = gate.monitor
    source = {"feature": read.feature, "sae": read.sae} if read.vector is None else {"vector": read.vector.name}
    place = {"name": read.name, "layer": read.layer, "site": read.site}
    return {**place, **source, "threshold": gate.threshold, "side": gate.side}


# -- for people

_PROMPT = 32
_LEAST = 9


def _print(
    run: SetComparison, cells: Sequence[SetCell], column: SetColumn, probe: FeatureProbe | None, *, texts: bool
) -> None:
    """A row a prompt, a column an arm, the mean of the seeds in each cell, and the mean of all prompts below."""
    head = ["", *(one_line(arm.name, 40) for arm in run.arms)]
    rows = [
        [
            one_line(f"{item.id}  {item.text}" if not item.id.isdigit() else item.text, 200),
            *_numbers(cells, column, run, at),
        ]
        for at, item in enumerate(run.prompts)
    ]
    rows.append(["mean", *_numbers(cells, column, run)])
    say(f"── {column.label}{f', {column.unit}' if column.unit else ''}")
    if in_terminal():
        _print_rich(head, rows)
    else:
        widths = [_PROMPT, *(max(_LEAST, len(name)) for name in head[1:])]
        for row in (head, *rows):
            say("  ".join([fit(row[0], _PROMPT), *map(fit_left, row[1:], widths[1:])]).rstrip())
    if texts:
        for cell in cells:
            seed = f", seed {run.seeds[cell.seed]}" if len(run.seeds) > 1 else ""
            say(f"\n── {run.prompts[cell.prompt].id}, {run.arms[cell.arm].name}{seed}")
            say(run.prompts[cell.prompt].text + cell.text)
    of = f" Feature {probe.feature}." if probe is not None and column.id == "read_back" else ""
    note(f"{column.label}: {column.says}{of} Other columns: --column; all numbers: --json")
    seeds = f"{'seed' if len(run.seeds) == 1 else 'seeds'} {', '.join(map(str, run.seeds))}"
    most = many(run.sampling.max_tokens, "token")
    note(f"{many(len(run.prompts), 'prompt')}, {seeds}, temp {run.sampling.temp:g}, at most {most}")


def _numbers(cells: Sequence[SetCell], column: SetColumn, run: SetComparison, prompt: int | None = None) -> list[str]:
    """Arm by arm the column's value on a prompt, or on all of them."""
    here = [cell for cell in cells if prompt is None or cell.prompt == prompt]
    values = (column.over([cell for cell in here if cell.arm == arm]) for arm in range(len(run.arms)))
    return [figure(value, column.places) for value in values]


def _print_rich(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in head[1:]:
        table.add_column(Text(name), justify="right", overflow="ellipsis")
    for row in rows[:-1]:
        table.add_row(*map(Text, row))
    table.add_section()
    table.add_row(*(Text(cell, style="bold") for cell in rows[-1]))
    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as drawn:
        console.print(table)
    sys.stdout.write(drawn.get())
