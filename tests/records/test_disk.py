"""Paths, atomic writes, recent models, the log: what is written survives, and nothing else is touched."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lens_tui.records import LensError, disk, paths
from lens_tui.records.log import start_log, stop_log
from lens_tui.tasks.models import recent_models, remember_model

ROOT = Path(__file__).parents[2]
EVERY = (
    paths.settings_file,
    paths.themes_folder,
    paths.vectors_folder,
    paths.saes_folder,
    paths.indexes_folder,
    paths.database_file,
    paths.sessions_folder,
    paths.session_file,
    paths.recent_file,
    paths.log_file,
)


def test_one_variable_moves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path))
    found = [place() for place in EVERY]
    assert all(tmp_path in place.parents for place in found)
    assert len(set(found)) == len(EVERY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="XDG")
def test_xdg_folders_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LENS_TUI_HOME")
    for name in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    assert paths.settings_file() == tmp_path / "CONFIG" / paths.APP / "settings.toml"
    assert paths.database_file().parent == tmp_path / "DATA" / paths.APP
    assert paths.log_file().parent == tmp_path / "STATE" / paths.APP
    assert paths.folder("cache") == tmp_path / "CACHE" / paths.APP


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    disk.write_json(path, {"x": 1})
    disk.write_json(path, {"y": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"y": "ü"}
    assert [file.name for file in path.parent.iterdir()] == ["b.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    disk.write_text(path, "old")

    def half(file: Any) -> None:
        file.write(b"half")
        raise KeyError("x")

    with pytest.raises(KeyError):
        disk.write_with(path, half)
    with pytest.raises(ValueError, match="not JSON compliant"):
        disk.write_json(path, float("nan"))
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles" / "s.toml", tmp_path / "s.toml"
    disk.write_text(real, "old")
    real.chmod(0o640)
    link.symlink_to(real)
    disk.write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_refusing_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensError, match="Could not write"):
        disk.write_text(tmp_path / "file" / "x", "y")


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    code = (
        "import sys; from pathlib import Path; from lens_tui.records import disk\n"
        "p = Path(sys.argv[1]); n = 0\n"
        "while True:\n"
        "    n += 1; disk.write_text(p, str(n % 10) * 200_000)\n"
        "    if n == 3: print('going', flush=True)\n"
    )
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
        writer.wait()
        writer.stdout.close()
        text = path.read_text()
        assert (len(text), len(set(text))) == (200_000, 1)
    disk.remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


def test_leftovers_of_the_living_are_spared(tmp_path: Path) -> None:
    mine = tmp_path / f".x.{os.getpid()}-ab.partial"
    other = tmp_path / ".x.notanumber-ab.partial"
    for file in (mine, other, tmp_path / "x"):
        file.write_text("")
    assert disk.remove_leftovers(tmp_path) == 1
    assert mine.exists()
    assert not other.exists()


def test_recent_models_are_few_and_newest_first() -> None:
    assert recent_models() == []
    for number in range(30):
        remember_model(f"m{number}")
    remember_model("m20")
    assert recent_models()[:3] == ["m20", "m29", "m28"]
    assert len(recent_models()) == 20
    for text in ("{", "[]", '{"models": 3}', "\x00"):
        paths.recent_file().write_text(text)
        assert recent_models() == []


def test_the_log_is_private_safe_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    path = start_log()
    assert path == paths.log_file()
    logging.getLogger("lens_tui.worker").error("bad \x1b[31m name\nsecond line \ud800")
    stop_log()
    text = path.read_text(encoding="utf-8")
    assert "bad ␛[31m name\nsecond line" in text
    assert "\x1b" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert capsys.readouterr() == ("", "")


def test_an_app_without_a_log_still_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert start_log(tmp_path / "file" / "log") is None
    logging.getLogger("lens_tui").error("nowhere")
    stop_log()


def test_a_log_that_goes_away_does_not_stop_what_is_logged(tmp_path: Path) -> None:
    path = start_log(tmp_path / "state" / "log")
    assert path is not None
    path.unlink()
    path.parent.rmdir()
    logging.getLogger("lens_tui").error("nowhere")
    stop_log()


def test_why_a_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert paths.refusal(tmp_path / "new" / "folder") == ""
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    assert paths.refusal(tmp_path / "file" / "folder") == "Not a directory"


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_when_a_process_began_as_ps_says_it() -> None:
    found = disk._start_by_ps(os.getpid())
    assert found
    assert disk._start_by_ps(os.getpid()) == found
    assert disk._start_by_ps(2**22 + 1) == ""
    assert disk.is_alive(os.getpid(), disk.birth(os.getpid()))
    assert not disk.is_alive(2**70)
