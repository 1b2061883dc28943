"""Arrays read where they lie in a file: the numbers of NumPy, and an error instead of a signal."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui.records import LensError
from lens_tui.records.file_arrays import FileArray, OpenFile, file_array

ROWS = (None, slice(1, 4), slice(2, 2), slice(0, 6, 2), np.array([3, 1, 1]), np.zeros(0, np.int64), np.array([-1]))
COLUMNS = (*ROWS, np.arange(5), np.array([4, 0, 2, 2]))


def stored(path: Path, array: np.ndarray[Any, Any]) -> FileArray:
    path.write_bytes(b"xyz" + array.tobytes())
    return file_array(OpenFile(path), array.dtype, array.shape, 3, array.nbytes)


def cut(array: Any, rows: Any, columns: Any) -> Any:
    part = array if rows is None else array[rows]
    return part if columns is None else part[:, columns]


@pytest.mark.parametrize("shape", [(7, 5), (5, 30_000), (3000, 8)])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<i8", "i1"])
def test_every_cut_is_that_of_numpy(tmp_path: Path, shape: tuple[int, int], kind: str) -> None:
    array = (100 * np.random.default_rng(0).normal(size=shape)).astype(kind)
    found = stored(tmp_path / "x", array)
    assert np.array_equal(np.asarray(found), array)
    assert np.array_equal(np.asarray(found.T), array.T)
    for rows in ROWS:
        for columns in COLUMNS:
            assert np.array_equal(found.take(rows, columns), cut(array, rows, columns)), (rows, columns)
            assert np.array_equal(found.T.take(columns, rows), cut(array.T, columns, rows)), (rows, columns)
    assert found.take().dtype.isnative


@pytest.mark.parametrize("columns", [slice(0, 9), slice(2, 7), slice(8, 20), slice(3, 3)])
@pytest.mark.parametrize("kind", ["<f4", ">f4"])
def test_columns_are_read_into_memory_that_is_there(tmp_path: Path, columns: slice, kind: str) -> None:
    array = np.random.default_rng(0).normal(size=(7, 9)).astype(kind)
    found, expected = stored(tmp_path / "x", array), array[:, columns]
    place = np.full(expected.shape, np.nan, np.float32)
    found.fill(place, columns)
    assert np.array_equal(place, expected)
    turned = np.full((5, 9), np.nan, np.float32).T
    found.T.fill(turned, slice(0, 5))
    assert np.array_equal(turned, array.T[:, :5])


def test_a_place_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    found = stored(tmp_path / "x", np.ones((7, 9), np.float32))
    for place in (np.zeros((7, 8), np.float32), np.zeros((7, 9), np.float64), np.zeros((9, 7), np.float32).T):
        with pytest.raises(ValueError, match="not a place"):
            found.fill(place, slice(0, 9))
        assert not place.any()
    os.truncate(tmp_path / "x", 40)
    with pytest.raises(LensError, match="has changed on disk"):
        found.fill(np.zeros((7, 9), np.float32), slice(0, 9))


def test_columns_far_apart(tmp_path: Path) -> None:
    array = np.arange(4 * 40_000, dtype=np.float32).reshape(4, 40_000)
    found = stored(tmp_path / "x", array)
    for columns in (np.array([39_999, 5, 20_000, 5, 17]), slice(100, 30_000), slice(0, 40_000)):
        assert np.array_equal(found.take(None, columns), array[:, columns])
    assert np.array_equal(found[2], array[2])


def test_a_file_that_is_changed_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    array = np.ones((100, 1000), np.float32)
    found = stored(tmp_path / "x", array)
    os.truncate(tmp_path / "x", 4096)
    with pytest.raises(LensError, match="has changed on disk since it was opened"):
        found.take(slice(90, 100))
    found = stored(tmp_path / "x", array)
    os.utime(tmp_path / "x", ns=(1, 1))
    with pytest.raises(LensError, match="has changed on disk"):
        found.take(slice(0, 1))


def test_a_file_that_is_replaced_goes_on_as_it_was(tmp_path: Path) -> None:
    array = np.ones((10, 10), np.float32)
    found = stored(tmp_path / "x", array)
    (tmp_path / "y").write_bytes(b"other")
    os.replace(tmp_path / "y", tmp_path / "x")
    assert np.array_equal(found.take(), array)


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(LensError, match=r"not a regular file|is a folder"):
            OpenFile(path)
    for name in ("none", "a\0b"):
        with pytest.raises(LensError):
            OpenFile(tmp_path / name)


def test_one_descriptor_serves_all_arrays_of_a_file_and_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(4000))
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    file = OpenFile(tmp_path / "x")
    arrays = [file_array(file, np.dtype("f4"), (10,), 40 * i, 40) for i in range(100)]
    assert len(os.listdir("/dev/fd")) == before + 1
    del file, arrays
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize(
    ("shape", "start", "nbytes", "words"),
    [((3,), 0, 16, "not those of its shape"), ((4,), 8, 16, "cut short"), ((1,) * 9, 0, 4, "9 dimensions")],
)
def test_sizes_that_do_not_fit(tmp_path: Path, shape: tuple[int, ...], start: int, nbytes: int, words: str) -> None:
    (tmp_path / "x").write_bytes(bytes(20))
    with pytest.raises(LensError, match=words):
        file_array(OpenFile(tmp_path / "x"), np.dtype("f4"), shape, start, nbytes)
