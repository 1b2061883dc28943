"""Lists of features that a person keeps by name, for one SAE each. A deleted or replaced list can come back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from sqlite3 import Connection, Row

from .errors import LensError
from .labels import MAX_FEATURE
from .sanitise import one_line
from .store import Family, Store, storable

MAX_NAME = 80
MAX_FEATURES = 100_000

FEATURE_LISTS = Family(
    "feature lists",
    (
        """
        CREATE TABLE feature_list (
            id INTEGER PRIMARY KEY, sae TEXT NOT NULL, name TEXT NOT NULL, created TEXT NOT NULL, ended TEXT);
        CREATE UNIQUE INDEX feature_list_name ON feature_list (sae, name) WHERE ended IS NULL;
        CREATE TABLE feature_list_item (
            list INTEGER NOT NULL REFERENCES feature_list (id), place INTEGER NOT NULL, feature INTEGER NOT NULL,
            PRIMARY KEY (list, place)) WITHOUT ROWID;
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class FeatureList:
    """A kept list: its SAE's id, its name (safe to show), its features in order. Times are UTC, ISO 8601.

    ``ended`` is when it was deleted or another took its name; empty while it is kept.
    """

    id: int
    sae: str
    name: str
    features: tuple[int, ...]
    created: str
    ended: str = ""


class FeatureLists:
    """The lists in a store. ``sae`` is always the SAE's id (``SAEInfo.id``)."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.use(FEATURE_LISTS)

    def keep(self, sae: str, name: str, features: Sequence[int]) -> FeatureList:
        """Keep features under a name; a list that had the name before ends and can be restored.

        Each feature is kept once, at its first place. Raises :class:`LensError` for a blank name or one of more than
        80 characters, for no features or more than 100,000, and for a number that is no feature's.
        """
        name, kept = _name(name), tuple(dict.fromkeys(int(feature) for feature in features))
        if not 0 < len(kept) <= MAX_FEATURES:
            raise LensError(f"The list {name!r} has {len(kept)} features.", f"A list has 1 to {MAX_FEATURES}.")
        if wrong := [feature for feature in kept if not 0 <= feature <= MAX_FEATURE]:
            raise LensError(f"There is no feature {wrong[0]}.", f"Feature numbers lie in 0..{MAX_FEATURE}.")
        with self.store.write() as connection:
            _end(connection, sae, name)
            row = (sae, name, _now())
            number = connection.execute("INSERT INTO feature_list (sae, name, created) VALUES (?, ?, ?)", row).lastrowid
            items = [(number, place, feature) for place, feature in enumerate(kept)]
            connection.executemany("INSERT INTO feature_list_item VALUES (?, ?, ?)", items)
        return self.get(sae, name)

    def all(self, sae: str | None = None) -> tuple[FeatureList, ...]:
        """The lists of an SAE, or of all, the newest first."""
        where = "SELECT * FROM feature_list WHERE ended IS NULL AND (? IS NULL OR sae = ?) ORDER BY id DESC"
        return self._lists(self.store.all(where, (sae, sae)))

    def get(self, sae: str, name: str) -> FeatureList:
        """The list of that name. Raises :class:`LensError` if there is none."""
        where = "SELECT * FROM feature_list WHERE sae = ? AND name = ? AND ended IS NULL"
        found = self._lists(self.store.all(where, (sae, _name(name))))
        if not found:
            names = ", ".join(repr(item.name) for item in self.all(sae)[:20]) or "none"
            raise LensError(f"No list of this SAE is called {one_line(name, 80)!r}.", f"There are: {names}.")
        return found[0]

    def delete(self, sae: str, name: str) -> FeatureList:
        """Delete a list; :meth:`restore` brings it back. Raises :class:`LensError` if there is none of that name."""
        gone = self.get(sae, name)
        with self.store.write() as connection:
            _end(connection, sae, gone.name)
        return gone

    def restore(self, sae: str, name: str) -> FeatureList:
        """Bring the newest deleted or replaced list of a name back; one that has the name now ends in its turn.

        Raises :class:`LensError` if none of that name was deleted.
        """
        with self.store.write() as connection:
            ended = connection.execute(
                "SELECT id FROM feature_list WHERE sae = ? AND name = ? AND ended IS NOT NULL "
                "ORDER BY ended DESC, id DESC",
                (sae, _name(name)),
            ).fetchone()
            if ended is None:
                raise LensError(f"No list called {one_line(name, 80)!r} was deleted.", "See the lists that are kept.")
            _end(connection, sae, _name(name))
            connection.execute("UPDATE feature_list SET ended = NULL WHERE id = ?", (ended["id"],))
        return self.get(sae, name)

    def _lists(self, rows: Iterable[Row]) -> tuple[FeatureList, ...]:
        with self.store.reading():
            return tuple(self._list(row) for row in rows)

    def _list(self, row: Row) -> FeatureList:
        items = self.store.all("SELECT feature FROM feature_list_item WHERE list = ? ORDER BY place", (row["id"],))
        features = tuple(int(item["feature"]) for item in items)
        texts = (str(row["created"]), str(row["ended"] or ""))
        return FeatureList(int(row["id"]), str(row["sae"]), one_line(str(row["name"]), MAX_NAME), features, *texts)


def _end(connection: Connection, sae: str, name: str) -> None:
    where = "WHERE sae = ? AND name = ? AND ended IS NULL"
    connection.execute(f"UPDATE feature_list SET ended = ? {where}", (_now(), sae, name))


def _name(name: str) -> str:
    """A name as it is kept: in one line and safe to show, so that what is shown finds it again."""
    clean = one_line(storable(name), MAX_NAME + 1).strip()
    if not clean:
        raise LensError("A list needs a name.", "Give it a word.")
    if len(clean) > MAX_NAME:
        raise LensError(f"The name has more than {MAX_NAME} characters.", "Give it a shorter one.")
    return clean


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
