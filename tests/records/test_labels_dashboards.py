"""Dashboards of other tools are read as they are meant, and refused when they are damaged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lens_tui.records import LensError
from lens_tui.records.label_files import MAX_FILE, Dashboards, read_neuronpedia_features, read_saedashboard
from lens_tui.records.store import Store


def _activation(**changed: Any) -> dict[str, Any]:
    return {
        "bin_min": -1,
        "bin_max": -1,
        "bin_contains": -1,
        "tokens": [" a", "\x1b[31m", "\n"],
        "values": [0, 2.5, 1],
        "qualifying_token_index": 1,
        **changed,
    }


def _feature(**changed: Any) -> dict[str, Any]:
    return {
        "feature_index": 7,
        "frac_nonzero": 0.25,
        "pos_str": [" cat", "\u202e"],
        "pos_values": [1.5, 1],
        "neg_str": ["dog"],
        "neg_values": [-2.0],
        "activations": [_activation(), _activation(bin_min=0.5, bin_max=1.0)],
        **changed,
    }


def _batch(folder: Path, *features: Any, number: int = 0) -> Path:
    path = folder / f"batch-{number}.json"
    path.write_text(json.dumps({"model_id": "m", "layer": 1, "sae_set": "s", "features": list(features)}))
    return path


def test_a_batch_is_read_kept_and_given_back(tmp_path: Path) -> None:
    _batch(tmp_path, _feature(), number=10)
    _batch(tmp_path, _feature(feature_index=3, activations=[]), number=9)
    found = list(read_saedashboard(tmp_path))
    assert [dashboard.feature for dashboard in found] == [3, 7]
    seven = found[1]
    assert (seven.density, seven.maximum, found[0].maximum) == (0.25, 2.5, None)
    assert seven.promoted == ((" cat", 1.5), ("⟨U+202E⟩", 1.0))
    assert seven.suppressed == (("dog", -2.0),)
    assert seven.examples[0].tokens == (" a", "␛[31m", "⏎")
    assert [(example.bin_min, example.bin_max) for example in seven.examples] == [(-1, -1), (0.5, 1.0)]
    with Store(":memory:") as store:
        kept = Dashboards(store)
        assert kept.take("sae", found) == kept.take("sae", found) == 2
        assert kept.of("sae", 7) == (seven,)
        assert kept.of("sae", 8) == kept.of("other", 7) == ()


def test_neuronpedia_features_are_read(tmp_path: Path) -> None:
    row = {
        "index": "12",
        "maxActApprox": 40.5,
        "frac_nonzero": 0.001,
        "pos_str": ["x"],
        "pos_values": [2],
        "vector": [],
    }
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "batch-0.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (found,) = read_neuronpedia_features(tmp_path)
    assert (found.feature, found.maximum, found.density, found.promoted) == (12, 40.5, 0.001, (("x", 2.0),))
    assert found.source == "neuronpedia"


BAD = [
    _feature(feature_index=None),
    _feature(feature_index=-3),
    _feature(frac_nonzero="much"),
    _feature(frac_nonzero=float("nan")),
    _feature(frac_nonzero=10**400),
    _feature(pos_str="cat"),
    _feature(pos_values=[1]),
    _feature(pos_str=[1, 2]),
    _feature(activations={"a": 1}),
    _feature(activations=[3]),
    _feature(activations=[_activation(values=[1])]),
    _feature(activations=[_activation(values=[1, True, 2])]),
    _feature(activations=[_activation(tokens=[["x"], 2, 3])]),
    "feature",
]


@pytest.mark.parametrize("feature", BAD)
def test_a_bad_feature_is_refused_and_nothing_is_kept(tmp_path: Path, feature: Any) -> None:
    _batch(tmp_path, _feature(feature_index=1), feature)
    with Store(":memory:") as store:
        kept = Dashboards(store)
        with pytest.raises(LensError, match=r"batch-0\.json") as caught:
            kept.take("sae", read_saedashboard(tmp_path))
        assert kept.of("sae", 1) == ()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"features": {}}', "[" * 10**5, '{"a": ' + "9" * 5000 + "}", "\xff"]
)
def test_a_damaged_batch_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "batch-0.json").write_text(content, encoding="latin-1")
    with pytest.raises(LensError, match=r"batch-0\.json"):
        list(read_saedashboard(tmp_path))


def test_huge_and_missing_files_are_refused(tmp_path: Path) -> None:
    for read in (read_saedashboard, read_neuronpedia_features):
        with pytest.raises(LensError, match="contains no"):
            list(read(tmp_path))
    path = _batch(tmp_path, _feature())
    with path.open("r+b") as file:
        file.truncate(MAX_FILE + 1)  # sparse
    with pytest.raises(LensError, match=r"at most 134\.2 MB are read"):
        list(read_saedashboard(path))
