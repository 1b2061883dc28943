"""Probes made on Steer: labelled texts in, a held-out score by layer beside its null out, and what it is used as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from textual.content import Content

from lens_tui.records import LensError, ModelInfo, SteeringVector
from lens_tui.records.gates import Gate
from lens_tui.records.interventions import BenchRow
from lens_tui.records.paths import expanded
from lens_tui.records.probe import Probe, ProbeReport, probe_of, save_probe
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.format import bar, figure, fit_left
from lens_tui.tui.host import LensHost
from lens_tui.worker.jobs import TrainProbes

from .form import Check, Choice, ChoiceScreen, Field, filled, whole
from .monitors import give_gate, read_by
from .steer_forms import ALL, BETWEEN, TEXTS, Form, LayerChoice, a_file, texts

PROBES = {"logistic regression": "logistic", "mean difference": "mean_difference"}
NUMBERS = {"linear regression (labels are numbers)": "ridge"}
READ = {
    "the last token": "last",
    "the mean of all but special ones": "mean",
    "every token, as an example": "every",
}
TYPED = "Two texts of a label at least; as many of each are held out in pairs."
MIDDLE = 0.0
"""The score of a probe of two labels between them."""
FROM_FILE = "JSONL with text and label on each line, and group for what is held out together."


def probe_form(model: ModelInfo) -> Form:
    """A probe of texts that are typed."""
    sides = [("positive", "A (label 1)", "texts with it; | between"), ("negative", "B (label 0)", "without; | between")]
    fields = (
        Field("name", "name", hint="what it is a probe for", check=filled),
        *(Field(name, label, hint=hint, check=_several, between=BETWEEN) for name, label, hint in sides),
        *_manner(model, PROBES),
    )

    def job(values: Mapping[str, str]) -> TrainProbes:
        return _job(values, texts(values["positive"]), texts(values["negative"]), "")

    return Form("A probe that tells texts apart", fields, TYPED, job)


def probe_file_form(model: ModelInfo) -> Form:
    """A probe of a file of labelled texts."""
    fields = (
        Field("path", "file", hint=".jsonl", check=a_file),
        Field("name", "name", hint="empty: the file's name"),
        *_manner(model, {**PROBES, **NUMBERS}),
    )

    def job(values: Mapping[str, str]) -> TrainProbes:
        path = str(expanded(values["path"].strip()))
        named = {**values, "name": values["name"].strip() or Path(path).stem}
        return _job(named, (), (), path)

    return Form("A probe of labelled texts", fields, FROM_FILE, job)


def _manner(model: ModelInfo, kinds: Mapping[str, str]) -> tuple[Field, ...]:
    chat = (Field("texts", "texts", options=tuple(TEXTS)),) if model.has_chat_template else ()
    return (
        Field("kind", "kind", options=tuple(kinds)),
        Field("layers", "layers", ALL, hint="0,4,7, or all", check=_some_layers(model.n_layers)),
        Field("over", "tokens", options=tuple(READ)),
        *chat,
    )


def _several(text: str) -> str:
    return "" if len(texts(text)) > 1 else "two texts at least, with | between"


def _some_layers(n_layers: int) -> Check:
    one = whole(0, n_layers - 1)

    def check(text: str) -> str:
        if text.strip() == ALL:
            return ""
        parts = text.split(",")
        return f"layers from 0 to {n_layers - 1} with commas between, or all" if any(map(one, parts)) else ""

    return check


def _job(values: Mapping[str, str], positive: tuple[str, ...], negative: tuple[str, ...], path: str) -> TrainProbes:
    layers = values["layers"].strip()
    return TrainProbes(
        one_line(values["name"].strip(), 60),
        positive,
        negative,
        path,
        {**PROBES, **NUMBERS}[values["kind"]],
        None if layers == ALL else tuple(sorted({int(layer) for layer in layers.split(",")})),
        READ[values["over"]],
        TEXTS[values["texts"]] if "texts" in values else True,
    )


_WORDS = {
    "auc": "Bars: AUC of examples held out, the chance that one of label 1 scores above one of label 0. ",
    "r2": "Bars: R2 of examples held out, the share of the labels' variance that is told. ",
}
_NULL = "At random: the same with labels dealt at random, its mean and 95th percentile; p: how often that does as well."


class ProbeLayersScreen(LayerChoice[Probe]):
    """The layers in their order, the cursor on the best."""

    def __init__(self, report: ProbeReport) -> None:
        probes, held = report.probes, report.probes[0].held_out
        self._metric = held.metric
        super().__init__(
            f"{report.name}: which layer?  ({many(held.n, 'example')}, {many(len(held.folds), 'fold')})",
            _WORDS[held.metric] + _NULL,
            probes,
            first=probes.index(report.best),
            takes="keep this one",
        )

    def heading(self) -> str:
        """What stands over the columns."""
        return "  layer" + " " * 16 + f"{self._metric.upper():>7}   at random (95 %)       p"

    def draw(self, row: Probe, width: int) -> list[Content]:
        """The held-out score as a bar from chance, beside its null."""
        held = row.held_out
        share = 2 * (held.value - 0.5) if held.metric == "auc" else held.value
        null = f"{figure(held.null_mean, 3)} ({figure(held.null_high, 3)})" if held.p is not None else "–"
        facts = f"{figure(held.value, 3):>7}   {null:>16}{figure(held.p, 3):>8}"
        filled_bar = bar(max(0.0, share), 14).ljust(14)
        return [Content.assemble(fit_left(str(row.layer), 7), "  ", (filled_bar, "$heat-5"), facts)]


def uses(row: BenchRow | None, early: bool) -> list[Choice]:
    """What a probe can be used as; ``row`` is the bench row that it may gate, if it reads ``early`` enough."""
    name = "" if row is None else one_line(row.vector.name, 30)
    barred = "there is no row on the bench to gate" if row is None else f"it is read too late for {name}"
    return [
        Choice("vector", "steer with it", "a new row on the bench"),
        Choice("monitor", "read with it", "its score of every token, on Generate"),
        Choice("gate", "gate a row", f"{name} acts where it reads enough", "" if early else barred),
        Choice("nothing", "keep it only", "the vectors folder has it"),
    ]


def ask_layer(
    lens: LensHost,
    report: ProbeReport,
    row: BenchRow | None,
    steer: Callable[[SteeringVector], object],
    again: Callable[[], object],
) -> None:
    """Have a layer chosen, keep its probe, and have chosen what it is used as.

    Args:
        lens: The app.
        report: A probe for each layer.
        row: The row that it may gate.
        steer: Puts it on the bench.
        again: Asks again with what was typed.
    """

    def chosen(place: int | None) -> None:
        if place is None:
            again()
            return
        probe = report.probes[place]
        try:
            path = save_probe(probe)
        except LensError as error:
            lens.show_error(error.message, error.hint)
            return
        lens.say(f"Kept as {one_line(str(path), 120)}")
        ask_use(lens, probe, row, steer)

    lens.push_screen(ProbeLayersScreen(report), chosen)


def ask_use(lens: LensHost, probe: Probe, row: BenchRow | None, steer: Callable[[SteeringVector], object]) -> None:
    """Have chosen what a probe is used as."""
    name = one_line(probe.vector.name, 40)

    def chosen(use: str | None) -> None:
        if use == "vector":
            steer(probe.vector)
        elif use == "monitor":
            read_by(lens, probe.monitor, MIDDLE)
            lens.say(f"{name} reads every token of the next run: {lens.key_text('app.generate')} goes to Generate.")
        elif use == "gate" and row is not None:
            give_gate(lens, [row], Gate(probe.monitor, MIDDLE))

    early = row is not None and probe.layer <= row.layer
    title = f"{name} at layer {probe.layer}: what is it for?"
    lens.push_screen(ChoiceScreen(title, uses(row, early)), chosen)


def probe_lines(vector: SteeringVector) -> list[str]:
    """Where a probe's direction is from, in a few lines."""
    facts = vector.origin.facts
    lines = [f"probe   {one_line(str(facts.get('probe', '?')), 30).replace('_', ' ')}"]
    try:
        held = probe_of(vector).held_out
    except LensError:
        return lines
    null = "" if held.null_mean is None else f", {figure(held.null_mean, 3)} at random"
    return [*lines, f"{held.metric.upper()}  {figure(held.value, 3)} held out{null}", f"examples {held.n}"]
