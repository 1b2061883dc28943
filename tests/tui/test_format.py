"""How numbers look."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from lens_tui.tui import format as fmt
from lens_tui.tui.format import nice_limit, scale_bar


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (18_415_939, "18.4 MB"), (731_000_000, "731 MB"), (2_614_000_000, "2.61 GB"),
     (999_600_000, "1.00 GB"), (3 * 10**12, "3.00 TB")],
)  # fmt: skip
def test_size(value: int, text: str) -> None:
    assert fmt.size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (8.4, "8 s"),
        (64.6, "65 s"),
        (99.6, "2 min"),
        (3725, "62 min"),
        (7200, "2 h"),
        (-3, "0 s"),
        (None, "?"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert fmt.duration(seconds) == text


@pytest.mark.parametrize(
    ("past", "text"), [(5, "just now"), (7200, "2 h ago"), (90_000, "yesterday"), (5 * 86_400, "5 days ago")]
)
def test_ago(past: float, text: str) -> None:
    assert fmt.ago(1_000_000.0, 1_000_000.0 + past) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (950, "950"),
        (12_345, "12.3 k"),
        (4_560_000, "4.6 M"),
        (17_311_104, "17.3 M"),
        (8192, "8.2 k"),
        (10**12, "1000.0 B"),
    ],
)
def test_count(number: int, text: str) -> None:
    assert fmt.count(number) == text


def test_signed_has_no_negative_zero() -> None:
    assert [fmt.signed(value) for value in (8, -4.5, 0.0, -0.04)] == ["+8.0", "-4.5", "0.0", "0.0"]


@given(st.text(max_size=30), st.integers(1, 40))
def test_fit_is_exactly_as_wide_as_asked(text: str, width: int) -> None:
    text = "".join(character for character in text if character.isprintable())
    for fitted in (fmt.fit(text, width), fmt.fit_left(text, width), fmt.fit_end(text, width)):
        assert cell_len(fitted) == width


def test_fit_end_keeps_the_end() -> None:
    assert fmt.fit_end("mlx-community/gemma-3-27b-it-4bit", 20) == "…gemma-3-27b-it-4bit"
    assert fmt.fit_end("short", 8) == "short   "
    assert fmt.fit_end("日本語です", 5) == "…です"


def test_fit_never_splits_a_wide_character() -> None:
    assert fmt.fit("日本語", 4) == "日… "
    assert fmt.fit_left("ab", 4) == "  ab"


@given(st.floats(-1e6, 1e6), st.floats(0.1, 1e5), st.integers(5, 61))
def test_the_knob_is_where_the_value_is(value: float, limit: float, width: int) -> None:
    text = scale_bar(value, limit, width)
    assert len(text) == width | 1
    middle = len(text) // 2
    knobs = [place for place, character in enumerate(text) if character in "●◀▶"]
    assert len(knobs) == 1
    expected = middle + round(max(-1.0, min(1.0, value / limit)) * middle)
    assert knobs == [expected]
    assert (text[expected] == "●") == (abs(value) <= limit)


def test_the_slider_reaches_twice_the_unit_or_the_largest_value() -> None:
    assert nice_limit(10.0) == 20.0
    assert nice_limit(10.0, (22.0, -47.0)) == 50.0


@pytest.mark.parametrize(
    ("name", "room", "shown"),
    [
        ("demo", 4, "demo"),
        ("org/tiny", 8, "org/tiny"),
        ("org/tiny", 7, "tiny"),
        ("/home/someone/tiny/", 60, "tiny"),
        ("~/tiny", 60, "tiny"),
        ("./", 60, "."),
        ("/", 60, "/"),
    ],
)
def test_a_model_is_called_by_the_end_of_its_address(name: str, room: int, shown: str) -> None:
    assert fmt.model_name(name, room) == shown
