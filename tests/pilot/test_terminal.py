"""Signals, ctrl+z, bytes that are none, defects: the app ends or goes on in good order, and the terminal is whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from lens_tui.records.session_file import interrupted_sessions
from lens_tui.tui.driver import PIECES_PATIENCE, TerminalText
from tests.terminals import Terminal, app_code, opened

EDIT = 'self.store.update(prompt="kept to the last")'
READY = "Models"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_a_signal_ends_it_with_the_terminal_whole_and_the_session_kept(number: int, tmp_path: Path) -> None:
    with opened(tmp_path, EDIT) as terminal:
        terminal.wait_for(READY)
        assert terminal.modes()
        os.kill(terminal.pid, number)
        assert terminal.end() == 128 + number
        assert terminal.modes() == {}
        assert terminal.attributes() == terminal.before
    assert kept(tmp_path) == ["kept to the last"]


def test_a_terminal_that_cannot_be_drawn_on_is_told_so_in_one_sentence(tmp_path: Path) -> None:
    with Terminal(["/usr/bin/env", "TERM=dumb", sys.executable, "-m", "lens_tui", "--demo"], tmp_path) as terminal:
        assert terminal.end() == 2
        said = terminal.written.decode()
        assert "TERM=dumb" in said
        assert "xterm-256color" in said
        assert "mlx-lens-tui compare" in said
        assert "\x1b" not in said


def kept(home: Path) -> list[str]:
    """The prompts of the sessions that were cut off."""
    found = interrupted_sessions(home / "state" / "sessions")
    return [item.session.prompt for item in found if item.session is not None]


def test_an_app_that_cannot_end_is_left_and_the_terminal_given_back(tmp_path: Path) -> None:
    stuck = f"{EDIT}; self.set_timer(0.05, lambda: [os.write(2, b'STUCK'), time.sleep(1e6)])"
    with opened(tmp_path, stuck, "runner.END_PATIENCE = 0.1") as terminal:
        log = tmp_path / "state" / "stderr.log"
        terminal.wait(lambda: log.exists() and b"STUCK" in log.read_bytes(), "a handler that does not return")
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.end() == 143
        assert terminal.modes() == {}
        assert terminal.attributes() == terminal.before
    assert kept(tmp_path) == ["kept to the last"]


def test_an_app_whose_terminal_is_gone_ends_though_it_ignores_hangups(tmp_path: Path) -> None:
    with opened(tmp_path, EDIT, ignored=[signal.SIGHUP]) as terminal:
        terminal.wait_for(READY)
        terminal.hang_up()
        assert terminal.end() == 129
    assert kept(tmp_path) == ["kept to the last"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_ctrl_z_goes_to_the_shell_and_comes_back(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(app_code())
    with Terminal(["bash", "--norc", "--noprofile", "--noediting", "-i"], tmp_path) as terminal:
        terminal.wait_for("$ ")
        terminal.send(f"{sys.executable} {script}\n".encode())
        terminal.wait_for(READY)
        modes, raw = terminal.modes(), terminal.attributes()
        since = len(terminal.written)
        terminal.send(b"\x1a")
        terminal.wait_for("Stopped", since)
        terminal.wait_for("$ ", since)
        assert terminal.modes() == {}
        assert terminal.attributes() == terminal.before
        since = len(terminal.written)
        terminal.send(b"fg\n")
        terminal.wait_for(READY, since)
        assert (terminal.modes(), terminal.attributes()) == (modes, raw)
        since = len(terminal.written)
        terminal.send(b"\x11")
        terminal.wait_for("$ ", since)
        terminal.send(b"echo it was $?\n")
        terminal.wait_for("it was 0", since)
        assert terminal.modes() == {}
        assert terminal.attributes() == terminal.before


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell")
def test_a_death_without_a_word_gives_the_terminal_back(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(app_code('open(os.environ["LENS_TUI_HOME"] + "/pid", "w").write(str(os.getpid()) + " ")'))
    with Terminal(["bash", "--norc", "--noprofile", "--noediting", "-i"], tmp_path) as terminal:
        terminal.wait_for("$ ")
        terminal.send(f"{sys.executable} {script}\n".encode())
        terminal.wait_for(READY)
        terminal.wait(
            lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith(" "), "its number"
        )
        since = len(terminal.written)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGSEGV)
        terminal.wait_for("$ ", since)
        terminal.wait(lambda: terminal.modes() == {}, "the terminal")
        terminal.wait(lambda: terminal.attributes() == terminal.before, "its attributes")


def test_without_a_shell_ctrl_z_says_so_and_a_stop_by_another_is_survived(tmp_path: Path) -> None:
    with opened(tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.send(b"\x1a")
        terminal.wait_for("no shell")
        modes, since = terminal.modes(), len(terminal.written)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            os.kill(terminal.pid, number)
        terminal.wait_for(READY, since)
        assert terminal.modes() == modes
        terminal.send(b"\x11")
        assert terminal.end() == 0
        assert terminal.modes() == {}
        assert terminal.attributes() == terminal.before


BROKEN = """
from lens_tui.tui.app import LensApp
def broken(self): raise KeyError("of a key")
LensApp.action_tint = broken
from lens_tui.tui.screens.load_screen import LoadScreen
def sorts(self): raise ZeroDivisionError("of a screen")
LoadScreen.action_sort = sorts
pop = LensApp.pop_screen
def popped(self):
    os.write(2, b"SHUT")
    return pop(self)
LensApp.pop_screen = popped
"""


def test_bytes_that_are_no_text_bunched_keys_and_defects_do_not_end_it(tmp_path: Path) -> None:
    timer = 'self.set_timer(0.01, lambda: {}["of a timer"])'
    with opened(tmp_path, timer, BROKEN) as terminal:
        terminal.wait_for("of a timer")
        mouse = b"\x1b[M\x43" + bytes([96 + 32]) + b"\x2a"
        shut = tmp_path / "state" / "stderr.log"
        for number, (keys, seen) in enumerate(
            ((mouse + b"\xe9 \xff\xfet", "of a key"), (b"o", "of a screen"), (b"?", "type to filter")), 1
        ):
            terminal.send(b"\x1b")
            terminal.wait(lambda: shut.read_bytes().count(b"SHUT") == number, "the dialogue to close")  # noqa: B023
            since = len(terminal.written)
            terminal.send(keys)
            terminal.wait_for(seen, since)
        terminal.send(b"\x1b:\r\x1b:\r\r\x1b")
        terminal.wait(lambda: shut.read_bytes().count(b"SHUT") > 3, "the table to close")
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.end() == 143
        assert terminal.modes() == {}
    log = (tmp_path / "state" / "lens.log").read_text()
    assert log.count("a defect; the session goes on") == 3


def test_a_defect_of_every_picture_is_no_endless_loop(tmp_path: Path) -> None:
    before = "def bad(): raise RuntimeError('again')"
    with opened(tmp_path, f"{EDIT}; self.set_interval(0.001, bad)", before) as terminal:
        assert terminal.end() == 1
        assert "ran into a defect (RuntimeError)" in terminal.written.decode("utf-8", "replace")
        assert terminal.modes() == {}
    assert kept(tmp_path) == ["kept to the last"]


def test_what_a_terminal_sends_as_text() -> None:
    def read(*pieces: bytes) -> str:
        text = TerminalText()
        found = [part for piece in pieces for part in text.feed(piece)]
        return "".join(f"<{part}>" if pasted else part for part, pasted in found)

    report = b"\x1b[M\x43\x80\x2a"
    assert read(b"a" + report + b"b") == "ab"
    assert [read(report[:cut], report[cut:] + b"b") for cut in range(3, 6)] == ["b"] * 3
    assert read(report * 3) == ""
    assert read(b"\x1b[<0;120;30M\x1b[A") == "\x1b[<0;120;30M\x1b[A"
    assert read("dé漢".encode()[:2], "dé漢".encode()[2:]) == "dé漢"
    assert read(b"caf\xe9 \xff\xc3") == "caf "
    assert read(b"\x1b[200~one \x1b[Mabc two\x1b[201~" + report + b"!") == "<one \x1b[Mabc two>!"
    assert read(b"\x1b[200~half \x1b[M", b"abc\x1b[201~") == "<half \x1b[Mabc>"
    whole = b"a\x1b[200~b\x1b[31mc\rd\x1b\x1b[20\x1b[200~\x1b[201~e\x1b[200~f\xc3\xa9\x1b[201~"
    for cut in range(len(whole)):
        if (
            whole[cut - 1 : cut] != b"\x1b" and whole[cut - 2 : cut] != b"\x1b["
        ):  # a key of its own, where nothing follows
            assert read(whole[:cut], whole[cut:]) == "a<b\x1b[31mc\rd\x1b\x1b[20\x1b[200~>e<fé>"
    assert read(*(bytes([byte]) for byte in b"\x1b[2~")) == "\x1b[2~"


def test_a_paste_without_an_end_does_not_swallow_the_keys_after_it() -> None:
    now = [0.0]
    text = TerminalText(clock=lambda: now[0])
    assert text.feed(b"a\x1b[200~half \xc3") == [("a", False)]
    now[0] += PIECES_PATIENCE / 2
    assert (text.cut_paste(), text.feed(b"\xa9")) == ("", [])
    now[0] += PIECES_PATIENCE
    assert (text.cut_paste(), text.cut_paste()) == ("half é", "")
    assert text.feed(b"\x11") == [("\x11", False)]
    for rest in (
        (b"of it, at last\x1b[201~q",),
        (b"of it, at last, which came late over a slow line ", b"and in pieces\x1b[201~q"),
    ):
        text.feed(b"\x1b[200~more ")
        now[0] += PIECES_PATIENCE
        assert text.cut_paste() == "more "
        found = [part for piece in rest for part in text.feed(piece)]
        assert found == [(b"".join(rest).decode().partition("\x1b")[0], True), ("q", False)]
    assert text.feed(b"x\x1b[201~y") == [("xy", False)]


def test_what_is_pasted_is_text_and_no_keys_however_much(tmp_path: Path) -> None:
    with opened(tmp_path, "pass") as terminal:
        terminal.wait_for(READY)
        terminal.send(b"3")
        terminal.wait_for("nothing yet")
        terminal.send(b"i")
        terminal.wait_for("INSERT")
        terminal.send(b"\x1b[200~red \x1b[31mbrick\rwall\x1b[200~ here\x1b[201~")
        terminal.wait_for("here")
        terminal.wait(lambda: written(tmp_path, "here"), "the file")
        megabyte = "".join(f"\nline {number:06} of a long text{' of words' * 120}" for number in range(1000))
        assert len(megabyte) > 1 << 20
        terminal.send(b"\x1b[200~" + megabyte.replace("\n", "\r").encode() + b"\x1b[201~")
        terminal.wait(lambda: written(tmp_path, megabyte[-30:]), "a megabyte in the file")
        since = len(terminal.written)
        terminal.send(b"!\x1b")
        terminal.wait_for("NORMAL", since)
        terminal.send(b"?")
        terminal.wait_for("type to filter", since)
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.end() == 143
        assert terminal.modes() == {}
    assert kept(tmp_path) == ["red \x1b[31mbrick\nwall\x1b[200~ here" + megabyte + "!"]


def written(home: Path, text: str) -> bool:
    """Whether a session on the disk has ``text`` in its prompt."""
    return any(json.dumps(text)[1:-1] in path.read_text() for path in home.rglob("sessions/*.json"))


def test_two_windows_keep_a_session_each_and_both_are_recovered(tmp_path: Path) -> None:
    def prompts() -> list[str]:
        files = (tmp_path / "state" / "sessions").glob("*.json")
        return sorted(json.loads(file.read_text())["prompt"] for file in files)

    def edit(prompt: str) -> str:
        return f"self.store.update(prompt={prompt!r})"

    with opened(tmp_path, edit("of the first")) as first, opened(tmp_path, edit("of the second")) as second:
        for window in (first, second):
            window.wait_for(READY)
        first.wait(lambda: prompts() == ["of the first", "of the second"], "a file each")
        assert b"cut off" not in first.written + second.written
        os.kill(first.pid, signal.SIGKILL)
        assert first.end() == -signal.SIGKILL
        with opened(tmp_path) as third:  # the second still runs: what is offered is the first one's alone
            third.wait_for("The last session was cut off")
            assert b"before it" not in third.written
            third.send(b"\r")
            third.wait(lambda: prompts() == ["of the first", "of the second"], "the first's, under the third's name")
            third.wait(lambda: len(kept(tmp_path)) == 0, "nobody's session left")
            os.kill(third.pid, signal.SIGKILL)
            assert third.end() == -signal.SIGKILL
        os.kill(second.pid, signal.SIGKILL)
        assert second.end() == -signal.SIGKILL
    assert sorted(kept(tmp_path)) == ["of the first", "of the second"]
