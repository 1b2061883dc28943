"""Whole numbers are kept in the smallest type that holds them, and what is read does not depend on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui import FeatureIndex
from lens_tui.records import LensError
from lens_tui.sae.index.build import Target, build_index
from lens_tui.sae.index.index_settings import N_BINS, N_OCTAVES, kind_for, narrow, nobody
from lens_tui.sae.index.tables import TokenTable

from .corpora import PLACE, TinySAE, TinySource
from .test_build import SETTINGS

WIDE = {
    "count": np.int64,
    "histogram": np.uint32,
    "example_tokens": np.uint32,
    "sample_tokens": np.uint32,
    "tokens": np.uint32,
    "sequence_starts": np.uint32,
    "sequence_documents": np.uint32,
    "row_ends": np.uint64,
    "row_features": np.uint32,
    "feature_ends": np.uint64,
    "feature_tokens": np.uint32,
    "tokens_of/norm/promoted_ids": np.uint32,
    "tokens_of/norm/suppressed_ids": np.uint32,
}
"""How indexes were written before types were chosen."""


def _table(largest: int = 49) -> TokenTable:
    ids = np.arange(24 * 3, dtype=np.uint32).reshape(24, 3) % (largest + 1)
    values = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    return TokenTable("norm", ids, values, ids[::-1].copy(), -values)


def _built(folder: Path) -> Path:
    target = Target(TinySAE(), PLACE, 24, "tiny", tables=(_table(),))
    return build_index(TinySource(), [target], folder, SETTINGS).indexes[0]


def _answers(index: FeatureIndex) -> list[Any]:
    """Everything an index can be asked about each of its features and tokens, as plain data."""
    rows: list[Any] = [
        index.density.tolist(),
        [index.table().promoted_ids.tolist(), index.table().suppressed_ids.tolist()],
    ]
    for f in range(index.width):
        rows.append(asdict(index.statistics(f)))
        groups = [(0.0, index.examples(f)), *index.sample(f)]
        rows += [
            (e, x.token, x.document, x.offset, x.value, x.token_ids.tolist(), x.values.tolist())
            for e, group in groups
            for x in group
        ]
        rows.append([part.tolist() for part in index.everywhere(f)])
        rows.append(index.quantile(np.full(5, f), np.linspace(0.1, 5, 5)).tolist() if index.count[f] else [])
    rows += [[part.tolist() for part in index.at_token(t)] for t in range(index.n_tokens)]
    return [*rows, index.features_at(np.arange(index.n_tokens)).tolist()]


def test_every_array_of_whole_numbers_has_the_smallest_type(tmp_path: Path) -> None:
    path = _built(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    n_tokens, n_active = manifest["n_tokens"], manifest["n_active"]
    largest = {
        "tokens": 49,
        "row_features": 23,
        "row_ends": n_active,
        "feature_ends": n_active,
        "example_tokens": n_tokens,
        "sample_tokens": n_tokens,
        "feature_tokens": n_tokens,
        "tokens_of/norm/promoted_ids": 49,
    }
    assert n_tokens < 256 < n_active  # so that both of the smaller types are met
    for name in WIDE:
        array = np.load(path / f"{name}.npy")
        bytes_needed = 1 if largest.get(name, int(array.max())) < 256 else 2
        assert array.dtype == np.dtype(f"u{bytes_needed}"), name
        assert manifest["types"][f"{name}.npy"] == array.dtype.name
    assert manifest["types"].keys() == manifest["files"].keys()
    first, end = manifest["octaves"]
    histogram = np.load(path / "histogram.npy")
    assert histogram.shape == (24, 2 * (end - first))
    assert end - first < N_OCTAVES
    assert histogram[:, :2].any()
    assert histogram[:, -2:].any()


def test_an_index_in_the_older_types_gives_the_same_answers(tmp_path: Path) -> None:
    path = _built(tmp_path)
    expected = _answers(FeatureIndex(path))
    manifest = json.loads((path / "manifest.json").read_text())
    first, end = manifest.pop("octaves")
    del manifest["types"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    for name, kind in WIDE.items():
        array = np.load(path / f"{name}.npy")
        free = array == nobody(array.dtype)
        wide = array.astype(kind)
        if name in ("example_tokens", "sample_tokens"):
            wide[free] = np.iinfo(np.uint32).max
        np.save(path / f"{name}.npy", wide)
    for name, free_place, per in (("histogram", 0, 2), ("sample_tokens", 2**32 - 1, 1), ("sample_values", 0, 1)):
        array = np.load(path / f"{name}.npy")
        whole = np.full((24, N_BINS * per // 2, *array.shape[2:]), free_place, array.dtype)
        whole[:, per * first : per * end] = array
        np.save(path / f"{name}.npy", whole)
    assert _answers(FeatureIndex(path)) == expected


def test_free_places_are_no_tokens_number() -> None:
    for n_tokens in (1, 255, 256, 65_535, 65_536, 2**32 - 2):
        kind = kind_for(n_tokens)
        assert nobody(kind) >= n_tokens  # tokens are numbered to n_tokens - 1
        assert kind.itemsize == 1 or nobody(np.dtype(f"u{kind.itemsize // 2}")) < n_tokens
    assert narrow(np.array([0, 255])).dtype == np.uint8
    assert narrow(np.array([0, 256])).tolist() == [0, 256]
    assert narrow(np.array([2**32])).tolist() == [2**32]
    assert narrow(np.zeros(0, np.int64)).dtype == np.uint8


def test_a_type_that_is_not_the_manifests_is_damage(tmp_path: Path) -> None:
    path = _built(tmp_path)
    counts = np.load(path / "count.npy")
    np.save(path / "count.npy", counts.astype(np.uint32))
    with pytest.raises(LensError, match=r"count\.npy .*damaged"):
        FeatureIndex(path)
    np.save(path / "count.npy", counts)
    manifest = json.loads((path / "manifest.json").read_text())
    for octaves in ([3, 3], [-1, 4], [0, 21], ["x", 2]):
        (path / "manifest.json").write_text(json.dumps(manifest | {"octaves": octaves}))
        with pytest.raises(LensError, match="damaged"):
            FeatureIndex(path)


def test_a_table_says_its_types(tmp_path: Path) -> None:
    target = Target(TinySAE(), PLACE, 24, "tiny", tables=(_table(400),))
    index = FeatureIndex(build_index(TinySource(), [target], tmp_path, SETTINGS).indexes[0])
    index.verify()
    assert index.manifest["types"]["tokens_of/norm/promoted_ids.npy"] in ("uint8", "uint16")
    assert index.table().promoted_ids.tolist() == _table(400).promoted_ids.tolist()
    assert index.manifest["types"].keys() == index.manifest["files"].keys()


def test_an_index_of_nothing_active_opens(tmp_path: Path) -> None:
    sae = TinySAE()
    sae.bias[:] = -1e6
    path = build_index(TinySource(), [Target(sae, PLACE, 24, "silent")], tmp_path, SETTINGS).indexes[0]
    index = FeatureIndex(path)
    assert index.statistics(3).count == 0
    assert sum(index.statistics(3).histogram) == 0
    assert (index.examples(3), index.sample(3), index.everywhere(3)[0].tolist()) == ((), (), [])


def test_a_corpus_can_be_called_something(tmp_path: Path) -> None:
    targets = [Target(TinySAE(), PLACE, 24, "tiny", corpus="three sea stories"), Target(TinySAE(), PLACE, 24, "other")]
    named, plain = build_index(TinySource(), targets, tmp_path, SETTINGS).indexes
    assert FeatureIndex(named).identity.corpus == "three sea stories"
    assert FeatureIndex(plain).identity.corpus == ""
