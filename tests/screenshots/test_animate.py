"""The animated picture shows each line exactly when the terminal did, and every character where it was."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from screenshots.animate import CELL_W, EDGE, Frame, Run, animated_svg, box_of, spans

SVG = "{http://www.w3.org/2000/svg}"


def frame(*lines: str, seconds: float = 1.0) -> Frame:
    return Frame(tuple((Run(line),) for line in lines), seconds)


def seen_at(picture: str, second: float, whole: float) -> list[str]:
    """The words that are visible then, by playing the CSS as it is defined (each mark holds until the next)."""
    marks = {
        name: [(float(at), how) for at, how in re.findall(r"([\d.e-]+)%{visibility:(\w+)}", steps)]
        for name, steps in re.findall(r"@keyframes (\w+){((?:[\d.e-]+%{visibility:\w+})+)}", picture)
    }
    shown = []
    for group in ElementTree.fromstring(picture).iter(f"{SVG}g"):
        steps = marks.get(group.get("class", ""), [(0.0, "visible")])
        how = [how for at, how in steps if at <= second / whole * 100 + 1e-6][-1]
        if how == "visible":
            shown += [word.text or "" for word in group.iter(f"{SVG}tspan")]
    return [word for word in shown if word]


def test_each_line_is_seen_when_it_was_there() -> None:
    frames = [frame("a", "b"), frame("a", "c", seconds=2.0), frame("a", "b")]
    picture = animated_svg(frames, 10, "t")
    assert [seen_at(picture, second, 4.0) for second in (0.0, 0.9, 1.0, 2.9, 3.0)] == [
        *(["a", "b"], ["a", "b"], ["a", "c"], ["a", "c"], ["a", "b"])
    ]
    assert picture.count(">b<") == 1  # a line that comes back is in the file once


def test_where_nothing_moves_the_poster_stands() -> None:
    picture = animated_svg([frame("a"), frame("b"), frame("c")], 10, "t", poster=1)
    still = dict(re.findall(r"\.(a\d+){visibility:(\w+)", picture))
    groups = ElementTree.fromstring(picture).iter(f"{SVG}g")
    stands = [word.text for g in groups if still.get(g.get("class", "")) == "visible" for word in g.iter(f"{SVG}tspan")]
    assert stands == ["b"]


def test_a_word_stands_at_its_column_whatever_comes_before() -> None:
    row = (Run("ab  "), Run("▄▄", fg="#ff0000"), Run(" <x> &", bold=True))
    picture = animated_svg([Frame((row,), 1.0)], 20, "t")
    places = {w.text: float(w.get("x", "")) for w in ElementTree.fromstring(picture).iter(f"{SVG}tspan") if w.text}
    assert places == {"ab": EDGE, "<x> &": pytest.approx(EDGE + 7 * CELL_W, abs=0.05)}
    bar = next(r for r in ElementTree.fromstring(picture).iter(f"{SVG}rect") if r.get("class"))
    assert float(bar.get("x", "")) == pytest.approx(EDGE + 4 * CELL_W, abs=0.05)
    assert float(bar.get("width", "")) == pytest.approx(2 * CELL_W, abs=0.05)


def test_block_characters_fill_their_share_of_the_cell() -> None:
    heights = [box[3] for char in "▁▂▃▄▅▆▇█" if (box := box_of(char))]
    widths = [box[2] for char in "▏▎▍▌▋▊▉" if (box := box_of(char))]
    assert heights == [n / 8 for n in range(1, 9)]
    assert widths == [n / 8 for n in range(1, 8)]
    assert box_of("a") is None


def test_spans_are_the_stretches_of_equal_neighbours() -> None:
    assert spans("aabba") == {"a": [(0, 2), (4, 5)], "b": [(2, 4)]}


def test_frames_of_different_heights_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        animated_svg([frame("a"), frame("a", "b")], 10, "t")
    with pytest.raises(ValueError, match="there must be one"):
        animated_svg([], 10, "t")
