"""Start Python code in several processes that share a ring on this machine, and gather what each one prints."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
LONGEST = 240
"""Seconds after which processes that wait for each other are ended; a machine under load takes some of them."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


def ring_environments(folder: Path, size: int) -> list[dict[str, str]]:
    """The environment of each process of a ring of ``size`` on this machine."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
    return [
        {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "PYTHONPATH": str(ROOT)}
        for rank in range(size)
    ]


def run_ring(folder: Path, size: int, arguments: list[str]) -> list[tuple[int, str, str]]:
    """Run Python with these arguments in ``size`` processes at once.

    Returns:
        For each process its exit status, what it printed, and what it said on standard error. Once one has failed the
        others, which would wait for it, are ended.
    """
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        for environment in ring_environments(folder, size)
    ]
    try:
        said = [process.communicate(timeout=LONGEST) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def results(folder: Path, size: int, arguments: list[str]) -> list[Any]:
    """The JSON that each process printed as its last line; all of them have to end well."""
    found = run_ring(folder, size, arguments)
    assert all(status == 0 for status, *_ in found), [error[-3000:] for *_, error in found]
    return [json.loads(out.splitlines()[-1]) for _, out, _ in found]
