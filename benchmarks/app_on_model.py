"""The app on the bundled model: start to first token, tokens/s against the library alone, keys while the model runs.

Start: ``--demo``, and ``r`` pressed as soon as the first frame is up; the seconds from the start of the process until
the frame with the first token has been painted, against that first frame.

Streaming: four arms (the baseline and three steered), the same run in turns as the app shows it and as the library
makes it, on the app's own MLX thread, for nobody. Of the app: tokens painted after the first frame that shows any,
over the time until the last has been painted. What two cores give at most is measured in the same turns: the library
alone while another process, which shares nothing with it, is busy for the share of the time that the app's screen is.
Then runs in which keys go to the app meanwhile, each timed until the
frame that shows what it did has been painted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .app import in_terminal, presses, tail
from .machine import Options
from .report import Row, at_least, at_most, of_speeds, of_times
from .turns import paired

LANES = 4
LAYER, SCALE = 4, 6.0


def start_child(result: Path) -> None:
    """Open the app on the bundled model, run at once, leave when a token has been painted."""
    from lens_tui.cli import main as command
    from lens_tui.tui import start

    make, figures = start.make_app, {}

    def shown(app: Any, display: Callable[..., None], *arguments: Any) -> None:
        display(*arguments)
        if "token" not in figures and any(lane.view.tokens for lane in app.screen.lanes.lanes):
            figures.update(token=time.time(), cpu=time.process_time())
            result.write_text(json.dumps(figures))
            app.exit()

    def pressed(app: Any) -> None:
        figures.update(frame=time.time(), frame_cpu=time.process_time())
        app.simulate_key("r")

    def measured(*arguments: Any, **options: Any) -> Any:
        app = make(*arguments, **options)
        display = app._display
        app._display = lambda *shown_: shown(app, display, *shown_)
        app.after_first_frame(lambda: pressed(app))
        return app

    start.make_app = measured
    sys.argv = ["mlx-lens-tui", "--demo"]
    command()


def stream_child(runs: int, tokens: int) -> dict[str, Any]:
    """The app and the library in turns, then the app under keys."""
    from lens_tui.records import LensError, Token
    from lens_tui.tui.app import LensApp
    from lens_tui.tui.preferences import Start
    from lens_tui.tui.start import rare_collections
    from lens_tui.worker import jobs
    from lens_tui.worker.events import JobDone, JobFailed
    from lens_tui.worker.handlers import Context, Handlers
    from lens_tui.worker.thread import Worker

    out: dict[str, Any] = {"app": [], "library": [], "beside": [], "share": [], "key": []}
    vectors = _vectors()

    @dataclass(frozen=True, slots=True)
    class Alone(jobs.Job):
        """The run without the app."""

    class Runner(Handlers):
        def __call__(self, control: Any) -> Iterator[Any]:
            return self._alone() if isinstance(control.job, Alone) else super().__call__(control)

        def _alone(self) -> Iterator[Any]:
            model = context.model
            if model is None:
                raise LensError("no model")
            session = app.store.session
            items = model.compare(session.prompt, session.arms(), session.sampling, top=5)  # the app's five candidates
            times = [time.perf_counter() for item in items if isinstance(item, Token)]
            out[kind].append((len(times) - LANES) / (times[-1] - times[LANES - 1]))
            yield from ()

    class Measured(LensApp):
        def on_ready(self) -> None:
            self.run_worker(self._measure(), exit_on_error=True)

        async def _measure(self) -> None:
            import asyncio
            from dataclasses import replace

            while self.opening.going or self.store.session.model is None:  # noqa: ASYNC110 - the app has no event for it
                await asyncio.sleep(0.05)
            sampling = replace(self.store.session.sampling, max_tokens=tokens, temp=1.0)
            self.store.update(steers=(), sampling=sampling)
            for vector in vectors:
                self.store.add_steer(vector, scale=SCALE)
            await asyncio.sleep(0.5)
            for turn in range(runs + 1):  # the first warms both
                await self._alone("library")
                await self._shown()
                with busy(out["share"][-1]):
                    await self._alone("beside")
                if not turn:
                    out.update(app=[], library=[], beside=[], share=[])
            self.store.update(sampling=replace(sampling, max_tokens=100 * tokens))
            self.action_run()
            await asyncio.sleep(1.0)
            out["key"] = await presses(self, 100)
            self.exit()

        async def _alone(self, which: str) -> None:
            import asyncio

            nonlocal kind
            kind, done = which, asyncio.Event()
            self.submit(Alone(), "run", lambda event: done.set() if isinstance(event, JobDone | JobFailed) else None)
            await done.wait()
            await asyncio.sleep(0.3)

        async def _shown(self) -> None:
            import asyncio

            seen: list[tuple[float, int]] = []
            screen, display = self.screen, self._display
            begun, spent = time.perf_counter(), time.thread_time()

            def shown(*arguments: Any) -> None:
                display(*arguments)
                count = sum(len(lane.view.tokens) for lane in screen.lanes.lanes)
                if count and (not seen or count > seen[-1][1]):
                    seen.append((time.perf_counter(), count))

            old = screen.run
            self._display = shown  # type: ignore[method-assign]
            self.action_run()
            while screen.run is old or screen.run.going:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            out["share"].append((time.thread_time() - spent) / (time.perf_counter() - begun))
            await asyncio.sleep(0.3)
            self._display = display  # type: ignore[method-assign]
            (begin, first), (end, last) = seen[0], seen[-1]
            out["app"].append((last - first) / (end - begin))

    kind, context = "library", Context()
    app = Measured(Worker(lambda: Runner(context)), Start(screen="generate", model="demo"))
    with rare_collections() as app_is_up:  # as the command starts it
        app.after_first_frame(app_is_up)
        app.run()
    return out


@contextmanager
def busy(share: float) -> Iterator[None]:
    """A process beside this one that computes for a share of the time, 10 ms after 10 ms."""
    loop = (
        "import time\nwhile True:\n end = time.perf_counter() + 0.01\n"
        f" while time.perf_counter() < end - {0.01 * (1 - share):.5f}: pass\n"
        " time.sleep(max(0, end - time.perf_counter()))"
    )
    other = subprocess.Popen([sys.executable, "-c", loop])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def _vectors() -> list[Any]:
    import numpy as np

    from lens_tui.records import SteeringVector

    draw = np.random.default_rng(7)
    return [SteeringVector.of(f"v{lane}", draw.normal(size=384), LAYER) for lane in range(1, LANES)]


def rows(options: Options) -> Iterator[Row]:
    """Start to first token, and the app beside the library."""
    starts: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as kept:
        for _ in range(options.repeats(5) + 1):
            home = f"{kept}/home"
            starts.append(in_terminal("--what", "start", module=MODULE, byte_code=f"{kept}/codes", home=home))
    token, frame = (median(run[at] - run["begin"] for run in starts[1:]) for at in ("token", "frame"))
    yield of_times("start to first token, r pressed at the first frame", token, frame, "the first frame")
    sizes = ["--runs", str(options.repeats(6)), "--tokens", "120"]
    ran: dict[str, Any] = in_terminal("--what", "stream", *sizes, module=MODULE)
    app, library = median(ran["app"]), median(ran["library"])
    what, share = f"{LANES} arms x 120 tokens", median(ran["share"])
    peer = "the library alone"
    yield of_speeds(f"{what} seen in the app", app, library, peer, at_least(0.97), ratio=paired(ran, "app", "library"))
    beside = f"{what} by the library beside a process that is busy {share:.0%} of the time, as the screen is"
    yield of_speeds(beside, median(ran["beside"]), library, peer, ratio=paired(ran, "beside", "library"))
    for name, value in tail("key", ran["key"]).items():
        if name in ("key p50", "key p95"):
            bound = at_most(60) if name == "key p95" else None
            what = f"key to painted frame while the model writes, {name.split()[1]}"
            yield Row(what, f"{value:.1f} ms", "", value, bound, "ms")


MODULE = "benchmarks.app_on_model"


def main() -> None:
    """Be one measured app, as :func:`rows` asks, and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--child", type=Path, required=True)
    parser.add_argument("--what", required=True)
    asked = parser.parse_args()
    if asked.what == "start":
        start_child(asked.child)
    else:
        asked.child.write_text(json.dumps(stream_child(asked.runs, asked.tokens)))


if __name__ == "__main__":
    main()
