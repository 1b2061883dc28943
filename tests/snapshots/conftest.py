"""Pictures are compared by what is seen in them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from textual.app import App

_NOTHING = re.compile(r'<rect [^>]*width="0"[^>]*/>')


@pytest.fixture(autouse=True)
def _without_what_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether a strip was cut at its very edge when it was drawn for the first time, a stretch of no cells tells.
    export = App.export_screenshot

    def seen(app: App[Any], **options: Any) -> str:
        return _NOTHING.sub("", export(app, **options))

    monkeypatch.setattr(App, "export_screenshot", seen)
