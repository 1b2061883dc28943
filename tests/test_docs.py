"""The library page holds: every example runs as it stands, and every public name is on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import lens_tui
import lens_tui.records
from lens_tui import BatchGeneration, Comparison, Generation, LensModel
from lens_tui.records import Sampling

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
FIRST = "Load"
MODULES = [lens_tui, lens_tui.records]


def blocks(section: str) -> list[str]:
    """The python blocks of a section, in order."""
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)


def execute(section: str, space: dict[str, Any]) -> dict[str, Any]:
    """Run a section's blocks in one namespace."""
    for number, code in enumerate(blocks(section)):
        exec(compile(code, f"docs/library.md, {section}, block {number}", "exec"), space)
    return space


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """What every section begins with: the namespace of the first one."""
    return execute(FIRST, {})


def test_the_page_has_examples_in_every_section() -> None:
    assert next(iter(SECTIONS)) == FIRST
    assert [name for name in SECTIONS if not blocks(name)] == []


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != FIRST])
def test_the_examples_run_as_they_stand(
    section: str, loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lens = loaded["lens"]
    assert isinstance(lens, LensModel)
    execute(section, dict(loaded))
    assert lens.hooked == ()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_on_the_page(module: Any) -> None:
    # A name counts where it stands as code in the text, not where an example happens to use it.
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    code = " ".join(re.findall(r"`([^`]+)`", text))
    assert [name for name in module.__all__ if not re.search(rf"(?<!\w){name}(?!\w)", code)] == []


def test_every_method_of_the_model_is_on_the_page() -> None:
    named = [name for name in dir(LensModel) if not name.startswith("_")]
    assert [name for name in named if not re.search(rf"\.{name}(?!\w)", PAGE)] == []


@pytest.mark.parametrize("kind", [Generation, Comparison, BatchGeneration, Sampling], ids=lambda kind: kind.__name__)
def test_everything_of_a_run_is_on_the_page(kind: Any) -> None:
    own = [name for name in vars(kind) if not name.startswith("_")]
    assert [name for name in own if not re.search(rf"(?<!\w){name}(?!\w)", PAGE)] == []


def test_links_lead_somewhere() -> None:
    docs = Path(__file__).parents[1] / "docs"
    heads = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert target[1:] in heads if target.startswith("#") else (docs / target).exists(), target


def test_the_files_named_in_contributing_are_there() -> None:
    root = Path(__file__).parents[1]
    paths = [
        path.as_posix()
        for folder in ("lens_tui", "tests", "docs", "screenshots", "examples", "benchmarks")
        for path in (root / folder).rglob("*.*")
    ]
    named = re.findall(r"`([\w/]+\.(?:py|tcss|md))`", (root / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in paths)] == []


def test_the_functions_and_classes_named_in_contributing_are_there() -> None:
    root = Path(__file__).parents[1]
    files = [path for folder in ("lens_tui", "tests", "benchmarks") for path in (root / folder).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    defined = set(re.findall(r"^\s*(?:(?:async )?def|class) (\w+)|^\s*(\w+)(?=: | = )", code, re.MULTILINE))
    known = {name for pair in defined for name in pair}
    page = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = page.partition("## The life of a token")[2].partition("## Manner")[0]
    words = re.findall(r"`([A-Za-z_][\w.]*)`", text)
    named = [
        word
        for word in words
        if not word.endswith((".py", ".md", ".tcss", ".json")) and word not in ("case", "project_out")
    ]
    assert named
    assert [name for name in named if not {*name.split(".")} <= known] == []
