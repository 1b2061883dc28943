"""The bundled index and labels: of the bundled SAEs, whole, small, and without a name of the machine that made them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lens_tui import FeatureIndex, co_active, demo, sae_info
from lens_tui.tasks import knowledge
from lens_tui.tasks.knowledge import index_of
from recipes.index import CORPUS, SETTINGS, TRANSCODERS
from recipes.saes import DEPTHS

DEMO = demo.model_path().parent
INDEXES = DEMO / "index"
with_index = pytest.mark.skipif(not INDEXES.exists(), reason="this copy has no bundled index")
with_labels = pytest.mark.skipif(not demo.LABELS.exists(), reason="this copy has no bundled labels")


def test_everything_bundled_is_under_64_megabytes() -> None:
    files = [file for file in DEMO.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    assert sum(file.stat().st_size for file in files) < 64e6


@with_index
def test_each_bundled_sae_has_one_index_and_it_is_whole() -> None:
    found = [FeatureIndex(manifest.parent) for manifest in INDEXES.glob("*/manifest.json")]
    infos = {depth: sae_info(demo.sae_paths()[DEPTHS[depth].folder]) for depth in DEPTHS}
    everything = [sae_info(path).id for path in demo.sae_paths().values()]
    assert sorted(index.identity.sae for index in found) == sorted(everything)
    for depth, info in infos.items():
        index = index_of(info)
        assert index is not None
        index.verify()
        assert index.settings == SETTINGS[depth]
        assert (index.identity.model, index.identity.corpus) == (demo.NAME, CORPUS)
        assert index.n_counted > 200_000
        assert (index.count > 0).mean() > 0.8
        assert "/" not in json.dumps(index.manifest["identity"] | {"corpus_hash": ""})
        feature = int(index.count.argmax())
        assert len(index.examples(feature)) == index.settings.top_k
        assert index.statistics(feature).density > 0


@with_index
def test_an_index_of_another_sae_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    knowledge._open.cache_clear()

    def counted(folder: Path) -> FeatureIndex:
        opened.append(folder)
        return FeatureIndex(folder)

    monkeypatch.setattr(knowledge, "FeatureIndex", counted)
    index = index_of(sae_info(demo.transcoder_paths()[0]))
    assert index is not None
    assert opened == [index.path]


@with_index
def test_the_transcoders_indexes_are_whole_and_share_the_text() -> None:
    (text,) = INDEXES.glob("text-*")
    for layer, path in enumerate(demo.transcoder_paths()):
        index = index_of(sae_info(path))
        assert index is not None
        index.verify()
        assert index.settings == TRANSCODERS
        assert (index.identity.layer, index.identity.site, index.width) == (layer, "mlp_in", 2048)
        assert (index.identity.model, index.identity.corpus) == (demo.NAME, CORPUS)
        assert (index.manifest["text"], index.n_counted) == (text.name, 235_907)
        assert (index.count > 0).all()
        assert index.count.sum() / index.n_counted == pytest.approx(32, abs=3)
        assert "/" not in json.dumps(index.manifest["identity"] | {"corpus_hash": ""})
        for example in index.examples(7):
            assert example.values[example.peak] == pytest.approx(example.value, rel=1e-3)


@with_index
def test_the_page_of_every_common_feature_says_which_fire_with_it() -> None:
    """Kept as a table, whose counts are those of an index of the bundled text: no tab of the tour is empty."""
    for depth in DEPTHS:
        index = index_of(sae_info(demo.sae_paths()[DEPTHS[depth].folder]))
        assert index is not None
        assert index.knows_co_active
        for feature in np.flatnonzero(index.count >= 20)[::29]:
            found = co_active(index, int(feature), k=8)
            assert found
            scores = [row.jaccard for row in found]
            assert scores == sorted(scores, reverse=True)
            for row in found:
                either = index.count[feature] + index.count[row.feature] - row.both
                assert row.jaccard == pytest.approx(row.both / either)


@with_labels
def test_bundled_labels_are_short_scored_and_of_features_that_exist() -> None:
    labels, paths = demo.bundled_labels(), demo.sae_paths()
    transcoders = {path.name for path in demo.transcoder_paths()}
    assert set(labels) == set(paths) | transcoders
    for folder, some in labels.items():
        width = sae_info(paths[folder]).width
        assert len({label.feature for label in some}) == len(some), folder
        for label in some:
            assert 0 <= label.feature < width
            assert 0 < len(label.text) <= 100
            assert label.score is not None
            assert 0.7 <= label.score <= 1
            assert label.method
            assert label.scorer
    assert all(len(labels[folder]) >= 200 for folder in set(labels) - transcoders)
    assert sum(len(labels[folder]) for folder in transcoders) >= 130
    assert len(labels[demo.default_sae()]) >= 600
