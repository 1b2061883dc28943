"""The user's key map: what is wrong with it, said before it is used.

Textual takes any map without a word: an unknown id does nothing, a misspelt
key is never pressed, a key given away twice silently unbinds the first. So the
map is checked here and what cannot be used is left out and named.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache

from lens_tui.records.sanitise import one_line

from .table import KEYS, PANES, SCREENS, Key, by_id

MUST_STAY = ("app.quit", "app.help", "app.commands")
_NAMES = "escape enter return tab space backspace delete insert home end pageup pagedown up down left right"
NAMED = frozenset([*_NAMES.split(), *(f"f{number}" for number in range(1, 25))])
_UNSENDABLE = {
    "ctrl+h": "backspace",
    "ctrl+i": "tab",
    "ctrl+j": "newline",
    "ctrl+m": "enter",
    "ctrl+left_square_bracket": "escape",
}
_REPLACED = {
    "solidus": "slash",
    "reverse_solidus": "backslash",
    "commercial_at": "at",
    "hyphen_minus": "minus",
    "plus_sign": "plus",
    "low_line": "underscore",
}


def normal(key: str) -> str:
    """The long name of a key as Textual knows it: ``?`` is ``question_mark``, ``+`` is ``plus``."""
    key = key if len(key) == 1 else key.strip()
    if len(key) != 1 or key.isalnum():
        return key
    name = unicodedata.name(key, key).lower().replace("-", "_").replace(" ", "_")
    return _REPLACED.get(name, name)


def split(keys: str) -> list[str]:
    """The keys of a comma-separated list in their long names; a lone comma is the comma key."""
    if keys.strip() == ",":
        return ["comma"]
    return [normal(part.strip()) for part in keys.split(",") if part.strip()]


def key_problem(key: str) -> str:
    """What is wrong with one key name, or an empty string."""
    if key in _UNSENDABLE:
        return f"terminals send {key} as {_UNSENDABLE[key]}"
    *modifiers, last = key.split("+")
    if any(modifier not in ("ctrl", "shift", "alt", "super") for modifier in modifiers):
        return f"{key!r} is not a key name"
    if modifiers == ["shift"] and len(last) == 1:
        return f"write {key!r} as the character it gives, for example {last.upper()!r}"
    if last in NAMED or (len(last) == 1 and last.isprintable()) or last in _character_names():
        return ""
    return f"{key!r} is not a key name"


@cache
def _character_names() -> frozenset[str]:
    """The long names of every character up to the end of extended Latin."""
    return frozenset(normal(chr(code)) for code in range(0x21, 0x250) if chr(code).isprintable())


def check_keymap(user: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """What of a user's map can be used (id to keys), and a sentence for each part that cannot.

    Refused: an id that does not exist, a key that is not one or that terminals
    cannot send, a key that would do two things in one place, and leaving
    quitting, help or the palette without a key.
    """
    good: dict[str, str] = {}
    problems: list[str] = []
    for name, value in user.items():
        problem = _entry_problem(name, value)
        if problem:
            problems.append(one_line(problem, 300))
        else:
            good[name] = ",".join(split(value))
    while found := clashes(good):
        first, second, key = found[0]
        loser = second if second in good else first
        kept = first if loser == second else second
        problems.append(f"keys.{loser}: {key!r} already belongs to {kept}; the entry is left out.")
        del good[loser]
    return good, problems


def _entry_problem(name: str, value: object) -> str:
    if name not in by_id():
        close = _closest(name[:80])
        return f"keys.{name}: there is no such key id{f'; did you mean {close}' if close else ''}."
    if not isinstance(value, str):
        return f'keys.{name}: write the keys as one text, for example "j,down".'
    parts = split(value)
    if not parts:
        if name in MUST_STAY:
            return f"keys.{name}: this must keep a key, or the app could not be left or explained."
        return ""
    for part in parts:
        if reason := key_problem(part):
            return f"keys.{name}: {reason}."
    return ""


def _closest(name: str) -> str:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, by_id(), 1)), "")


def clashes(user: Mapping[str, str] | None = None) -> list[tuple[str, str, str]]:
    """Pairs of ids that share a key where both are live: ``(first id, second id, key)``.

    Live together are ``app``, ``move`` and one screen, or one pane, which goes before its screen.
    """
    user = user or {}
    found: list[tuple[str, str, str]] = []
    for scope in (*(screen for screen, _title in SCREENS), *PANES):
        owners: dict[str, str] = {}
        for key in KEYS:
            if key.scope in ("app", "move", scope):
                _claim(key, user.get(key.id, key.keys), owners, found)
    return list(dict.fromkeys(found))


def _claim(key: Key, keys: str, owners: dict[str, str], found: list[tuple[str, str, str]]) -> None:
    for part in split(keys):
        other = owners.setdefault(part, key.id)
        if other != key.id:
            found.append((other, key.id, part))
