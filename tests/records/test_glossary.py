"""The glossary: one set of words for the screen, the page and the verb."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lens_tui.cli.command import app
from lens_tui.records import glossary
from lens_tui.records.measures import DEFINITIONS, QUANTITIES
from lens_tui.tui.keys import SCREENS

DOCS = Path(__file__).parents[2] / "docs"
TITLES = [title for _, title in SCREENS]


def test_the_page_is_what_the_glossary_says() -> None:
    assert (DOCS / "glossary.md").read_text(encoding="utf-8") == glossary.as_markdown(), "run docs/make_glossary.py"


def test_every_entry_is_whole_and_short_enough_for_a_screen() -> None:
    assert len({term.id for term in glossary.TERMS}) == len(glossary.TERMS)
    for term in glossary.TERMS:
        assert all((term.id, term.name, term.unit, term.source, term.where))
        assert term.means.endswith(".")
        assert len(term.means) <= 180, term.id
        assert len(term.unit_and_source) <= 90, term.id
        assert set(term.where) <= set(TITLES)


@pytest.mark.parametrize("title", TITLES)
def test_every_screen_has_entries(title: str) -> None:
    assert glossary.on_screen(title)


def test_the_curves_are_called_and_defined_as_in_the_glossary() -> None:
    assert set(QUANTITIES) <= set(DEFINITIONS)
    for name, (label, words) in DEFINITIONS.items():
        assert (glossary.by_id(name).name, glossary.by_id(name).means) == (label, words)


@pytest.mark.parametrize(
    ("typed", "ids"),
    [
        ("L0", ["l0"]),
        ("fvu", ["fvu"]),
        ("|h|", ["h"]),
        ("‖h‖", ["h"]),
        ("KL", ["kl", "kl_own", "layer_kl"]),
        ("x max", ["x_max"]),
        ("rank 0", ["rank"]),
        ("+ reads", ["reads"]),
        ("norm", ["norm"]),
        ("Jacobian lens", ["jacobian_lens"]),
        ("says what the model says", ["agreement"]),
        ("R2", ["probe_score"]),
        ("chosen", ["behaviour_share"]),
        ("sums within", ["graph_sums"]),
        ("path patching", ["path_effect"]),
        ("nothing at all", []),
    ],
)
def test_entries_are_found_as_they_are_written_on_the_screen(typed: str, ids: list[str]) -> None:
    assert [term.id for term in glossary.find(typed)] == ids


def test_a_word_of_a_definition_finds_it() -> None:
    assert "detection" in [term.id for term in glossary.find("judge")]


def test_the_papers_of_docs_and_glossary_have_a_number_or_a_title() -> None:
    for term in glossary.TERMS:
        if not term.source.startswith(("docs/", "our")):
            assert re.search(r"\b(1[89]|20)\d\d\b", term.source), term.id
        for page in re.findall(r"docs/(\S+\.md)", term.source):
            assert (DOCS / page).exists()


def test_the_verb_prints_definition_unit_and_source() -> None:
    done = CliRunner().invoke(app, ["glossary", "FVU"])
    term = glossary.by_id("fvu")
    flat = " ".join(done.stdout.split())
    assert done.exit_code == 0
    assert term.means in flat
    assert term.unit_and_source in flat
    assert "Mean number" not in flat


def test_the_verb_gives_all_of_it_as_json_and_refuses_what_is_not_there() -> None:
    rows = json.loads(CliRunner().invoke(app, ["glossary", "--json"]).stdout)["terms"]
    assert [row["id"] for row in rows] == [term.id for term in glossary.TERMS]
    assert CliRunner().invoke(app, ["glossary", "zzz"]).exit_code == 2
