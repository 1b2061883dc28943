"""Whether another process still runs: what tells a crash from an app that is open elsewhere."""

from __future__ import annotations

import os


def is_alive(process: int) -> bool:
    """Whether a process of this number runs. Numbers are used again, so a true answer may be about another one."""
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is there and not ours
    return True
