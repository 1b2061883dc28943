"""Monitors on Generate: asked for, read token by token under each lane, and one of them as the shade."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lens_tui.records.gates import Monitor, Watched
from lens_tui.records.sanitise import one_line
from lens_tui.tui.host import LensHost
from lens_tui.tui.monitor_text import monitor_lines
from lens_tui.tui.session import RunText
from lens_tui.tui.token_shades import MEASURES, Measure
from lens_tui.tui.widgets.lane import LaneRow

from .form import Choice, ChoiceScreen, Field, FormScreen, number
from .gate_form import Values, called, monitor_asked, source_fields, sources_of

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
