"""The session is on the disk as soon as it changes, and is offered again only after a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lens_tui.records import LensError, Sampling, SteeringVector, paths
from lens_tui.records.session_file import (
    Autosaver,
    SavedSession,
    SavedSteer,
    _to_json,
    forget_session,
    interrupted_session,
    read_session,
    save_session,
)

ROOT = Path(__file__).parents[2]
STEER = SavedSteer("s1", SteeringVector.of("dog", np.arange(1, 40), 3), 3, -2.5, enabled=False, arm=2)
SESSION = SavedSession("demo", "sae", "generate", "A \x1b prompt", Sampling(seed=9), (STEER,))


def same(one: SavedSession | None, other: SavedSession) -> bool:
    """Equal in every field, directions to the last bit."""
    return one is not None and _to_json(one) == _to_json(other)


def test_a_session_comes_back() -> None:
    assert read_session() is None
    save_session(SESSION)
    assert same(read_session(), SESSION)
    forget_session()
    forget_session()
    assert read_session() is None


def test_only_a_dead_apps_session_is_offered() -> None:
    save_session(SESSION)
    assert interrupted_session() is None  # ours: it runs
    path = paths.session_file()
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "owner": 1}))
    assert interrupted_session() is None  # another's: it runs
    path.write_text(json.dumps({**data, "owner": 2**22 + 1}))
    assert same(interrupted_session(), SESSION)


def test_a_killed_app_leaves_its_last_change(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    code = (
        "import os, sys; from pathlib import Path; from tests.records.test_session_file import *\n"
        "saver = Autosaver(Path(sys.argv[1]))\n"
        "for n in range(50): saver.save(replace(SESSION, prompt=f'prompt {n}'))\n"
        "assert saver.flush(30)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -9
    assert same(interrupted_session(path), replace(SESSION, prompt="prompt 49"))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"version": 1}', '{"version": 99, "owner": 1}'])
def test_a_damaged_file_is_never_offered_and_says_so_when_asked(text: str) -> None:
    path = paths.session_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert interrupted_session() is None
    with pytest.raises(LensError, match="cannot be read"):
        read_session()


def test_a_damaged_vector_in_it(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    save_session(SESSION, path)
    data = json.loads(path.read_text())
    data["steers"][0]["vector"]["direction"] = "AAAA"
    path.write_text(json.dumps(data))
    with pytest.raises(LensError):
        read_session(path)


def test_the_autosaver_writes_the_newest_and_says_when_the_disk_refuses(tmp_path: Path) -> None:
    saver = Autosaver(tmp_path / "s.json")
    for number in range(100):
        saver.save(replace(SESSION, prompt=str(number)))
    assert saver.flush(30)
    assert same(read_session(tmp_path / "s.json"), replace(SESSION, prompt="99"))
    saver.close(forget=True)
    assert not (tmp_path / "s.json").exists()
    (tmp_path / "file").write_text("")
    refused = Autosaver(tmp_path / "file" / "s.json")
    refused.save(SESSION)
    assert refused.flush(30)
    assert refused.error is not None
    refused.close(forget=False)


def test_the_owner_is_this_process() -> None:
    save_session(SESSION)
    assert json.loads(paths.session_file().read_text())["owner"] == os.getpid()
