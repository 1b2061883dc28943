"""Textual's pilot without the work it makes: it waits for what is under way and for nothing else.

``Pilot.press`` and ``Pilot.pause`` post a message to every widget of the screen and wait until each has come to it,
which was half of the time of the tests of screens: a widget that waits at its empty queue would answer at once, so it
is not asked. And they sleep for a fiftieth of a second, twice for a key, in which the screen paints what is half done:
here they wait as long only for what is due by then, and have the screen lay out when all else is done. What changed in
that time is painted once, at its end: no one sees a screen without a terminal while it works, and painting it all the
same was two fifths of what was left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import textual.app
import textual.pilot
import textual.screen
from textual.app import App
from textual.message_pump import MessagePump
from textual.pilot import Pilot, WaitForScreenTimeout
from textual.screen import Screen

TURNS = 3
"""How often the others have their turn of the event loop before one looks who is at rest."""
PATIENCE = 60.0
NAP = 0.02
"""How many seconds Textual's pilot sleeps, and how far ahead this one looks for what is due."""
GLANCE = 0.002
"""How many seconds pass before one looks again whether a thread has ended."""
FRAME = 0.1
"""How many seconds a screen waits before it paints by itself: Textual's sixtieth is over before anything is done."""
AT_MOST = 1.0
"""After how many seconds Textual's pilot sleeps no longer, though the app is busy (it streams, say)."""
NAPS = 20
"""How often it has slept by then at least: on a busy machine a second may pass before a key is heard."""

_piloted: ContextVar[App[Any] | None] = ContextVar("_piloted", default=None)
_in_one_wait: ContextVar[bool] = ContextVar("_in_one_wait", default=False)


def at_rest(pump: MessagePump) -> bool:
    """Whether a widget waits for a message and has none, and no callback for when it is idle."""
    queue: Any = pump._message_queue
    waiting: deque[asyncio.Future[Any]] = queue.ready_event._waiters
    return queue.empty() and not pump._next_callbacks and any(not future.done() for future in waiting)


async def wait_for_the_busy(pilot: Pilot[Any]) -> bool:
    """As ``Pilot._wait_for_screen``: whether the screen and all on it have done what was posted to them by now."""
    app = pilot.app
    for _ in range(TURNS):
        await asyncio.sleep(0)
    try:
        pumps: list[MessagePump] = [app, *app.screen.walk_children(with_self=True)]
    except Exception:  # there is no screen (yet, or any more)
        return False
    left, done = 0, asyncio.Event()

    def one_done() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    left = sum(pump.call_later(one_done) for pump in pumps if not at_rest(pump))
    if not left:
        return app._exception is None
    ends = [asyncio.create_task(event.wait()) for event in (done, app._exception_event)]
    ended, going = await asyncio.wait(ends, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    for task in going:
        task.cancel()
    if not ended:
        raise WaitForScreenTimeout(f"{left} widgets did not come to the end of their messages.")
    return not left


async def nothing_due(app: App[Any], within: float = NAP, at_most: float = AT_MOST) -> bool:
    """Wait until nothing is under way in the app, and nothing will begin by itself ``within`` so many seconds.

    ``False``: after ``at_most`` seconds something still was. What is due later than ``within`` seconds from the start
    is not waited for.
    """
    loop: Any = asyncio.get_running_loop()
    start, naps = loop.time(), 0
    while (now := loop.time()) < start + at_most or (at_most == AT_MOST and naps < NAPS and now < start + PATIENCE):
        await asyncio.sleep(0)
        if loop._ready:  # each of them has its turn before this function has its next
            continue
        if _lay_out(app):
            continue
        soonest = min(_times(app, loop), default=None)
        if in_a_thread(app):
            soonest = min(soonest or loop.time() + GLANCE, loop.time() + GLANCE)
        if soonest is None or soonest > start + within:
            if _paint(app):
                continue
            return True
        await asyncio.sleep(max(0.0, soonest - loop.time()))
        naps += 1
    _paint(app)
    return False


def in_a_thread(app: App[Any]) -> bool:
    """Whether anything of the app is under way in a thread: how long that takes is the machine's business."""
    return any(worker._thread_worker and not worker.is_finished for worker in app.workers)


def due_within(app: App[Any], seconds: float) -> bool:
    """Whether something will begin by itself within so many seconds from now, however long the wait before was."""
    loop: Any = asyncio.get_running_loop()
    return any(when <= loop.time() + seconds for when in _times(app, loop))


def _foremost(app: App[Any]) -> Screen[Any] | None:
    """The screen that may be laid out and painted now."""
    screen = app._screen_stack[-1] if app._screen_stacks.get(app._current_mode) else None
    return None if screen is None or not screen.is_current or app._batch_count or not app._running else screen


def _lay_out(app: App[Any]) -> bool:
    """Have the screen do what its timer would make it do within a sixtieth of a second; whether there was anything."""
    screen = _foremost(app)
    if screen is None:
        return False
    wanted = screen._layout_required or screen._scroll_required or screen._repaint_required
    if not (wanted or screen._dirty_widgets or screen._recompose_required or screen._callbacks):
        return False
    screen._on_timer_update()
    return True


def _paint(app: App[Any]) -> bool:
    """Paint what has changed on the screen since it was last painted; whether anything has."""
    screen = _foremost(app)
    if screen is None or _in_one_wait.get() or not app.is_headless or not screen._compositor._dirty_regions:
        return False
    _paint_now(screen)
    return True


@contextmanager
def one_wait(app: App[Any]) -> Iterator[None]:
    """Have all that is waited for inside painted once, at its end."""
    before = _in_one_wait.set(True)
    try:
        yield
    finally:
        _in_one_wait.reset(before)
    _paint(app)


_paint_now = Screen._compositor_refresh


def _paint_later(screen: Screen[Any]) -> None:
    """Instead of ``Screen._compositor_refresh``: the compositor keeps what has changed until it is painted."""
    app = screen.app
    if not app.is_headless or app.is_inline or screen is not app.screen:
        _paint_now(screen)
    else:
        screen._dirty_widgets.clear()
        app._update_mouse_over(screen)


def _times(app: App[Any], loop: Any) -> Iterator[float]:
    """When each thing that waits for its time is due, but for the sleep of a screen's timer that is stopped."""
    stopped = [_sleep(screen) for stack in app._screen_stacks.values() for screen in stack]
    for handle in loop._scheduled:
        if not handle._cancelled and not (handle._args and any(handle._args[0] is sleep for sleep in stopped if sleep)):
            yield handle._when


def _sleep(screen: Screen[Any]) -> object:
    """What the timer that paints a screen waits for, if it will do nothing when it wakes."""
    timer = screen._update_timer
    task: Any = timer._task
    return None if task is None or timer._active.is_set() else task._fut_waiter


async def _instead_of_a_nap(min_sleep: float = NAP, max_sleep: float = AT_MOST) -> None:
    app = _piloted.get()
    if app is None or not app._running:
        await asyncio.sleep(NAP)
    else:
        await nothing_due(app, NAP, max_sleep)


def ask_only_the_busy() -> None:
    """Have every pilot of this process wait so."""
    press, pause = Pilot.press, Pilot.pause

    async def pressed(self: Pilot[Any], *keys: str) -> None:
        _piloted.set(self.app)
        with one_wait(self.app):
            await press(self, *keys)

    async def paused(self: Pilot[Any], delay: float | None = None) -> None:
        _piloted.set(self.app)
        with one_wait(self.app):
            await pause(self, delay)

    Pilot.press, Pilot.pause = pressed, paused  # type: ignore[method-assign]
    Screen._compositor_refresh = _paint_later  # type: ignore[method-assign, assignment]
    Pilot._wait_for_screen = wait_for_the_busy  # type: ignore[method-assign, assignment]
    textual.screen.UPDATE_PERIOD = FRAME  # type: ignore[misc]
    textual.app.wait_for_idle = textual.pilot.wait_for_idle = _instead_of_a_nap  # type: ignore[attr-defined]
