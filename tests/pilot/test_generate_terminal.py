"""Generate on a real terminal: a paste with CR among the lanes, bunched keys and resizes while it writes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lens_tui.records.run_store import RunStore
from lens_tui.records.store import Store
from tests.folders import llama_folder
from tests.terminals import Terminal, opened

PASTED = b"\x1b[200~The cat\rsat \x1b[31m\r\non\x1b[201~"


def on_generate(home: Path, folder: Path, before: str = "") -> Terminal:
    """The app on Generate with a model of random weights; what it writes is marked in the text of the terminal."""
    body = """self.store.update(sampling=__import__("dataclasses").replace(self.store.session.sampling, max_tokens=400))
    self.action_show("generate")"""
    return opened(home, body, before, run=f"run(model={str(folder)!r})", size=(100, 30))


def test_a_paste_bunched_keys_and_resizes_while_it_writes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    llama_folder(folder)
    with on_generate(tmp_path / "home", folder) as terminal:
        terminal.wait_for("nothing yet")
        terminal.wait_for("runs it")
        since = len(terminal.written)
        terminal.send(PASTED)  # nothing is being written: it goes into the prompt
        terminal.wait_for("3 lines", since)
        terminal.wait_for("INSERT", since)
        since = len(terminal.written)
        terminal.send(b"\r")
        terminal.wait_for("stop", since)
        for size in ((60, 16), (40, 10), (200, 50), (80, 24)):
            terminal.resize(size)
            terminal.send(b"vt[]]DbOcl\x1b" + b"\x1b[200~more\rof it\x1b[201~\x1bFvH\x1bS\x1b")
        for size, text in (((20, 5), "needs"), ((80, 24), "NORMAL"), ((100, 30), "NORMAL")):
            since = len(terminal.written)
            terminal.resize(size)
            terminal.wait_for(text, since)
        terminal.send(b"x")
        since = len(terminal.written)
        terminal.send(b"\x1b\x1bi\x1b")
        terminal.wait_for("NORMAL", since)
        assert b"Traceback" not in terminal.written
        terminal.send(b"\x11")
        assert terminal.end() == 0
        assert terminal.modes() == {}
        assert terminal.attributes() == terminal.before
    # Nothing of the paste acts on the terminal: what it writes of ESC is its own.
    assert b"sat \x1b[31m" not in terminal.written


STRUCK = """
from lens_tui.tui.run_text import RunText
apply, seen = RunText.apply, []
def struck(self, event, *more):
    seen.append(event)
    if len(seen) == 5:
        os.kill(os.getpid(), NUMBER)
    return apply(self, event, *more)
RunText.apply = struck
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_writes_leaves_the_terminal_whole_and_the_run_kept(number: int, tmp_path: Path) -> None:
    folder, home = tmp_path / "model", tmp_path / "home"
    llama_folder(folder)
    with on_generate(home, folder, STRUCK.replace("NUMBER", str(int(number)))) as terminal:
        terminal.wait_for("runs it")
        terminal.send(b"iOnce upon\r")
        assert terminal.end() == 128 + number
        assert terminal.modes() == {}
        assert terminal.attributes() == terminal.before
        assert b"Traceback" not in terminal.written
    with Store(home / "data" / "lens.sqlite3") as store:
        runs = RunStore(store)
        (run,) = runs.list()
        assert (run.prompt, run.state in ("stopped", "done")) == ("Once upon", True)
        found = runs.get(run.id)
        assert found is not None
        assert found.arms[0].tokens
