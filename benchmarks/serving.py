"""A process beside this one that takes its turns when it is told to: each line in is a task, each line out its answer.

Only the standard library is used, so that the Python of a peer's own environment can run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class PeerFailed(Exception):
    """A process ended, or could not do a task; the message is the last line that it wrote."""


def serve(tasks: Mapping[str, Callable[[], object]], hello: object, clock: Callable[[], float]) -> None:
    """Do what is read from standard input and write what each took; what the tasks print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value: object) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    say(hello)
    for line in sys.stdin:
        work = tasks[line.strip()]
        start = clock()
        work()
        say(clock() - start)


class Served:
    """The process of a module that calls :func:`serve`; ``hello`` is what it said first. A context manager."""

    def __init__(
        self, python: str, module: str, *arguments: str, folder: Path = ROOT, also: Mapping[str, str] | None = None
    ) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))), **(also or {})}
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
            cwd=folder,
        )
        self.hello: Any = self._answer()

    def seconds(self, task: str) -> float:
        """Have it do a task; what that took by its own clock."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(task + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # why is in what it wrote
        return float(self._answer())

    def contender(self, task: str) -> Callable[[], float]:
        """The task as something that takes turns."""
        return lambda: self.seconds(task)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            lines = self._said.read().strip().splitlines()
            raise PeerFailed(lines[-1][:300] if lines else f"ended with status {self._process.returncode}")
        return json.loads(line)


def first_that_has(pythons: Sequence[str], wanted: str) -> str | None:
    """The first Python in which the expression ``wanted`` over ``version`` (of a distribution) is true."""
    probe = f"from importlib.metadata import version\nraise SystemExit(not ({wanted}))"
    for python in pythons:
        try:
            done = subprocess.run([python, "-c", probe], capture_output=True, check=False, timeout=120)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return python
    return None


wall = time.perf_counter
