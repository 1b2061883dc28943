"""What every test of the app needs: no blinking cursor, no animation, no folder but its own."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path

import pytest
import typer.main
import typer.testing
from hypothesis import HealthCheck, settings

import lens_tui  # noqa: F401 - before any test imports mlx, as in a program that begins with lens_tui
from tests.folders import lens_home

os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
for _of_the_shell in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_of_the_shell, None)
sys.dont_write_bytecode = False  # or every process a test starts compiles the package anew

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

LONGEST_ID = 80  # a test's id stands in the environment of every command it starts, which takes 128 kB


def pytest_make_parametrize_id(val: object) -> str | None:
    """Say the length of a long text or of many bytes, where pytest would write them whole into the test's name."""
    if isinstance(val, str | bytes) and len(val) > LONGEST_ID:
        return f"{val[:20]!r} and on, {len(val)}"
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores (``-n auto``): tests of screens and of other processes wait half of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 2


def pytest_configure(config: pytest.Config) -> None:
    """Before there are processes to share the tests, have two compile what each of them would (``compile_all.py``)."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        command = [sys.executable, str(Path(__file__).with_name("compile_all.py"))]
        compiling = [subprocess.Popen([*command, str(part), "2"]) for part in range(2)]
        for process in compiling:
            process.wait()


def pytest_collection_finish() -> None:
    """Leave what is there now (every module and test) out of each garbage collection, and collect more seldom.

    The tests allocate much that is freed at once; going through two million lasting objects was a fifth of their time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new name each time; ``tmp_path`` reads the names of all tests' folders before it makes one."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_folders(_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_TUI_HOME", str(lens_home(next(_homes))))


@pytest.fixture(scope="session", autouse=True)
def _one_parser() -> Iterator[None]:
    """Make a command's parser once a process; Typer's runner would make all verbs and options anew for every call."""
    once = cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", once)
        patch.setattr("typer.testing._get_command", once)
        yield


@pytest.fixture
def shell_signals() -> Iterator[None]:
    """Signals as a shell leaves them for a command in front, whatever those that started the tests are."""
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in endings}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def still_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text cursors that do not blink."""
    from textual.widgets import Input, TextArea

    monkeypatch.setattr(Input, "_toggle_cursor", lambda self: None)
    monkeypatch.setattr(TextArea, "_toggle_cursor_blink_visible", lambda self: None)
