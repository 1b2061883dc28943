"""The app on a pseudo-terminal: what it leaves behind, what stays off the picture, how it ends."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


def on_a_terminal(body: str, home: Path, keys: bytes = b"", after: bytes = b"") -> tuple[int, str]:
    """Run ``body`` as ``LensApp.on_ready`` of the real app; returns exit status and all it wrote."""
    code = f"""
import os, sys
from lens_tui.tui.app import LensApp
ready = LensApp.on_ready
def on_ready(self):
    ready(self)
    {body}
LensApp.on_ready = on_ready
from lens_tui.tui.run import run
sys.exit(run())
"""
    leader, follower = pty.openpty()
    env = {**os.environ, "LENS_TUI_HOME": str(home), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    env["HF_HUB_CACHE"] = str(home / "hub")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, env=env, cwd=ROOT
    )
    os.close(follower)
    written, deadline, sent = b"", time.monotonic() + PATIENCE, False
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                written += os.read(leader, 65536)
            except OSError:
                break
        elif process.poll() is not None:
            break
        if keys and not sent and after in written:
            os.write(leader, keys)
            sent = True
    process.wait(PATIENCE)
    os.close(leader)
    return process.returncode, written.decode("utf-8", "replace")


def test_noise_on_descriptor_two_goes_to_the_log(tmp_path: Path) -> None:
    status, written = on_a_terminal('os.write(2, b"NOISE FROM C\\n"); self.exit()', tmp_path)
    assert status == 0
    assert "NOISE FROM C" not in written
    assert "NOISE FROM C" in (tmp_path / "state" / "stderr.log").read_text()


def test_ctrl_q_ends_it_well_and_leaves_no_session(tmp_path: Path) -> None:
    status, written = on_a_terminal("pass", tmp_path, keys=b"\x11", after=b"Models")
    assert status == 0
    assert written.rstrip().endswith("l") or "\x1b[?1049l" in written  # the alternate screen is left
    assert not (tmp_path / "state" / "session.json").exists()


def test_a_defect_is_one_sentence_and_the_log_has_the_rest(tmp_path: Path) -> None:
    status, written = on_a_terminal('raise RuntimeError("a secret detail")', tmp_path)
    assert status == 1
    last = written.rpartition("\x1b[?1049l")[2]
    assert "ran into a defect (RuntimeError). The log has the details:" in last
    assert "a secret detail" not in last
    assert "Traceback" not in last
    assert "a secret detail" in (tmp_path / "state" / "lens.log").read_text()
