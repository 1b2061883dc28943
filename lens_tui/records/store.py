"""The one SQLite file of people's work: opening it, its tables' versions, safe writing.

Each family of tables (runs, labels, ...) is defined in a file of its own and brings
a :class:`Family` with its migrations; this module knows none of them. The
file is in WAL mode, so an app, a script and a notebook can use it at once.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from . import paths
from .errors import LensError
from .read_files import FileAbsent, regular_size
from .sanitise import one_line

PATIENCE = 5.0
"""Seconds to wait for another process that has the file locked, where somebody waits for the answer anyway."""
SHORT = 0.2
"""The same, where something else waits."""


@dataclass(frozen=True, slots=True)
class Family:
    """Tables that belong together. ``migrations[n]`` is SQL from version n to n + 1; never edit a shipped one."""

    name: str
    migrations: tuple[str, ...]


class Busy(LensError):
    """Another process has the file locked."""


class Store:
    """A connection to the file, usable from any thread, one at a time.

    ``path`` defaults to the user's own; ``":memory:"`` keeps nothing;
    ``patience`` is how many seconds to wait for another process that has it
    locked. A file that can only be read, on a full disk say, is open for that alone: ``read_only``.
    Raises :class:`LensError` if the file is damaged, is not a database, or
    was written by a newer version, and :class:`Busy` if the other had no end.
    """

    def __init__(self, path: Path | str | None = None, patience: float = PATIENCE) -> None:
        self.path = str(path or paths.database_file())
        self._lock = threading.RLock()
        if self.path != ":memory:":
            _prepare(Path(self.path))
        self.read_only = False
        self._empty: set[str] = set()
        fresh = not Path(self.path).exists()
        try:
            if not fresh and not os.access(self.path, os.W_OK) and self._connect_to_read(patience):
                return
            self._connect(self.path, patience)
        except Busy:
            raise
        except LensError:
            if fresh:
                with suppress(OSError):
                    if not Path(self.path).stat().st_size:  # on a full disk
                        Path(self.path).unlink()
            if fresh or not self._connect_to_read(patience):
                raise

    def _connect(self, where: str, patience: float) -> None:
        with self._explained():
            connection = sqlite3.connect(
                where, timeout=patience, isolation_level=None, check_same_thread=False, uri=self.read_only
            )
        connection.row_factory = sqlite3.Row
        connection.text_factory = _text
        self._connection = connection
        # Python 3.13 and later warn of a connection that is dropped open.
        weakref.finalize(self, connection.close).atexit = False
        try:
            with self._explained():
                if self.read_only:
                    connection.execute("SELECT name FROM family")
                    connection.execute("PRAGMA temp_store=MEMORY")
                    return
                # NORMAL: a killed process loses nothing; a power cut may lose the last writes, never the file.
                for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "trusted_schema=OFF"):
                    connection.execute(f"PRAGMA {pragma}")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS family (name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"
                )
        except LensError:
            connection.close()
            raise

    def _connect_to_read(self, patience: float) -> bool:
        """Open a file that could not be opened for writing; whether that is done.

        The second way is for one beside which SQLite can lay nothing: what another process is writing is not seen.
        """
        self.read_only = True
        for how in ("mode=ro", "immutable=1"):
            with suppress(LensError):
                self._connect(f"{Path(self.path).absolute().as_uri()}?{how}", patience)
                return True
        self.read_only = False
        return False

    def wait(self, patience: float) -> None:
        """Wait ``patience`` seconds for another process from now on."""
        with self._lock, self._explained():
            self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * patience)}")

    def use(self, family: Family) -> None:
        """Bring a family's tables to their newest version. Each step is one transaction.

        What a file that can only be read has no tables of is found empty.
        """
        version = self.version(family)
        if version > len(family.migrations):
            raise LensError(
                f"{self.path} was written by a newer version (its {family.name} tables are at {version}, "
                f"known are {len(family.migrations)}).",
                "Update mlx-lens-tui.",
            )
        if self.read_only and not version:
            self._use_empty(family)
            return
        for _ in range(version, len(family.migrations)):
            with self.write() as connection:
                # Another process may have migrated between our look and our lock.
                now = self.version(family)
                if now >= len(family.migrations):
                    return
                _run_script(connection, family.migrations[now])
                connection.execute("INSERT OR REPLACE INTO family VALUES (?, ?)", (family.name, now + 1))

    def _use_empty(self, family: Family) -> None:
        if family.name not in self._empty:
            self._empty.add(family.name)
            with self._lock, self._explained():
                for script in family.migrations:
                    _run_script(self._connection, _CREATED.sub(r"\g<0>temp.", script))

    def version(self, family: Family) -> int:
        """The version of a family's tables in this file; 0 if it has none."""
        row = self.one("SELECT version FROM family WHERE name = ?", (family.name,))
        version = row["version"] if row else 0
        if type(version) is not int or version < 0:
            raise self._damaged(f"the version of its {family.name} tables is {one_line(repr(version), 40)}")
        return version

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is kept, or none if an exception leaves the block."""
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def all(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Every row of a query."""
        with self._lock, self._explained():
            return self._connection.execute(sql, values).fetchall()

    def one(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a query, or ``None``."""
        with self._lock, self._explained():
            row: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
            return row

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around making records of rows: rows that this program cannot have written are a :class:`LensError`."""
        try:
            yield
        except LensError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise self._damaged(f"it holds {type(error).__name__} in place of a record") from error

    def close(self) -> None:
        """Close the connection. The store cannot be used after."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a defect of ours
        except UnicodeDecodeError as error:  # the module's own, where SQLite quotes a schema of other bytes
            raise self._damaged("it contains text that is not UTF-8") from error
        except sqlite3.Error as error:
            said = one_line(str(error), 120)
            if "locked" in said:
                raise Busy(f"{self.path} is in use by another process.", "Try again.") from error
            if any(word in said for word in ("unable to open", "readonly", "disk", "full")):
                raise LensError(f"{self.path} cannot be written: {said}.", "Check permissions and space.") from error
            raise self._damaged(said) from error

    def _damaged(self, said: str) -> LensError:
        hint = "Move the file away to start a new one; `sqlite3 FILE .recover` may save what is in it."
        return LensError(f"{self.path} is damaged or not a database: {said}.", hint)


_CREATED = re.compile(r"\bCREATE\s+(?:UNIQUE\s+|VIRTUAL\s+)?(?:TABLE|INDEX|TRIGGER)\s+(?:IF\s+NOT\s+EXISTS\s+)?")


def _prepare(path: Path) -> None:
    """The folder of a new file; a file that is there must be one: SQLite would wait for a pipe forever."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LensError(f"{path} cannot be written: {reason}.", "Check permissions and space.") from error
    with suppress(FileAbsent):
        regular_size(path)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def storable(text: str) -> str:
    """A text as SQLite takes it: in UTF-8, which a lone surrogate (from a JSON escape, say) is not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def fts_query(words: str) -> str:
    """What someone typed as an FTS5 query: every word must occur, the last may be the beginning of one.

    Quotes and operators lose their meaning, so nothing typed is a syntax error.
    Empty if there is nothing to look for.
    """
    words = storable(words.replace("\0", " "))
    quoted = ['"' + word.replace('"', '""') + '"' for word in words.split() if any(map(str.isalnum, word))]
    return " ".join(quoted) + "*" if quoted else ""


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    # executescript() would commit the transaction we are in.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    if statement.strip():
        connection.execute(statement)
