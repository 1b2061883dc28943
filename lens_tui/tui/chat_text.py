"""A conversation as it is shown: its turns, its thinking folded, its prompt token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content

from lens_tui.records.chat import Turn
from lens_tui.records.interventions import ROLES
from lens_tui.records.sanitise import one_line, sanitise
from lens_tui.records.wording import many

from .format import NEWLINE, fit
from .run_text import ArmText, RunText
from .session import Session

OPEN, CLOSE = "<think>", "</think>"
FOLDED, UNFOLDED = "▸", "▾"
LABEL = 9
"""Cells of the column that says who speaks."""
TAIL = 4
"""Tokens at the end of an answer where a stop or white space may be cut off: what differs there is not a change."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tokens ``start`` to ``stop`` (not included) that think, markers among them; whether they have an end."""

    start: int
    stop: int
    ended: bool


def thinking_in(pieces: Sequence[str], opened: bool = False) -> Thinking | None:
    """Where a text thinks first: from ``<think>`` to ``</think>``.

    Args:
        pieces: What its tokens add to it.
        opened: The prompt ends in ``<think>``, so that the text begins inside.

    Returns:
        The tokens; ``None`` where the text does not begin by thinking.
    """
    text = "".join(pieces)
    begin = 0 if opened else text.find(OPEN)
    if begin < 0 or text[:begin].strip():
        return None
    close = text.find(CLOSE, begin)
    end = len(text) if close < 0 else close + len(CLOSE)
    start, stop, at = len(pieces), len(pieces), 0
    for place, piece in enumerate(pieces):
        after = at + len(piece)
        if after > begin and start == len(pieces):
            start = place
        if close >= 0 and at >= end and piece.strip():  # the blank lines behind it go with it
            stop = place
            break
        at = after
    return Thinking(start, stop, close >= 0)


def folded(thinking: Thinking) -> str:
    """The one line that stands for what was thought."""
    tokens = many(thinking.stop - thinking.start, "token")
    return f"{FOLDED} thinking, {tokens}\n" if thinking.ended else f"{FOLDED} thinking …"


def opens_thinking(run: RunText) -> bool:
    """Whether the prompt of a run ends with the marker that thinking begins with."""
    return "".join(run.prompt_tokens[-4:]).rstrip(f"\n {NEWLINE}").endswith(OPEN)


def spoken(content: str) -> tuple[str, str]:
    """What a turn thinks, without its markers, and what it says."""
    head, marker, rest = content.partition(CLOSE)
    before, opened, thought = head.partition(OPEN)
    if marker and opened and not before.strip():
        return thought.strip(), rest.lstrip("\n")
    return ("", content) if not marker or opened else (head.strip(), rest.lstrip("\n"))


def transcript(turns: Sequence[Turn], width: int, *, unfolded: bool) -> list[Content]:
    """The lines of a conversation: who speaks in a column at the left, thinking in one line unless ``unfolded``."""
    room = max(8, width - LABEL - 3)
    lines: list[Content] = []
    for turn in turns:
        thought, said = spoken(turn.content)
        parts = []
        if thought:
            mark, words = (UNFOLDED if unfolded else FOLDED), len(thought.split())
            parts.append(Content.styled(f"{mark} thinking, {many(words, 'word')}", "$muted"))
            parts += [Content.styled(_safe_lines(thought), "$muted italic")] if unfolded else []
        parts.append(Content(_safe_lines(said.strip())))
        wrapped = [line for part in parts for line in part.wrap(room)]
        label = fit(one_line(turn.role, 40), LABEL).strip().rjust(LABEL)
        for number, line in enumerate(wrapped):
            lines.append(Content.assemble((f"{' ' * LABEL if number else label} ▏ ", "$muted"), line))
    return lines


def _safe_lines(text: str) -> str:
    return sanitise(text).expandtabs(4)


Spans = tuple[tuple[str, int, int], ...]


def as_read(tokens: Sequence[str], spans: Spans | None, width: int) -> list[Content]:
    """The lines of a prompt as the model reads it, the template's own tokens between ``‹`` and ``›``.

    Args:
        tokens: Their display forms.
        spans: The roles; ``None`` where the prompt went in as it is.
        width: Cells of a line.
    """
    own = {at for role, start, stop in spans or () if role == "template" for at in range(start, stop)}
    parts: list[Content] = []
    for at, token in enumerate(tokens):
        text = token.replace("\n", NEWLINE).replace(NEWLINE, f"{NEWLINE}\n")
        if at not in own:
            parts.append(Content(text))
            continue
        begins, ends = at - 1 not in own, at + 1 not in own
        line_end = text.endswith("\n") and ends
        text = f"{'‹' if begins else ''}{text[:-1] if line_end else text}{'›' if ends else ''}"
        parts.append(Content.styled(text + ("\n" if line_end else ""), "$muted"))
    counted = many(len(tokens), "token") + (f", the template's {len(own)} between ‹ ›" if own else "")
    head = Content.styled(f"as the model reads it: {counted}", "$muted")
    if spans and not own:
        head = Content.styled(f"as the model reads it: {counted}; which are the template's cannot be told", "$muted")
    return [head, *Content("").join(parts).wrap(max(8, width))]


def answered(run: RunText, arm: ArmText) -> tuple[Turn, ...]:
    """The conversation of a run with an arm's answer as its last turn."""
    asked = run.turns or (Turn("user", run.prompt),)
    return (*asked, Turn("assistant", arm.text))


def roles_of(session: Session) -> tuple[str, ...]:
    """The roles that positions can be of in the session's conversation; none where there is none."""
    without = () if system_of(session) else ("system",)
    return tuple(role for role in ROLES if role not in without) if session.chatting else ()


def system_of(session: Session) -> str:
    """The system prompt of the session's conversation."""
    return session.turns[0].content if session.turns and session.turns[0].role == "system" else ""


def with_system(turns: Sequence[Turn], system: str) -> tuple[Turn, ...]:
    """The turns with this system prompt in front, with none if it is blank."""
    rest = tuple(turns[1:] if turns and turns[0].role == "system" else turns)
    return (Turn("system", system), *rest) if system.strip() else rest


def rewritten_at(said: Sequence[int], read: Sequence[int]) -> int | None:
    """The first token of a conversation that is another when it is gone on with; ``None`` where none is.

    Args:
        said: The prompt's tokens and the answer's, as they were.
        read: The tokens of the prompt that goes on with it.
    """
    pairs = enumerate(zip(said, read, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(said), len(read)))
    return at if at < len(said) - TAIL else None
