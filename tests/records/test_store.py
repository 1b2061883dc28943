"""The file keeps what was committed, in one piece, whoever else uses it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lens_tui.records import Arm, LensError, Sampling, Token
from lens_tui.records.run_store import RunStore
from lens_tui.records.store import Family, Store, fts_query

ROOT = Path(__file__).parents[2]
FIRST = Family("notes", ("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT);",))
SECOND = Family(
    "notes",
    (
        *FIRST.migrations,
        "ALTER TABLE note ADD COLUMN stars INTEGER DEFAULT 0;\nUPDATE note SET stars = 1;\n",
    ),
)


def add(store: Store, text: str) -> None:
    with store.write() as connection:
        connection.execute("INSERT INTO note (text) VALUES (?)", (text,))


def add_many(store: Store) -> None:
    for _ in range(40):
        add(store, "x")


def texts(store: Store) -> list[str]:
    return [row["text"] for row in store.all("SELECT text FROM note ORDER BY id")]


def test_migrations_run_once_each_and_keep_the_data(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lens.sqlite3"
    with Store(path) as store:
        store.use(FIRST)
        store.use(FIRST)
        add(store, "old")
    with Store(path) as store:
        store.use(SECOND)
        add(store, "new")
        assert [tuple(row) for row in store.all("SELECT text, stars FROM note")] == [("old", 1), ("new", 0)]
        assert store.version(SECOND) == 2
        with pytest.raises(LensError, match="written by a newer version"):
            store.use(FIRST)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    broken = Family("notes", (*FIRST.migrations, "ALTER TABLE note ADD COLUMN x;\nSELECT nonsense FROM nowhere;\n"))
    with Store(tmp_path / "s") as store:
        store.use(FIRST)
        with pytest.raises(LensError, match="no such table"):
            store.use(broken)
        assert store.version(broken) == 1
        assert {row["name"] for row in store.all("SELECT name FROM pragma_table_info('note')")} == {"id", "text"}


def test_a_write_is_all_or_nothing() -> None:
    store = Store(":memory:")
    store.use(FIRST)

    def fail() -> None:
        with store.write() as connection:
            connection.execute("INSERT INTO note (text) VALUES ('half')")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert texts(store) == []
    store.close()


def test_threads_and_a_second_connection(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store, Store(tmp_path / "s") as other:
        store.use(FIRST)
        other.use(FIRST)
        writers = [threading.Thread(target=add_many, args=(s,)) for s in (store, store, other)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(texts(store)) == len(texts(other)) == 120


def test_a_killed_writer_loses_only_what_it_had_not_committed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    code = (
        "import os, sys; from tests.records.test_store import FIRST, Store, add\n"
        "store = Store(sys.argv[1]); store.use(FIRST)\n"
        "for n in range(20): add(store, str(n))\n"
        "with store.write() as c:\n"
        "    c.execute(\"INSERT INTO note (text) VALUES ('in flight')\"); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], timeout=300, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == -9
    with Store(path) as store:
        assert texts(store) == [str(n) for n in range(20)]


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(LensError, match="damaged or not a database"):
        Store(path)
    assert path.read_bytes() == content


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="is a folder"):
        Store(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LensError, match="but a pipe"):
        Store(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    with pytest.raises(LensError, match="cannot be written"):
        Store(tmp_path / "file" / "below" / "s")


@pytest.mark.parametrize("version", ["'text'", "-5", "1.5", "1e300", "NULL", "x'ff'", "9223372036854775807"])
def test_versions_that_lie(tmp_path: Path, version: str) -> None:
    with Store(tmp_path / "s") as store:
        store.use(FIRST)
    connection = sqlite3.connect(tmp_path / "s")
    connection.executescript(
        f"DROP TABLE family; CREATE TABLE family (name, version); INSERT INTO family VALUES ('notes', {version});"
    )
    connection.close()
    with Store(tmp_path / "s") as store, pytest.raises(LensError):
        store.use(FIRST)


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE run_arm",
        "UPDATE run SET sampling = ?",
        "UPDATE run SET prompt_ids = ?",
        "UPDATE run SET created = ?",
        "UPDATE run SET owner = ?, state = 'running'",
        "UPDATE run SET prompt = ?",
        "UPDATE run_arm SET record = ?",
        "UPDATE run_token SET top = ?",
        "UPDATE run_token SET scales = ?",
        "UPDATE run_token SET logprob = ?",
    ],
)
def test_rows_that_nobody_wrote_are_one_sentence(tmp_path: Path, change: str) -> None:
    deep = "[" * 100_000
    for value in (deep, "[[1]]", "{}", "x", b"\xff\xfe", "\xff", 1e300, '"' + "9" * 5000):
        file = tmp_path / "s"
        runs = RunStore(file)
        run = runs.begin("m", "p", [Arm("a")], Sampling())
        runs.add(run, [Token(0, 1, "t", "t", -1.0)])
        runs.end(run)
        runs.store.close()
        connection = sqlite3.connect(file)
        connection.execute(change, (value,) if "?" in change else ())
        connection.commit()
        connection.close()
        for name, arguments in (("get", (1,)), ("list", ()), ("broken", ())):
            runs = RunStore(file)
            with contextlib.suppress(LensError):
                getattr(runs, name)(*arguments)
            runs.store.close()
        for left in tmp_path.iterdir():
            left.unlink()


@example("a\0b")
@example('a\ud800 "')
@given(st.text())
def test_nothing_typed_is_a_syntax_error(words: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(x)")
    query = fts_query(words)
    if query:
        connection.execute("SELECT * FROM t WHERE t MATCH ?", (query,)).fetchall()
    connection.close()


def test_search_wants_every_word_and_completes_the_last() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(x)")
    connection.executemany("INSERT INTO t VALUES (?)", [("dogs bark",), ("dogs sleep",), ("a 'quoted' OR word",)])

    def found(words: str) -> int:
        return len(connection.execute("SELECT * FROM t WHERE t MATCH ?", (fts_query(words),)).fetchall())

    assert found("dogs") == 2
    assert found("dogs ba") == 1
    assert found('"quoted" OR') == 1
    assert fts_query("  ** ") == ""
    connection.close()


@pytest.mark.parametrize("how", ["not writable", "full disk"])
def test_what_can_only_be_read_is_read_and_writing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = tmp_path / "lens.sqlite3"
    with Store(path) as store:
        store.use(FIRST)
        add(store, "kept")
    if how == "full disk":
        _fill(monkeypatch)
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    with Store(path) as store:
        assert store.read_only
        store.use(FIRST)
        assert texts(store) == ["kept"]
        runs = RunStore(store)  # no table of its own is there
        assert (runs.list(), runs.get(1), runs.broken()) == ([], None, [])
        with pytest.raises(LensError, match="cannot be written"):
            add(store, "more")
        with pytest.raises(LensError, match="cannot be written"):
            store.use(SECOND)
    monkeypatch.undo()
    with Store(path) as store:
        assert not store.read_only
        assert texts(store) == ["kept"]
        assert [row["name"] for row in store.all("SELECT name FROM family")] == ["notes"]


def test_a_full_disk_is_left_without_an_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(monkeypatch)
    with pytest.raises(LensError, match="cannot be written"):
        Store(tmp_path / "lens.sqlite3")
    assert list(tmp_path.iterdir()) == []


def _fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on SQLite finds no space but for what it only reads."""

    class Full(sqlite3.Connection):
        def execute(self, *_: object) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("database or disk is full")

    connect = sqlite3.connect

    def full(path: str, *, uri: bool, **options: object) -> sqlite3.Connection:
        if not uri:
            Path(path).touch()
        return connect(path, uri=uri, factory=sqlite3.Connection if uri else Full, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", full)
