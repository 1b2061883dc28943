"""Contrast and export of features as jobs: the numbers of the library and of the verb."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from lens_tui import LensModel, load_sae
from lens_tui.cli.command import app
from lens_tui.records.labels import Labels
from lens_tui.records.store import Store
from lens_tui.tasks.feature_page import contrast_texts
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.worker.drive import Driver, only

A = tuple(f"the cat sat on the mat {n}" for n in range(5))
B = tuple(f"{n} ships sail over the deep sea" for n in range(6))


def test_the_job_the_library_and_the_verb_give_the_same_numbers(
    loaded: Driver, tiny: Path, sae: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, texts in zip(files, (A, B), strict=True):
        file.write_text("\n".join(texts))
    typed = only(loaded.done(jobs.ContrastTexts(str(sae), A, B, top_k=6)), ev.Contrasted)
    read = jobs.ContrastTexts(str(sae), path_a=str(files[0]), path_b=str(files[1]), top_k=6)
    event = only(loaded.done(read), ev.Contrasted)
    assert replace(event, job=0) == replace(typed, job=0)
    with LensModel(str(tiny)) as model:
        assert event.found == contrast_texts(model, load_sae(sae), A, B, k=6)
    assert (event.texts_a, event.texts_b) == (5, 6)
    words = ["contrast", *map(str, files), "-m", str(tiny), "--sae", str(sae), "-k", "6", "--json"]
    printed = json.loads(CliRunner().invoke(app, words).stdout)["features"]
    assert [(row["feature"], row["auc"], row["p"], row["null"]) for row in printed] == [
        (row.feature, row.auc, row.p, row.null) for row in event.found
    ]


def test_too_few_texts_are_one_sentence(loaded: Driver, sae: Path) -> None:
    failed = loaded.failed(jobs.ContrastTexts(str(sae), A[:3], B))
    assert "3 texts against 6" in failed.message
    assert failed.hint


def test_a_list_is_exported_with_its_labels(loaded: Driver, sae: Path, tmp_path: Path) -> None:
    info = only(loaded.done(jobs.LoadSAE(str(sae), check=False)), ev.SAELoaded).info
    with Store() as store:
        Labels(store).set(info.id, 5, 'sea, "deep"\nwater')
    for name in ("l.csv", "l.json"):
        job = jobs.ExportFeatures(info.id, "sea", (5, 3), str(tmp_path / "new" / name))
        assert only(loaded.done(job), ev.FeaturesExported).count == 2
    with (tmp_path / "new" / "l.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["feature", "label"], ["5", 'sea, "deep"\nwater'], ["3", ""]]
    written = json.loads((tmp_path / "new" / "l.json").read_text())
    assert (written["name"], written["sae_id"]) == ("sea", info.id)
    assert written["features"][1] == {"feature": 3, "label": None}
    assert loaded.failed(jobs.ExportFeatures(info.id, "sea", (5,), str(tmp_path)))
