"""What can be read of every token, and the gate of a row: asked in one form, by the names of what is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lens_tui.records import SAEInfo
from lens_tui.records.gates import Gate, Monitor, Side, monitor_of
from lens_tui.records.interventions import BenchRow
from lens_tui.records.sanitise import one_line
from lens_tui.tui.host import LensHost

from .form import Check, Field, FormScreen, number, whole

if TYPE_CHECKING:
    from lens_tui.tui.session import Session

ALWAYS = "nothing: it always acts"
FEATURE = "an SAE feature, by its number"
SIDES: dict[str, Side] = {"above": "above", "below": "below"}
Values = Mapping[str, str]


def called(monitor: Monitor) -> str:
    """A monitor in a list: its name, what it is, its layer."""
    probe = monitor.vector is not None and monitor.vector.origin.kind == "probe"
    return f"{one_line(monitor.name, 40)}{' (probe)' if probe else ''} · layer {monitor.layer}"


def sources_of(session: Session) -> dict[str, Monitor]:
    """What can be read, by what it is called: what is read already, what is on the bench, probes that were kept."""
    from lens_tui.records.probe import kept_probes

    width = None if session.model is None else session.model.d_model
    found = [watched.monitor for watched in session.monitors]
    found += [row.gate.monitor for row in session.steers if row.gate is not None]
    found += [monitor_of(replace(row.vector, layer=row.layer)) for row in session.steers if not _is_feature(row)]
    found += [probe.monitor for _, probe in kept_probes() if probe.vector.d_model == width]
    named: dict[str, Monitor] = {}
    for monitor in found:
        named.setdefault(called(monitor), monitor)
    return named


def _is_feature(row: BenchRow) -> bool:
    """A feature's own activation is asked for by its number: the projection on its direction is another thing."""
    return row.vector.origin.kind == "feature"


def source_fields(sources: Mapping[str, Monitor], sae: SAEInfo | None, first: tuple[str, ...] = ()) -> list[Field]:
    """What is read: one of the sources, or a feature of the SAE in use by its number."""
    options = (*first, *sources, *([FEATURE] if sae is not None else []))
    fields = [Field("reads", "reads", options=options)]
    if sae is not None:
        check = whole(0, sae.width - 1)
        hint = f"of {sae.name}, 0 to {sae.width - 1}"
        fields.append(Field("feature", "feature", hint=hint, check=_empty_or(check), chooses=("reads", FEATURE)))
    return fields


def _empty_or(check: Check) -> Check:
    return lambda text: check(text) if text.strip() else ""


def monitor_asked(values: Values, sources: Mapping[str, Monitor], sae: SAEInfo | None) -> Monitor | str:
    """The monitor of :func:`source_fields`, or what is wrong with what was typed."""
    typed = values.get("feature", "").strip()
    if sae is not None and values["reads"] == FEATURE:
        if not typed:
            return f"feature needs a number from 0 to {sae.width - 1}"
        if sae.layer < 0 or not sae.site:
            return f"{one_line(sae.name, 60)} does not say which layer it reads"
        return feature_monitor(sae, int(typed))
    return sources[values["reads"]]


def feature_monitor(sae: SAEInfo, feature: int) -> Monitor:
    """What reads a feature's activation."""
    return Monitor(f"f{feature}", sae.layer, sae.site, sae=sae.id, feature=feature)


def ask_gate(lens: LensHost, rows: list[BenchRow], typed: Values | None = None, problem: str = "") -> None:
    """Ask what lets these rows act, and give them that gate; the first says what stands in the form."""
    session, row = lens.store.session, rows[0]
    sources, sae, gate = sources_of(session), session.sae_in_use, row.gate
    if not sources and sae is None:
        lens.say("A gate reads a probe, a vector of the bench or an SAE feature; there is none yet.")
        return
    now = {"reads": ALWAYS, "side": "above", "threshold": "0"}
    if gate is not None:
        now = {"reads": called(gate.monitor), "side": gate.side, "threshold": f"{gate.threshold:g}"}
    fields = [
        *source_fields(sources, sae, (ALWAYS,)),
        Field("side", "where it is", options=tuple(SIDES)),
        Field("threshold", "threshold", check=number()),
    ]
    known = {**now, **(typed or {})}
    fields = [replace(item, value=known.get(item.id, item.value)) for item in fields]

    def done(values: dict[str, str] | None) -> None:
        if values is None:
            return
        made = gate_asked(values, sources, sae, min(item.layer for item in rows))
        if isinstance(made, str):
            ask_gate(lens, rows, values, made)
        else:
            give_gate(lens, rows, made)

    names = ", ".join(one_line(item.vector.name, 40) for item in rows)
    note = "It acts on those tokens alone at which the reading is on that side of the threshold."
    lens.push_screen(FormScreen(f"Gate of {names}", fields, note, problem), done)


def gate_asked(values: Values, sources: Mapping[str, Monitor], sae: SAEInfo | None, layer: int) -> Gate | str | None:
    """The gate of the form, ``None`` for none, or what is wrong with it for a row of that layer."""
    if values["reads"] == ALWAYS:
        return None
    monitor = monitor_asked(values, sources, sae)
    if isinstance(monitor, str):
        return monitor
    if monitor.layer > layer:
        return f"{called(monitor)} is read too late for a row at layer {layer}"
    return Gate(monitor, float(values["threshold"]), SIDES[values["side"]])


def give_gate(lens: LensHost, rows: list[BenchRow], gate: Gate | None) -> None:
    """Give rows of the bench a gate, or take it away."""
    wanted = {row.id for row in rows}
    lens.store.replace_steers(replace(row, gate=gate) for row in lens.store.session.steers if row.id in wanted)
