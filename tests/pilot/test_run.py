"""The app on a pseudo-terminal: what it leaves behind, what stays off the picture, how it ends."""

from __future__ import annotations

import os
from pathlib import Path

from tests.terminals import opened


def on_a_terminal(body: str, home: Path, keys: bytes = b"", after: str = "") -> tuple[int, str]:
    """Run the real app with ``body`` at the end of ``on_ready``; returns exit status and all it wrote."""
    with opened(home, body) as terminal:
        if keys:
            terminal.wait_for(after)
            terminal.send(keys)
        status = terminal.end()
    return status, terminal.written.decode("utf-8", "replace")


def test_noise_on_descriptor_two_goes_to_the_log(tmp_path: Path) -> None:
    status, written = on_a_terminal('os.write(2, b"NOISE FROM C\\n"); self.exit()', tmp_path)
    assert status == 0
    assert "NOISE FROM C" not in written
    assert "NOISE FROM C" in (tmp_path / "state" / "stderr.log").read_text()


def test_ctrl_q_ends_it_well_and_leaves_no_session(tmp_path: Path) -> None:
    status, written = on_a_terminal("pass", tmp_path, keys=b"\x11", after="Models")
    assert status == 0
    assert written.rstrip().endswith("l") or "\x1b[?1049l" in written  # the alternate screen is left
    assert list((tmp_path / "state").glob("sessions/*")) == []


def test_a_defect_is_one_sentence_and_the_log_has_the_rest(tmp_path: Path) -> None:
    status, written = on_a_terminal('raise RuntimeError("a secret detail")', tmp_path)
    assert status == 1
    last = written.rpartition("\x1b[?1049l")[2]
    assert "ran into a defect (RuntimeError). The log has the details:" in last
    assert "a secret detail" not in last
    assert "Traceback" not in last
    assert "a secret detail" in (tmp_path / "state" / "lens.log").read_text()


def test_a_folder_that_cannot_be_written_is_said_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with opened(tmp_path / "home") as terminal:
        terminal.wait_for("will not be kept")
        terminal.send(b"\x11")
        assert terminal.end() == 0


def test_pipes_in_place_of_its_files_do_not_hang_the_start(tmp_path: Path) -> None:
    state = ("stderr.log", "lens.log", "recent.json", "session.json", "sessions/1.json")
    others = ("config/settings.toml", "config/themes/mine.toml", "data/lens.sqlite3")
    for name in (*(f"state/{name}" for name in state), *others):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(place)
    with opened(tmp_path) as terminal:
        terminal.wait_for("could not be used")
        terminal.send(b"\x11")
        assert terminal.end() == 0
