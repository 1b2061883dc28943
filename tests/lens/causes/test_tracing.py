"""Causal tracing against a float64 forward in NumPy with the same noise, one restoration a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.causes.tracing import causal_trace
from lens_tui.records import LensError
from tests.lens import tiny
from tests.lens.causes.test_patching import CLEAN, FAMILIES, seen_in
from tests.lens.numpy_models import Array, log_softmax


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
@pytest.mark.parametrize(("site", "window"), [("resid_post", 10), ("mlp_out", 2), ("attn_out", 3)])
def test_every_state_is_restored_as_in_a_float64_forward(make: Any, forward: Any, site: str, window: int) -> None:
    model = make()
    found = causal_trace(
        LensModel.from_model(model), CLEAN, (2, 5), answer=7, site=site, window=window, samples=2, seed=3
    )
    clean, logits = seen_in(forward, model, CLEAN)
    sigma = 3.0 * clean[0, "resid_pre"][2:5].std()
    assert found.sigma == pytest.approx(sigma, rel=1e-4)
    assert found.clean == pytest.approx(np.exp(log_softmax(logits[-1])[7]), abs=1e-4)
    rng = np.random.default_rng(3)
    for sample in range(2):
        noise = np.zeros((8, 64))
        noise[2:5] = rng.standard_normal((3, 64)) * sigma
        for layer in range(4):
            near = [layer] if site == "resid_post" else range(layer - window // 2, layer + (window + 1) // 2)
            for at in (1, 3, 4, 7):

                def edit(where: int, name: str, x: Array, at: int = at, near: Any = near, n: Array = noise) -> Array:
                    if (where, name) == (0, "resid_pre"):
                        return x + n
                    if name == site and where in near:
                        x = x.copy()
                        x[at] = clean[where, name][at]
                    return x

                expected = np.exp(log_softmax(forward(model, CLEAN, edit)[-1])[7])
                assert found.per_sample[sample, layer, at] == pytest.approx(expected, abs=2e-4)
    np.testing.assert_allclose(found.values, found.per_sample.mean(axis=0))
    np.testing.assert_allclose(found.indirect_effect, found.values - found.noised)
    assert found.total_effect == pytest.approx(found.clean - found.noised)
    # Before the subject nothing has changed, so nothing can be given back there.
    np.testing.assert_allclose(found.values[:, :2], found.noised, atol=1e-5)


@pytest.mark.parametrize("make", [tiny.gemma4, tiny.rwkv7, tiny.lfm2])
def test_the_last_layers_last_state_brings_everything_back(make: Any) -> None:
    lens = LensModel.from_model(make())
    found = causal_trace(lens, CLEAN, (2, 4), samples=3)
    assert found.answer == int(
        np.array(lens.forward(list(CLEAN))[0, -1].astype(__import__("mlx.core").core.float32)).argmax()
    )
    np.testing.assert_allclose(found.values[-1, -1], found.clean, atol=1e-4)
    assert abs(found.total_effect) > 1e-4


def test_the_subject_is_found_by_its_words(speaking: LensModel) -> None:
    words = "The old king was tired"
    found = causal_trace(speaking, words, "old king", samples=1)
    ids = speaking.tokens.encode(words)
    assert speaking.tokens.decode(ids[found.subject[0] : found.subject[1]]).strip() == "old king"
    refused: list[tuple[str, Callable[[], object]]] = [
        ("are not there", lambda: causal_trace(speaking, words, "queen")),
        ("not in a text", lambda: causal_trace(speaking, words, (3, 90))),
        ("at least one sample", lambda: causal_trace(speaking, words, "king", samples=0)),
    ]
    for sentence, call in refused:
        with pytest.raises(LensError, match=sentence):
            call()
