"""What only a process of its own can show: who imports mlx, and that quitting is clean whatever the model is doing."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.folders import lens_home

ROOT = Path(__file__).parents[2]

# Evaluates MLX graphs all the time, as a generation does, without the seconds that importing a tokenizer costs.
BUSY = """
import sys, threading
from lens_tui.worker import events as ev, jobs
from lens_tui.worker.thread import leave
from lens_tui.worker.thread import Worker

class Busy:
    def __call__(self, control):
        import mlx.core as mx
        x, step = mx.random.normal((256, 256)), 0
        while True:
            for _ in range(4):
                x = mx.softmax(x @ x)
            mx.eval(x)
            yield ev.Speed(control.id, 0.0, step, 0)
            step += 1
            x = x + mx.random.normal(x.shape)
    def close(self): pass

first = threading.Event()
worker = Worker(Busy)
worker.start(first.set)
job = worker.submit(jobs.UnloadModel())
steps = 0
while steps < 3:
    first.wait(300); first.clear()
    steps += sum(isinstance(event, ev.Speed) for event in worker.drain())
"""
ENDINGS = {
    "leave": ("leave(worker, 0)", 0),
    "leave with a status": ("leave(worker, 7)", 7),
    "close and return": ("assert worker.close(30)", 0),
    "just return": ("", 0),
    "exit": ("sys.exit(5)", 5),
    "an exception": ("raise KeyError('x')", 1),
}


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LENS_TUI_HOME": str(lens_home(folder))}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=environment,
        check=False,
    )


def test_quitting_in_mid_evaluation_is_clean_twenty_times_of_twenty(tmp_path: Path) -> None:
    endings = [ENDINGS["leave"]] * 10 + [ENDINGS["close and return"]] * 5 + [ENDINGS["just return"]] * 5
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda ending: run(BUSY + ending[0], tmp_path), endings))
    assert [(process.returncode, process.stderr) for process in done] == [(0, "")] * 20


@pytest.mark.parametrize("ending", ["leave with a status", "exit", "an exception"])
def test_the_status_is_kept(ending: str, tmp_path: Path) -> None:
    code, status = ENDINGS[ending]
    process = run(BUSY + code, tmp_path)
    assert process.returncode == status, process.stderr


def test_mlx_is_imported_by_the_worker_alone_and_only_for_a_job(tiny: Path, tmp_path: Path) -> None:
    code = f"""
import builtins, sys, threading
importers = set()
plain = builtins.__import__
def watch(name, *rest, **named):
    if name.partition('.')[0] in ('mlx', 'mlx_lm'):
        importers.add(threading.current_thread().name)
    return plain(name, *rest, **named)
builtins.__import__ = watch

from lens_tui.worker import events as ev, jobs
from lens_tui.worker.thread import Worker
bell = threading.Semaphore(0)
worker = Worker()
worker.start(bell.release)
assert not any(name.partition('.')[0] == 'mlx' for name in sys.modules), 'imported before there was a job'
def wait(job):
    while True:
        assert bell.acquire(timeout=300)
        for event in worker.drain():
            if event.job == job and isinstance(event, (ev.JobDone, ev.JobFailed)):
                return event
assert isinstance(wait(worker.submit(jobs.LoadModel({str(tiny)!r}))), ev.JobDone)
assert isinstance(wait(worker.submit(jobs.Compare('Once upon a time', ()))), ev.JobDone)
assert 'mlx.core' in sys.modules
# Its own thread, and the one with which it imports what comes next while weights are read, and which it waits for.
assert {{'mlx'}} <= importers <= {{'mlx', 'imports'}}, importers
assert worker.close(60)
"""
    process = run(code, tmp_path)
    assert process.returncode == 0, process.stderr


def test_quitting_while_the_real_model_writes(tiny: Path, tmp_path: Path) -> None:
    code = f"""
import threading
from lens_tui.records import Sampling
from lens_tui.worker import events as ev, jobs
from lens_tui.worker.thread import leave
from lens_tui.worker.thread import Worker
bell = threading.Semaphore(0)
worker = Worker()
worker.start(bell.release)
worker.submit(jobs.LoadModel({str(tiny)!r}))
worker.submit(jobs.Compare('Once upon a time', (), Sampling(max_tokens=100_000)))
while True:
    assert bell.acquire(timeout=300)
    for event in worker.drain():
        assert not isinstance(event, ev.JobFailed), event
        if isinstance(event, ev.TokenEvent) and event.token.index == 5:
            leave(worker)
"""
    process = run(code, tmp_path)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("room", ["lens_tui.worker.thread", "lens_tui.tasks.models", "lens_tui.worker.handlers"])
def test_importing_brings_no_mlx_and_no_screen(room: str, tmp_path: Path) -> None:
    code = f"import sys, {room}; print(sorted({{'mlx', 'mlx_lm', 'textual', 'rich'}} & set(sys.modules)))"
    assert run(code, tmp_path).stdout.strip() == "[]"
