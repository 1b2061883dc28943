"""The door for files of strangers: what is no plain file, too large, or unfolds without end is one sentence."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lens_tui.records import LensError
from lens_tui.records.file_arrays import OpenFile, file_array, npy_header
from lens_tui.records.read_files import (
    FileAbsent,
    explained,
    open_regular,
    open_zip,
    parse_json,
    parse_toml,
    read_bytes,
    read_json,
    read_lines,
    read_member,
    read_text,
    read_toml,
    regular_size,
)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in (
        (pipe, "not a regular file but a pipe"),
        (Path("/dev/zero"), "not a regular file but a pipe"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "There is no file"),
        (Path("a\0b"), "damaged or of another kind"),
    ):
        for read in (regular_size, open_regular, read_text, read_json, read_toml, lambda path: list(read_lines(path))):
            with pytest.raises(LensError, match=message):
                read(path)
    with pytest.raises(FileAbsent):
        read_text(tmp_path / "none")


def test_a_size_is_looked_at_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(50 << 30)
    for read in (read_text, read_json, read_toml):
        with pytest.raises(LensError, match=r"at most .* MB are read"):
            read(path)
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(LensError, match="MB"):
        read_bytes(path, 4)


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * 20_000) + " = 1",
        ".".join(['"a"'] * 20_000) + " = 1",
        "x = " + "[" * 1000,
        "x = " + "[" * 900 + "]" * 900,
        "x = " + "1" * 5000,
        'x = ["""\n\' """, {' + ".".join("a" * 20_000) + " = 1, b = ''}]",
        "x = ['''\n\" ''', {" + ".".join("a" * 20_000) + ' = 1, b = ""}]',
        'x = "' + '\\"' * 100_000,
        "'" * 200_000,
        "x" * 300_000,
    ],
    ids=lambda text: text[:12],
)
def test_toml_without_end(text: str) -> None:
    with pytest.raises(LensError):
        parse_toml(text, "x.toml")


def test_toml_that_only_looks_deep() -> None:
    text = (
        'x = "'
        + "a." * 500
        + '"  # '
        + "b." * 500
        + "[" * 500
        + '\ny = """\n'
        + "c." * 500
        + '=\n"""\nz = [0.5, 1.5]\n'
    )
    assert parse_toml(text, "x.toml")["z"] == [0.5, 1.5]


def test_json_without_end(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "[" * 900 + "]" * 900, "1" * 5000, '{"a":' * 70 + "1" + "}" * 70, "{", "\ud800"):
        with pytest.raises(LensError, match="x is not"):
            parse_json(text, "x")
    assert parse_json("[" * 60 + "]" * 60, "x")
    path = tmp_path / "many.json"
    path.write_bytes(b"[" + b"[]," * (3 << 20) + b"[]]")
    with pytest.raises(LensError, match="too many values"):
        read_json(path, 64 << 20)
    path.write_bytes(b'["' + b"x" * (90 << 20) + '😀"]'.encode())  # each character would take four bytes
    with pytest.raises(LensError, match="too many values"):
        read_json(path, 128 << 20)


def test_lines_of_folded_files(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\n\n  \ntwo"))
    assert list(read_lines(path)) == [(1, b"one\n"), (4, b"two")]
    path.write_bytes(gzip.compress(b"\n" * (1 << 20)))
    with pytest.raises(LensError, match="blank lines"):
        list(read_lines(path))
    path.write_bytes(gzip.compress((b"x" * 1000 + b"\n") * 20_000))
    with pytest.raises(LensError, match="unpacks to far more"):
        list(read_lines(path))
    path.write_bytes(gzip.compress(b"x" * (5 << 20)))
    with pytest.raises(LensError, match="longer than 4 MB"):
        list(read_lines(path))
    path.write_bytes(gzip.compress(b"one\ntwo\n" * 1000)[:-9])
    with pytest.raises(LensError, match="cut short or damaged after line"):
        list(read_lines(path))


def test_members_of_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small", "abc")
        archive.writestr("bomb", bytes(8 << 20))
    with open_zip(path) as archive:
        small, bomb = archive.infolist()
        assert read_member(path, archive, small, 3) == b"abc"
        with pytest.raises(LensError, match="unpacks to more"):
            read_member(path, archive, bomb, 1 << 20)
        bomb.file_size = 8  # the directory lies
        with pytest.raises(LensError):
            read_member(path, archive, bomb, 1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("small", "abc")
    with open_zip(path) as archive, pytest.raises(LensError, match="unusual"):
        read_member(path, archive, archive.infolist()[0], 3)
    end = bytearray(path.read_bytes()[-22:])
    end[12:16] = (1 << 30).to_bytes(4, "little")
    with path.open("wb") as file:
        file.truncate(2 << 30)
        file.seek(0, os.SEEK_END)
        file.write(end)
    with pytest.raises(LensError, match="directory is too large"), open_zip(path):
        pass


def test_whatever_is_raised_within_is_one_sentence() -> None:
    for error in (
        RecursionError("deep"),
        OverflowError(),
        MemoryError(),
        IndexError("at"),
        KeyError("k"),
        OSError(24, "x"),
    ):
        with pytest.raises(LensError) as caught, explained("a/b/x.bin"):
            raise error
        assert str(caught.value).startswith("a/b/x.bin ")
        assert "\n" not in str(caught.value)
    with pytest.raises(LensError, match=r"^own$"), explained("x"):
        raise LensError("own")


def test_headers_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"0" * 64)
    with pytest.raises(LensError, match="3000000 dimensions"):
        file_array(OpenFile(path), np.dtype("<f4"), (2,) * 3_000_000, 0, 64)
    with pytest.raises(LensError, match="cut short"):
        file_array(OpenFile(path), np.dtype("<f4"), (20,), 0, 80)
    good = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
    for header in (
        good.replace(b"(2,)", b"(" + b"1," * 40 + b")"),
        good.replace(b"(2,)", b"(-2,)"),
        good.replace(b"<f4", b"|O"),
        good.replace(b"<f4", b"|S0"),
        good.replace(b"'", b"\0"),
        b"(" * 5000,
        b"",
    ):
        path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + b"0" * 8)
        with path.open("rb") as file, pytest.raises(ValueError, match=r"."):
            npy_header(file)
    path.write_bytes(b"\x93NUMPY\2\0" + (1 << 31).to_bytes(4, "little"))
    with path.open("rb") as file, pytest.raises(ValueError, match="without end"):
        npy_header(file)
    np.save(path, np.zeros((3, 2), np.float16))
    with path.open("rb") as file:
        assert npy_header(file) == ((3, 2), False, np.dtype("<f2"))
