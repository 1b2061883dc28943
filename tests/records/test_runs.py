"""The history: what came is there, also after a kill; it can be searched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lens_tui.records import Add, Arm, Sampling, SteeringVector
from lens_tui.records.disk import birth, own_birth
from lens_tui.records.run import Candidate, Token
from lens_tui.records.run_store import RUNS, RunStore
from lens_tui.records.store import Family, Store

ROOT = Path(__file__).parents[2]
VECTOR = SteeringVector.of("v", np.arange(1, 9), 2)
ARMS = (Arm("baseline"), Arm("v", (Add(id="a", layer=2, vector=VECTOR, scale=3.0),)))


def token(arm: int, index: int, text: str) -> Token:
    top = (Candidate(7, text, -0.25), Candidate(8, "other\x1b", -1.5))
    kl = None if index else 0.125
    scales = (("a", 3.0),) if arm else ()
    shown, plain = text.strip() or "⏎", -0.5 if arm else None
    return Token(index, 40 + index, shown, text, -0.25, arm, kl, top, scales=scales, reverse_kl=kl, plain_logprob=plain)


def write(store: RunStore, prompt: str, *texts: str, end: bool = True) -> int:
    run = store.begin("demo", prompt, ARMS, Sampling(seed=4, temp=0.5), raw=True, prompt_ids=(0, 5))
    for index, text in enumerate(texts):
        store.add(run, [token(0, index, text), token(1, index, text.upper())])
    if end:
        store.end_arm(run, 0, "stop")
        store.end_arm(run, 1, "length", 0.5)
        store.end(run)
    return run


def test_a_run_comes_back_whole() -> None:
    store = RunStore(":memory:")
    run = write(store, "A prompt \x1b[31m \ud800", " one", " two\n")
    found = store.get(run)
    assert found is not None
    assert (found.model, found.raw, found.prompt_ids, found.state) == ("demo", True, (0, 5), "done")
    assert found.prompt == "A prompt \x1b[31m ?"
    assert found.sampling == Sampling(seed=4, temp=0.5)
    assert [arm.text for arm in found.arms] == [" one two\n", " ONE TWO\n"]
    assert [(arm.reason, arm.dose) for arm in found.arms] == [("stop", None), ("length", 0.5)]
    assert found.arms[1].tokens == (token(1, 0, " ONE"), token(1, 1, " TWO\n"))
    steer = found.arms[1].arm.interventions[0]
    assert isinstance(steer, Add)
    assert steer.vector.direction.tobytes() == VECTOR.direction.tobytes()
    assert store.get(run + 1) is None


def test_runs_are_listed_and_searched() -> None:
    store = RunStore(":memory:")
    first, second = write(store, "about dogs", " bark"), write(store, "about cats", " purr")
    assert [line.id for line in store.list()] == [second, first]
    assert [line.id for line in store.list(limit=1)] == [second]
    assert store.list()[0].arms == ("baseline", "v")
    assert [line.id for line in store.list("bar")] == [first]
    assert [line.id for line in store.list("about")] == [second, first]
    assert store.list('dogs" OR') == []
    assert [line.id for line in store.list("v bark")] == [first], "a run is found by the names of its arms too"


def test_runs_of_earlier_versions_are_found_by_the_names_of_their_arms(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.db")
    store.use(Family("runs", RUNS.migrations[:6]))
    with store.write() as connection:
        for run, names in ((1, ("baseline", "cookery")), (2, ("baseline", "verse")), (3, ())):
            values = (run, 0, 1, "done", "m", "about dogs", 0, "{}", "[]", "", "", "{}", "[]", "[]")
            connection.execute(f"INSERT INTO run VALUES ({', '.join('?' * len(values))})", values)
            connection.execute("INSERT INTO run_text (rowid, prompt, texts) VALUES (?, 'about dogs', 'bark')", (run,))
            for arm, name in enumerate(names):
                record = json.dumps({"name": name, "interventions": []})
                connection.execute("INSERT INTO run_arm (run, arm, record) VALUES (?, ?, ?)", (run, arm, record))
    store.close()
    kept = RunStore(tmp_path / "runs.db")
    assert [line.id for line in kept.list("cookery")] == [1]
    assert [line.id for line in kept.list("verse bark")] == [2]
    assert [line.id for line in kept.list("bark")] == [3, 2, 1]


def test_a_killed_run_keeps_every_finished_step(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    code = (
        "import os, sys; from tests.records.test_runs import *\n"
        "store = RunStore(sys.argv[1])\n"
        "write(store, 'killed', ' one', ' two', ' three', end=False)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=300, check=False)
    assert done.returncode == -9
    with RunStore(path).store as opened:
        store = RunStore(opened)
        running = write(store, "mine", " still", end=False)
        (killed,) = store.broken()
        found = store.get(killed)
        assert found is not None
        assert found.state == "killed"
        assert [arm.text for arm in found.arms] == [" one two three", " ONE TWO THREE"]
        assert [line.id for line in store.list("three")] == [killed]
        mine = store.get(running)
        assert mine is not None
        assert mine.state == "running"
        assert mine.arms[0].text == " still"
        assert store.broken() == []


@pytest.mark.parametrize("owner", [os.getpid(), 1], ids=["this one", "the first"])
def test_runs_of_processes_that_live_are_not_broken(owner: int) -> None:
    store = RunStore(":memory:")
    run = write(store, "x", " y", end=False)
    with store.store.write() as connection:
        connection.execute("UPDATE run SET owner = ?, born = ? WHERE id = ?", (owner, birth(owner), run))
    assert store.broken() == []


@pytest.mark.skipif(not own_birth(), reason="the system does not say when a process began")
@pytest.mark.parametrize("born", [own_birth() + "0", ""], ids=["another birth", "an older version's"])
def test_a_number_that_is_in_use_again_does_not_keep_a_run_running(born: str) -> None:
    store = RunStore(":memory:")
    run = write(store, "x", " y", end=False)
    with store.store.write() as connection:
        connection.execute("UPDATE run SET born = ? WHERE id = ?", (born, run))
    assert store.broken() == [run]


def test_kl_of_earlier_versions_is_kept_up_to_where_the_texts_part(tmp_path: Path) -> None:
    """It was against the baseline's row: of the same text up to the first token that differs, and of none behind it."""
    store = Store(tmp_path / "runs.db")
    store.use(Family("runs", RUNS.migrations[:1]))
    lanes = {(1, 0): "abcde", (1, 1): "abxde", (1, 2): "abcd", (2, 0): "ab", (2, 1): "xb"}
    with store.write() as connection:
        for run in (1, 2):
            connection.execute("INSERT INTO run VALUES (?, 0, 1, 'done', 'm', 'p', 0, '{}', '[]', '')", (run,))
        for (run, arm), text in lanes.items():
            for place, letter in enumerate(text):
                values = (run, arm, place, ord(letter), letter, letter, -1.0, place + 0.5 if arm else 0.0, "[]", "[]")
                connection.execute("INSERT INTO run_token VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    store.close()
    store = RunStore(tmp_path / "runs.db").store
    rows = store.all("SELECT * FROM run_token ORDER BY run, arm, place")
    kept: dict[tuple[int, int], list[float | None]] = {key: [] for key in lanes}
    for row in rows:
        kept[row["run"], row["arm"]].append(row["kl"])
        assert row["reverse_kl"] is row["plain_logprob"] is None
    assert kept[1, 0] == [0.0] * 5
    assert kept[1, 1] == [0.5, 1.5, 2.5, None, None]
    assert kept[1, 2] == [0.5, 1.5, 2.5, 3.5]
    assert kept[2, 1] == [0.5, None]
