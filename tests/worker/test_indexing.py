"""Model, SAE and index together: what the index holds is what the model and the SAE give, token by token."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from lens_tui import FeatureIndex, IndexSettings, LensModel, StandardSAE
from lens_tui.lens.architecture.unembed import find_unembedding, top_tokens
from lens_tui.records import LensError
from lens_tui.tasks.index import index_text, merge_index
from tests.lens.tiny import gemma3, llama, tokenizer

WIDTH = 40
TEXTS = ("The cat sat on the mat.", "A ship, a sea; " * 12, "Once upon a time", "x", "def f(x):\n    return x + 1\n")
SETTINGS = IndexSettings(top_k=3, before=4, after=3, max_active=WIDTH, full=True)


def _corpus(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def _sae(layer: int, seed: int = 0, site: str = "resid_post") -> StandardSAE:
    rng = np.random.default_rng(seed)
    w_enc, w_dec = (rng.normal(size=shape).astype(np.float32) for shape in ((64, WIDTH), (WIDTH, 64)))
    sae = StandardSAE.from_arrays(w_enc, w_dec, np.zeros(64, np.float32), b_enc=np.full(WIDTH, -1.0, np.float32))
    sae.info = replace(sae.info, id=f"sae-{layer}-{seed}", name="tiny", layer=layer, site=site)
    return sae


def _truth(model: LensModel, index: FeatureIndex, sae: StandardSAE) -> NDArray[np.float32]:
    """Activations of every token of the index, each sequence run through the model by itself; special tokens 0."""
    edges = [*np.load(index.path / "sequence_starts.npy").tolist(), index.n_tokens]
    runs = [[int(token) for token in index.tokens[low:high]] for low, high in pairwise(edges)]
    parts = [model.residuals(ids, sae.info.layer, site=sae.info.site).astype(mx.float32) for ids in runs]
    w_enc = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    acts = np.maximum(np.concatenate([np.asarray(part) for part in parts]) @ w_enc - 1.0, 0)
    acts[index.special] = 0
    return np.asarray(acts, np.float32)


def _dense(index: FeatureIndex) -> NDArray[np.float32]:
    dense = np.zeros((index.n_tokens, index.width), np.float32)
    for token in range(index.n_tokens):
        ids, values = index.at_token(token)
        dense[token, ids] = values
    return dense


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 2e-3), ("bfloat16", 5e-2), ("8-bit", 5e-2)])
def test_the_index_holds_what_model_and_sae_give(tmp_path: Path, kind: str, tolerance: float) -> None:
    kinds: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {"dtype": mx.bfloat16}, "8-bit": {"bits": 8}}
    options = kinds[kind]
    model = LensModel.from_model(llama(vocab=8192, **options), tokenizer())
    sae = _sae(2)
    (path,) = index_text(
        model, [sae], _corpus(tmp_path), tmp_path / "out", settings=SETTINGS, context=32, rows=3
    ).indexes
    index = FeatureIndex(path)
    truth, found = _truth(model, index, sae), _dense(index)
    scale = truth.max()
    assert index.n_counted > 60
    assert (truth > 0).mean() > 0.1
    assert np.abs(found - truth).max() < tolerance * scale
    assert index.count.sum() == (found > 0).sum()
    best = int(truth.max(0).argmax())
    assert index.examples(best)[0].value == pytest.approx(truth[:, best].max(), rel=tolerance)
    texts = {index.examples(f)[0].document for f in range(WIDTH) if index.count[f]}
    assert texts <= set(range(len(TEXTS)))


def test_shards_through_a_model_equal_one_pass(tmp_path: Path) -> None:
    model = LensModel.from_model(llama(vocab=8192), tokenizer())
    saes, text = [_sae(1), _sae(3, site="mlp_out")], _corpus(tmp_path)
    options: dict[str, Any] = {"settings": SETTINGS, "context": 16, "rows": 2}
    whole = index_text(model, saes, text, tmp_path / "one", **options).indexes
    parts = [index_text(model, saes, text, tmp_path / "many", shard=(i, 3), **options).parts for i in range(3)]
    for place, sae in enumerate(saes):
        merged = merge_index(model, sae, [part[place] for part in parts], tmp_path / "merged")
        assert merged.name == whole[place].name
        for file in whole[place].rglob("*.npy"):
            assert file.read_bytes() == (merged / file.relative_to(whole[place])).read_bytes(), file.name


def test_the_token_tables_are_the_models_own(tmp_path: Path) -> None:
    model = LensModel.from_model(llama(vocab=8192, bits=8), tokenizer())
    sae = _sae(2)
    (path,) = index_text(model, [sae], _corpus(tmp_path), tmp_path / "out", settings=SETTINGS).indexes
    index = FeatureIndex(path)
    for convention in ("norm", "raw"):
        table = index.table(convention)
        for feature in (0, 7, 39):
            promoted, suppressed = model.promoted(
                np.asarray(sae.directions([feature]))[0],
                10,
                convention=convention,
            )
            assert table.promoted_values[feature] == pytest.approx([weight.value for weight in promoted], rel=1e-4)
            assert table.suppressed_values[feature] == pytest.approx([w.value for w in suppressed], rel=1e-4)
            assert table.promoted_ids[feature, 0] == promoted[0].token_id


@pytest.mark.parametrize("make", [llama, gemma3])
def test_many_directions_at_once_equal_one_by_one(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LensModel.from_model(make())
    monkeypatch.setattr("lens_tui.lens.architecture.unembed.BLOCK", 10)
    unembedding = find_unembedding(model.registry.decoder)
    directions = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    for convention in ("norm", "raw"):
        ids, values, low_ids, low = (np.asarray(x) for x in top_tokens(unembedding, directions, 12, convention))
        for row, direction in enumerate(directions):
            weights = unembedding.weights(direction, convention)
            order = np.argsort(-weights)
            assert ids[row].tolist() == order[:12].tolist()
            assert low_ids[row].tolist() == order[::-1][:12].tolist()
            assert values[row] == pytest.approx(weights[order[:12]], abs=1e-4)
            assert low[row] == pytest.approx(weights[order[::-1][:12]], abs=1e-4)
    with pytest.raises(LensError, match="do not fit d_model 64"):
        top_tokens(unembedding, directions[:, :3], 2)


def test_an_sae_that_says_no_layer_is_refused(tmp_path: Path) -> None:
    model = LensModel.from_model(llama(vocab=8192), tokenizer())
    sae = _sae(2)
    sae.info = replace(sae.info, layer=-1)
    with pytest.raises(LensError, match="does not say which layer"):
        index_text(model, [sae], _corpus(tmp_path), tmp_path)


def test_a_folder_that_is_no_part_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_tui.tasks.index.token_tables", lambda *_: pytest.fail("computed"))
    unused: Any = None
    with pytest.raises(LensError, match="is not a part of an index"):
        merge_index(unused, unused, [tmp_path])
