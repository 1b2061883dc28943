"""Prompts from files and lines: each exactly as it stands there, what is wrong named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_tui.records import LensError
from lens_tui.records.prompt_set import parse_prompts, read_prompt_set, typed_prompts


def test_a_line_is_a_prompt_with_its_blanks_and_a_separator_within_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeff  two \u2028 parts \r\n\r\n{not json}\ra|b\n \n".encode())
    found = read_prompt_set(file)
    assert [item.text for item in found.items] == ["  two \u2028 parts ", "{not json}", "a|b"]
    assert [item.id for item in found.items] == ["1", "2", "3"]
    assert (found.name, len(found.first(2).items), len(found.first(None).items)) == ("mine.txt", 2, 3)


def test_an_object_a_line_may_have_an_id_and_many_lines(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a\\nb", "id": "x"}\n\n{"prompt": "c"}\n{"prompt": "d", "id": 7}\n')
    assert [(item.id, item.text) for item in read_prompt_set(file).items] == [("x", "a\nb"), ("2", "c"), ("7", "d")]
    file.write_text('{"q": "a"}\n')
    assert read_prompt_set(file, key="q").items[0].text == "a"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a", "id": null}\r\n"b"\r\n')
    assert [(item.id, item.text) for item in read_prompt_set(file).items] == [("1", "a"), ("2", "b")]


def test_a_list_in_json_is_a_set_too(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text('[\n "a",\n {"prompt": "b", "id": "x"}\n]')
    assert [(item.id, item.text) for item in read_prompt_set(file).items] == [("1", "a"), ("x", "b")]
    for text, says in (('{"prompt": "a"}', "is not a list"), ('["a", 3]', "Item 2 of p.json"), ("[]", "no prompts")):
        file.write_text(text)
        with pytest.raises(LensError, match=says):
            read_prompt_set(file)


def test_where_the_key_is_another_one_those_there_are_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "a", "n\\u001b": 3}\n')
    with pytest.raises(LensError) as error:
        read_prompt_set(file)
    assert error.value.hint == "It has 'question', 'n␛': call one 'prompt', or name it with --text-key."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"}\n{"prompt": 3}\n', "Line 2 of .* is not an object with a text"),
        ('{"prompt": "a"}\n\n[1]\n', "Line 3 of .* is not an object"),
        ('{"prompt": " "}\n', "Line 1"),
        ("{\n", "Line 1"),
        ("\n \n", "no prompts"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(LensError, match=says):
        read_prompt_set(file)


def test_lines_of_a_stream_may_be_of_both_kinds() -> None:
    found = parse_prompts('plain\n{"prompt": "as data"}\n', "standard input")
    assert [item.text for item in found.items] == ["plain", "as data"]


def test_no_texts_and_empty_ones_are_refused() -> None:
    for texts, says in (([], "no prompts"), (["a", "\n"], "Prompt 2 is empty")):
        with pytest.raises(LensError, match=says):
            typed_prompts(texts)
