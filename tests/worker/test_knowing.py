"""Labels, words and fit through the worker, on a real model and SAE."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui import FeatureIndex, IndexSettings, LensModel, load_sae, sae_info
from lens_tui.records import paths
from lens_tui.records.labels import Labels
from lens_tui.records.store import Store
from lens_tui.tasks import knowledge
from lens_tui.tasks.feature_page import contrast_texts, feature_facts, read_texts, search_features, word_tokens
from lens_tui.tasks.index import index_text
from lens_tui.tasks.train import FIT_TEXT, check_sae
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.events import NeighboursRead
from lens_tui.worker.jobs import ReadNeighbours
from tests.worker.drive import Driver, of, only

TEXTS = [
    "The sea is cold and the ship sails.",
    "Salt and butter in the soup.",
    "The cat sat.",
    "A ship, a sea, a ship.",
]


def test_an_sae_keeps_its_id_where_its_folder_goes(sae: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(sae, tmp_path / "elsewhere" / "renamed")
    assert sae_info(sae).id == sae_info(moved).id == load_sae(moved).info.id
    assert sae_info(moved).id.startswith("sae-")
    from safetensors.numpy import load_file, save_file

    tensors = load_file(moved / "params.safetensors")
    tensors["threshold"][3] += 1e-3
    save_file(tensors, moved / "params.safetensors")
    assert sae_info(moved).id != sae_info(sae).id


def test_fit_is_numpys(tiny: Path, sae: Path) -> None:
    model, loaded = LensModel(str(tiny)), load_sae(sae)
    report = check_sae(model, loaded)
    ids = list(model.tokens.encode(FIT_TEXT))
    kept = [i for i, token in enumerate(ids) if token not in model.tokens.special_ids()]
    for row in report.rows:
        layer, site = row.place
        x = np.asarray(model.residuals(ids, layer, site=site), np.float64)[kept]
        z = np.asarray(loaded.encode(model.residuals(ids, layer, site=site)), np.float64)[kept]
        w_dec, b_dec = np.asarray(loaded._weights.w_dec.array), np.asarray(loaded._weights.b_dec.array)
        error = x - (z @ w_dec + b_dec)
        assert row.l0 == pytest.approx((z > 0).sum(1).mean())
        assert row.fvu == pytest.approx((error**2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)
        assert row.n_tokens == len(kept) == len(ids) - 1
    assert [row.place for row in report.rows[:3]] == [(1, "resid_post"), (0, "resid_post"), (2, "resid_post")]
    assert report.verdict == "does not fit"  # its weights are random


def test_loading_says_whether_it_fits(driver: Driver, tiny: Path, sae: Path) -> None:
    driver.done(jobs.LoadModel(str(tiny)))
    events = driver.done(jobs.LoadSAE(str(sae)))
    info = only(events, ev.SAELoaded).info
    checked = only(events, ev.SAEChecked)
    assert (checked.sae, checked.report.fits) == (info.id, False)
    assert checked.report.sentence in only(events, ev.Notice).message
    assert of(driver.done(jobs.LoadSAE(str(sae), check=False)), ev.SAEChecked) == []


def test_a_place_its_files_do_not_say_is_said_after_an_at(
    driver: Driver, tiny: Path, sae: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(sae / "params.safetensors", plain / "params.safetensors")
    driver.done(jobs.LoadModel(str(tiny)))
    events = driver.done(jobs.LoadSAE(str(plain)))
    assert only(events, ev.SAELoaded).info.layer == -1
    assert only(events, ev.SAEChecked).report.declared is None
    info = only(driver.done(jobs.LoadSAE(f"{plain}@1", check=False)), ev.SAELoaded).info
    assert (info.layer, info.site, info.provenance["layer"]) == (1, "resid_post", "given by the caller")
    assert "not 2" in driver.failed(jobs.LoadSAE(f"{sae}@2")).message
    assert only(driver.done(jobs.Encode(info.id, "Once upon a time")), ev.Encoded).sae == info.id


def test_an_sae_trained_here_is_found_by_its_name(driver: Driver, tiny: Path, sae: Path) -> None:
    mine = shutil.copytree(sae, paths.saes_folder() / "mine")
    driver.done(jobs.LoadModel(str(tiny)))
    assert only(driver.done(jobs.LoadSAE("mine", check=False)), ev.SAELoaded).info.path == str(mine)
    info = only(driver.done(jobs.LoadSAE("mine@1:resid_post", check=False)), ev.SAELoaded).info
    assert (info.layer, info.path) == (1, str(mine))


def test_labels_and_words_through_the_worker(driver: Driver, tiny: Path, sae: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    settings = IndexSettings(top_k=3, max_active=64, full=True)
    with LensModel(str(tiny)) as model:
        (path,) = index_text(model, [load_sae(sae)], corpus, settings=settings, context=32, rows=2).indexes
        index = FeatureIndex(path)
        first = {f: int(token) for f, token in enumerate(index.table("norm").promoted_ids[:, 0])}
        words = {f: model.tokens.display(token).strip() for f, token in first.items()}
        feature = next(f for f, token in first.items() if token in word_tokens(model, words[f]))
    assert path.parent == paths.indexes_folder()
    driver.done(jobs.LoadModel(str(tiny)))
    info = only(driver.done(jobs.LoadSAE(str(sae), check=False)), ev.SAELoaded).info
    assert only(driver.done(jobs.SetLabel(info.id, 7, "cold water")), ev.LabelSet).label == "cold water"
    driver.done(jobs.SetLabel(info.id, 7, "the sea"))
    assert "no feature 64" in driver.failed(jobs.SetLabel(info.id, 64, "x")).message
    facts = only(driver.done(jobs.ReadFeature(info.id, 7)), ev.FeaturePage).facts
    numbers = index.statistics(7)
    assert facts.label is not None
    assert facts.label.text == "the sea"
    assert facts.label.source == "mine"
    assert facts.index is not None
    assert (facts.index.density, facts.index.max) == (numbers.density, numbers.max)
    assert len(facts.index.examples) == len(index.examples(7))
    found = only(driver.done(jobs.FindFeatures(info.id, "sea")), ev.FeaturesFound)
    assert found.indexed
    assert (found.found[0].feature, found.found[0].why) == (7, "label")
    promoting = only(driver.done(jobs.FindFeatures(info.id, words[feature])), ev.FeaturesFound).found
    assert feature in [item.feature for item in promoting]
    with Store() as store:
        assert [label.text for label in Labels(store).history(info.id, 7)] == ["the sea", "cold water"]


def test_a_page_and_a_search_hold_what_the_index_holds(tiny: Path, sae: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    model, loaded = LensModel(str(tiny)), load_sae(sae)
    (path,) = index_text(
        model, [loaded], corpus, tmp_path / "out", settings=IndexSettings(max_active=64, full=True), context=32
    ).indexes
    index = FeatureIndex(path)
    feature = int(index.count.argmax())
    page = feature_facts(model, loaded, feature, index, convention="raw", neighbours=4)
    unit = np.asarray(loaded._weights.w_dec.array, np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit[feature]
    cosines[feature] = -2
    assert [row.feature for row in page.neighbours or ()] == np.argsort(-cosines)[:4].tolist()
    from safetensors.numpy import load_file

    effect = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"] @ unit[feature]
    assert [item.token_id for item in page.promoted] == np.argsort(-effect)[:10].tolist()
    assert page.index is not None
    assert page.index.count == index.count[feature]
    assert page.index.examples[0].value == pytest.approx(float(index.max[feature]), rel=1e-6)
    assert page.co_active
    assert feature_facts(model, loaded, feature, None).index is None
    assert search_features("zzzz", loaded.info, model, None).promoting is None


def test_a_page_opens_the_database_and_the_index_once(
    driver: Driver, tiny: Path, sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with LensModel(str(tiny)) as model:
        index_text(model, [load_sae(sae)], corpus, settings=IndexSettings(max_active=64), context=32)
    driver.done(jobs.LoadModel(str(tiny)))
    info = only(driver.done(jobs.LoadSAE(str(sae), check=False)), ev.SAELoaded).info
    driver.done(jobs.SetLabel(info.id, 7, "the sea"))
    os.utime(paths.indexes_folder(), (1e9, 1e9))  # long since
    read: list[str] = []

    def counted(owner: type, name: str, what: str) -> None:
        plain = getattr(owner, name)

        def count(self: Any, *args: Any, **options: Any) -> Any:
            read.append(what)
            return plain(self, *args, **options)

        monkeypatch.setattr(owner, name, count)

    knowledge.labels_of(info, 7)
    counted(Store, "__init__", "database")
    counted(FeatureIndex, "__init__", "index")
    counted(FeatureIndex, "statistics", "numbers")
    counted(Path, "glob", "folder")
    knowledge._listed.cache_clear()
    knowledge._open.cache_clear()
    driver.done(jobs.ReadFeature(info.id, 7))
    assert sorted(read) == ["database", "folder", "folder", *["index"] * read.count("index"), "numbers"]
    read.clear()
    page = only(driver.done(jobs.ReadFeature(info.id, 7)), ev.FeaturePage)
    assert sorted(read) == ["database", "numbers"]
    assert page.vector.name == "the sea"
    read.clear()
    (paths.indexes_folder() / "another").mkdir()
    driver.done(jobs.ReadFeature(info.id, 7))
    assert sorted(read) == ["database", "folder", "numbers"]


def test_contrast_finds_the_feature_that_tells(tiny: Path, sae: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(["sea ship sea"] * 6))
    (tmp_path / "b.txt").write_text("\n".join(["salt butter soup"] * 6))
    texts = [read_texts(tmp_path / f"{side}.txt") for side in "ab"]
    assert [len(side) for side in texts] == [6, 6]
    model, loaded = LensModel(str(tiny)), load_sae(sae)
    rows = contrast_texts(model, loaded, *texts, k=64)
    dense = [np.asarray(loaded.encode(model.residuals(text[0], 1)))[1:].max(0) for text in texts]
    only_a = {f for f in range(64) if dense[0][f] > dense[1][f]}
    assert {row.feature for row in rows if row.held_out == 1.0} == only_a
    assert only_a


def test_neighbours_and_a_sample_are_numpys(driver: Driver, tiny: Path, sae: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    driver.done(jobs.LoadModel(str(tiny)))
    info = only(driver.done(jobs.LoadSAE(str(sae), check=False)), ev.SAELoaded).info
    alone = only(driver.done(ReadNeighbours(info.id, 5, 4)), NeighboursRead)
    assert alone.together is None
    assert "no feature 64" in driver.failed(ReadNeighbours(info.id, 64)).message
    assert "no feature -1" in driver.failed(ReadNeighbours(info.id, -1)).message
    settings = IndexSettings(top_k=3, max_active=64, full=True)
    with LensModel(str(tiny)) as model:
        loaded = load_sae(sae)
        (path,) = index_text(model, [loaded], corpus, settings=settings, context=32, rows=2).indexes
        fired = [np.asarray(loaded.encode(model.residuals(model.tokens.encode(text), 1)))[1:] > 0 for text in TEXTS]
    index, active = FeatureIndex(path), np.concatenate(fired)
    feature = int(active.sum(0).argmax())
    read = only(driver.done(ReadNeighbours(info.id, feature, 4)), NeighboursRead)
    unit = np.asarray(loaded._weights.w_dec.array, np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit[feature]
    cosines[feature] = -2
    assert [other for other, _ in read.near] == np.argsort(-cosines)[:4].tolist()
    assert [value for _, value in read.near] == pytest.approx(np.sort(cosines)[::-1][:4].tolist(), abs=1e-5)
    both = (active & active[:, [feature]]).sum(0)
    jaccard = both / np.maximum((active | active[:, [feature]]).sum(0), 1)
    jaccard[feature] = -1
    assert read.together is not None
    assert [value for _, value in read.together] == pytest.approx(np.sort(jaccard)[::-1][:4].tolist())
    known = only(driver.done(jobs.ReadFeature(info.id, feature)), ev.FeaturePage).facts.index
    assert known is not None
    assert known.counted_tokens == index.n_counted == len(active)
    lows = [low for low, _ in known.samples]
    assert lows == sorted(lows, reverse=True)
    for low, examples in known.samples:
        assert all(low <= item.value < 2 * low for item in examples)
    assert sum(len(examples) for _, examples in known.samples) > 0


def test_texts_of_a_file_end_at_its_lines_alone(tmp_path: Path) -> None:
    from lens_tui.tasks.feature_page import read_texts

    file = tmp_path / "a.txt"
    file.write_bytes("one \u2028 \x85 \x0b two\r\n\nthree\n".encode())
    assert read_texts(file) == ["one \u2028 \x85 \x0b two", "three"]
