"""Leaving does not wait for Textual's input thread, and gives the terminal back as it was."""

from __future__ import annotations

from textual.driver import Driver
from textual.drivers.headless_driver import HeadlessDriver
from textual.drivers.linux_driver import LinuxDriver

from lens_tui.tui.driver import leaving_driver


def test_only_the_terminal_driver_is_changed() -> None:
    quick = leaving_driver(LinuxDriver)
    assert issubclass(quick, LinuxDriver)
    assert quick is not LinuxDriver
    assert leaving_driver(HeadlessDriver) is HeadlessDriver
    assert leaving_driver(Driver) is Driver  # type: ignore[type-abstract]
