"""The app's own cost: first frame against an empty Textual app, the event loop while four lanes stream, and leaving.

Every app runs in a fresh process on a pseudo terminal of 120x36 whose output is read and thrown
away, so layout, painting and writing are all in the figures; no model is loaded.

First frame: from the start of the process until what is first painted has been painted, median of the
repeats, the three in turn: an empty app, this one on Load, this one with ``--demo`` (on Generate), both as
the command starts them. Byte code is kept as in an installed package; a round that makes it is not counted.

Streaming: a thread makes tokens at a steady rate in every lane and wakes the app as the worker does;
a task on the event loop sleeps 5 ms again and again and notes how late it wakes. The same before the
run, with the app idle, shows how much of that is the machine's. Then keys go to the app while the
lanes stream on, and each is timed until the frame that shows what it did has been painted.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import resource
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

from . import leaving
from .machine import Options
from .report import Bound, Row, at_most, duration, of_times
from .serving import ROOT
from .turns import medians

SIZE = (36, 120)
WORDS = (" the", " little", " dog", " ran", " to", " exchange", ",", " medi", "um", " of", ".", "\n")


class SteadyWorker:
    """Implements ``WorkerLike``: each ``Compare`` gives every arm ``rate`` tokens a second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.box: deque[Any] = deque()
        self.made = 0
        self._armed = False
        self._halt = Event()
        self._wake: Callable[[], None] = lambda: None

    def start(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def submit(self, job: Any) -> int:
        Thread(target=self._write, args=(job,), daemon=True).start()
        return 1

    def stop(self, job_id: int | None = None) -> None:
        self._halt.set()

    def dial(self, job_id: int, arm: int, interventions: Any) -> None:
        pass

    def drain(self) -> list[Any]:
        self._armed = False
        events = []
        while self.box:
            events.append(self.box.popleft())
        return events

    def close(self, timeout: float = 0.15) -> bool:
        self._halt.set()
        return True

    def _put(self, event: Any) -> None:
        self.box.append(event)
        if not self._armed:
            self._armed = True
            self._wake()

    def _write(self, job: Any) -> None:
        from lens_tui.records import Candidate, Token
        from lens_tui.worker import events as ev

        arms, most = len(job.arms), job.sampling.max_tokens
        self._put(ev.JobStarted(1, "compare"))
        self._put(ev.RunStarted(1, (1,), ("a",), tuple(arm.name for arm in job.arms)))
        begin = time.perf_counter()
        for step in range(most):
            late = begin + step / self.rate - time.perf_counter()
            if self._halt.wait(max(0.0, late)):
                break
            for arm in range(arms):
                word = WORDS[(step * 7 + arm + step // 5) % len(WORDS)]
                shown = word.replace("\n", "⏎")
                top = tuple(Candidate(n, shown, -1.0 - n) for n in range(5))
                made = Token(step, step + arm, shown, word, -(step % 9) / 2, arm, (step % 11) / 3, top)
                self._put(ev.TokenEvent(1, made))
                self.made += 1
            self._put(ev.Speed(1, self.rate * arms, step + 1, most))


def stream_child(rate: float, lanes: int, seconds: float) -> dict[str, float]:
    """Run the app on Generate with ``lanes`` streaming lanes; figures of the event loop and the process."""
    import asyncio

    import numpy as np

    from lens_tui.records import Sampling, SteeringVector
    from lens_tui.tui.app import LensApp
    from lens_tui.tui.preferences import Start
    from lens_tui.tui.screens.generate_screen import GenerateScreen
    from lens_tui.tui.start import rare_collections

    out: dict[str, float] = {}

    class Measured(LensApp):
        def on_ready(self) -> None:
            self.run_worker(self._measure(), exit_on_error=True)

        async def _measure(self) -> None:
            await asyncio.sleep(0.5)
            self.store.update(model=_model(), prompt="p", sampling=Sampling(max_tokens=int(seconds * rate * 4)))
            for lane in range(1, lanes):
                vector = SteeringVector.of(f"v{lane}", np.arange(1.0, 9.0), 0)
                self.store.add_steer(vector, scale=float(lane))
            await asyncio.sleep(0.5)
            out.update(tail("idle", await _lags(seconds / 4)))
            self.action_run()
            await asyncio.sleep(1.0)
            made, cpu, start = worker.made, time.process_time(), time.perf_counter()
            out.update(tail("lag", await _lags(seconds)))
            wall = time.perf_counter() - start
            screen = self.screen
            assert isinstance(screen, GenerateScreen)
            shown = sum(len(lane.view.tokens) for lane in screen.lanes.lanes)
            out.update(
                cpu_share=(time.process_time() - cpu) / wall,
                made_per_s=(worker.made - made) / wall,
                behind_tokens=worker.made - shown,
            )
            out.update(tail("key", await presses(self, int(seconds * 5))))
            self.exit()

    worker = SteadyWorker(rate)
    app = Measured(worker, Start(screen="generate"))
    with rare_collections() as app_is_up:  # as the command starts it
        app.after_first_frame(app_is_up)
        app.run()
    return out


async def _lags(seconds: float) -> list[float]:
    """How late a sleep of 5 ms wakes on this event loop, over and over, in seconds."""
    import asyncio

    lags, end = [], time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        await asyncio.sleep(0.005)
        lags.append(time.perf_counter() - now - 0.005)
    return sorted(lags)


async def presses(app: Any, count: int) -> list[float]:
    """Seconds from a key that shades every lane anew to the next frame handed to the terminal, ``count`` times."""
    import asyncio

    screen, painted, waits = app.screen, asyncio.Event(), []
    act, display = screen.action_measure, app._display
    acted = False

    def timed(name: str = "") -> None:
        nonlocal acted
        act(name)
        acted = True

    def shown(*arguments: Any) -> None:
        display(*arguments)
        if acted:
            painted.set()

    screen.action_measure, app._display = timed, shown
    for number in range(count):
        await asyncio.sleep(0.1 + 0.013 * (number % 7))  # at no fixed place within a frame
        painted.clear()
        acted, start = False, time.perf_counter()
        app.simulate_key("v")
        await painted.wait()
        waits.append(time.perf_counter() - start)
    return sorted(waits)


def tail(name: str, lags: list[float]) -> dict[str, float]:
    pick = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {f"{name} {key}": 1000 * lags[min(len(lags) - 1, int(share * len(lags)))] for key, share in pick.items()}


def _model() -> Any:
    from lens_tui.records import ModelInfo

    return ModelInfo("bench", "", "llama", 8, 8, 100, 1, "bfloat16", "", 1, False, 0, "cpu")


def frame_child(which: str, result: Path) -> None:
    """Start one app and leave at its first frame; writes when that was, and the CPU the process had used by then."""

    def first_frame(app: Any) -> None:
        figures = {"at": time.time(), "cpu": time.process_time()}
        result.write_text(json.dumps(figures))
        app.exit()

    if which == "empty":
        from textual.app import App, ComposeResult
        from textual.widgets import Static

        class Empty(App[None]):
            def compose(self) -> ComposeResult:
                yield Static("hello")

            def on_ready(self) -> None:
                self.call_after_refresh(first_frame, self)

        Empty().run()
    else:
        from lens_tui.cli import main as command
        from lens_tui.tui import start

        make = start.make_app

        def measured(*arguments: Any, **options: Any) -> Any:
            app = make(*arguments, **options)
            app.after_first_frame(lambda: first_frame(app))
            return app

        start.make_app = measured
        sys.argv = ["mlx-lens-tui", *(["--demo"] if which == "demo" else [])]
        command()


def in_terminal(
    *arguments: str, module: str = "benchmarks.app", byte_code: str = "", home: str = ""
) -> dict[str, float]:
    """Run a ``module`` of this package on a pseudo terminal; returns what it wrote to its result file.

    ``byte_code`` is a folder that keeps compiled modules from one run to the next, ``home`` one for the app's own
    files (by default a new one).
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        begin = time.time()
        pid, master = pty.fork()
        if pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LENS_TUI_HOME": home or folder}
            if byte_code:
                os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
                os.environ["PYTHONPYCACHEPREFIX"] = byte_code
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, "-m", module, "--child", str(result), *arguments])
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        written = _swallow(master)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) or not result.exists():
            raise RuntimeError(f"the measured app failed: {' '.join(arguments)}")
        figures: dict[str, float] = json.loads(result.read_text())
        return figures | {"begin": begin, "bytes": written}


def _swallow(master: int) -> int:
    """Read the terminal's output to its end; how many bytes came."""
    count = 0
    while True:
        select.select([master], [], [])
        try:
            data = os.read(master, 1 << 16)
        except OSError:
            return count
        if not data:
            return count
        count += len(data)


LANES, RATE = 4, 60.0


def rows(options: Options) -> Iterator[Row]:
    """First frames, ``--help``, and the app while it streams."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {which: partial(in_terminal, "--what", which, byte_code=folder) for which in ("empty", "load", "demo")}
        cpu: dict[str, list[float]] = {which: [] for which in runs}

        def framed(which: str) -> float:
            found = runs[which]()
            cpu[which].append(found["cpu"])
            return found["at"] - found["begin"]

        found = medians({which: partial(framed, which) for which in runs}, options.repeats(7))
    for which, said in (("load", "on Load"), ("demo", "with --demo")):
        yield of_times(f"first frame {said}", found[which], found["empty"], "an empty Textual app", at_most(2.0))
        # The first was the round that makes the byte code.
        ours, empty = (median(cpu[each][1:]) for each in (which, "empty"))
        yield of_times(f"first frame {said}, CPU", ours, empty, "an empty Textual app")
    spent = medians({"help": _cpu_of_help}, options.repeats(5))["help"]
    yield Row("--help, CPU", duration(spent), "", spent, at_most(0.25), "s")
    seconds = 5.0 if options.quick else 15.0
    ran = in_terminal("--what", "stream", "--rate", str(RATE), "--lanes", str(LANES), "--seconds", str(seconds))
    lanes = f"{LANES} lanes of {RATE:g} tokens/s"
    yield _milliseconds(f"event loop late while {lanes} stream, p95", ran["lag p95"], f"idle: {ran['idle p95']:.1f} ms")
    yield _milliseconds(f"event loop late while {lanes} stream, p99", ran["lag p99"], f"idle: {ran['idle p99']:.1f} ms")
    yield _milliseconds("key to painted frame meanwhile, p50", ran["key p50"])
    yield _milliseconds("key to painted frame meanwhile, p95", ran["key p95"], bound=at_most(60))
    yield from leaving.rows(options)


def _milliseconds(what: str, value: float, peer: str = "", bound: Bound | None = None) -> Row:
    return Row(what, f"{value:.1f} ms", peer, value, bound, "ms")


def _cpu_of_help() -> float:
    """CPU seconds of ``mlx-lens-tui --help`` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = "import sys; from lens_tui.cli import main; sys.argv = ['mlx-lens-tui', '--help']; main()"
    subprocess.run([sys.executable, "-c", command], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Be one measured app, as :func:`in_terminal` asks, and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", type=Path, required=True)
    parser.add_argument("--what", required=True)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--lanes", type=int)
    asked = parser.parse_args()
    if asked.what == "stream":
        asked.child.write_text(json.dumps(stream_child(asked.rate, asked.lanes, asked.seconds)))
    else:
        frame_child(asked.what, asked.child)


if __name__ == "__main__":
    main()
