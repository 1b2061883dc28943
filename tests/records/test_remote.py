"""Texts and folders at addresses of fsspec, tried with its file systems in memory and on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lens_tui.records import LensError, paths
from lens_tui.records.corpus import open_corpus
from lens_tui.records.remote import OutFolder, is_remote, local_text, plain_path, without_password, written_to

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    yield tmp_path / "home"
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def put(address: str, text: str) -> None:
    with fsspec.open(address, "w", encoding="utf-8") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("s3://bucket/texts", True),
        ("memory://texts/a.txt", True),
        ("simplecache::s3://bucket/a.txt", True),
        ("local:///tmp/a.txt", True),
        ("file:///tmp/a.txt", False),
        ("/tmp/a.txt", False),
        ("texts/a:b.txt", False),
        ("a.txt", False),
        (Path("s3:/bucket"), False),
    ],
)
def test_what_is_an_address(path: str | Path, remote: bool) -> None:
    assert is_remote(path) == remote


def test_a_plain_path_needs_no_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("One.")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert local_text(tmp_path / "a.txt") == tmp_path / "a.txt"
    assert local_text(f"file://{tmp_path}/a.txt") == tmp_path / "a.txt"
    assert plain_path("file:///x y") == Path("/x y")
    folder = OutFolder(str(tmp_path))
    folder.fetch()
    folder.keep(drop=True)
    folder.remove("a.txt")
    assert (folder.remote, folder.local, folder.has("a.txt")) == (False, tmp_path, True)
    with pytest.raises(LensError, match="needs the package fsspec"):
        local_text("memory://a.txt")


@pytest.mark.parametrize("at", ["memory://corpus", "local://{tmp}/corpus"])
def test_a_corpus_is_the_same_wherever_it_lies(at: str, tmp_path: Path) -> None:
    files = {"a.txt": "One.\n<|endoftext|>\nTwo.", "deep/b.jsonl": '{"text": "Three."}\n', ".no.txt": "Hidden."}
    for name, text in files.items():
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_text(text)
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        put(f"{at.format(tmp=tmp_path)}/{name}", text)
    put(f"{at.format(tmp=tmp_path)}/picture.png", "no text")
    here, there = open_corpus(tmp_path / "plain"), open_corpus(at.format(tmp=tmp_path))
    assert [item.text for item in there] == ["One.", "Two.", "Three."]
    assert (here.sha256, here.names) == (there.sha256, there.names)
    one = open_corpus(f"{at.format(tmp=tmp_path)}/deep/b.jsonl")
    assert (one.names, one.sha256) == (("b.jsonl",), open_corpus(tmp_path / "plain" / "deep" / "b.jsonl").sha256)


def test_only_what_changed_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    put("memory://texts/a.txt", "One.")
    put("memory://texts/b.txt", "Two.")
    assert len(open_corpus("memory://texts")) == 2
    system, fetched = fsspec.filesystem("memory"), []
    usual = type(system).get_file

    def get_file(self: Any, there: str, here: str, **rest: Any) -> None:
        fetched.append(there)
        usual(self, there, here, **rest)

    monkeypatch.setattr(type(system), "get_file", get_file)
    open_corpus("memory://texts")
    assert fetched == []
    put("memory://texts/b.txt", "Two again.")
    assert [item.text for item in open_corpus("memory://texts")] == ["One.", "Two again."]
    assert fetched == ["/texts/b.txt"]
    system.rm("/texts/a.txt")
    assert [item.text for item in open_corpus("memory://texts")] == ["Two again."]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("memory://nothing", r"no .txt or .jsonl file at memory://nothing\."),
        ("nosuch://bucket/a.txt", r"nosuch://bucket/a.txt cannot be opened: Protocol not known"),
        ("s3://bucket/a.txt", r"s3://bucket/a.txt needs another package: Install s3fs"),
        ("ftp://me:secret@127.0.0.1:1/a.txt", r"ftp://127.0.0.1:1/a.txt could not be read: "),
    ],
)
def test_what_cannot_be_read_is_one_sentence(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(LensError, match=says) as found:
        local_text(address)
    assert "secret" not in str(found.value)


def test_a_name_that_climbs_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "find", lambda *_, **__: ["/texts/../../evil.txt"])
    with pytest.raises(LensError, match="a name that no file here can have"):
        local_text("memory://texts")


def test_a_folder_is_written_there_and_taken_up_again(home: Path) -> None:
    with written_to("memory://out/run") as folder:
        assert list(folder.rglob("*")) == []
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "numbers.npy").write_bytes(b"12")
        (folder / "part" / "lock").write_text("")
        (folder / "config.json").write_text("{}")
    assert not folder.exists()
    assert sorted(fsspec.filesystem("memory").find("/out")) == ["/out/run/config.json", "/out/run/part/numbers.npy"]
    with suppress(RuntimeError), written_to("memory://out/run") as folder:
        assert (folder / "part" / "numbers.npy").read_bytes() == b"12"
        (folder / "part" / "numbers.npy").write_bytes(b"123")
        raise RuntimeError
    with written_to("memory://out/run") as folder:  # what work left that failed is newer than what is there
        assert (folder / "part" / "numbers.npy").read_bytes() == b"123"
    kept = OutFolder("memory://out/run")
    assert (kept.has("config.json"), kept.has("part"), kept.has("other")) == (True, False, False)
    kept.remove("part")
    assert fsspec.filesystem("memory").find("/out") == ["/out/run/config.json"]


def test_a_place_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = OutFolder("memory://out")
    folder.local.mkdir(parents=True)
    (folder.local / "a.json").write_text("{}")

    def refuses(*_: Any, **__: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refuses)
    with pytest.raises(LensError, match=r"memory://out could not be written: not yours\."):
        folder.keep()


def test_a_password_is_not_shown() -> None:
    assert without_password("ftp://me:secret@host/a") == "ftp://host/a"
