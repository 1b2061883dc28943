"""Labels that come with an SAE stand behind the user's own, are found by the same words, and are never written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lens_tui import demo, sae_info
from lens_tui.cli.command import app
from lens_tui.records import SAEInfo, paths
from lens_tui.records.labels import Labels, NewLabel
from lens_tui.records.store import Store
from lens_tui.tasks import knowledge
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.worker.drive import Driver, only

WITH_IT = {
    3: "ships sailing at sea",
    7: "Café recipes",
    9: "the sea shore",
    12: "numbers",
}


@pytest.fixture
def info(sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SAEInfo]:
    """An SAE that came with labels of its own."""
    rows = [
        {"feature": f, "sae": "with-it", "text": text, "score": 0.9, "method": "by hand", "scorer": "detection"}
        for f, text in WITH_IT.items()
    ]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(demo, "LABELS", file)
    monkeypatch.setattr(demo, "sae_paths", lambda: {"with-it": sae})
    knowledge.bundled.cache_clear()
    knowledge.bundled_names.cache_clear()
    yield sae_info(sae)
    for name in ("", "with-it"):
        knowledge.bundled(name).store.close()
    knowledge.bundled.cache_clear()
    knowledge.bundled_names.cache_clear()


def _own(info: SAEInfo, feature: int, text: str) -> None:
    with Store() as store:
        Labels(store).set(info.id, feature, text)


def _imported(info: SAEInfo, *labels: tuple[int, str]) -> None:
    with Store() as store:
        Labels(store).take(info.id, [NewLabel(f, text, "delphi", score=1.0) for f, text in labels], origin="x")


def test_those_of_one_sae_are_read_without_opening_the_others(
    info: SAEInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = demo.sae_paths()
    with demo.LABELS.open("a") as file:
        file.write(json.dumps({"feature": 1, "sae": "another", "text": "x", "score": 1, "method": "", "scorer": ""}))
    with monkeypatch.context() as patch:
        patch.setattr(demo, "sae_paths", lambda: found | {"another": tmp_path / "none"})
        assert [label.text for label in knowledge.labels_of(info, 3)] == [WITH_IT[3]]


def test_a_copy_of_one_elsewhere_has_them_too(info: SAEInfo, tmp_path: Path) -> None:
    copy = shutil.copytree(info.path, tmp_path / "copy")
    there = sae_info(copy)
    assert (there.id, there.path) == (info.id, str(copy))
    assert [label.text for label in knowledge.labels_of(there, 3)] == [WITH_IT[3]]


def test_they_show_without_a_database_and_make_none(info: SAEInfo) -> None:
    (label,) = knowledge.labels_of(info, 3)
    assert (label.text, label.source, label.score, label.scorer) == (WITH_IT[3], "bundled", 0.9, "detection")
    assert (label.method, label.sae, label.is_mine) == ("by hand", info.id, False)
    assert knowledge.label_texts(info, [3, 4, 12]) == {3: WITH_IT[3], 12: WITH_IT[12]}
    assert [one.feature for one in knowledge.standing_labels(info)] == [3, 7, 9, 12]
    assert [one.feature for one in knowledge.search_labels("numbers", info.id)] == [12]
    assert knowledge.label_texts(info, [3]) == {3: WITH_IT[3]}
    assert not paths.database_file().exists()


def test_yours_come_first_then_imported_ones(info: SAEInfo) -> None:
    _own(info, 3, "boats")
    _imported(info, (3, "vessels"), (9, "beaches"))
    assert [one.text for one in knowledge.labels_of(info, 3)] == ["boats", "vessels", WITH_IT[3]]
    assert knowledge.label_texts(info, [3, 9, 7]) == {3: "boats", 9: "beaches", 7: WITH_IT[7]}
    first = knowledge.labels_of(info, 3)[0]
    assert (first.text, first.source, first.score) == ("boats", "mine", None)
    texts = [one.text for one in knowledge.standing_labels(info)]
    assert texts == ["boats", "vessels", WITH_IT[3], WITH_IT[7], "beaches", WITH_IT[9], WITH_IT[12]]
    _own(info, 3, "")
    assert [one.text for one in knowledge.labels_of(info, 3)] == ["vessels", WITH_IT[3]]
    with Store() as store:
        assert {one.source for one in Labels(store).standing(info.id)} == {"delphi"}


@pytest.mark.parametrize(
    ("words", "features"),
    [("sail", [3]), ("ship sea", [3]), ("sea", [9, 3]), ("cafe reci", [7]), ("sea numbers", []), ("", []), ('"', [])],
)
def test_words_mean_the_same_as_in_your_own_labels(info: SAEInfo, words: str, features: list[int]) -> None:
    assert [one.feature for one in knowledge.search_labels(words, info.id)] == features
    with Store() as store:
        Labels(store).take(info.id, [NewLabel(f, t, "copy") for f, t in WITH_IT.items()], origin="x")
        assert [one.feature for one in Labels(store).search(words, sae=info.id)] == features


def test_what_is_found_is_merged_by_turns_with_yours_in_front(info: SAEInfo) -> None:
    _imported(info, (20, "sea"), (21, "the sea and the sky"))
    _own(info, 40, "a very long label about everything there is to say of the sea")
    found = knowledge.search_labels("sea", info.id)
    assert [(one.feature, one.source) for one in found] == [
        (40, "mine"),
        (20, "delphi"),
        (9, "bundled"),
        (21, "delphi"),
        (3, "bundled"),
    ]
    assert knowledge.search_labels("sea", info.id, k=3) == found[:3]
    assert knowledge.search_labels("sea", None) == found
    assert knowledge.search_labels("sea", "sae-of-another", 5) == ()


def test_they_belong_to_contents_not_to_a_folder(info: SAEInfo, tmp_path: Path) -> None:
    from tests.folders import sae_folder

    other = sae_info(sae_folder(tmp_path / "with-it", seed=6))
    assert knowledge.labels_of(other, 3) == ()
    assert other.id != info.id


def test_an_installation_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "LABELS", tmp_path / "none.jsonl")
    assert demo.bundled_labels() == {}


def test_the_worker_shows_and_finds_them(driver: Driver, tiny: Path, sae: Path, info: SAEInfo) -> None:
    driver.done(jobs.LoadModel(str(tiny)))
    driver.done(jobs.LoadSAE(str(sae), check=False))
    page = only(driver.done(jobs.ReadFeature(info.id, 3)), ev.FeaturePage)
    label = page.facts.label
    assert label is not None
    assert (label.text, label.source, label.score) == (WITH_IT[3], "bundled", 0.9)
    assert label.scorer == "detection"
    assert page.vector.name == WITH_IT[3]
    driver.done(jobs.SetLabel(info.id, 9, "coast"))
    found = only(driver.done(jobs.FindFeatures(info.id, "sea")), ev.FeaturesFound).found
    assert [(one.feature, one.name, one.why) for one in found] == [(9, WITH_IT[9], "label"), (3, WITH_IT[3], "label")]
    (mine, *_) = only(driver.done(jobs.ReadFeature(info.id, 9)), ev.FeaturePage).facts.labels
    assert mine.text == "coast"


def test_the_verbs_show_find_and_export_them(info: SAEInfo, sae: Path, tmp_path: Path) -> None:
    def data(*arguments: str) -> list[dict[str, object]]:
        done = CliRunner().invoke(app, [*arguments, "-m", "x", "-s", str(sae), "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout).get("labels")
        return list(found) if isinstance(found, list) else []

    _own(info, 12, "digits")
    assert [row["text"] for row in data("labels", "show", "12")] == ["digits", WITH_IT[12]]
    assert [row["text"] for row in data("labels", "show", "12", "--history")] == ["digits"]
    assert [row["feature"] for row in data("labels", "show")] == [3, 7, 9, 12, 12]
    assert [row["source"] for row in data("labels", "search", "sailing")] == ["bundled"]
    data("labels", "export", str(tmp_path / "all"), "-f", "delphi")
    data("labels", "export", str(tmp_path / "mine"), "-f", "delphi", "--mine")
    written = [(tmp_path / name / "explanations").glob("*") for name in ("all", "mine")]
    assert [len(list(files)) for files in written] == [4, 1]
