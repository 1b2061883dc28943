"""The table of co-active features: what a full index answers, in an index that keeps no activation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lens_tui import FeatureIndex, IndexSettings, co_active
from lens_tui.records import LensError
from lens_tui.sae.index import co_active_table as tables
from lens_tui.sae.index.build import Target, build_index
from lens_tui.sae.index.co_active_table import CoActiveTable, PairCounter, add_co_active, co_active_table

from .corpora import PLACE, TinySAE, TinySource


def _build(folder: Path, *, full: bool) -> FeatureIndex:
    settings = IndexSettings(top_k=4, max_active=24, full=full)
    return FeatureIndex(build_index(TinySource(), [Target(TinySAE(), PLACE, 24, "tiny")], folder, settings).indexes[0])


def _counted(full: FeatureIndex, at_a_time: int) -> PairCounter:
    counter = PairCounter(full.width)
    rows = [full.at_token(token)[0] for token in range(full.n_tokens)]
    for start in range(0, len(rows), at_a_time):
        some = rows[start : start + at_a_time]
        counter.add(np.concatenate(some), np.array([len(row) for row in some]))
    return counter


@pytest.mark.parametrize(("at_a_time", "pairs"), [(1, 1 << 24), (7, 50), (10_000, 1)])
def test_pairs_are_those_of_the_product_of_the_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int, pairs: int
) -> None:
    monkeypatch.setattr(tables, "_PAIRS", pairs)
    full = _build(tmp_path, full=True)
    active = np.zeros((full.n_tokens, full.width), np.int64)
    for token in range(full.n_tokens):
        active[token, full.at_token(token)[0]] = 1
    assert np.array_equal(_counted(full, at_a_time).both, active.T @ active)


def test_the_table_answers_as_the_full_index_does(tmp_path: Path) -> None:
    full, slim = _build(tmp_path / "full", full=True), _build(tmp_path / "slim", full=False)
    assert not slim.knows_co_active
    with pytest.raises(LensError, match="did not keep every activation"):
        co_active(slim, 3)
    add_co_active(slim.path, co_active_table(_counted(full, 100).both, 5))
    kept = FeatureIndex(slim.path)
    kept.verify()
    assert kept.knows_co_active
    assert not kept.full
    assert sum(bool(co_active(full, feature)) for feature in range(24)) > 12
    for feature in range(24):
        assert co_active(kept, feature, k=5) == co_active(full, feature, k=5)
        assert co_active(kept, feature, k=2) == co_active(full, feature, k=2)
    with pytest.raises(LensError, match="no feature 24"):
        co_active(kept, 24)


def test_a_table_that_cannot_be_is_refused(tmp_path: Path) -> None:
    index = _build(tmp_path, full=False)
    with pytest.raises(LensError, match=r"shape \(3, 2\) for 24 features"):
        add_co_active(index.path, CoActiveTable(np.zeros((3, 2), np.uint8), np.ones((3, 2), np.uint8)))
    live = int(index.count.argmax())
    ids, counts = np.full((24, 2), 255, np.uint8), np.zeros((24, 2), np.uint32)
    ids[live, 0], counts[live, 0] = (live + 1) % 24, index.count[live] + 1
    add_co_active(index.path, CoActiveTable(ids, counts))
    with pytest.raises(LensError, match=r"co_active_counts\.npy .* is damaged"):
        co_active(FeatureIndex(index.path), live)
    ids[live, 0] = 99
    add_co_active(index.path, CoActiveTable(ids, counts))
    with pytest.raises(LensError, match=r"co_active_ids\.npy .* is damaged"):
        co_active(FeatureIndex(index.path), live)
    manifest = json.loads((index.path / "manifest.json").read_text())
    (index.path / "manifest.json").write_text(json.dumps(manifest | {"co_active": -1}))
    with pytest.raises(LensError, match=r"manifest of .* is damaged"):
        FeatureIndex(index.path)
