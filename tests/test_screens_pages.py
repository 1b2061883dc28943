"""The pages of the screens hold: keys and jobs are those of the app, links lead somewhere, verbs and terms are real."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from lens_tui.cli.command import app
from lens_tui.records.glossary import as_markdown
from lens_tui.tui.keys import KEYS, SCREENS
from lens_tui.tui.screens.history_dialog import HistoryDialog
from lens_tui.tui.screens.history_screen import HistoryScreen
from screenshots.jobs import JOBS, Job

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "screens").glob("*.md"))
OF_SCREENS = [page for page in PAGES if page.stem != "README"]


def _maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_screens", ROOT / "docs" / "make_screens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()


def test_every_screen_has_a_page() -> None:
    assert {page.stem for page in OF_SCREENS} == {*(name for name, _title in SCREENS), "history"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_as_its_generator_writes_it(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == MAKER.page_text(page)


def test_every_key_of_a_screen_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in OF_SCREENS).replace("\\|", "|")
    assert [key.id for key in KEYS if key.scope not in ("app", "move") and key.description not in text] == []


def test_the_keys_of_the_history_are_its_own() -> None:
    said = {MAKER._SHORT.get(key, key) for keys, _words in MAKER.OWN["history"] for key in keys.split()}
    bindings = [*HistoryDialog.BINDINGS, *HistoryScreen.BINDINGS]
    bound = {binding[0].partition(",")[0] for binding in bindings if isinstance(binding, tuple)}
    assert {"esc" if key == "escape" else MAKER._SHORT.get(key, key) for key in bound} - {"q"} == said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, head = target.partition("#")
        assert (page.parent / path).exists(), target
        if head:
            assert f"\n## {head.capitalize()}\n" in as_markdown(), target


@pytest.mark.parametrize("page", OF_SCREENS, ids=lambda page: page.stem)
def test_the_commands_have_verbs_and_options_that_are_there(page: Path) -> None:
    commands = re.findall(r"^mlx-lens-tui (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert commands
    for command in commands:
        verb = re.match(r"(?:(?:models|runs|lists|labels|vector) )?[\w-]+", command)
        assert verb is not None
        result = CliRunner().invoke(app, [*verb[0].split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert result.exit_code == 0, command
        for option in re.findall(r" (--[\w-]+)", command):
            assert option in result.output, command


def test_a_job_is_counted_key_by_key() -> None:
    job = Job("steer", "try", ("4", "plus", "'a b|", "enter"))
    assert job.presses == ("4", "plus", "a", "space", "b", "vertical_line", "enter")
    assert job.written == "`4` `+` `a b|` `⏎`"


def test_three_scales_on_five_prompts_take_at_most_25_keys() -> None:
    found = next(job for job in JOBS if job.wanted.startswith("Three scales"))
    assert len(found.presses) <= 25


def test_pictures_have_names_of_their_own() -> None:
    names = [job.picture for job in JOBS if job.picture]
    assert len(set(names)) == len(names)
