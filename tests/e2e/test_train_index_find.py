"""From a text to a named feature, on the bundled model: train, index, find by what it does, label, find by words."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lens_tui import FeatureIndex, IndexSettings, LensModel, demo, load_sae
from lens_tui.records.training import TrainConfig
from lens_tui.tasks.feature_page import contrast_texts
from lens_tui.tasks.index import index_text
from lens_tui.tasks.train import train_sae
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker
from tests.worker.drive import Driver, only

SEA = ("The ship sailed over the cold sea.", "The sailors pulled the ropes on the deck.", "The waves hit the old boat.")
FOOD = ("Fry the onions in butter.", "Add salt and pepper to the soup.", "Bake the bread until the crust is brown.")
CONTEXT = 32


def texts(n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` little texts, each of two sentences of one kind."""
    dice = random.Random(seed)
    kinds = (("sea", SEA), ("food", FOOD))
    return [(name, " ".join(dice.sample(lines, 2))) for name, lines in (kinds[i % 2] for i in range(n))]


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver(Worker())
    yield made
    assert made.worker.close(60)


def test_from_a_text_to_a_feature_with_a_name(tmp_path: Path, driver: Driver) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in texts(40, seed=0)))
    config = TrainConfig(
        width=96,
        k=6,
        tokens=64 * 16,
        batch=64,
        learning_rate=4e-3,
        pool_tokens=256,
        calibration_tokens=256,
        evaluation_tokens=64,
    )
    with LensModel("demo") as model:
        report = train_sae(model, corpus, tmp_path / "sae", config, layer=1, context=CONTEXT, rows=4, held_out=10)
        sae = load_sae(tmp_path / "sae")
        settings = IndexSettings(top_k=5, full=True)
        (path,) = index_text(model, [sae], corpus, settings=settings, context=CONTEXT, rows=16).indexes
        fresh = texts(20, seed=1)
        sea, food = ([text for kind, text in fresh if kind == name] for name in ("sea", "food"))
        best = contrast_texts(model, sae, sea, food, k=5)[0]
        tables = {c: model.promoted(sae.directions([best.feature])[0], 10, convention=c)[0] for c in ("norm", "raw")}
    assert report.final is not None
    assert report.final.fvu < 0.6
    assert best.held_out > 0.9
    index = FeatureIndex(path)
    documents = [text for _, text in texts(40, seed=0)]
    found = index.examples(best.feature)
    assert found
    kinds = [documents[example.document] for example in found]
    assert all(any(line in text for line in SEA) for text in kinds)
    for convention, promoted in tables.items():
        kept = index.table(convention).promoted_ids[best.feature]
        assert [item.token_id for item in promoted] == kept.tolist()

    driver.done(jobs.LoadModel(demo.NAME))
    events = driver.done(jobs.LoadSAE(str(tmp_path / "sae")))
    info = only(events, ev.SAELoaded).info
    checked = only(events, ev.SAEChecked).report
    assert checked.declared == (1, "resid_post")
    assert info.id == sae.info.id
    driver.done(jobs.SetLabel(info.id, best.feature, "seafaring"))
    encoded = only(driver.done(jobs.Encode(info.id, sea[0])), ev.Encoded)
    assert best.feature in encoded.ids
    facts = only(driver.done(jobs.ReadFeature(info.id, best.feature)), ev.FeaturePage).facts
    assert facts.label is not None
    assert facts.label.text == "seafaring"
    assert facts.index is not None
    assert facts.index.max == pytest.approx(found[0].value)
    assert [example.value for example in facts.index.examples] == [example.value for example in found]
    assert facts.index.density == index.count[best.feature] / index.n_counted
    words = only(driver.done(jobs.FindFeatures(info.id, "seafar")), ev.FeaturesFound)
    assert [item.feature for item in words.found][:1] == [best.feature]
    vector = only(driver.done(jobs.VectorFromFeature(info.id, best.feature)), ev.VectorMade).vector
    assert vector.name == "seafaring"
    np.testing.assert_allclose(np.linalg.norm(vector.direction), 1, rtol=1e-5)
