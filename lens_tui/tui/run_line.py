"""The line under the prompt: how a run is made, and what to press."""

from __future__ import annotations

from collections.abc import Callable

from .session import RunText, Session, summary


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
    said = (f" · shade: {shade}", "$muted")  # last of a run's: where there is no room it can go
    if run is None:
        parts += [said, (f" · {key('app.run')} runs, {key('generate.prompt')} writes the prompt", "$muted")]
        return parts if session.steers else [*parts, (f", {key('app.steer')} makes a vector", "$muted")]
    parts.append((f" · run {run.number} of {runs}", "$muted"))
    if stale and not run.going:
        parts.append((f" · changed since: {key('app.run')} runs it", "$accent"))
    return [*parts, said]
