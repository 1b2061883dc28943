"""A part is made anew where it stands, with what it was before beside it; all else in the file stays."""

from __future__ import annotations

import pytest

from benchmarks.report import (
    Bound,
    Row,
    absent,
    at_least,
    at_most,
    duration,
    of_speeds,
    of_times,
    ratios_of,
    table,
    with_part,
    written,
)

ROW = of_times("forward of 512", 1.02, 1.0, "plain", at_most(1.04))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_says_what_was_measured_and_whether_its_bound_is_met() -> None:
    rows = [
        ROW,
        of_speeds("generation", 90.0, 100.0, "mlx-lm", at_least(0.98)),
        Row("key to frame, p95", "77.0 ms", "", 77.0, at_most(60), "ms"),
        absent("TransformerLens", "not here: pip install transformer-lens"),
    ]
    lines = table(rows, {"generation": "0.99"}).splitlines()
    assert cells(lines[0]) == ["what", "ours", "peer", "ratio", "before", "bound", "met"]
    assert cells(lines[2]) == ["forward of 512", "1.02 s", "plain: 1.00 s", "1.02", "", "<= 1.04", "yes"]
    assert cells(lines[3]) == [
        "generation", "90.0 tokens/s", "mlx-lm: 100 tokens/s", "0.900", "0.99", ">= 0.98", "**no**"
    ]  # fmt: skip
    assert cells(lines[4]) == ["key to frame, p95", "77.0 ms", "", "77.0 ms", "", "<= 60 ms", "**no**"]
    assert cells(lines[5]) == ["TransformerLens", "", "not here: pip install transformer-lens", "", "", "", ""]


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [(at_most(1.2), 1.2, True), (at_most(1.2), 1.21, False), (at_least(4), 4.0, True), (at_least(4), 3.99, False)],
)
def test_a_bound_holds_at_its_limit(bound: Bound, value: float, met: bool) -> None:
    assert bound.met(value) is met


def test_numbers_are_written_with_three_digits_that_count() -> None:
    assert [written(value) for value in (0.0123, 0.98, 1.0, 12.34, 1234.5)] == [
        "0.012",
        "0.980",
        "1.00",
        "12.3",
        "1234",
    ]
    assert [duration(value) for value in (2.5, 0.0123, 4.2e-6)] == ["2.50 s", "12.3 ms", "4.20 µs"]


def test_a_bar_or_a_line_end_in_a_text_does_not_break_the_table() -> None:
    line = table([absent("a | b", "two\nlines")], {}).splitlines()[2]
    assert cells(line)[:3] == ["a / b", "", "two lines"]


def test_an_empty_document_gets_the_section_and_the_other_device_another() -> None:
    document = with_part("", "cpu", "generation", "two cores", [ROW])
    document = with_part(document, "gpu", "generation", "a card", [ROW])
    assert document.index("## On a CPU") < document.index("two cores") < document.index("## On a GPU")
    assert document.index("<!-- end of cpu -->") < document.index("<!-- gpu -->") < document.index("a card")


def test_a_part_is_replaced_and_keeps_the_ratios_that_it_had() -> None:
    first = with_part("# Head\n\nwords\n", "cpu", "one", "then", [ROW])
    first = with_part(first, "cpu", "two", "then too", [ROW])
    first = with_part(first, "gpu", "one", "card", [ROW]) + "\n## History\n\n### one\n\nkept\n"
    second = with_part(first, "cpu", "one", "now", [of_times("forward of 512", 1.5, 1.0, "plain", at_most(1.04))])
    assert second.startswith("# Head\n\nwords\n")
    assert second.endswith("## History\n\n### one\n\nkept\n")
    cpu = second[: second.index("<!-- end of cpu -->")]
    assert cpu.count("### one") == 1
    assert "\nthen\n" not in cpu
    assert "\nthen too\n" in cpu
    row = next(line for line in cpu.split("### two")[0].splitlines() if line.startswith("| forward"))
    assert cells(row)[3:5] == ["1.50", "1.02"]
    assert "\ncard\n" in second


def test_writing_the_same_again_changes_only_the_column_of_before() -> None:
    once = with_part("", "cpu", "one", "now", [ROW])
    twice = with_part(once, "cpu", "one", "now", [ROW])
    assert ratios_of(once) == ratios_of(twice) == {"forward of 512": "1.02"}
    assert with_part(twice, "cpu", "one", "now", [ROW]) == twice


def test_a_row_that_was_not_measured_last_time_has_nothing_before() -> None:
    once = with_part("", "cpu", "one", "now", [absent("forward of 512", "not here")])
    again = with_part(once, "cpu", "one", "now", [ROW]).splitlines()
    assert cells(next(line for line in again if line.startswith("| forward")))[3:5] == ["1.02", ""]
