"""Textual's pilot without the work it makes: it asks only those widgets that have something to do.

``Pilot.press`` and ``Pilot.pause`` post a message to every widget of the screen and wait until each has come to it,
which was half of the time of the tests of screens. A widget that waits at its empty queue would answer at once, so it
is not asked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from textual.message_pump import MessagePump
from textual.pilot import Pilot, WaitForScreenTimeout

TURNS = 3
"""How often the others have their turn of the event loop before one looks who is at rest."""
PATIENCE = 60.0


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


def ask_only_the_busy() -> None:
    """Have every pilot of this process wait so."""
    Pilot._wait_for_screen = wait_for_the_busy  # type: ignore[method-assign, assignment]
