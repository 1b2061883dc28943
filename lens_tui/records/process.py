"""Whether another process still runs: what tells a crash from an app that is open elsewhere."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

_PS_PATIENCE = 2.0


def is_alive(process: int, born: str = "") -> bool:
    """Whether a process runs. Numbers are used again: ``born``, its :func:`birth`, tells it from a later one.

    Without ``born``, and where the system does not say when a process began, a true answer may be about another.
    """
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False  # no system has such a number
    except OSError:
        pass  # it is there and not ours
    return not born or birth(process) in ("", born)


def birth(process: int) -> str:
    """When a process began, in the words of the system, the boot of the machine with it; empty if it does not say."""
    try:
        # The name in brackets may hold anything; the 22nd field is the start in ticks since the boot.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {fields[19]}"
    except (OSError, IndexError, ValueError):
        return "" if sys.platform == "linux" else _told_by_ps(process)


@cache
def own_birth() -> str:
    """The :func:`birth` of this process."""
    return birth(os.getpid())


def _told_by_ps(process: int) -> str:
    import subprocess

    command = ["ps", "-o", "lstart=", "-p", str(process)]
    env = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PS_PATIENCE, env=env, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(done.stdout.split())
