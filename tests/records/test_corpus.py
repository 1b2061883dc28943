"""Documents of folders, text files and JSONL, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lens_tui.records import LensError
from lens_tui.records import corpus as module
from lens_tui.records.corpus import open_corpus

SEPARATOR = "<|endoftext|>"


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(f"one\n{SEPARATOR}\ntwo {SEPARATOR} still two\n\n{SEPARATOR}\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "note.md").write_text("no")
    (tmp_path / "empty.txt").write_text("")
    corpus = open_corpus(tmp_path)
    assert [document.text for document in corpus] == ["one", f"two {SEPARATOR} still two", "three", "four"]
    assert [(d.index, d.file, d.index_in_file) for d in corpus] == [
        (0, "b.txt", 0),
        (1, "b.txt", 1),
        (2, "deep/a.jsonl", 0),
        (3, "deep/a.jsonl", 1),
    ]
    assert corpus[-1].text == "four"
    assert [d.text for d in corpus.read([3, 0])] == ["four", "one"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_with_any_line_end_and_byte_order_marks(newline: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((mark + newline.join(["é one", SEPARATOR, SEPARATOR, "two", SEPARATOR])).encode())
    assert [document.text for document in open_corpus(path)] == ["é one", "two"]


def test_long_documents_are_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 64)
    lines = "".join(f"line {i}\n" for i in range(40)).strip()
    (tmp_path / "lines.txt").write_text(lines)
    (tmp_path / "solid.txt").write_text("日本語" * 50)
    corpus = open_corpus(tmp_path)
    texts = [document.text for document in corpus]
    assert all(len(text.encode()) <= 64 for text in texts)
    assert "".join(text for text, d in zip(texts, corpus, strict=True) if d.file == "lines.txt") == lines
    assert "".join(text for text, d in zip(texts, corpus, strict=True) if d.file == "solid.txt") == "日本語" * 50


def test_every_nth_document_of_each_file_is_held_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"\n{SEPARATOR}\n".join(f"{name}{i}" for i in range(10)))
    corpus = open_corpus(tmp_path)
    kept, held = corpus.split(5, 2)
    assert [document.text for document in held] == ["a2", "a7", "b2", "b7"]
    assert len(kept) == 16
    assert {d.text for d in kept}.isdisjoint(d.text for d in held)
    assert kept.sha256 == corpus.sha256
    with pytest.raises(LensError, match="holds nothing out"):
        corpus.split(1)


def test_the_hash_follows_names_and_contents(tmp_path: Path) -> None:
    hashes = set()
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("a.txt", "two")):
        for old in tmp_path.iterdir():
            old.unlink()
        (tmp_path / name).write_text(text)
        hashes.add(open_corpus(tmp_path).sha256)
        assert open_corpus(tmp_path).sha256 in hashes
    assert len(hashes) == 3


def test_another_key_of_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": "x\u2028y", "text": 5}))
    assert open_corpus(tmp_path, text_key="content")[0].text == "x\u2028y"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"text": "good"}\n{"text"', "Line 2 of a.jsonl is not valid JSON"),
        (
            "a.jsonl",
            b'\n\n{"text": "good"}\n\n{"words": 1}',
            "Line 5 of a.jsonl has no text under 'text'. It has 'words'",
        ),
        ("a.jsonl", b'{"text": "good"}\n{"text": "\xff"}', "Document 2 of a.jsonl is not UTF-8"),
        ("a.jsonl", b'{"text": 7}', "has no text under 'text'"),
        ("a.jsonl", b"[1]", "has no text under"),
        ("a.jsonl", b"[" * 100_000, "is not valid JSON"),
        ("a.txt", b"  \n ", "There is no text"),
        ("a.md", b"hello", "contains no .txt or .jsonl"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LensError, match=message):
        list(open_corpus(tmp_path))


def test_missing_and_packed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="There is no file or folder"):
        open_corpus(tmp_path / "nothing")
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(LensError, match="not a text or JSONL file"):
        open_corpus(tmp_path / "a.jsonl.gz")


def test_what_is_no_text_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.write(b"text " * 2000)
        file.truncate(50 << 30)  # sparse
    with pytest.raises(LensError, match=r"a\.txt is not text"):
        open_corpus(tmp_path)


def test_a_long_document_of_broken_characters_is_cut_and_then_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x80" * (5 << 19))
    corpus = open_corpus(tmp_path)
    assert len(corpus) == 3
    with pytest.raises(LensError, match="not UTF-8"):
        list(corpus)
