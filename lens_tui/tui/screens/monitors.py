"""Monitors of a run and gates of a row: what can be read of every token, asked by the names of what is at hand.

What monitors read shows token by token under each lane of Generate, and one of them as the shade.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lens_tui.records import SAEInfo
from lens_tui.records.gates import Gate, Monitor, Side, Watched, monitor_of
from lens_tui.records.interventions import BenchRow
from lens_tui.records.sanitise import one_line
from lens_tui.tui.host import LensHost
from lens_tui.tui.run_text import RunText
from lens_tui.tui.token_shades import MEASURES, Measure, monitor_lines
from lens_tui.tui.widgets.lane import LaneRow

from .form import Choice, ChoiceScreen, Field, FormScreen, number, optional, whole

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
        fields.append(Field("feature", "feature", hint=hint, check=optional(check), chooses=("reads", FEATURE)))
    return fields


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


MOST = 4
"""Monitors of one run: each is read in every lane."""


class MonitorFollower:
    """Shows what monitors read in the lanes; ``at`` is the one that can be the shade."""

    def __init__(self, lanes: LaneRow) -> None:
        self.lanes, self.at = lanes, 0

    def show(self, run: RunText | None) -> None:
        """Give each lane what was read of its arm."""
        lines = monitor_lines(run) if run is not None and run.monitors else []
        of_arm = dict(zip(map(id, run.arms), lines, strict=False)) if run is not None else {}
        for lane in self.lanes.lanes:
            lane.hear(of_arm.get(id(lane.text), ()), self.at)

    def turned(self, measure: Measure, count: int) -> tuple[Measure, int]:
        """What the shade says next after ``measure``, and of which of so many monitors, if of one."""
        wheel: list[tuple[Measure, int]] = [
            *((each, self.at) for each in MEASURES),
            *(("monitor", at) for at in range(count)),
        ]
        here = (measure, self.at)
        return wheel[((wheel.index(here) if here in wheel else -1) + 1) % len(wheel)]

    def name(self, lens: LensHost, run: RunText | None) -> str:
        """What the shade says while it is a monitor."""
        watched = lens.store.session.monitors if run is None else run.monitors
        if not watched:
            return "no monitor"
        item = watched[self.at % len(watched)]
        return f"{one_line(item.monitor.name, 30)} above {item.threshold:g}"

    def ask(self, lens: LensHost, chosen: Callable[[int], object]) -> None:
        """Ask which monitors read the runs that come; ``chosen`` is told which one is to be the shade."""
        known = lens.store.session.monitors
        if lens.store.session.model is None:
            lens.say(lens.no_model())
        elif not known:
            ask_monitor(lens, chosen)
        else:
            _ask_which(lens, known, chosen)


def _ask_which(lens: LensHost, known: tuple[Watched, ...], chosen: Callable[[int], object]) -> None:
    full = f"there are {MOST} already" if len(known) >= MOST else ""
    choices = [Choice("add", "read with one more", "a probe, a vector or a feature", full)]
    for at, item in enumerate(known):
        name = one_line(item.monitor.name, 16)
        choices.append(
            Choice(f"edit:{at}", f"{name}: threshold", f"layer {item.monitor.layer}, {item.threshold:g} now")
        )
        choices.append(Choice(f"off:{at}", f"{name}: leave it off", "it reads no more"))

    def take(answer: str | None) -> None:
        if answer == "add":
            ask_monitor(lens, chosen)
            return
        if answer is None:
            return
        what, _, place = answer.partition(":")
        at = int(place)
        if what == "off":
            lens.store.update(monitors=known[:at] + known[at + 1 :])
        else:
            _ask_threshold(lens, known, at, chosen)

    lens.push_screen(ChoiceScreen("Monitors: what reads every token", choices), take)


def _ask_threshold(lens: LensHost, known: tuple[Watched, ...], at: int, chosen: Callable[[int], object]) -> None:
    item = known[at]
    fields = [Field("threshold", "threshold", f"{item.threshold:g}", check=number())]

    def take(values: dict[str, str] | None) -> None:
        if values is not None:
            changed = replace(item, threshold=float(values["threshold"]))
            lens.store.update(monitors=(*known[:at], changed, *known[at + 1 :]))
            chosen(at)

    lens.push_screen(FormScreen(f"Threshold of {called(item.monitor)}", fields, _NOTE), take)


_NOTE = "Tokens that are read above it are shaded, and its bars stand above the middle."


def ask_monitor(
    lens: LensHost, chosen: Callable[[int], object], typed: Values | None = None, problem: str = ""
) -> None:
    """Ask for one monitor more, with what was typed before and what was wrong with it."""
    session = lens.store.session
    sources, sae = sources_of(session), session.sae_in_use
    if not sources and sae is None:
        lens.say("A monitor is a probe, a vector of the bench or an SAE feature; there is none yet.")
        return
    fields = [*source_fields(sources, sae), Field("threshold", "threshold", "0", check=number())]
    known = typed or {}
    fields = [replace(item, value=known.get(item.id, item.value)) for item in fields]

    def take(values: dict[str, str] | None) -> None:
        if values is None:
            return
        made = monitor_asked(values, sources, sae)
        if isinstance(made, str):
            ask_monitor(lens, chosen, values, made)
        else:
            chosen(read_by(lens, made, float(values["threshold"])))

    lens.push_screen(FormScreen("Read every token with", fields, _NOTE, problem), take)


def read_by(lens: LensHost, monitor: Monitor, threshold: float) -> int:
    """Have a monitor read the runs that come, at most :data:`MOST`; returns its place among them."""
    known = tuple(item for item in lens.store.session.monitors if item.monitor != monitor)[-(MOST - 1) :]
    lens.store.update(monitors=(*known, Watched(monitor, threshold)))
    return len(known)
