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
from lens_tui.records.disk import birth, own_birth
from lens_tui.records.interventions import BenchRow
from lens_tui.records.session_file import (
    MOST_KEPT,
    Autosaver,
    CutOff,
    SavedSession,
    _to_json,
    forget_session,
    interrupted_sessions,
    own_file,
    save_session,
)
from tests.folders import read_session

ROOT = Path(__file__).parents[2]
STEER = BenchRow("s1", SteeringVector.of("dog", np.arange(1, 40), 3), 3, -2.5, enabled=False, arm=2)
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


def only(folder: Path | None = None) -> CutOff:
    """The one session that was cut off."""
    (found,) = interrupted_sessions(folder)
    return found


def owned_by(path: Path, owner: int, born: str | None) -> None:
    """Make a session another process's."""
    data = json.loads(path.read_text()) | {"owner": owner, "born": born}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def test_only_a_dead_apps_session_is_offered() -> None:
    save_session(SESSION)
    assert interrupted_sessions() == []  # ours: it runs
    path = own_file()
    owned_by(path, os.getppid(), birth(os.getppid()))
    assert interrupted_sessions() == []  # another's: it runs
    owned_by(path, 2**22 + 1, "")
    assert same(only().session, SESSION)


@pytest.mark.skipif(not own_birth(), reason="the system does not say when a process began")
@pytest.mark.parametrize("owner", [os.getpid(), os.getppid(), 1], ids=["ours", "our parent's", "the first"])
def test_a_number_that_is_in_use_again_does_not_hide_a_crash(owner: int) -> None:
    save_session(SESSION)
    owned_by(own_file(), owner, own_birth() + "0")
    assert same(only().session, SESSION)
    owned_by(own_file(), owner, birth(owner))
    assert interrupted_sessions() == []


@pytest.mark.skipif(not own_birth(), reason="the system does not say when a process began")
def test_a_session_of_an_older_version_with_our_number_is_not_ours() -> None:
    """In a container every app has the same number; older versions wrote no birth."""
    save_session(SESSION)
    owned_by(own_file(), os.getpid(), None)
    assert same(only().session, SESSION)


def test_two_at_once_never_lose_each_others(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.records.test_session_file import *\n"
        "saver = Autosaver(); saver.save(replace(SESSION, prompt=sys.argv[1])); assert saver.flush(60)\n"
        "print('kept', flush=True); sys.stdin.readline()\n"
        "saver.close(forget=sys.argv[1] == 'ends well')\n"
    )
    prompts = ("is killed", "ends well")
    apps = [subprocess.Popen([sys.executable, "-c", code, prompt], stdin=-1, stdout=-1, cwd=ROOT) for prompt in prompts]
    for app in apps:
        assert app.stdout is not None
        assert app.stdout.readline() == b"kept\n"
    assert interrupted_sessions() == []
    assert len(list(paths.sessions_folder().glob("*.json"))) == 2
    apps[0].kill()
    apps[0].communicate()
    apps[1].communicate(b"\n")
    assert same(only().session, replace(SESSION, prompt="is killed"))


def test_the_newest_comes_first_and_only_so_many_are_kept() -> None:
    folder = paths.sessions_folder()
    for number in range(MOST_KEPT + 3):
        path = folder / f"{number}.json"
        save_session(replace(SESSION, prompt=str(number)), path)
        owned_by(path, 2**22 + 1, "")
        os.utime(path, (number, number))
    found = interrupted_sessions()
    assert [item.session.prompt for item in found if item.session] == [str(n) for n in range(MOST_KEPT + 2, 2, -1)]
    assert len(list(folder.glob("*.json"))) == MOST_KEPT


def test_the_one_file_of_before_is_still_offered() -> None:
    path = paths.session_file()
    save_session(SESSION, path)
    owned_by(path, 2**22 + 1, None)
    assert same(only().session, SESSION)
    assert only().path == path


def test_a_newer_versions_is_said_and_left_as_it_is() -> None:
    save_session(SESSION)
    path = own_file()
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    text = path.read_text()
    for _ in range(2):
        assert only().session is None
        assert "newer version" in only().problem
    assert path.read_text() == text


def test_a_killed_app_leaves_its_last_change(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    code = (
        "import os, sys; from pathlib import Path; from tests.records.test_session_file import *\n"
        "saver = Autosaver(Path(sys.argv[1]))\n"
        "for n in range(50): saver.save(replace(SESSION, prompt=f'prompt {n}'))\n"
        "assert saver.flush(30)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=300, check=False)
    assert done.returncode == -9
    assert same(only(tmp_path).session, replace(SESSION, prompt="prompt 49"))


GOOD = json.dumps(_to_json(replace(SESSION, steers=())))
DAMAGED = {
    **{text: text for text in ("", "{", "[]", "3", '{"version": 1}')},
    "steers are texts": GOOD.replace('"steers": []', '"steers": ["x"]'),
    "owner is infinite": GOOD.replace(f'"owner": {os.getpid()}', '"owner": Infinity'),
    "version is not a number": GOOD.replace('"version": 1', '"version": "new"'),
    "a number of 5000 digits": GOOD.replace('"version": 1', '"version": ' + "9" * 5000),
    "deep": "[" * 100_000,
    "no UTF-8": "\udcff",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_put_aside_and_said(what: str) -> None:
    path = own_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    data = DAMAGED[what].encode("utf-8", "surrogateescape")
    path.write_bytes(data)
    with pytest.raises(LensError):
        read_session()
    found = only()
    assert found.session is None
    assert "It is kept as" in found.problem
    assert len(found.problem) < 600
    assert found.path.read_bytes() == data
    assert interrupted_sessions() == []


def test_a_pipe_in_its_place_is_put_aside() -> None:
    own_file().parent.mkdir(parents=True)
    os.mkfifo(own_file())
    assert "not a regular file" in only().problem
    assert interrupted_sessions() == []


def test_whatever_is_in_a_prompt_is_kept() -> None:
    odd = replace(SESSION, prompt="\ud800 \x1b \u2028 \U0001f600")
    save_session(odd)
    assert same(read_session(), odd)


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


def test_a_refusing_disk_is_told_once_and_an_old_file_stays_until_the_new_one_is_there(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    save_session(SESSION, old)
    folder, told = tmp_path / "file", list[LensError]()
    folder.write_text("")
    saver = Autosaver(folder / "s.json", told.append)
    saver.save(SESSION, in_place_of=old)
    assert saver.flush(30)
    saver.save(replace(SESSION, sampling=Sampling(temp=float("nan"))))
    assert saver.flush(30)
    assert len(told) == 1
    assert old.exists()
    folder.unlink()
    saver.save(SESSION)
    saver.close(forget=False)
    assert same(read_session(folder / "s.json"), SESSION)
    assert not old.exists()


def test_the_owner_is_this_process() -> None:
    save_session(SESSION)
    data = json.loads(own_file().read_text())
    assert (data["owner"], data["born"]) == (os.getpid(), own_birth())
