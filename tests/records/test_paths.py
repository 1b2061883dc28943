"""Folders: where temporary files may lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lens_tui.records import paths


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR", "MLX_DISABLE_COMPILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "home"))


def test_a_folder_for_temporary_files_that_is_usable_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMP", str(tmp_path))
    paths.settle_temporary()
    assert "TMPDIR" not in os.environ
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "place", [lambda folder: folder / "none", lambda folder: Path("/dev/null")], ids=["not there", "no folder"]
)
def test_another_is_found_for_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    monkeypatch.setenv("TMPDIR", str(place(tmp_path)))
    paths.settle_temporary()
    assert Path(os.environ["TMPDIR"]).is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full", [False, True])
def test_with_none_that_takes_a_file_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: bool
) -> None:
    holds = paths._holds
    monkeypatch.setattr(paths, "_holds", lambda place: not full and tmp_path in place.parents and holds(place))
    paths.settle_temporary()
    if full:
        assert os.environ["MLX_DISABLE_COMPILE"] == "1"
    else:
        assert os.environ["TMPDIR"] == str(tmp_path / "home" / "cache")


def test_the_home_of_nobody_is_a_path_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", "~no-such-user/x")
    monkeypatch.setenv("LENS_TUI_CONFIG", "~no-such-user/s.toml")
    assert (paths.folder("data"), paths.settings_file()) == (Path("~no-such-user/x/data"), Path("~no-such-user/s.toml"))
    assert paths.expanded("~no-such-user/x") == Path("~no-such-user/x")
    assert paths.expanded("~/x") == Path.home() / "x"


def test_no_file_of_the_package_expands_a_path_by_the_way_that_raises() -> None:
    package = Path(paths.__file__).parents[1]
    assert [file for file in package.rglob("*.py") if ".expanduser()" in file.read_text()] == []
