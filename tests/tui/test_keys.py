"""The key table and the check of a user's map."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lens_tui.records.sanitise import sanitise_token
from lens_tui.tui.keys import KEYS, PANES, SCREENS, by_id, check_keymap, clashes, in_scope, key_problem, normal, split


def test_no_key_does_two_things_in_one_place() -> None:
    assert clashes() == []


def test_ids_are_unique_dotted_and_scoped() -> None:
    assert len(by_id()) == len(KEYS)
    scopes = {"app", "move", *PANES, *(mode for mode, _ in SCREENS)}
    for key in KEYS:
        scope, dot, name = key.id.partition(".")
        assert scope in scopes, key.id
        assert all((dot, name, key.description, key.action)), key.id


def test_every_default_key_is_one_that_terminals_send() -> None:
    for key in KEYS:
        for part in split(key.keys):
            assert key_problem(part) == "", (key.id, part)
            assert not part.startswith(("alt+", "f1")), key.id
            assert part not in ("ctrl+a", "ctrl+b", "ctrl+s"), key.id


def test_the_grammar_of_the_plan() -> None:
    wanted = {
        "app.run": "r", "app.stop": "x", "app.undo": "u", "app.redo": "U", "app.help": "?", "app.tint": "t",
        "steer.scale_up": "plus", "steer.zero": "0", "load.filter": "/",
    }  # fmt: skip
    assert {name: by_id()[name].keys for name in wanted} == wanted
    assert [key.keys for key in in_scope("app")[:5]] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ({"app.hlep": "f1"}, "did you mean app.help"),
        ({"app.quit": ""}, "must keep a key"),
        ({"app.help": "  "}, "must keep a key"),
        ({"steer.zero": "wibble"}, "not a key name"),
        ({"steer.zero": "hyper+z"}, "not a key name"),
        ({"steer.zero": "ctrl+h"}, "backspace"),
        ({"steer.zero": "shift+z"}, "'Z'"),
        ({"steer.add": "r"}, "already belongs to app.run"),
        ({"steer.add": "j"}, "already belongs to move.down"),
        ({"steer.zero": 7}, "one text"),
    ],
)
def test_what_cannot_be_used_is_named_and_left_out(user: dict[str, str], says: str) -> None:
    good, problems = check_keymap(user)
    assert good == {}
    assert len(problems) == 1
    assert says in problems[0]
    assert f"keys.{next(iter(user))}" in problems[0]


def test_a_good_map_passes_whole_and_in_long_names() -> None:
    good, problems = check_keymap({"move.down": "J,down", "app.help": "?,f1", "steer.zero": "", "steer.add": ","})
    assert problems == []
    assert good == {"move.down": "J,down", "app.help": "question_mark,f1", "steer.zero": "", "steer.add": "comma"}


def test_two_ids_may_trade_keys() -> None:
    good, problems = check_keymap({"app.run": "x", "app.stop": "r"})
    assert problems == []
    assert good == {"app.run": "x", "app.stop": "r"}


def test_the_same_key_on_different_screens_is_no_clash() -> None:
    assert check_keymap({"load.add": "A", "steer.add": "A"})[1] == []


@pytest.mark.parametrize(
    ("short", "long"), [("+", "plus"), ("<", "less_than_sign"), ("j", "j"), ("?", "question_mark")]
)
def test_long_names_are_textuals(short: str, long: str) -> None:
    from textual.keys import _character_to_key

    assert normal(short) == long == _character_to_key(short)


def test_the_table_needs_no_textual() -> None:
    code = "import sys, lens_tui.tui.keys; sys.exit('textual' in sys.modules or 'mlx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_hostile_map_is_named_safely_and_shortly() -> None:
    _, problems = check_keymap({"\x1b]52;c;aGk=\x07" + "x" * 100_000: "a", "app.run": "\x9b31m\u202e"})
    assert len(problems) == 2
    for problem in problems:
        assert sanitise_token(problem) == problem
        assert len(problem) <= 300
