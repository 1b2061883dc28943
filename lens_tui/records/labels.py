"""What people and other tools say features mean: several labels a feature, each with where it came from.

Your own label of a feature has a history; labels of other tools are kept beside
it with their provenance. Words in them are searched with SQLite's FTS5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from sqlite3 import Connection, Row

from .errors import LensError
from .sanitise import sanitise
from .store import Family, Store, fts_query, storable

MINE = "mine"
ANOTHERS = "mlx-lens-tui"
"""The source of a label that somebody gave with this program, where you have one of your own."""
MAX_TEXT = 20_000
MAX_FEATURE = 10_000_000

LABELS = Family(
    "labels",
    (
        """
        CREATE TABLE label (
            id INTEGER PRIMARY KEY, sae TEXT NOT NULL, feature INTEGER NOT NULL, text TEXT NOT NULL,
            source TEXT NOT NULL, author TEXT NOT NULL, method TEXT NOT NULL, explainer TEXT NOT NULL,
            score REAL, scorer TEXT NOT NULL, external_id TEXT NOT NULL, origin TEXT NOT NULL,
            created TEXT NOT NULL, ended TEXT);
        CREATE INDEX label_feature ON label (sae, feature, ended);
        CREATE UNIQUE INDEX label_mine ON label (sae, feature) WHERE ended IS NULL AND source = 'mine';
        CREATE UNIQUE INDEX label_import ON label (sae, feature, source, method, explainer, text)
            WHERE ended IS NULL AND source <> 'mine';
        CREATE VIRTUAL TABLE label_words USING fts5 (
            text, content = 'label', content_rowid = 'id', tokenize = 'porter unicode61 remove_diacritics 2');
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class NewLabel:
    """A label to be taken up, as its file has it.

    ``method`` and ``explainer`` say how and by which model it was made,
    ``external_id`` is its id there, ``score`` what ``scorer`` gave it (0 to 1).
    """

    feature: int
    text: str
    source: str
    author: str = ""
    method: str = ""
    explainer: str = ""
    score: float | None = None
    scorer: str = ""
    external_id: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a feature, safe to show. ``ended`` is empty while it is valid; times are UTC, ISO 8601.

    ``origin`` names the file or folder it was imported from.
    """

    id: int
    sae: str
    feature: int
    text: str
    source: str
    author: str
    method: str
    explainer: str
    score: float | None
    scorer: str
    external_id: str
    origin: str
    created: str
    ended: str

    @property
    def is_mine(self) -> bool:
        """Whether it was written here, not imported."""
        return self.source == MINE


@dataclass(frozen=True, slots=True)
class ImportResult:
    """How many labels were new, how many were there already, and of how many of those the score changed."""

    added: int
    known: int
    changed: int = 0


class Labels:
    """The labels in a store. ``sae`` is always the SAE's id (``SAEInfo.id``)."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.use(LABELS)

    def _labels(self, rows: Iterable[Row], raw: bool = False) -> tuple[Label, ...]:
        with self.store.reading():
            return tuple(_label(row, raw) for row in rows)

    def set(self, sae: str, feature: int, text: str, *, author: str = "") -> Label | None:
        """Give a feature your label; the one before it stays in the history. Blank text takes yours away.

        Raises :class:`LensError` for a negative feature and for text of more than 20,000 characters.
        """
        text = storable(text.strip())
        _check(feature, text)
        now = _now()
        with self.store.write() as connection:
            where = "sae = ? AND feature = ? AND source = 'mine' AND ended IS NULL"
            before = connection.execute(f"SELECT text FROM label WHERE {where}", (sae, feature)).fetchone()
            if before is None or before["text"] != text:
                _forget_words(connection, where, (sae, feature))
                connection.execute(f"UPDATE label SET ended = ? WHERE {where}", (now, sae, feature))
                if text:
                    _insert(connection, _values(sae, NewLabel(feature, text, MINE, author), "", now))
        return next((label for label in self.of(sae, feature) if label.is_mine), None)

    def of(self, sae: str, feature: int) -> tuple[Label, ...]:
        """The valid labels of a feature: yours first, then by score, then the oldest."""
        rows = self.store.all(
            "SELECT * FROM label WHERE sae = ? AND feature = ? AND ended IS NULL" + _BEST_FIRST, (sae, feature)
        )
        return self._labels(rows)

    def history(self, sae: str, feature: int, *, raw: bool = False) -> tuple[Label, ...]:
        """Every label you ever gave a feature, the newest first; ``raw``: as stored, not as it is safe to show."""
        rows = self.store.all(
            "SELECT * FROM label WHERE sae = ? AND feature = ? AND source = 'mine' ORDER BY id DESC", (sae, feature)
        )
        return self._labels(rows, raw)

    def best(self, sae: str, features: Sequence[int]) -> dict[int, Label]:
        """The first label of each of many features, as :meth:`of` orders them; features without one are left out."""
        found: dict[int, Label] = {}
        wanted = iter(int(feature) for feature in features)
        while some := list(islice(wanted, 500)):
            marks = ",".join("?" * len(some))
            rows = self.store.all(
                f"SELECT * FROM label WHERE sae = ? AND feature IN ({marks}) AND ended IS NULL{_BEST_FIRST}",
                (sae, *some),
            )
            for label in self._labels(rows):
                found.setdefault(label.feature, label)
        return found

    def search(self, words: str, *, sae: str | None = None, k: int = 20, raw: bool = False) -> tuple[Label, ...]:
        """Standing labels that hold all the words (the last may be unfinished), best match (bm25) first.

        ``raw``: as stored, not as it is safe to show.
        """
        query = fts_query(words)
        if not query or k < 1:
            return ()
        rows = self.store.all(
            "SELECT label.* FROM label_words JOIN label ON label.id = label_words.rowid "
            "WHERE label_words MATCH ? AND (? IS NULL OR label.sae = ?) ORDER BY bm25(label_words), label.id LIMIT ?",
            (query, sae, sae, k),
        )
        return self._labels(rows, raw)

    def take(self, sae: str, labels: Iterable[NewLabel], *, origin: str) -> ImportResult:
        """Import labels, all of them or (if one is bad) none; those known already are counted, their score renewed.

        A label that is its exporter's own (``source`` :data:`MINE`) becomes yours where you have none; where you
        have, yours stays and it is kept beside it as someone else's.
        """
        added = seen = changed = 0
        now = _now()
        with self.store.write() as connection:
            for label in labels:
                _check(label.feature, label.text)
                seen += 1
                if label.source == MINE:
                    mine = connection.execute(_MY_TEXT, (sae, label.feature)).fetchone()
                    if mine is not None and mine["text"] == storable(label.text):
                        continue
                    label = replace(label, source=MINE if mine is None else ANOTHERS)
                if _insert(connection, _values(sae, label, origin, now)):
                    added += 1
                elif label.score is not None:
                    names = [storable(text) for text in (label.source, label.method, label.explainer, label.text)]
                    score = (label.score, storable(label.scorer))
                    changed += connection.execute(_RESCORE, (*score, sae, label.feature, *names, *score)).rowcount
        return ImportResult(added, seen - added, changed)

    def standing(self, sae: str, *, source: str | None = None, raw: bool = False) -> Iterator[Label]:
        """All valid labels of an SAE, feature by feature, the best of each feature first.

        ``raw`` gives their texts as they were given, for files: not to be shown.
        """
        last = -1
        while True:
            rows = self.store.all(
                "SELECT * FROM label WHERE sae = ? AND ended IS NULL AND (? IS NULL OR source = ?) "
                "AND feature IN (SELECT DISTINCT feature FROM label WHERE sae = ? AND ended IS NULL "
                "AND feature > ? ORDER BY feature LIMIT 500)" + _BEST_FIRST.replace("BY", "BY feature,"),
                (sae, source, source, sae, last),
            )
            yield from self._labels(rows, raw)
            following = self.store.one(
                "SELECT max(feature) AS last FROM (SELECT DISTINCT feature FROM label WHERE sae = ? "
                "AND ended IS NULL AND feature > ? ORDER BY feature LIMIT 500)",
                (sae, last),
            )
            if following is None or following["last"] is None:
                return
            last = int(following["last"])

    def count(self, sae: str) -> dict[str, int]:
        """How many valid labels an SAE has, by source."""
        rows = self.store.all(
            "SELECT source, count(*) AS n FROM label WHERE sae = ? AND ended IS NULL GROUP BY source ORDER BY source",
            (sae,),
        )
        return {sanitise(row["source"]): int(row["n"]) for row in rows}

    def remove(self, sae: str, source: str) -> int:
        """Take away every imported label of a source; returns how many. Yours are never removed in bulk."""
        if source == MINE:
            raise LensError("Your own labels are not removed in bulk.", "Set a feature's label to nothing instead.")
        with self.store.write() as connection:
            _forget_words(connection, "sae = ? AND source = ? AND ended IS NULL", (sae, source))
            return connection.execute("DELETE FROM label WHERE sae = ? AND source = ?", (sae, source)).rowcount


_COLUMNS = "sae, feature, text, source, author, method, explainer, score, scorer, external_id, origin, created"
_MARKS = ", ".join("?" * (_COLUMNS.count(",") + 1))
_RESCORE = (
    "UPDATE label SET score = ?, scorer = ? WHERE sae = ? AND feature = ? AND source = ? AND method = ? "
    "AND explainer = ? AND text = ? AND ended IS NULL AND (score IS NOT ? OR scorer IS NOT ?)"
)
_MY_TEXT = "SELECT text FROM label WHERE sae = ? AND feature = ? AND source = 'mine' AND ended IS NULL"
_BEST_FIRST = " ORDER BY source = 'mine' DESC, score IS NULL, score DESC, id"


def _insert(connection: Connection, values: tuple[object, ...]) -> bool:
    """Add a label and its words, unless it is known. Triggers could not: they may not touch FTS5 in our stores."""
    done = connection.execute(f"INSERT INTO label ({_COLUMNS}) VALUES ({_MARKS}) ON CONFLICT DO NOTHING", values)
    if done.rowcount == 1:
        connection.execute("INSERT INTO label_words (rowid, text) VALUES (?, ?)", (done.lastrowid, values[2]))
    return done.rowcount == 1


def _forget_words(connection: Connection, where: str, values: tuple[object, ...]) -> None:
    """Take standing labels out of the search, before they end or go."""
    connection.execute(
        f"INSERT INTO label_words (label_words, rowid, text) SELECT 'delete', id, text FROM label WHERE {where}",
        values,
    )


def _values(sae: str, label: NewLabel, origin: str, now: str) -> tuple[object, ...]:
    texts = (label.text, label.source, label.author, label.method, label.explainer)
    safe = [storable(text) for text in texts]
    last = (storable(label.scorer), storable(label.external_id), storable(origin), now)
    return (storable(sae), label.feature, *safe, label.score, *last)


def _label(row: Row, raw: bool = False) -> Label:
    texts = {name: str(row[name] or "") for name in row.keys() if name not in ("id", "feature", "score")}  # noqa: SIM118
    texts = texts if raw else {name: sanitise(text) for name, text in texts.items()}
    score = None if row["score"] is None else float(row["score"])
    return Label(id=int(row["id"]), feature=int(row["feature"]), score=score, **texts)


def _check(feature: int, text: str) -> None:
    if not 0 <= feature <= MAX_FEATURE:
        raise LensError(f"There is no feature {feature}.", f"Feature numbers lie in 0..{MAX_FEATURE}.")
    if len(text) > MAX_TEXT:
        raise LensError(f"The label of feature {feature} has {len(text)} characters.", f"At most {MAX_TEXT} are kept.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
