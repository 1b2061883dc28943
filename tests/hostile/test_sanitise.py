"""Whatever goes in, nothing comes out that a terminal would act on or that hides text."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_tui.records import LensError
from lens_tui.records.sanitise import json_escaped, one_line, sanitise, sanitise_token, signs

# Everything Python can hold, lone surrogates included, with the dangerous ranges drawn often.
RISKY = st.sampled_from(
    [chr(code) for code in (*range(0xA0), 0xAD, *range(0x2000, 0x2070), 0xD800, 0xDFFF, 0xFEFF, 0xE0041)]
)
TEXT = st.lists(st.one_of(st.characters(exclude_categories=()), RISKY, st.characters(codec="ascii"))).map("".join)

BIDI = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
MARKS_OF_DIRECTION = {"\u061c", "\u200e", "\u200f"}
HIDING = {"\u00ad", "\u200b", "\u2028", "\u2029", "\u2060", "\u2063", "\ufeff", "\ufff9", "\U000e0041", "\U000e0101"}


def is_safe(text: str, kept: str = "\n\t") -> bool:
    return all(
        character in kept
        or (
            unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}
            and unicodedata.bidirectional(character) not in BIDI
            and character not in MARKS_OF_DIRECTION | HIDING
        )
        for character in text
    )


@given(TEXT)
def test_nothing_dangerous_is_left(text: str) -> None:
    assert is_safe(sanitise(text))
    assert is_safe(sanitise_token(text), kept="")
    assert is_safe(one_line(text, 40), kept="")


@given(TEXT)
def test_result_is_utf8_and_stable(text: str) -> None:
    for made in (sanitise(text), sanitise_token(text), one_line(text, 25)):
        made.encode("utf-8")
    assert sanitise(sanitise(text)) == sanitise(text)
    assert sanitise_token(sanitise_token(text)) == sanitise_token(text)
    assert one_line(one_line(text, 25), 25) == one_line(text, 25)


@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S"))))
def test_ordinary_text_is_untouched(text: str) -> None:
    hidden = {"\u115f", "\u1160", "\u3164", "\uffa0"}  # Hangul fillers are letters by category, and blank
    assert sanitise(text) == text or hidden & set(text)


@given(TEXT)
def test_no_token_disappears(text: str) -> None:
    assert bool(sanitise_token(text)) == bool(text)


@given(TEXT, st.integers(-1, 30))
def test_one_line_fits(text: str, limit: int) -> None:
    assert len(one_line(text, limit)) <= max(limit, 0)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇"),
        ("\x9b31m", "⟨9b⟩31m"),
        ("a\x00b\x7f", "a␀b␡"),
        ("user\u202etxt.exe", "user⟨U+202E⟩txt.exe"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("pass\u200bword", "pass⟨U+200B⟩word"),
        ("\ud83d", "⟨U+D83D⟩"),
        ("hi\U000e0068\U000e0069", "hi⟨U+E0068⟩⟨U+E0069⟩"),
        ("\U0001fffe", "⟨U+1FFFE⟩"),
        ("line one\nline\ttwo", "line one\nline\ttwo"),
        ("old\rnew", "old␍new"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f", "👨\u200d👩\u200d👧 ❤\ufe0f"),
        ("[@click=app.quit]x[/]", "[@click=app.quit]x[/]"),  # markup is text; widgets show Content
    ],
)
def test_known_cases(raw: str, shown: str) -> None:
    assert sanitise(raw) == shown


def test_tokens_show_blanks_and_joiners() -> None:
    assert sanitise_token("\n\n") == "⏎⏎"
    assert sanitise_token("\tx") == "⇥x"
    assert sanitise_token("\r\n") == "␍⏎"
    assert sanitise_token(" the") == " the"
    assert sanitise_token("\u200d") == "⟨U+200D⟩"
    assert sanitise_token("\ufe0f") == "⟨U+FE0F⟩"


def test_one_line_cuts_and_joins() -> None:
    assert one_line("  a\n\n b\t c  ", 20) == "a b c"
    assert one_line("x" * 300, 10) == "x" * 9 + "…"
    assert len(one_line("y " * 1_000_000, 60)) <= 60


@given(TEXT)
def test_signs_are_safe_and_one_for_each_character(text: str) -> None:
    assert len(signs(text)) == len(text)
    assert is_safe(signs(text))
    assert signs(signs(text)) == signs(text)


@given(TEXT)
def test_escaped_json_is_the_same_json_and_nothing_acts_in_it(text: str) -> None:
    written = json_escaped(json.dumps({text: [text]}, ensure_ascii=False))
    assert is_safe(written, kept="")
    assert not set("\u200c\u200d") & set(written)
    assert json.loads(written) == json.loads(json.dumps({text: [text]}))


@given(TEXT, TEXT)
def test_an_error_is_safe_short_and_in_one_line(message: str, hint: str) -> None:
    error = LensError(message, hint)
    for said in (error.message, error.hint, str(error), str(error.args[0])):
        assert is_safe(said, kept="")


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    error = LensError("The model type " + "\x1b[31mx" * 20_000 + " is not known.", "y" * 100_000)
    assert len(error.message) <= 600
    assert len(error.hint) <= 600
    assert error.message.startswith("The model type ␛[31mx")
    assert error.message.endswith("x is not known.")
