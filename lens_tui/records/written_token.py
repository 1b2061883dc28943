"""A token as a person writes it: its text, or ``id:`` and its number."""

from __future__ import annotations

import re

from .errors import LensError


def read_token(text: str) -> int | str | None:
    """``id:17`` or a text of one token, blank and all; nothing where nothing is written.

    Raises :class:`LensError` for an ``id:`` without a number.
    """
    if not text:
        return None
    if text.startswith("id:"):
        if not re.fullmatch(r"[0-9]{1,18}", text[3:]):
            raise LensError(f"The target {text!r} names no token.", "Write id: and a number, such as id:17.")
        return int(text[3:])
    return text
