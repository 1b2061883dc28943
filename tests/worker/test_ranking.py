"""The three orders of a token's features, against NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lens_tui import FeatureIndex, IndexSettings, LensModel, load_sae
from lens_tui.records import LensError
from lens_tui.tasks.feature_page import rank_tokens
from lens_tui.tasks.index import index_text

TEXT = "The old man opened the door and saw the sea."


def test_three_orders_are_numpys(tiny: Path, sae: Path, tmp_path: Path) -> None:
    model, loaded = LensModel(str(tiny)), load_sae(sae)
    ids = list(model.tokens.encode(TEXT))
    residual = model.residuals(ids, 1)
    found, values = (np.array(part) for part in loaded.top_k(residual, 64))
    by_activation = rank_tokens(model, loaded, ids, found, values, by="activation", k=3)
    dense = np.asarray(loaded.encode(residual))
    assert [row[0][0] for row in by_activation] == dense.argmax(1).tolist()
    assert all(value == score for row in by_activation for _, value, score in row)

    tensors, weights = load_file(sae / "params.safetensors"), load_file(tiny / "model.safetensors")
    final = np.asarray(model.residuals(ids, model.n_layers - 1), np.float64)

    def logprob(r: np.ndarray, token: int) -> float:
        normed = r / np.sqrt((r**2).mean() + 1e-5) * weights["model.norm.weight"]
        logits = weights["model.embed_tokens.weight"].astype(np.float64) @ normed
        return float(logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())

    by_effect = rank_tokens(model, loaded, ids, found, values, by="effect", k=64)
    assert by_effect[-1] == []
    for place in (2, 5):
        row = by_effect[place]
        assert [score for _, _, score in row] == sorted((score for _, _, score in row), reverse=True)
        assert {f for f, _, _ in row} == set(np.flatnonzero(dense[place] > 0).tolist())
        for feature, value, score in row:
            without = final[place] - value * tensors["w_dec"][feature].astype(np.float64)
            expected = logprob(final[place], ids[place + 1]) - logprob(without, ids[place + 1])
            assert score == pytest.approx(expected, abs=2e-4)

    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "A cat. " * 9, "Once upon a time")))
    settings = IndexSettings(max_active=64, full=True)
    index = FeatureIndex(index_text(model, [loaded], corpus, tmp_path, settings=settings, context=32).indexes[0])
    by_rank = rank_tokens(model, loaded, ids, found, values, by="rank", k=4, index=index)
    for place in (2, 5):
        for feature, value, score in by_rank[place]:
            everywhere = index.everywhere(feature)[1]
            assert score == pytest.approx((everywhere <= np.float32(value) + 1e-3).mean(), abs=2 / len(everywhere))


def test_an_order_that_cannot_be_had_is_refused(tiny: Path, sae: Path) -> None:
    model, loaded = LensModel(str(tiny)), load_sae(sae)
    found, values = np.array([[1]]), np.array([[1.0]])
    with pytest.raises(LensError, match="need an index"):
        rank_tokens(model, loaded, [5], found, values, by="rank", k=1)
    with pytest.raises(LensError, match="no order"):
        rank_tokens(model, loaded, [5], found, values, by="size", k=1)  # type: ignore[arg-type]
