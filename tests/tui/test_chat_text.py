"""How a conversation is shown, without a screen: thinking, turns, the template's tokens, what was rewritten."""

from __future__ import annotations

import pytest

from lens_tui.records.chat import Turn
from lens_tui.tui.chat_text import (
    Thinking,
    as_read,
    folded,
    rewritten_at,
    spoken,
    thinking_in,
    transcript,
    with_system,
)


@pytest.mark.parametrize(
    ("pieces", "opened", "wanted"),
    [
        (["<think>", "\n", "It", " is", "</think>", "\n\n", "Four"], False, Thinking(0, 6, True)),
        (["<th", "ink>", " so", "</thi", "nk>", " Four"], False, Thinking(0, 5, True)),
        (["\n", "<think>", "a", "</think>"], False, Thinking(1, 4, True)),
        (["<think>", "It"], False, Thinking(0, 2, False)),
        (["It", "</think>", "Four"], True, Thinking(0, 2, True)),
        (["Four", " <think>", "a", "</think>"], False, None),
        (["It", "</think>", "Four"], False, None),
        ([], False, None),
    ],
)
def test_a_text_that_begins_by_thinking_is_found_however_it_is_cut(
    pieces: list[str], opened: bool, wanted: Thinking | None
) -> None:
    assert thinking_in(pieces, opened) == wanted


def test_the_line_for_what_was_thought_counts_it_once_it_is_whole() -> None:
    assert folded(Thinking(0, 5, True)) == "▸ thinking, 5 tokens\n"
    assert folded(Thinking(0, 5, False)) == "▸ thinking …"


@pytest.mark.parametrize(
    ("content", "thought", "said"),
    [
        ("<think>\nIt is four.\n</think>\n\nFour.", "It is four.", "Four."),
        ("It is four.</think>Four.", "It is four.", "Four."),
        ("Four.", "", "Four."),
        ("I write <think>x</think> here", "", "I write <think>x</think> here"),
    ],
)
def test_a_turn_s_thinking_is_told_from_what_it_says(content: str, thought: str, said: str) -> None:
    assert spoken(content) == (thought, said)


def test_turns_have_their_speaker_at_the_left_and_wrap_beside_it() -> None:
    turns = [Turn("user", "one two three four five six"), Turn("assistant", "<think>\na b\n</think>\n\nyes")]
    lines = [line.plain for line in transcript(turns, 32, unfolded=False)]
    assert lines[0].startswith("     user ▏ one two")
    assert lines[1].startswith("          ▏ ")
    assert lines[-2:] == ["assistant ▏ ▸ thinking, 2 words", "          ▏ yes"]
    opened = [line.plain for line in transcript(turns, 32, unfolded=True)]
    assert "          ▏ a b" in opened
    assert "assistant ▏ ▾ thinking, 2 words" in opened
    alone = transcript([Turn("assistant", "<think>hm</think>yes")], 40, unfolded=False)
    assert alone[0].plain == "assistant ▏ ▸ thinking, 1 word"


def test_hostile_turns_reach_no_terminal_and_are_no_markup() -> None:
    nasty = "\x1b]52;c;eA==\x07[bold red]x[/] [/foo]\r\x9b31m"
    turns = [Turn("us\x1b[2Jer", nasty), Turn("assistant", f"<think>{nasty}</think>{nasty}")]
    for unfolded in (False, True):
        shown = "\n".join(line.plain for line in transcript(turns, 60, unfolded=unfolded))
        assert not any((char < " " and char != "\n") or "\x7f" <= char <= "\x9f" for char in shown)
        assert "[bold red]x[/]" in shown


def test_the_template_s_tokens_stand_between_marks() -> None:
    tokens = ["<s>", "User", ":", " Hi", "\n", "Bot", ":"]
    spans = (("user", 0, 5), ("template", 0, 3), ("template", 4, 7), ("assistant", 5, 7))
    head, *lines = [line.plain.rstrip() for line in as_read(tokens, spans, 60)]
    assert head == "as the model reads it: 7 tokens, the template's 6 between ‹ ›"
    assert lines == ["‹<s>User:› Hi‹⏎", "Bot:›"]
    shown = as_read(["User", ":", " Hi", "⏎", "Bot", ":"], (("template", 0, 2), ("template", 3, 6)), 60)
    assert [line.plain.rstrip() for line in shown][1:] == ["‹User:› Hi‹⏎", "Bot:›"]
    raw = as_read(["Once", " upon"], None, 60)
    assert [line.plain for line in raw] == ["as the model reads it: 2 tokens", "Once upon"]
    unknown = as_read(["Once"], (("user", 0, 1),), 80)
    assert "cannot be told" in unknown[0].plain


def test_what_is_cut_off_at_the_end_of_an_answer_is_not_a_rewriting() -> None:
    said = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert rewritten_at(said, [*said, 10, 11]) is None
    assert rewritten_at(said, [*said[:8], 99, 10, 11]) is None
    assert rewritten_at(said, [*said[:3], *said[5:], 10]) == 3
    assert rewritten_at(said, said[:2]) == 2


def test_a_system_prompt_is_put_in_front_changed_and_taken_away() -> None:
    user = Turn("user", "Hi")
    first = with_system((user,), "Be kind.")
    assert first == (Turn("system", "Be kind."), user)
    assert with_system(first, "Be short.") == (Turn("system", "Be short."), user)
    assert with_system(first, "  ") == (user,)
