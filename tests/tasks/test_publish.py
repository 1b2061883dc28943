"""Vectors, probes and SAEs at a stand-in for the hub: a card, private unless asked, a token that is never shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensError
from lens_tui.cli.command import app
from lens_tui.records import SteeringVector
from lens_tui.records.steering_vector import Origin
from lens_tui.records.vector_formats import load_one, save_vectors
from lens_tui.tasks.publish import prepare, publish, pull
from tests.folders import sae_folder
from tests.hub import FakeHub, use_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub().serve() as served:
        use_hub(monkeypatch, served.url, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", served.token)
        # Fetching is a process of its own, which reads these.
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "home"))
        yield served


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    origin = Origin("prompts", {"method": "mean|difference", "path": "/home/me/secret.jsonl"})
    values = np.random.default_rng(0).normal(size=8)
    return save_vectors(
        SteeringVector.of("a\x1b[31m", values, 3, model="org/base", origin=origin), tmp_path / "v.safetensors"
    )


def test_a_vector_goes_with_a_card_and_comes_back_as_it_was(hub: FakeHub, vector: Path) -> None:
    plan = prepare(vector, "me/verse", licence="mit")
    assert hub.asked == []
    url = publish(plan)
    assert url == f"{hub.url}/me/verse"
    assert hub.private["me/verse"]
    card = hub.repos["me/verse"]["README.md"].decode()
    for said in (
        "license: mit",
        "| model | org/base |",
        "| layer | 3 |",
        "| site | resid\\_post |",
        "mean\\|difference",
    ):
        assert said in card
    assert "mlx-lens-tui pull me/verse " in card
    assert "secret" not in card
    assert hub.token not in card + url
    assert hub.repos["me/verse"]["vector.safetensors"] == vector.read_bytes()
    kind, place = pull("me/verse")
    assert kind == "vector"
    np.testing.assert_array_equal(load_one(place).direction, load_one(vector).direction)
    with pytest.raises(LensError, match="there already"):
        pull("me/verse/vector.safetensors")


def test_an_sae_goes_with_its_facts(hub: FakeHub, tmp_path: Path) -> None:
    folder = sae_folder(tmp_path / "sae")
    plan = prepare(folder, "me/sae")
    publish(plan)
    sent = hub.repos["me/sae"]
    assert {name for name in sent if name != "README.md"} == {file.name for file in folder.iterdir()}
    assert "| layer | 1 |" in sent["README.md"].decode()
    card = sent["README.md"].decode()
    assert "none was given" in card
    assert "An SAE for" in card
    assert "--sae me/sae\n" in card


def test_a_public_repository_is_not_written_to_as_a_private_one(hub: FakeHub, vector: Path) -> None:
    hub.repos["me/open"], hub.private["me/open"] = {}, False
    with pytest.raises(LensError, match="there and public"):
        publish(prepare(vector, "me/open"))
    assert hub.repos["me/open"] == {}
    publish(prepare(vector, "me/open", private=False))
    assert "vector.safetensors" in hub.repos["me/open"]


def test_a_hub_that_refuses_is_a_sentence_without_the_token(hub: FakeHub, vector: Path) -> None:
    secret, hub.token = hub.token, "another"
    with pytest.raises(LensError, match="does not let you write") as refused:
        publish(prepare(vector, "me/verse"))
    assert secret not in f"{refused.value} {refused.value.hint} {refused.value.__cause__}"


def test_the_verb_asks_before_it_sends(hub: FakeHub, vector: Path) -> None:
    for said in ("n\n", ""):  # and nobody there to answer
        asked = CliRunner().invoke(app, ["publish", str(vector), "me/verse"], input=said)
        assert asked.exit_code == 2
        assert "Nothing was sent" in asked.output
        assert hub.asked == []
    sent = CliRunner().invoke(app, ["publish", str(vector), "me/verse", "--yes", "--json"])
    assert sent.exit_code == 0, sent.output
    assert f"{hub.url}/me/verse" in sent.stdout
    assert hub.token not in sent.output


def test_names_and_files_that_are_none_are_refused(tmp_path: Path, vector: Path) -> None:
    for source, repo, licence, says in (
        (vector, "verse", "", "not a hub id"),
        (vector, "me/../verse", "", "not a hub id"),
        (vector, "me/verse", "MIT\nx: y", "not a licence"),
        (tmp_path / "no", "me/verse", "", "There is no"),
    ):
        with pytest.raises(LensError, match=says):
            prepare(source, repo, licence=licence)
