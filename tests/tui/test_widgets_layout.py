"""The pure parts under the widgets: levels, bars and token wrapping."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from lens_tui.records.run import KL_STEPS, kl_level
from lens_tui.tui import format as ramps
from lens_tui.tui.host import BUSY, Activity
from lens_tui.tui.widgets.frame import _busy
from lens_tui.tui.widgets.token_layout import TokenLayout, standalone, take_cells


def test_levels_rise_with_the_value_and_use_all_eight_steps() -> None:
    values = [0.0, *(step * 1.01 for step in KL_STEPS)]
    assert [kl_level(value) for value in values] == list(range(8))
    assert kl_level(None) == kl_level(math.nan) == kl_level(-1.0) == 0
    assert kl_level(math.inf) == ramps.layer_kl_level(16.5) == 7
    assert ramps.kl_key() == "▂0.01 ▄0.1 ▆1 █10 nat"
    for step, bar in zip((0.01, 0.1, 1.0, 10.0), "▂▄▆█", strict=True):
        assert ramps.BARS[kl_level(step)] == bar
    assert [ramps.surprisal_level(-value) for value in (2.9, 3.1, 9.0, 11.0)] == [0, 1, 6, 7]
    assert ramps.share_level(0.0, 1.0) == 0
    assert ramps.share_level(1e-9, 1.0) == 1
    assert ramps.share_level(1.0, 1.0) == ramps.share_level(7.0, 1.0) == 7
    assert ramps.share_level(1.0, 0.0) == ramps.share_level(math.nan, 1.0) == 0


@given(st.floats(0, 1), st.integers(0, 40))
def test_a_bar_is_as_long_as_its_share(share: float, width: int) -> None:
    text = ramps.bar(share, width)
    assert cell_len(text) <= width
    eighths = sum(8 if char == "█" else "▏▎▍▌▋▊▉".index(char) + 1 for char in text)
    assert abs(eighths - share * width * 8) <= (1 if width else 0)


def test_a_histogram_shows_every_count_and_keeps_the_tallest_full() -> None:
    upper, lower = ramps.histogram([16, 8, 1, 0, 1e-6], 10)
    assert (upper, lower) == ("█    ", "██▁ ▁")
    upper, lower = ramps.histogram([1.0] * 100, 10)
    assert (upper, lower) == ("█" * 10, "█" * 10)
    assert ramps.histogram([], 10) == ("", "")


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.integers(2, 20))
def test_a_trail_keeps_the_mean_of_equally_many_values(values: list[float], capacity: int) -> None:
    trail = ramps.Trail(capacity)
    for value in values:
        trail.append(value)
    n = trail.per_cell
    expected = [sum(values[i : i + n]) / len(values[i : i + n]) for i in range(0, len(values), n)]
    assert len(expected) <= trail.capacity
    assert trail.means() == pytest.approx(expected)


def words(layout: TokenLayout) -> list[str]:
    return ["".join(text for _, text, _ in line) for line in layout.lines]


def test_lines_break_between_words_even_when_a_word_is_many_tokens() -> None:
    layout = TokenLayout(12)
    layout.extend(["Money", " is", " a", " med", "ium", " of", " ex", "change", "."])
    assert words(layout) == ["Money is a", "medium of", "exchange."]
    assert layout.first_line == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_newline_is_shown_and_breaks_the_line() -> None:
    layout = TokenLayout(20)
    layout.extend(["one", "\n\n", "two", " three\nfour"])
    assert words(layout) == ["one⏎", "⏎", "two three⏎", "four"]
    assert list(layout.lines_of(1)) == [0, 1]


def test_extend_says_which_line_changed_first() -> None:
    layout = TokenLayout(10)
    assert layout.extend(["aaaa", " bbbb"]) == 0
    assert layout.extend(["b"]) == 0
    assert words(layout) == ["aaaa bbbbb"]
    assert layout.extend(["bbb"]) == 0
    assert words(layout) == ["aaaa", "bbbbbbbb"]
    assert layout.extend([" c"]) == 1


def test_a_long_token_is_cut_by_cells_and_wide_characters_are_not_halved() -> None:
    layout = TokenLayout(5)
    layout.extend(["x" * 12, "漢字漢字"])
    assert words(layout) == ["xxxxx", "xxxxx", "xx", "漢字", "漢字"]
    assert all(sum(piece[2] for piece in line) <= 5 for line in layout.lines)


@pytest.mark.parametrize(
    "tokens",
    [
        ["👨", "‍", "👩", "‍", "👧"],
        ["👨‍", "👩"],
        ["e", "́"],
        ["👍", "\U0001f3fd"],
        ["🇫", "🇷"],
        ["❤", "️"],
        ["", "", "a"],
    ],
)
def test_tokens_never_melt_into_each_other(tokens: list[str]) -> None:
    layout = TokenLayout(40)
    layout.extend(tokens)
    (line,) = layout.lines
    assert [piece[0] for piece in line] == list(range(len(tokens)))
    assert all(width >= 1 for _, _, width in line)
    assert cell_len("".join(text for _, text, _ in line)) == sum(width for _, _, width in line)


ALPHABET = st.sampled_from("ab ,.\n漢é́‍️👨🏽🇫⟨␛한ा")


@settings(max_examples=300)
@given(st.lists(st.text(ALPHABET, max_size=6), max_size=40), st.integers(4, 30), st.integers(1, 7))
def test_layout_keeps_every_token_within_the_width(tokens: list[str], width: int, chunk: int) -> None:
    whole, grown = TokenLayout(width), TokenLayout(width)
    whole.extend(tokens)
    for start in range(0, len(tokens), chunk):
        before = [list(line) for line in grown.lines]
        dirty = grown.extend(tokens[start : start + chunk])
        assert grown.lines[:dirty] == before[:dirty]
    assert grown.lines == whole.lines
    assert {index for line in whole.lines for index, _, _ in line} == set(range(len(tokens)))
    for line in whole.lines:
        assert all(piece[2] >= 1 for piece in line)
        assert sum(piece[2] for piece in line) <= max(4, width)
        assert cell_len("".join(piece[1] for piece in line)) <= max(4, width)
    for token in range(len(tokens)):
        line_number, x = whole.place_of(token)
        assert whole.token_at(line_number, x) == token


@given(st.text(ALPHABET, min_size=1, max_size=20), st.integers(2, 10))
def test_take_cells_loses_nothing(text: str, cells: int) -> None:
    head, tail = take_cells(text, cells)
    assert head + tail == text
    assert head


def test_shown_leaves_plain_text_alone() -> None:
    assert standalone(" plain") == " plain"
    assert standalone("naïve") == "naïve"


@pytest.mark.parametrize(
    ("width", "starts"),
    [
        (118, "● indexing · token tables  ▕"),
        (78, "● indexing · token tables  ▕"),
        (68, "● token tables  ▕"),
        (58, "● token tables"),
    ],
)
def test_where_a_job_and_its_stage_have_no_room_beside_the_bar_the_stage_stands_alone(width: int, starts: str) -> None:
    activity = Activity(BUSY, 1, "indexing", "token tables", 2048, 8192, "features", since=0.0, now=2.0)
    line = _busy(activity, width, "x").plain
    assert line.startswith(starts)
    assert line.endswith("x stop")
    assert cell_len(line) == width
    assert "2048/8192 features" in line
    stopping = _busy(replace(activity, stopping=True), width, "x").plain
    assert stopping.startswith("● stopping: ")
