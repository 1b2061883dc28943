"""What each token of a text shows: no token that ended it, and no text twice that was held back for a while."""

from __future__ import annotations

import pytest

from lens_tui.records import Token
from lens_tui.records.run import END, pieces


def made(*texts: tuple[str, str]) -> list[Token]:
    return [Token(place, place, form, text, -1.0) for place, (form, text) in enumerate(texts)]


TABLE = made((" A", " A"), (" table", " table"), ("?", "?"), ("User", ""), (":", ""))


def test_tokens_of_a_stop_are_a_sign_unless_they_are_asked_for() -> None:
    assert pieces(TABLE, "stop") == [" A", " table", "?", END, END]
    assert pieces(TABLE, "stop", ends=True) == [" A", " table", "?", "User", ":"]
    assert pieces(made(("Hi", "Hi"), ("<|im_end|>", "")), "stop") == ["Hi", END]


def test_what_is_held_back_while_it_is_written_does_not_show_yet() -> None:
    assert pieces(TABLE, "") == [" A", " table", "?"]
    assert pieces(TABLE, "stopped") == [" A", " table", "?", "User", ":"]


def test_what_was_held_back_and_let_go_shows_once() -> None:
    tokens = made((" a", " a"), ("User", ""), (" name", "User name"), (".", "."))
    assert pieces(tokens, "length") == [" a", "User", " name", "."]
    ended = made((" a", " a"), ("User", ""), (":x", "User:x"))
    assert "".join(pieces(ended, "length")) == "".join(token.text for token in ended)


def test_parts_of_a_character_show_their_own_form() -> None:
    tokens = made(("<0xF0>", ""), ("<0x9F>", ""), ("<0x98>", "😀"), ("!", "!"))
    assert pieces(tokens, "length") == ["<0xF0>", "<0x9F>", "😀", "!"]


@pytest.mark.parametrize("cut", range(1, 5))
@pytest.mark.parametrize("reason", ["", "stop", "length"])
def test_a_text_shown_in_two_goes_is_the_text_shown_at_once(cut: int, reason: str) -> None:
    tokens = made((" a", " a"), ("User", ""), (" name", "User name"), ("User", ""), (":", ""))
    first = pieces(tokens[:cut], "")
    assert first + pieces(tokens[len(first) :], reason) == pieces(tokens, reason)
