"""The readout through a Jacobian lens, directions pulled back through it, and swaps, against NumPy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, jacobian_vector, logit_lens, swap
from lens_tui.records import LensError
from lens_tui.records.jacobian_lens import JacobianLens
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import log_softmax

IDS = list(tiny.IDS)
RNG = np.random.default_rng(5)


def some(layers: Any = (0, 2), width: int = 64) -> JacobianLens:
    return JacobianLens("", {at: np.eye(width, dtype=np.float32) + _noise(width) for at in layers}, 3)


def _noise(width: int) -> Any:
    return 0.1 * RNG.normal(size=(width, width)).astype(np.float32)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_identities_read_as_the_logit_lens_does(make: Any) -> None:
    lens = LensModel.from_model(make())
    plain = logit_lens(lens, IDS)
    through = JacobianLens("", {at: np.eye(64, dtype=np.float32) for at in range(4)})
    found = logit_lens(lens, IDS, through=through)
    assert (found.method, plain.method, found.layers) == ("jacobian", "logit", plain.layers)
    for name in ("top_ids", "target_ranks", "final_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    np.testing.assert_allclose(found.kl, plain.kl, atol=1e-5)
    np.testing.assert_array_equal(found.agreement, plain.agreement)


@pytest.mark.parametrize(("make", "forward"), [(tiny.llama, numpy_models.llama), (tiny.gemma3, numpy_models.gemma3)])
def test_the_readout_is_what_a_float64_forward_makes_of_the_carried_residual(make: Any, forward: Any) -> None:
    model, through = make(), some()
    found = logit_lens(LensModel.from_model(model), IDS, through=through, top_k=3)
    assert found.layers == (0, 2, 3)
    seen = {}

    def look(at: int, site: str, x: Any) -> Any:
        if site == "resid_post":
            seen[at] = x
        return x

    final = log_softmax(forward(model, IDS, look))
    agreed = []
    for row, layer in enumerate(found.layers):
        carried = seen[layer] @ through.matrices[layer].astype(np.float64).T if layer < 3 else seen[3]
        put = log_softmax(
            forward(model, IDS, lambda at, site, x, h=carried: h if (at, site) == (3, "resid_post") else x)
        )
        np.testing.assert_allclose(found.top_logprobs[row, :, 0], put.max(axis=-1), atol=2e-3)
        np.testing.assert_array_equal(found.top_ids[row, :, 0], put.argmax(axis=-1))
        agreed.append((put.argmax(axis=-1) == final.argmax(axis=-1)).mean())
    np.testing.assert_allclose(found.agreement, agreed, atol=1e-6)
    np.testing.assert_array_equal(found.final_ids, final.argmax(axis=-1))


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_a_direction_is_the_gradient_of_the_tokens_row_after_the_matrix(make: Any) -> None:
    model, through = make(), some()
    lens = LensModel.from_model(model)
    head = model.model.embed_tokens if make is tiny.gemma3 else model.lm_head
    row = np.array(head.weight, np.float64)[17]
    gain = np.array(model.model.norm.weight, np.float64) + (1.0 if make is tiny.gemma3 else 0.0)
    for convention, values in (("raw", row), ("norm", row * gain)):
        made = jacobian_vector(lens, through, 17, 2, convention=convention)  # type: ignore[arg-type]
        expected = through.matrices[2].astype(np.float64).T @ values
        np.testing.assert_allclose(made.direction * made.norm, expected, atol=1e-5)
        assert (made.layer, made.site) == (2, "resid_post")
        assert (made.origin.facts["kind"], made.origin.facts["token"]) == ("jacobian", 17)
        assert made.origin.facts["lens"]["n_texts"] == 3
        # It raises what it is the gradient of at exactly its length.
        h = RNG.normal(size=64)
        step = 1e-3 * made.direction.astype(np.float64)
        rise = values @ through.matrices[2] @ (h + step) - values @ through.matrices[2] @ h
        assert rise == pytest.approx(1e-3 * made.norm, rel=1e-3)


def test_a_swap_puts_one_direction_in_the_place_of_the_other() -> None:
    lens, through = LensModel.from_model(tiny.llama()), some()
    record = swap(lens, through, 17, 30, 2, id="s")
    plain = np.array(lens.residuals(IDS, 2).astype(mx.float32))
    with lens.intervene(record):
        found = np.array(lens.residuals(IDS, 2, steered=True).astype(mx.float32))
    s, t = record.vector.direction, record.other.direction
    np.testing.assert_allclose(found, plain + (plain @ s)[:, None] * (t - s), atol=1e-5)
    assert not np.allclose(found, plain, atol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="32 wide"):
        logit_lens(lens, IDS, through=some(width=32))
    with pytest.raises(LensError, match="no layer 1"):
        logit_lens(lens, IDS, through=some(), layers=[1])
    with pytest.raises(LensError, match="reads resid_post"):
        logit_lens(lens, IDS, through=some(), site="resid_pre")
    with pytest.raises(LensError, match="no layer 1"):
        jacobian_vector(lens, some(), 17, 1)
    with pytest.raises(LensError, match="swapped for itself"):
        swap(lens, some(), 17, 17, 2)
