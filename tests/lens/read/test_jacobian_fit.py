"""Fitted Jacobians against central differences of float64 forwards in NumPy, and what is known of simple ones."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module

from lens_tui import LensModel
from lens_tui.lens.read.jacobian import JacobianSums, _Backward, _vmaps, fit_jacobian_lens, text_jacobians
from lens_tui.records import LensError
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array

IDS = tiny.IDS
SKIP = 2
FAMILIES = [
    pytest.param(tiny.llama, numpy_models.llama, id="llama"),
    pytest.param(tiny.gemma3, numpy_models.gemma3, id="gemma3"),
]


def last_residual(model: Any, forward: Any, edit: Any) -> Array:
    """The last block's output ``(tokens, width)``, seen on its way by the NumPy forward's edits."""
    seen: dict[str, Array] = {}

    def watch(layer: int, site: str, x: Array) -> Array:
        x = edit(layer, site, x)
        if site == "resid_post":
            seen["last"] = x
        return x

    forward(model, IDS, watch)
    return seen["last"]


def by_differences(model: Any, forward: Any, layer: int, columns: Any) -> Array:
    """Columns of J by its definition: the mean over p of the summed change at t when h_layer[p] is moved."""
    places = range(SKIP, len(IDS) - 1)
    found = []
    for column in columns:
        total = 0.0
        for p in places:
            ends = []
            for sign in (1.0, -1.0):

                def edit(at: int, site: str, x: Array, s: float = sign, p: int = p, column: int = column) -> Array:
                    if (at, site) != (layer, "resid_post"):
                        return x
                    x = x.copy()
                    x[p, column] += s * 1e-4
                    return x

                ends.append(last_residual(model, forward, edit))
            total = total + ((ends[0] - ends[1]) / 2e-4)[SKIP : len(IDS) - 1].sum(axis=0)
        found.append(total / len(places))
    return np.stack(found, axis=1)


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
def test_jacobians_are_those_of_a_float64_forward(make: Any, forward: Any) -> None:
    model = make()
    found = text_jacobians(LensModel.from_model(model), IDS, (0, 2), skip=SKIP)
    for layer in (0, 2):
        expected = by_differences(model, forward, layer, (0, 7, 63))
        np.testing.assert_allclose(found[layer][:, [0, 7, 63]], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_any_number_of_rows_and_both_ways_of_batching_give_one_matrix(make: Any) -> None:
    lens = LensModel.from_model(make())
    assert lens.registry.once(_vmaps)
    whole = text_jacobians(lens, IDS, (1,), skip=SKIP)[1]
    np.testing.assert_allclose(text_jacobians(lens, IDS, (1,), skip=SKIP, rows=7)[1], whole, atol=2e-5)
    back = _Backward(lens.registry, IDS, (1,), SKIP)
    np.testing.assert_allclose(np.array(back.rows(0, 64, vmapped=False)[0]), whole, atol=2e-5)


def test_quantised_weights_give_the_jacobian_of_the_same_weights_written_out() -> None:
    from mlx_lm.utils import dequantize_model

    packed, whole = tiny.llama(bits=4), tiny.llama(bits=4)
    packed.set_dtype(mx.float32)
    whole.set_dtype(mx.float32)
    whole = dequantize_model(whole)
    ours, theirs = (text_jacobians(LensModel.from_model(model), IDS, (0,), skip=SKIP)[0] for model in (packed, whole))
    assert np.abs(theirs - np.eye(64)).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


class Same(Module):
    """A norm that does nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __call__(self, x: mx.array) -> mx.array:
        return x


def linear() -> Any:
    """A llama of three linear blocks: no norms, no MLP, and attention that looks at all tokens before alike."""
    model = tiny.llama(layers=3)
    for block in model.model.layers:
        block.input_layernorm = block.post_attention_layernorm = Same()
        block.self_attn.q_proj.weight = mx.zeros_like(block.self_attn.q_proj.weight)
        block.mlp.down_proj.weight = mx.zeros_like(block.mlp.down_proj.weight)
    mx.eval(model.parameters())
    return model


def test_linear_blocks_have_the_jacobian_that_algebra_gives() -> None:
    """A block is ``h + U h W``, with U the mean of the tokens so far; two are ``h + U h (W1 + W2) + U U h W1 W2``."""
    model = linear()
    lens = fit_jacobian_lens(LensModel.from_model(model), [list(IDS)], skip=SKIP)
    assert lens.layers == (0, 1)
    mean = np.tril(np.ones((len(IDS), len(IDS)))) / np.arange(1, len(IDS) + 1)[:, None]
    weights = []
    for block in model.model.layers[1:]:
        value, out = (np.array(part.weight, np.float64) for part in (block.self_attn.v_proj, block.self_attn.o_proj))
        heads = np.repeat(value.reshape(2, 16, 64), 2, axis=0).reshape(64, 64)
        weights.append((out @ heads).T)
    part = slice(SKIP, len(IDS) - 1)
    once, twice = (reach[part, part].sum(axis=0).mean() for reach in (mean, mean @ mean))
    one, two = weights
    np.testing.assert_allclose(lens.matrix(1), (np.eye(64) + once * two).T, atol=1e-5)
    np.testing.assert_allclose(lens.matrix(0), (np.eye(64) + once * (one + two) + twice * one @ two).T, atol=1e-5)
    assert np.abs(lens.matrix(0) - np.eye(64)).max() > 0.05


def test_bfloat16_is_near_float32() -> None:
    exact = text_jacobians(LensModel.from_model(tiny.llama()), IDS, (1,), skip=SKIP)[1]
    rough = text_jacobians(LensModel.from_model(tiny.llama(dtype=mx.bfloat16)), IDS, (1,), skip=SKIP)[1]
    assert np.linalg.norm(rough - exact) < 0.03 * np.linalg.norm(exact)


def test_a_lens_is_the_mean_of_its_texts_and_goes_on_where_it_was() -> None:
    lens = LensModel.from_model(tiny.llama())
    texts = [[*IDS], [5, 6, 7, 8, 9, 10, 11], [40, 41, 3, 2, 1, 60], [1, 2, 3]]
    whole = fit_jacobian_lens(lens, texts, layers=[1], skip=SKIP)
    singles = [text_jacobians(lens, text, (1,), skip=SKIP)[1] for text in texts[:3]]
    last = text_jacobians(lens, texts[3], (1,), skip=1)
    assert last[1].shape == (64, 64)
    # The text of three tokens has no position between the first two and the last: it is left out.
    np.testing.assert_allclose(whole.matrix(1), np.mean(singles, axis=0), atol=1e-6)
    assert (whole.n_texts, whole.n_positions) == (3, 5 + 4 + 3)
    one, other = (singles[0] + singles[2]) / 2, singles[1]
    expected = np.linalg.norm(one - other) / 2 / np.linalg.norm(np.mean(singles, axis=0))
    assert whole.errors[1] == pytest.approx(expected, rel=1e-4)
    sums = JacobianSums((1,))
    fit_jacobian_lens(lens, texts[:1], layers=[1], skip=SKIP, sums=sums)
    again = fit_jacobian_lens(lens, texts[1:], layers=[1], skip=SKIP, sums=sums)
    np.testing.assert_array_equal(again.matrix(1), whole.matrix(1))
    assert again.facts["convergence"] == whole.facts["convergence"]


def test_what_cannot_be_fitted_is_refused() -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="No text was long enough"):
        fit_jacobian_lens(lens, [list(IDS)])
    with pytest.raises(LensError, match="no layer to fit"):
        fit_jacobian_lens(lens, [list(IDS)], layers=[], skip=SKIP)
    with pytest.raises(LensError, match="same layers"):
        fit_jacobian_lens(lens, [list(IDS)], layers=[0], skip=SKIP, sums=JacobianSums((1,)))
