"""Runs of the history on disk, as the screens know runs; and one list of these and of this session's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens_tui.records import ALL, Intervention, Token
from lens_tui.records.modes import told
from lens_tui.records.sanitise import one_line, sanitise_token
from lens_tui.tui.run_text import ArmText, RunText
from lens_tui.tui.session import Steer
from lens_tui.tui.widgets.lane import strength
from lens_tui.worker.events import Candidate, TokenEvent

if TYPE_CHECKING:
    from lens_tui.records.runs import ArmRecord, RunRecord, RunSummary

Interventions = tuple[Intervention, ...]
MOST = 200
"""How many runs of the disk are listed; a filter finds older ones."""


@dataclass(frozen=True, slots=True, eq=False)
class PastRun:
    """A line of the history. ``run`` is there for runs of this session, ``kept`` is the number on disk (0: none).

    ``created`` is seconds since 1970, ``None`` for this session's. Strings are safe to show.
    """

    prompt: str
    arms: str
    facts: str
    kept: int = 0
    created: float | None = None
    run: RunText | None = None


def of_session(runs: Sequence[RunText], words: str = "") -> list[PastRun]:
    """This session's runs, newest first; with ``words``, those whose prompt, arms or texts hold them all."""
    wanted = words.lower().split()
    return [_of_session(run) for run in reversed(runs) if all(word in _searched(run) for word in wanted)]


def _searched(run: RunText) -> str:
    parts = [run.prompt, *(part for arm in run.arms for part in (arm.arm.name, arm.text))]
    return "\n".join(parts).lower()


def _of_session(run: RunText) -> PastRun:
    arms = ", ".join(f"{arm.arm.name} {strength(arm.interventions)}" for arm in run.arms[1:]) or "baseline alone"
    most = max((len(arm.tokens) for arm in run.arms), default=0)
    facts = f"{most} tokens · seed {run.sampling.seed} · {run.state}"
    return PastRun(one_line(run.prompt), arms, facts, run.kept, None, run)


def from_disk(database: Path, words: str = "", without: Sequence[int] = ()) -> list[PastRun]:
    """The newest runs on disk but those of ``without``, or those that hold the words. Reads the disk: not for the UI.

    Runs whose process died under them are marked as killed. Raises ``LensError`` if the history cannot be read.
    """
    from lens_tui.records.runs import RunStore

    if not database.exists():
        return []
    store = RunStore(database)
    store.broken()
    return [_of_disk(row) for row in store.list(words, MOST) if row.id not in without]


def _of_disk(row: RunSummary) -> PastRun:
    arms = ", ".join(one_line(name, 60) for name in row.arms[1:]) or "baseline alone"
    ended = {"killed": "killed: what came is kept", "running": "running elsewhere"}.get(row.state, row.state)
    return PastRun(one_line(row.prompt), arms, f"{one_line(row.model, 60)} · {ended}", row.id, row.created)


def load(database: Path, number: int) -> RunText | None:
    """A run of the disk with every token, ``None`` if it is gone. Raises ``LensError`` if it cannot be read."""
    from lens_tui.records.runs import RunStore

    record = RunStore(database).get(number)
    return None if record is None else run_text(record)


def run_text(record: RunRecord) -> RunText:
    """A kept run as a run of the screens: names made safe, texts as they were, the bench as far as it can hold it.

    The bench holds steering vectors that are added; what else was done to an arm shows in the arm alone.
    """
    arms = tuple(_arm(number, kept) for number, kept in enumerate(record.arms))
    for arm in arms:
        arm.compare_with(arms[0])
    model = one_line(record.model)
    made = RunText(0, record.prompt, record.sampling, arms, _steers(record), model, model, record.raw)
    made.state = _STATES.get(record.state, "stopped")
    made.prompt_ids, made.kept = record.prompt_ids, record.id
    return made


_STATES: dict[str, Literal["done", "stopped", "failed"]] = {"done": "done", "failed": "failed"}


def _arm(number: int, kept: ArmRecord) -> ArmText:
    arm = replace(kept.arm, name=one_line(kept.arm.name, 80))
    text = ArmText(number, arm, dials=_dials(arm.interventions, kept.tokens), reason=kept.reason, dose=kept.dose)
    for token in kept.tokens:
        text.add(_event(token))
    return text


def _event(token: Token) -> TokenEvent:
    top = tuple(Candidate(item.token_id, sanitise_token(item.text), item.logprob) for item in token.top)
    shown, text = sanitise_token(token.token), token.text
    head = (0, token.arm, token.index, token.token_id, shown, text, token.logprob, token.kl)
    return TokenEvent(*head, top, token.scales, token.reverse_kl, token.plain_logprob)


def _dials(interventions: Interventions, tokens: Sequence[Token]) -> list[tuple[int, Interventions]]:
    """The changes of scale while an arm wrote, from what each token was computed under."""
    dials: list[tuple[int, Interventions]] = []
    now = interventions
    for token in tokens:
        scales = dict(token.scales)
        new = tuple(_at(item, scales[item.id]) if item.id in scales else item for item in now)
        if _scales(new) != _scales(now):
            dials.append((token.index, new))
        now = new
    return dials


def _at(item: Intervention, amount: float) -> Intervention:
    changes: dict[str, Any] = {name: amount for name in ("scale", "value") if hasattr(item, name)}
    return replace(item, **changes)


def _scales(interventions: Interventions) -> list[float]:
    return [getattr(item, "scale", getattr(item, "value", 0.0)) for item in interventions]


def _steers(record: RunRecord) -> tuple[Steer, ...]:
    acting = [
        (number, item, vector, mode)
        for number, kept in enumerate(record.arms)
        for item in kept.arm.interventions
        if number and (mode := told(item)) is not None and (vector := getattr(item, "vector", None)) is not None
    ]
    return tuple(
        Steer(
            f"k{record.id}-{place}",
            replace(vector, name=one_line(vector.name, 60)),
            item.layer,
            amount,
            item.enabled,
            number,
            mode=mode,
            positions=None if item.positions == ALL else item.positions,
        )
        for place, (number, item, vector, (mode, amount)) in enumerate(acting)
    )
