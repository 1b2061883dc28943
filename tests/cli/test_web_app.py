"""The app in a browser: only for this machine's own page, and the whole app behind it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lens_tui.cli.command import app
from lens_tui.cli.server_verbs import is_own, policy
from tests.apps import PATIENCE
from tests.terminals import ROOT


@pytest.mark.parametrize(
    ("host", "origin", "own"),
    [
        ("127.0.0.1:8000", None, True),
        ("localhost:8000", "http://localhost:8000", True),
        ("127.0.0.1:8000", "http://localhost:8000", True),
        ("127.0.0.1:8000", "http://evil.example", False),
        ("127.0.0.1:8000", "https://127.0.0.1:8000", False),
        ("127.0.0.1:8000", "http://127.0.0.1:8001", False),
        ("127.0.0.1:8000", "null", False),
        ("evil.example:8000", None, False),
        ("127.0.0.1", None, False),
    ],
)
def test_only_its_own_page_is_answered(host: str, origin: str | None, own: bool) -> None:
    assert is_own(host, origin, 8000) is own


def test_the_page_may_ask_nobody_else() -> None:
    sources = policy(8000).replace(";", " ").split()
    assert [source for source in sources if ":" in source and "//" in source] == [
        "ws://127.0.0.1:8000",
        "ws://localhost:8000",
    ]


def test_without_textual_serve_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_tui.cli.server_verbs.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["--serve"])
    assert done.exit_code == 2
    assert "mlx-lens-tui[serve]" in done.stderr


def test_before_a_verb_it_is_refused() -> None:
    done = CliRunner().invoke(app, ["--serve", "keys"])
    assert done.exit_code == 2
    assert "--serve before a verb is for the app" in done.stderr


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def heard(port: int) -> bytes:
    """What the app paints for a browser that opens it and goes to Steer."""
    from aiohttp import ClientSession, WSServerHandshakeError

    url, seen = f"http://127.0.0.1:{port}", b""
    async with ClientSession() as session:
        async with session.get(url) as page:
            assert page.status == 200
            assert page.headers["Content-Security-Policy"] == policy(port)
        with pytest.raises(WSServerHandshakeError):
            await session.ws_connect(f"{url}/ws", headers={"Origin": "http://evil.example"})
        async with session.ws_connect(f"{url}/ws?width=100&height=30") as ws:
            asked = False
            async for message in ws:
                seen += message.data if isinstance(message.data, bytes) else str(message.data).encode()
                if not asked and b"NORMAL" in seen:
                    asked = True
                    await ws.send_json(["stdin", "2"])
                if b"Vectors" in seen:
                    break
    return seen


def test_a_browser_gets_the_whole_app(tmp_path: Path) -> None:
    pytest.importorskip("textual_serve")
    port = free_port()
    env = {**os.environ, "LENS_TUI_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "lens_tui", "--serve", "--port", str(port)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            assert f"http://127.0.0.1:{port}".encode() in server.stdout.readline()
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
            assert b"Vectors" in asyncio.run(asyncio.wait_for(heard(port), 2 * PATIENCE))
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(PATIENCE)
