"""The line under the prompt: how a run is made, and what to press."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from textual.content import Content

from .session import RunText, Session, summary
from .widgets.lane import Line

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
