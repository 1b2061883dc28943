"""The history of runs: each prompt, its arms and settings, and every token that came, kept as it comes.

A run is written down when it begins and after each step, so a process that is
killed loses at most the step in flight; :meth:`RunStore.broken` finds such runs
afterwards. Texts are kept exactly as they came: sanitise them before they are shown.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from .chat import Turn
from .codec import from_json, to_json
from .disk import is_owner_alive, own_birth
from .gates import Watched
from .interventions import Arm
from .run import ArmRecord, Candidate, MadeWith, RunRecord, Sampling, State, Token
from .sanitise import finite
from .store import Family, Store, fts_query, storable

RUNS = Family(
    "runs",
    (
        """
        CREATE TABLE run (
            id INTEGER PRIMARY KEY,
            created REAL NOT NULL,
            owner INTEGER NOT NULL,
            state TEXT NOT NULL,
            model TEXT NOT NULL,
            prompt TEXT NOT NULL,
            raw INTEGER NOT NULL,
            sampling TEXT NOT NULL,
            prompt_ids TEXT NOT NULL,
            note TEXT NOT NULL DEFAULT ''
        );
        CREATE TABLE run_arm (
            run INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
            arm INTEGER NOT NULL,
            record TEXT NOT NULL,
            reason TEXT NOT NULL DEFAULT '',
            dose REAL,
            text TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (run, arm)
        ) WITHOUT ROWID;
        CREATE TABLE run_token (
            run INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
            arm INTEGER NOT NULL,
            place INTEGER NOT NULL,
            token_id INTEGER NOT NULL,
            token TEXT NOT NULL,
            text TEXT NOT NULL,
            logprob REAL NOT NULL,
            kl REAL,
            top TEXT NOT NULL,
            scales TEXT NOT NULL,
            PRIMARY KEY (run, arm, place)
        ) WITHOUT ROWID;
        CREATE VIRTUAL TABLE run_text USING fts5(prompt, texts, note);
        """,
        # Until here an arm's kl was against the baseline's row, which is of the same text only up to the first token
        # that differs: what came after it did not measure the steering, and is dropped.
        """
        ALTER TABLE run_token ADD COLUMN reverse_kl REAL;
        ALTER TABLE run_token ADD COLUMN plain_logprob REAL;
        UPDATE run_token SET kl = NULL FROM (
            SELECT mine.run AS run, mine.arm AS arm, MIN(mine.place) AS place
            FROM run_token AS mine
            JOIN run_token AS base ON base.run = mine.run AND base.arm = 0 AND base.place = mine.place
            WHERE mine.arm > 0 AND mine.token_id <> base.token_id
            GROUP BY mine.run, mine.arm
        ) AS parted
        WHERE run_token.run = parted.run AND run_token.arm = parted.arm AND run_token.place > parted.place;
        """,
        "ALTER TABLE run ADD COLUMN born TEXT NOT NULL DEFAULT '';",
        "ALTER TABLE run ADD COLUMN made TEXT NOT NULL DEFAULT '{}';",
        "ALTER TABLE run ADD COLUMN turns TEXT NOT NULL DEFAULT '[]';",
        """
        ALTER TABLE run ADD COLUMN monitors TEXT NOT NULL DEFAULT '[]';
        ALTER TABLE run_arm ADD COLUMN readings TEXT NOT NULL DEFAULT '[]';
        ALTER TABLE run_token ADD COLUMN readings TEXT NOT NULL DEFAULT '[]';
        """,
        # A run is found by the names of its arms too; until here only by prompt and texts.
        """
        UPDATE run_text SET texts = texts || coalesce((
            SELECT group_concat(char(10) || json_extract(record, '$.name'), '') FROM run_arm WHERE run = run_text.rowid
        ), '');
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A line of the history: enough to choose a run by."""

    id: int
    created: float
    model: str
    prompt: str
    state: State
    arms: tuple[str, ...]


class RunStore:
    """The runs of a :class:`Store`."""

    def __init__(self, store: Store | Path | str | None = None) -> None:
        self.store = store if isinstance(store, Store) else Store(store)
        self.store.use(RUNS)

    def begin(
        self,
        model: str,
        prompt: str,
        arms: Sequence[Arm],
        sampling: Sampling,
        *,
        raw: bool = False,
        prompt_ids: Sequence[int] = (),
        made_with: MadeWith | None = None,
        turns: Sequence[Turn] = (),
        monitors: Sequence[Watched] = (),
    ) -> int:
        """Write down a run that begins; returns its id."""
        owner, settings, ids = (os.getpid(), own_birth()), _dump(sampling), _dump(list(prompt_ids))
        named = ("running", storable(model), storable(prompt), raw)
        values = (
            time.time(),
            *owner,
            *named,
            settings,
            ids,
            _dump(made_with or MadeWith()),
            _dump(list(turns)),
            _dump(list(monitors)),
        )
        with self.store.write() as connection:
            cursor = connection.execute(
                "INSERT INTO run (created, owner, born, state, model, prompt, raw, sampling, prompt_ids, made, turns, "
                "monitors) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            run = int(cursor.lastrowid or 0)
            connection.executemany(
                "INSERT INTO run_arm (run, arm, record) VALUES (?, ?, ?)",
                [(run, index, _dump(arm)) for index, arm in enumerate(arms)],
            )
        return run

    def add(self, run: int, tokens: Iterable[Token]) -> None:
        """Add tokens to a run, in one transaction."""
        rows = [
            (
                *(run, t.arm, t.index, t.token_id, storable(t.token), storable(t.text), t.logprob, t.kl),
                _dump(t.top),
                _dump(t.scales),
                t.reverse_kl,
                t.plain_logprob,
                _readings(t.readings),
            )
            for t in tokens
        ]
        with self.store.write() as connection:
            connection.executemany("INSERT INTO run_token VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def end_arm(
        self, run: int, arm: int, reason: str, dose: float | None = None, readings: Sequence[float] = ()
    ) -> None:
        """Say how an arm ended, and what the run's monitors read at its last token."""
        with self.store.write() as connection:
            connection.execute(
                "UPDATE run_arm SET reason = ?, dose = ?, readings = ? WHERE run = ? AND arm = ?",
                (reason, dose, _readings(readings), run, arm),
            )

    def end(self, run: int, state: State = "done") -> None:
        """Close a run: its texts are joined and it can be searched."""
        with self.store.write() as connection:
            connection.execute("UPDATE run SET state = ? WHERE id = ?", (state, run))
            texts, names = [], []
            arms = connection.execute("SELECT arm, record FROM run_arm WHERE run = ? ORDER BY arm", (run,)).fetchall()
            for row in arms:
                names.append(str(json.loads(row["record"])["name"]))
                pieces = connection.execute(
                    "SELECT text FROM run_token WHERE run = ? AND arm = ? ORDER BY place", (run, row["arm"])
                )
                texts.append("".join(piece["text"] for piece in pieces))
                connection.execute(
                    "UPDATE run_arm SET text = ? WHERE run = ? AND arm = ?", (texts[-1], run, row["arm"])
                )
            connection.execute("DELETE FROM run_text WHERE rowid = ?", (run,))
            connection.execute(
                "INSERT INTO run_text (rowid, prompt, texts, note) SELECT id, prompt, ?, note FROM run WHERE id = ?",
                ("\n".join([*texts, *names]), run),
            )

    def keep(self, run: RunRecord) -> int:
        """Write down a run that is over; returns its id."""
        arms = [kept.arm for kept in run.arms]
        facts: dict[str, Any] = {"raw": run.raw, "prompt_ids": run.prompt_ids, "turns": run.turns}
        facts |= {"made_with": run.made_with, "monitors": run.monitors}
        number = self.begin(run.model, run.prompt, arms, run.sampling, **facts)
        for place, kept in enumerate(run.arms):
            self.add(number, kept.tokens)
            self.end_arm(number, place, kept.reason, kept.dose, kept.readings)
        self.end(number, run.state)
        return number

    def broken(self) -> list[int]:
        """Runs whose process died under them, newest first. They are closed as ``killed`` and keep what came.

        In a file that can only be read they stay as they are.
        """
        rows = self.store.all("SELECT id, owner, born FROM run WHERE state = 'running' ORDER BY id DESC")
        with self.store.reading():
            dead = [int(row["id"]) for row in rows if not is_owner_alive(int(row["owner"]), str(row["born"]))]
        for run in () if self.store.read_only else dead:
            self.end(run, "killed")
        return dead

    def get(self, run: int) -> RunRecord | None:
        """A run with every token, or ``None``."""
        row = self.store.one("SELECT * FROM run WHERE id = ?", (run,))
        if row is None:
            return None
        arms = self.store.all("SELECT * FROM run_arm WHERE run = ? ORDER BY arm", (run,))
        with self.store.reading():
            return RunRecord(
                model=str(row["model"]),
                prompt=str(row["prompt"]),
                arms=tuple(self._arm(run, arm) for arm in arms),
                sampling=from_json(Sampling, json.loads(row["sampling"])),
                raw=bool(row["raw"]),
                prompt_ids=tuple(int(token) for token in json.loads(row["prompt_ids"])),
                created=float(row["created"]),
                state=row["state"],
                id=run,
                made_with=from_json(MadeWith, json.loads(row["made"])),
                turns=tuple(from_json(Turn, turn) for turn in json.loads(row["turns"])),
                monitors=tuple(from_json(Watched, item) for item in json.loads(row["monitors"])),
            )

    def list(self, words: str = "", limit: int = 100) -> list[RunSummary]:
        """The newest runs, or those whose prompt, texts and names of arms hold all the words."""
        query = fts_query(words)
        found = "WHERE id IN (SELECT rowid FROM run_text WHERE run_text MATCH ?)" if query else ""
        rows = self.store.all(
            f"SELECT * FROM run {found} ORDER BY id DESC LIMIT ?", (query, limit) if query else (limit,)
        )
        return [self._summary(row) for row in rows]

    def _summary(self, row: Any) -> RunSummary:
        arms = self.store.all("SELECT record FROM run_arm WHERE run = ? ORDER BY arm", (row["id"],))
        with self.store.reading():
            names = tuple(str(json.loads(arm["record"])["name"]) for arm in arms)
            model, prompt = str(row["model"]), str(row["prompt"])
            return RunSummary(int(row["id"]), float(row["created"]), model, prompt, row["state"], names)

    def _arm(self, run: int, row: Any) -> ArmRecord:
        tokens = tuple(
            _token(item)
            for item in self.store.all(
                "SELECT * FROM run_token WHERE run = ? AND arm = ? ORDER BY place", (run, row["arm"])
            )
        )
        text = row["text"] or "".join(token.text for token in tokens)
        arm, read = from_json(Arm, json.loads(row["record"])), _numbers(row["readings"])
        return ArmRecord(arm, tokens, text, row["reason"], row["dose"], read)


def _token(row: Any) -> Token:
    top = tuple(Candidate(int(token), str(text), float(logprob)) for token, text, logprob in json.loads(row["top"]))
    scales = tuple((str(name), float(scale)) for name, scale in json.loads(row["scales"]))
    return Token(
        int(row["place"]),
        int(row["token_id"]),
        str(row["token"]),
        str(row["text"]),
        float(row["logprob"]),
        arm=int(row["arm"]),
        kl=None if row["kl"] is None else float(row["kl"]),
        top=top,
        scales=scales,
        reverse_kl=row["reverse_kl"],
        plain_logprob=row["plain_logprob"],
        readings=_numbers(row["readings"]),
    )


def _readings(values: Sequence[float]) -> str:
    """Readings as JSON, ``null`` where one is not finite."""
    return json.dumps(finite(list(values)))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(nan if value is None else float(value) for value in json.loads(text))


def _dump(value: Any) -> str:
    return storable(json.dumps(to_json(value), ensure_ascii=False, separators=(",", ":")))
