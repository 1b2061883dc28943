"""Make foreign text safe to show: no escapes, no hidden or reordering characters.

Text from models, files and networks may hold terminal escapes, bidi controls
and characters nobody can see. It passes one of these functions where it leaves
the library. What is replaced stays visible, so that a researcher can still see
which bytes a token holds:

- C0 controls and DEL become their Unicode pictures (``ESC`` -> ``␛``),
- C1 controls become their byte in brackets (``⟨9b⟩``),
- bidi controls, zero-width and invisible characters, line separators, tag
  characters, lone surrogates and noncharacters become their code point
  (``⟨U+202E⟩``).

U+200C and U+200D stay: Persian, Indic scripts and emoji need them. The result
can always be encoded as UTF-8, and each function is idempotent.

What goes to a model, into a file or into the store is never changed: only what is
shown is. A field that text is written in shows :func:`signs`, one for one, over
the text as it is; JSON is written with :func:`json_escaped`, which reads back as
the same text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_PLANE_ENDS = "".join(chr(plane << 16 | end) for plane in range(1, 17) for end in (0xFFFE, 0xFFFF))
_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # soft hyphen, joiners, fillers
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"  # zero width, separators, bidi
    "\ufff0-\ufffb\ufdd0-\ufdef\ufffe\uffff"  # interlinear annotation, noncharacters
    "\ud800-\udfff"  # lone surrogates
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # invisible shorthand and music controls
    "\U000e0000-\U000e0fff"  # tags and supplementary variation selectors: text can be hidden in them
    + _PLANE_ENDS
    + "]"
)
# A JSON writer has escaped C0 controls itself; those outside of strings are its own line breaks.
_UNSAFE_IN_JSON = re.compile(_UNSAFE.pattern.replace("\x00-\x08\x0b-\x1f", "\u200c\u200d", 1))
_BLANK = re.compile(r"\s+")
# Alone in a token these have no width: show which one it is.
_ONLY_JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f]+")


def sanitise(text: str) -> str:
    """``text`` with everything that could act on a terminal, hide or reorder made visible; keeps newline and tab."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(_visible, text)


def sanitise_token(text: str) -> str:
    """One token's display form: as :func:`sanitise`, and newline is ``⏎``, tab is ``⇥``.

    Spaces are kept as they are; a token of joiners or variation selectors alone
    is shown as code points, so that every non-empty token has something to see.
    """
    if text.isascii() and text.isprintable():
        return text
    if _ONLY_JOINERS.fullmatch(text):
        return "".join(_code_point(character) for character in text)
    return sanitise(text).replace("\n", "⏎").replace("\t", "⇥")


def signs(text: str) -> str:
    """``text`` with each character that :func:`sanitise` replaces as one visible sign, so that every place stays.

    For fields that text is written in: the cursor counts characters of the text and cells of what is shown. Controls
    are their Unicode picture, everything else that hides or reorders is ``␦``.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(_sign, text)


def json_escaped(data: str) -> str:
    """JSON text whose strings hold nothing that acts on a terminal, hides or reorders: those are ``\\uXXXX``.

    ``data`` is what ``json.dumps(..., ensure_ascii=False)`` gives; the result is the same JSON.
    """
    if data.isascii() and "\x7f" not in data:
        return data
    return _UNSAFE_IN_JSON.sub(_json_escape, data)


def finite(data: Any) -> Any:
    """Data for JSON with ``None`` in the place of numbers that JSON has not: NaN and infinities."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, list | tuple) else data


def one_line(text: str, limit: int = 200) -> str:
    """``text`` sanitised as a single line of at most ``limit`` characters, cut with ``…``; blanks are one space."""
    if limit < 1:
        return ""
    head = text.lstrip()[: 8 * limit + 64]
    line = sanitise(_BLANK.sub(" ", head)).strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if code < 0xA0:
        return f"⟨{code:02x}⟩"
    return _code_point(match.group())


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\u2426"


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def _code_point(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
