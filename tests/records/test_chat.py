"""Conversations from files: what they may hold and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_tui.records import LensError, Positions, Sampling
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.chat import Turn, as_prompt, last_words, parse_chat, parse_chats, read_chat
from lens_tui.records.interventions import POSITIONS, ROLES, positions_name, positions_of, positions_text
from lens_tui.records.run import RunRecord
from lens_tui.records.run_store import RunStore

TURNS = (Turn("system", "Be short."), Turn("user", "Hi\x1b[31m\n"), Turn("assistant", "Hello."), Turn("user", "Why?"))


def test_a_list_of_messages_and_an_object_with_them_are_the_same(tmp_path: Path) -> None:
    listed = '[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]'
    wanted = (Turn("system", "Be short."), Turn("user", "Hi"))
    assert parse_chat(listed, "it") == wanted
    assert parse_chat(f'{{"messages": {listed}, "model": "m"}}', "it") == wanted
    file = tmp_path / "chat.json"
    file.write_text(listed.replace("}, ", "},\n"), encoding="utf-8")
    assert read_chat(file) == wanted
    assert parse_chats(file.read_text(encoding="utf-8"), "it") == [wanted]
    assert parse_chats(f"{listed}\n\n{listed}\n", "it") == [wanted, wanted]
    parts = '[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]'
    assert parse_chat(parts, "it") == (Turn("user", "ab"),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello", "it is not valid JSON"),
        ("[]", "it holds no messages"),
        ('{"turns": []}', "it holds no messages"),
        ('[{"content": "x"}]', "Message 1 of it has no role"),
        ('[{"role": "user", "content": "x"}, {"role": "user"}]', "Message 2 of it has no content"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', "Message 1 of it has no content that is text"),
    ],
)
def test_what_is_not_a_conversation_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(LensError, match=says):
        parse_chat(text, "it")


def test_a_conversation_is_named_by_the_user_s_last_words_and_given_whole() -> None:
    assert last_words(TURNS) == "Why?"
    assert last_words(TURNS[:1]) == "Be short."
    assert as_prompt("text", ()) == "text"
    assert as_prompt("text", TURNS[3:]) == [{"role": "user", "content": "Why?"}]


def test_the_history_keeps_the_turns_exactly(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.sqlite")
    kept = store.get(store.keep(RunRecord("m", "Why?", (), Sampling(), turns=TURNS)))
    assert kept is not None
    assert kept.turns == TURNS
    assert kept.asked == as_prompt("", TURNS)
    plain = store.get(store.keep(RunRecord("m", "Why?", (), Sampling())))
    assert plain is not None
    assert plain.asked == "Why?"


def test_every_place_has_a_name_that_an_arm_can_be_written_with() -> None:
    for name in (*POSITIONS, *ROLES):
        positions = positions_of(name)
        assert positions_name(positions) == name
        (term,) = parse_arm(f"f3*2:{name}").terms
        assert (term.positions, term.mode) == (name, "add")
        assert parse_arm(term.written).terms[0].positions == name
        assert positions_text(positions)
    assert positions_of("user") == Positions("role", role="user")
    assert positions_name(Positions("role", role="tool")) == ""
    with pytest.raises(LensError, match="cannot be read"):
        parse_arm("f3*2:user:assistant")
