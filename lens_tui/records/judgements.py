"""Blind judgements of runs: which arm was preferred by someone who did not know which was which, and their tally."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import LensError
from .interventions import Arm, acting_words
from .run import RunRecord
from .run_store import RunStore
from .store import Family

JUDGEMENTS = Family(
    "judgements",
    (
        """
        CREATE TABLE judgement (
            id INTEGER PRIMARY KEY,
            run INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
            created REAL NOT NULL,
            shown TEXT NOT NULL,
            chosen INTEGER
        );
        CREATE INDEX judgement_of_run ON judgement (run);
        """,
    ),
)

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One choice among the arms of a run.

    ``shown`` are the arms, by their number in the run, in the order in which they stood; ``chosen`` is the number of
    the one preferred, ``None`` for a tie. ``created`` is seconds since 1970 (UTC).
    """

    run: int
    shown: tuple[int, ...]
    chosen: int | None
    created: float = 0.0
    id: int = 0


class JudgementStore:
    """The judgements beside the runs of a store."""

    def __init__(self, runs: RunStore) -> None:
        self.store = runs.store
        self.store.use(JUDGEMENTS)

    def add(self, run: int, shown: Sequence[int], chosen: int | None) -> int:
        """Keep a judgement; returns its id. Raises :class:`LensError` for an arm that was not shown."""
        if chosen is not None and chosen not in shown:
            raise LensError(f"Arm {chosen} was not among those shown.", "Choose one that was, or a tie.")
        with self.store.write() as connection:
            cursor = connection.execute(
                "INSERT INTO judgement (run, created, shown, chosen) VALUES (?, ?, ?, ?)",
                (run, time.time(), json.dumps(list(shown)), chosen),
            )
            return int(cursor.lastrowid or 0)

    def remove(self, judgement: int) -> None:
        """Take a judgement back."""
        with self.store.write() as connection:
            connection.execute("DELETE FROM judgement WHERE id = ?", (judgement,))

    def judged(self) -> frozenset[int]:
        """The runs of which there is a judgement."""
        return frozenset(int(row["run"]) for row in self.store.all("SELECT DISTINCT run FROM judgement"))

    def list(self, run: int | None = None) -> list[Judgement]:
        """Those of a run, or all, oldest first."""
        where, values = ("WHERE run = ?", (run,)) if run is not None else ("", ())
        rows = self.store.all(f"SELECT * FROM judgement {where} ORDER BY id", values)
        with self.store.reading():
            return [
                Judgement(
                    int(row["run"]),
                    tuple(int(arm) for arm in json.loads(row["shown"])),
                    None if row["chosen"] is None else int(row["chosen"]),
                    float(row["created"]),
                    int(row["id"]),
                )
                for row in rows
            ]


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share, 95 % by default; ``(0, 1)`` of no trials.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", J. Amer. Statist. Assoc. 22,
    209-212: the shares that a test at this level would not reject.

    Raises:
        LensError: unless ``0 <= successes <= trials``.
    """
    if not 0 <= successes <= trials:
        raise LensError(f"{successes} of {trials} is not a share.", "Count again.")
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


@dataclass(frozen=True, slots=True)
class Preferred:
    """How often an arm was preferred: ``share`` of the judgements that were no tie, with its 95 % interval (Wilson)."""

    name: str
    acts: tuple[str, ...]
    preferred: int
    share: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Contest:
    """The judgements of the same arms of the same model, over prompts and seeds.

    ``chance`` is the share of an arm nobody could tell from the others.
    """

    model: str
    arms: tuple[Preferred, ...]
    judged: int
    ties: int
    prompts: int
    seeds: int
    runs: tuple[int, ...]

    @property
    def chance(self) -> float:
        """One over the number of arms."""
        return 1 / len(self.arms)


def tally(judged: Iterable[tuple[RunRecord, Judgement]]) -> list[Contest]:
    """Judgements counted, those of the same model and the same arms together; most judgements first."""
    groups: dict[tuple[object, ...], list[tuple[RunRecord, Judgement]]] = {}
    for run, judgement in judged:
        arms = frozenset(_identity(run.arms[number].arm) for number in judgement.shown)
        groups.setdefault((run.model, arms), []).append((run, judgement))
    contests = [_contest(group) for group in groups.values()]
    return sorted(contests, key=lambda contest: -contest.judged)


def _identity(arm: Arm) -> tuple[str, tuple[str, ...]]:
    return arm.name, tuple(acting_words(item for item in arm.interventions if item.enabled))


def _contest(group: Sequence[tuple[RunRecord, Judgement]]) -> Contest:
    first, judgement = group[0]
    order = [_identity(first.arms[number].arm) for number in sorted(judgement.shown)]
    chosen = [_identity(run.arms[one.chosen].arm) for run, one in group if one.chosen is not None]
    arms = []
    for name, acts in order:
        count = chosen.count((name, acts))
        low, high = wilson(count, len(chosen))
        arms.append(Preferred(name, acts, count, count / len(chosen) if chosen else None, low, high))
    return Contest(
        first.model,
        tuple(arms),
        len(group),
        len(group) - len(chosen),
        len({run.prompt for run, _ in group}),
        len({run.sampling.seed for run, _ in group}),
        tuple(sorted({one.run for _, one in group})),
    )
