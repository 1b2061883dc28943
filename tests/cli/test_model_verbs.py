"""The verbs of ``models``: what Load shows, and the hub's cache filled and emptied."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lens_tui.cli.command import app
from lens_tui.tasks.models import estimate_memory, list_models, list_saes, remember_model
from tests.folders import llama_folder, sae_folder
from tests.hub import FakeHub, use_hub


def run(*arguments: str, code: int = 0, given: str = "") -> Any:
    done = CliRunner().invoke(app, ["models", *arguments], input=given)
    assert done.exit_code == code, (done.output, done.exception)
    return done


def data(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def files_of(folder: Path, under: str = "") -> dict[str, bytes]:
    return {f"{under}{file.name}": file.read_bytes() for file in folder.iterdir()}


PLACE = "resid_post/layer_7_width_16k_l0_medium"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    model = llama_folder(tmp_path / "m", quantization={"group_size": 64, "bits": 4})
    sae = sae_folder(tmp_path / "s")
    repos = {"org/gemma-3-1b-it": files_of(model), "google/gemma-scope-2-1b-it": files_of(sae, f"{PLACE}/")}
    with FakeHub(repos).serve() as served:
        use_hub(monkeypatch, served.url, tmp_path / "hub")
        yield served


@pytest.mark.usefixtures("hub")
def test_what_is_fetched_is_listed_with_what_the_app_says_of_it() -> None:
    fetched = data("fetch", "org/gemma-3-1b-it")
    assert Path(fetched["path"], "config.json").exists()
    found = data()
    assert found == data("list")
    rows = {row["id"]: row for row in found["models"]}
    assert set(rows) == {"demo", "org/gemma-3-1b-it"}
    row = rows["org/gemma-3-1b-it"]
    entry = next(entry for entry in list_models() if entry.id == "org/gemma-3-1b-it")
    memory = estimate_memory(entry, tokens=1024, arms=4, captured_layers=4)
    assert (row["path"], row["nbytes"]) == (fetched["path"], entry.nbytes)
    assert (row["needs"], row["fits"]) == (memory.total, memory.fits)
    assert [sae["source"] for sae in row["saes"]] == ["hub"] * 4
    said = run().stdout
    assert "4-bit" in next(line for line in said.splitlines() if line.startswith("org/gemma-3-1b-it"))
    assert f"google/gemma-scope-2-1b-it/{PLACE}" in said


def test_fetch_asks_for_what_is_new(hub: FakeHub) -> None:
    before = data("fetch", "org/gemma-3-1b-it")["path"]
    hub.commit = "d" * 40
    hub.repos["org/gemma-3-1b-it"]["new.json"] = b"{}"
    after = data("fetch", "org/gemma-3-1b-it")["path"]
    assert before != after
    assert Path(after, "new.json").exists()
    assert hub.fetched("model.safetensors") == 1


def test_an_sae_is_fetched_and_removed_alone(hub: FakeHub) -> None:
    run("fetch", "org/gemma-3-1b-it")
    name = f"google/gemma-scope-2-1b-it/{PLACE}"
    assert run("fetch", name).stdout.strip().endswith(PLACE)
    (sae,) = list_saes("org/gemma-3-1b-it")
    assert (sae.name, sae.source) == (name, "cache")
    assert data("remove", name, "--yes") == {"model": None, "id": name, "freed": sae.nbytes}
    assert list_saes("org/gemma-3-1b-it") == []
    assert [entry.id for entry in list_models()] == ["demo", "org/gemma-3-1b-it"]
    run("fetch", name)
    assert hub.fetched("params.safetensors") == 2


@pytest.mark.usefixtures("hub")
def test_remove_does_nothing_that_was_not_confirmed() -> None:
    run("fetch", "org/gemma-3-1b-it")
    assert "Say --yes." in data("remove", "org/gemma-3-1b-it", code=2)["error"]["hint"]
    assert "was not confirmed" in run("remove", "org/gemma-3-1b-it", code=2).stderr
    assert [entry.id for entry in list_models()] == ["demo", "org/gemma-3-1b-it"]
    assert "are free" in run("remove", "org/gemma-3-1b-it", "--yes").stdout
    assert [entry.id for entry in list_models()] == ["demo"]
    assert "There is no org/gemma-3-1b-it on this disk." in run("remove", "org/gemma-3-1b-it", "-y", code=2).stderr


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("said", ["n\n", ""])
def test_a_no_at_the_terminal_removes_nothing(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("fetch", "org/gemma-3-1b-it")
    monkeypatch.setattr("lens_tui.cli.output.asked_in_person", lambda: True)
    done = CliRunner().invoke(app, ["models", "remove", "org/gemma-3-1b-it"], input=said)
    assert (done.exit_code, "Nothing was removed." in done.stderr) == (2, True)
    assert [entry.id for entry in list_models()] == ["demo", "org/gemma-3-1b-it"]


@pytest.mark.usefixtures("hub")
def test_a_folder_of_the_users_own_is_never_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    remember_model(str(folder))
    assert data("remove", str(folder), "--yes")["freed"] == 0
    assert (folder / "config.json").exists()
    assert [entry.id for entry in list_models()] == ["demo"]
    assert "part of the app" in run("remove", "demo", "--yes", code=2).stderr


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/none", "There is no org/none on the hub"),
        ("org/gemma-3-1b-it/layer_9", "has no weights under a usual name"),
        ("not an id", "is not a hub id"),
        ("org/x\x1b[31m", "is not a hub id"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(name: str, words: str) -> None:
    done = run("fetch", name, code=2)
    assert words in done.stderr
    assert "\x1b" not in done.stderr
