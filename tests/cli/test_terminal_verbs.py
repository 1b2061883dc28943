"""Every verb on a terminal of 80 columns and, without colour, of 120: no line of a table is wrapped, nothing acts."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from lens_tui.cli.command import app
from lens_tui.records.sanitise import sanitise_token
from tests.cli.test_contract import MAY_NOT_FIT, NASTY, OF_A_RUN, VERBS, WITHOUT_A_MODEL, keep_a_map, typed, work
from tests.hub import FakeHub, use_hub

__all__ = ["work"]

STYLE = re.compile(r"\x1b\[([0-9;]*)m")
COLOUR = re.compile(r"\x1b\[[0-9;]*(?<![0-9])(?:[34][0-7]|[34]8;[25]|9[0-7]|10[0-7])[0-9;]*m")
AGAIN = ("compare", "features", "info", "lens", "loss", "feature", "search", "glossary", "labels show", "runs list")
"""Verbs whose ``--json`` is held against that of a pipe: they only read, or what they read was made before."""


class Shown:
    """What a terminal got; standard output is one while ``on`` lasts."""

    def __init__(self) -> None:
        self.written = b""

    @contextmanager
    def on(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        ours, theirs = pty.openpty()
        reader = threading.Thread(target=self._read, args=(ours,))
        reader.start()
        with open(theirs, "w", encoding="utf-8", newline="") as stream, patch.context() as inner:
            inner.setattr(sys, "stdout", stream)
            yield
        reader.join()
        os.close(ours)

    def _read(self, end: int) -> None:
        try:
            while data := os.read(end, 65536):
                self.written += data
        except OSError:  # the other end is closed: Linux says so with an error
            pass

    @property
    def text(self) -> str:
        return self.written.decode().replace("\r\n", "\n")


def on_a_terminal(arguments: list[str], patch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit status of a verb and what it wrote to a terminal."""
    shown = Shown()
    with shown.on(patch):
        try:
            typer.main.get_command(app).main(arguments, "mlx-lens-tui")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
    return status, shown.text


def walk(work: dict[str, str], patch: pytest.MonkeyPatch, folder: Path, json_too: bool) -> dict[str, tuple[int, str]]:
    """What each verb shows, one after the other, and where ``json_too`` what those of ``AGAIN`` say to a program."""
    said: dict[str, tuple[int, str]] = {}
    tiny = {file.name: file.read_bytes() for file in Path(work["MODEL"]).iterdir()}
    with FakeHub({"org/tiny": tiny}).serve() as hub:
        patch.setenv("LENS_TUI_HOME", str(folder / "home"))
        keep_a_map(work["MODEL"])
        use_hub(patch, hub.url, folder / "hub")
        patch.setenv("HF_TOKEN", hub.token)
        shards = ["", ""]
        for place, verb in enumerate(VERBS):
            model = [] if verb in (*WITHOUT_A_MODEL, *OF_A_RUN) else ["-m", work["MODEL"]]
            names = {name: str(folder / name.lower()) for name in ("FOLDER", "VECTOR")}
            names["PROBE"] = str(folder / "probe.safetensors")
            names["VECTOR"] += ".safetensors"
            words = [*typed(verb, {**work, **names}, OUT=str(folder / f"out{place}"), SHARD=shards[0], OTHER=shards[1])]
            if verb == "index":
                for at in range(2):
                    one = [word.replace("0/2", f"{at}/2") for word in words]
                    shards[at] = json.loads(CliRunner().invoke(app, [*one, *model, "--json"]).stdout)["parts"][0]
            said[verb] = on_a_terminal([*words, *model], patch)
            if json_too and verb in AGAIN:
                said[f"{verb} --json"] = on_a_terminal([*words, *model, "--json"], patch)
                said[f"{verb} --json piped"] = (0, CliRunner().invoke(app, [*words, *model, "--json"]).stdout)
    return said


@pytest.fixture(scope="module")
def coloured(work: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
            patch.setenv(name, value)
        return walk(work, patch, tmp_path_factory.mktemp("coloured"), json_too=True)


@pytest.fixture(scope="module")
def colourless(work: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COLUMNS": "120", "LINES": "36", "TERM": "xterm-256color", "NO_COLOR": "1"}.items():
            patch.setenv(name, value)
        return walk(work, patch, tmp_path_factory.mktemp("colourless"), json_too=False)


def assert_tame(shown: str) -> None:
    """Styles and line ends are all that a terminal would act on."""
    for line in STYLE.sub("", shown).split("\n"):
        assert sanitise_token(line) == line, repr(line)


def rows_too_wide(shown: str, columns: int) -> list[str]:
    """The lines of tables that the terminal would wrap: those with wide gaps, which sentences and paths have not.

    The heading of an arm (``──``) is a sentence too.
    """
    lines = [line for line in STYLE.sub("", shown).split("\n") if not line.startswith("──")]
    return [line for line in lines if cell_len(line) > columns and re.search(r"\S {2,}\S", line)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_terminal_of_80_columns(verb: str, coloured: dict[str, tuple[int, str]]) -> None:
    status, shown = coloured[verb]
    assert status in (0, MAY_NOT_FIT.get(verb, 0)), shown
    assert shown[-1:] in ("\n", "")  # nothing where there is nothing to list
    assert_tame(shown)
    assert rows_too_wide(shown, 80) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_terminal_of_120_columns_without_colour(verb: str, colourless: dict[str, tuple[int, str]]) -> None:
    status, shown = colourless[verb]
    assert status in (0, MAY_NOT_FIT.get(verb, 0)), shown
    assert_tame(shown)
    assert COLOUR.search(shown) is None, repr(shown)
    assert rows_too_wide(shown, 120) == []


def test_colour_has_a_twin_of_signs(
    coloured: dict[str, tuple[int, str]], colourless: dict[str, tuple[int, str]]
) -> None:
    for verb, signs in {"compare": "[▁▂▃▄▅▆▇█]", "features": "[█▏▎▍▌▋▊▉]"}.items():
        assert re.search(signs, coloured[verb][1]), verb
        assert re.search(signs, colourless[verb][1]), verb
    assert COLOUR.search(coloured["compare"][1])


@pytest.mark.parametrize("verb", AGAIN)
def test_json_is_the_same_on_a_terminal(verb: str, coloured: dict[str, tuple[int, str]]) -> None:
    (status, shown), (_, piped) = coloured[f"{verb} --json"], coloured[f"{verb} --json piped"]
    assert status == 0
    assert without_times(json.loads(shown)) == without_times(json.loads(piped))
    assert "\x1b" not in shown
    assert shown.count("\n") == 1


def without_times(data: object) -> object:
    """The JSON without what no two runs have alike: how long they took, and their numbers."""
    if isinstance(data, dict):
        kept = {key: value for key, value in data.items() if not re.search("seconds|per_second|_s$|bytes|^run", key)}
        return {key: without_times(value) for key, value in kept.items()}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def test_the_walk_is_of_hostile_text() -> None:
    assert "\x9b" in NASTY
    assert sum(NASTY in words for words in VERBS.values()) > 10
