"""How a run is made: the line under the prompt that says it, sampling settings as a form, and the rows of one lane.

Of the rows of the bench that act in one lane there are their scale, their positions, and more like them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich.cells import cell_len
from textual.content import Content

from lens_tui.records import Sampling
from lens_tui.records.interventions import ALL, BenchRow, next_positions, positions_text
from lens_tui.records.run import LIMITS
from lens_tui.tui.chat_text import roles_of
from lens_tui.tui.host import LensHost
from lens_tui.tui.run_text import RunText, summary
from lens_tui.tui.session import MAX_ARMS, Session
from lens_tui.tui.widgets.lane import Line

from .form import Check, Field, FormScreen, number, optional, whole

_OFF = {"temp": "0: greedy", "top_p": "off", "top_k": "off", "min_p": "off", "repetition_penalty": "off"}
"""What an empty field means."""
_STOP_HINT = "no text; several with | between, a line break as \\n"
_LABELS = {
    "max_tokens": "max tokens",
    "seed": "seed",
    "temp": "temperature",
    "top_p": "top-p",
    "top_k": "top-k",
    "min_p": "min-p",
    "repetition_penalty": "rep. penalty",
}


def _check(name: str) -> Check:
    low, high = LIMITS[name]
    check = whole(low, high) if isinstance(low, int) and isinstance(high, int) else number(low, high)
    return optional(check) if name in _OFF else check


def sampling_fields(sampling: Sampling) -> list[Field]:
    """The form's fields with the settings as they are; what is off is empty."""
    scalars = [
        Field(name, label, _value(sampling, name), _OFF.get(name, ""), _check(name)) for name, label in _LABELS.items()
    ]
    return [*scalars, Field("stop", "stop at", "|".join(map(_typed, sampling.stop)), _STOP_HINT, between="|")]


def _value(sampling: Sampling, name: str) -> str:
    value = getattr(sampling, name)
    return "" if name in _OFF and not value else f"{value}"


def _typed(text: str) -> str:
    """A stop text in one line: a backslash before a backslash, a ``|``, and the n that stands for a line break."""
    return re.sub(r"[\\|]", r"\\\g<0>", text).replace("\n", "\\n")


def _stops(typed: str) -> tuple[str, ...]:
    parts = re.findall(r"(?:\\.|[^|\\])+", typed)
    return tuple(re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], part) for part in parts)


def read_sampling(values: Mapping[str, str], before: Sampling) -> Sampling:
    """The settings that a form whose every field is right means."""
    kinds = {name: type(getattr(before, name)) for name in _LABELS}
    scalars = {name: kinds[name](values[name].strip() or 0) for name in _LABELS}
    return replace(before, **scalars, stop=_stops(values["stop"]))


def ask_sampling(lens: LensHost) -> None:
    """Ask how tokens are drawn; the session has it then."""
    sampling = lens.store.session.sampling

    def take(values: dict[str, str] | None) -> None:
        if values is not None:
            lens.store.update(sampling=read_sampling(values, lens.store.session.sampling))

    lens.push_screen(FormScreen("Sampling", sampling_fields(sampling)), take)


_SHADE, _RUN = " · shade: ", " · run "


class SettingsLine(Line):
    """The line under the prompt in the width there is: facts are left out whole, never cut."""

    _parts: Sequence[tuple[str, str]] = ()

    def of_run(self, parts: Sequence[tuple[str, str]]) -> None:
        """Show what :func:`settings_parts` gave."""
        self._parts = parts
        self.on_resize()

    def of_set(self, line: Content) -> None:
        """Show the line of a set as it is."""
        self._parts, self.content = (), line

    def on_resize(self) -> None:
        """Another width."""
        if self._parts:
            self.content = Content.assemble(*fitting(self._parts, self.size.width))


def fitting(parts: Sequence[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    """The parts that ``width`` cells have room for: what is said of the shade goes first, then which run it is."""
    left = list(parts)
    while len(left) > 1 and sum(cell_len(text) for text, _ in left) > width:
        del left[_least([text for text, _ in left])]
    shade = next((at for at, (text, _) in enumerate(left) if text.startswith(_SHADE)), len(left))
    if shade + 1 < len(left) and left[shade + 1][0].startswith(", "):  # all of it is one text again
        left[shade : shade + 2] = [(left[shade][0] + left[shade + 1][0], left[shade][1])]
    return left


def _least(facts: Sequence[str]) -> int:
    """The place of the fact that is missed least."""
    shade = next((at for at, fact in enumerate(facts) if fact.startswith(_SHADE)), None)
    if shade is not None and shade + 1 < len(facts) and facts[shade + 1].startswith(", "):
        return shade + 1
    run = next((at for at, fact in enumerate(facts) if fact.startswith(_RUN)), None)
    return next(at for at in (run, shade, len(facts) - 1) if at is not None)


def settings_parts(
    session: Session, run: RunText | None, runs: int, stale: bool, shade: str, key: Callable[[str], str]
) -> list[tuple[str, str]]:
    """The line under the prompt, as texts and styles: the settings, the shade, which run it is and what to press."""
    parts = [(summary(session.sampling), "")]
    if session.model is not None and session.model.takes_chat:
        chat, plain = ("●", "○") if session.chatting else ("○", "●")
        parts.insert(0, (f"{chat} chat {plain} raw {key('generate.chat')} · ", "$accent"))
    if session.model is not None and session.model.lacks_template:
        parts.append((" · no chat template", "$warning"))
    name, comma, more = shade.partition(", ")
    said = [(f"{_SHADE}{name}", "$muted"), *([(comma + more, "$muted")] if more else [])]
    if run is None:
        parts += [*said, (f" · {key('app.run')} runs, {key('generate.prompt')} writes the prompt", "$muted")]
        parts += [] if session.steers else [(f", {key('app.steer')} makes a vector", "$muted")]
    else:
        parts.append((f"{_RUN}{run.number} of {runs}", "$muted"))
        if stale and not run.going:
            parts.append((f" · changed since: {key('app.run')} runs it", "$accent"))
        parts += said
    return parts


def no_rows(lens: LensHost, *, of_set: bool) -> str:
    """Why there is nothing to change in a lane: it is a set's, or nothing is steered there."""
    if of_set:
        return f"These lanes are a set's: esc goes back to the bench, {lens.key_text('app.run')} runs it."
    keys = f"{lens.key_text('generate.lane_left')} {lens.key_text('generate.lane_right')}"
    return f"Nothing is steered in this lane; {keys} go to the others."


def next_place(lens: LensHost, rows: Sequence[BenchRow]) -> None:
    """The next positions."""
    positions = next_positions(rows[0].positions, roles=roles_of(lens.store.session))
    lens.store.replace_steers([replace(row, positions=positions) for row in rows])
    lens.say(f"Steered: {positions_text(positions or ALL)}.")


def move_scale(lens: LensHost, rows: Sequence[BenchRow], steps: int) -> None:
    """Scale, by steps."""
    lens.store.replace_steers([row.moved(steps) for row in rows])


def zero_scale(lens: LensHost, rows: Sequence[BenchRow]) -> None:
    """Scale zero."""
    lens.store.replace_steers([replace(row, scale=0.0) for row in rows])


def add_arm(lens: LensHost, rows: Sequence[BenchRow]) -> int | None:
    """A new arm like these rows, half as strong again.

    Returns:
        Its number; None where there are as many as there may be, which is said.
    """
    session = lens.store.session
    if len({row.arm for row in session.steers}) >= MAX_ARMS:
        lens.say(f"There can be at most {MAX_ARMS} arms beside the baseline.")
        return None
    free = session.free_arm()
    for row in rows:
        lens.store.add_like(row, row.moved(5).scale, free)
    return free


def delete_arm(lens: LensHost, rows: Sequence[BenchRow]) -> None:
    """Take the rows off the bench; undo brings them back."""
    gone = {row.id for row in rows}
    lens.store.update(steers=tuple(row for row in lens.store.session.steers if row.id not in gone))


def from_to(ran: str, now: str) -> str:
    """What is done in a lane, as :func:`strength` has it: what it was when it ran, and what it is since."""
    if now == ran:
        return now
    before = ran.partition(" · ")[0]
    return f"→ {now}" if before == now.partition(" · ")[0] else f"{before} → {now}"
