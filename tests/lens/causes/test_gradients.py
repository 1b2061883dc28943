"""Gradients against central differences of a float64 forward in NumPy, and integrals against their sums."""

from __future__ import annotations

import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.causes.gradients import gradients, integrated_gradients
from lens_tui.lens.causes.metrics import Metric, log_probability, logit_difference
from lens_tui.records import LensError, LensWarning
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array, log_softmax

IDS = tiny.IDS
FAMILIES = [
    pytest.param(tiny.llama, numpy_models.llama, id="llama"),
    pytest.param(tiny.gemma3, numpy_models.gemma3, id="gemma3"),
]


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
def test_gradients_are_slopes_of_a_float64_forward(make: Any, forward: Any) -> None:
    model = make()
    places = [(0, "resid_pre"), (1, "attn_z"), (2, "mlp_out"), (3, "resid_post"), (1, "attn_out")]
    found = gradients(LensModel.from_model(model), list(IDS), log_probability(7), places)
    np.testing.assert_allclose(found.value, log_softmax(forward(model, IDS)[-1])[7], atol=1e-4)
    rng = np.random.default_rng(0)
    for key in places:
        # Along one random direction of the whole tensor: its slope sums up every entry.
        way = rng.standard_normal(found.gradients[key].shape)
        values = []
        for sign in (1.0, -1.0):

            def edit(layer: int, site: str, x: Array, key: Any = key, s: float = sign, way: Array = way) -> Array:
                return x + s * 1e-4 * way if (layer, site) == key else x

            values.append(log_softmax(forward(model, IDS, edit)[-1])[7])
        slope = (values[0] - values[1]) / 2e-4
        assert float((found.gradients[key] * way).sum()) == pytest.approx(slope, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_gradients_pass_through_quantised_weights(make: Any) -> None:
    """The same weights, quantised and written out: the same gradient."""
    from mlx_lm.utils import dequantize_model

    packed, whole = make(bits=4), make(bits=4)
    packed.set_dtype(mx.float32)
    whole.set_dtype(mx.float32)
    whole = dequantize_model(whole)
    places = [(0, "resid_pre"), (2, "mlp_out")]
    ours, theirs = (
        gradients(LensModel.from_model(model), list(IDS), logit_difference(7, 30), places) for model in (packed, whole)
    )
    for key in places:
        np.testing.assert_allclose(ours.gradients[key], theirs.gradients[key], atol=2e-4)
        assert np.abs(ours.gradients[key]).max() > 1e-3


def test_gradients_in_bf16_are_near_those_in_float32() -> None:
    half, whole = tiny.llama(dtype=mx.bfloat16), tiny.llama(dtype=mx.bfloat16)
    whole.set_dtype(mx.float32)
    ours, theirs = (
        gradients(LensModel.from_model(model), list(IDS), log_probability(7), [(1, "resid_post")]).gradients[
            1, "resid_post"
        ]
        for model in (half, whole)
    )
    cosine = (ours * theirs).sum() / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert cosine > 0.99


@pytest.mark.parametrize("make", [tiny.gemma4, tiny.qwen3_moe, tiny.lfm2, tiny.rwkv7])
def test_other_architectures_have_slopes_too(make: Any) -> None:
    lens = LensModel.from_model(make())
    key = (lens.n_layers - 2, "resid_post")
    found = gradients(lens, list(IDS), logit_difference(7, 30), [key])
    way = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    values = []
    for sign in (1.0, -1.0):

        def edit(ctx: Any, h: mx.array, s: float = sign) -> mx.array:
            return h + s * 1e-2 * mx.array(way)

        with lens.hook(key[0], edit):
            logits = np.array(lens.forward(list(IDS))[0, -1], np.float64)
        values.append(logits[7] - logits[30])
    slope = (values[0] - values[1]) / 2e-2
    assert float((found.gradients[key] * way).sum()) == pytest.approx(slope, rel=3e-2, abs=3e-2)


def test_a_scalar_of_a_residual_has_gradients_below_it_alone() -> None:
    lens = LensModel.from_model(tiny.llama())
    reads = Metric("seventh of token 4", lambda x: x[:, 7], position=4, reads=(2, "resid_post"))
    found = gradients(lens, list(IDS), reads, [(2, "resid_post"), (3, "resid_pre"), (1, "resid_post")])
    expected = np.zeros((8, 64))
    expected[4, 7] = 1.0
    np.testing.assert_allclose(found.gradients[2, "resid_post"], expected, atol=1e-6)
    assert not found.gradients[3, "resid_pre"].any()  # behind what is read
    assert not found.gradients[1, "resid_post"][5:].any()  # tokens that it has not seen
    assert found.gradients[1, "resid_post"][:5].any()
    assert found.value == pytest.approx(float(np.array(lens.residuals(list(IDS), 2))[4, 7]))


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
def test_integrated_gradients_are_the_integral(make: Any, forward: Any) -> None:
    model = make()
    lens = LensModel.from_model(model)
    baseline = np.array(lens.residuals([1, 9, 8, 7, 6, 5, 4, 3], 2, site="resid_pre"))
    found = integrated_gradients(lens, list(IDS), logit_difference(7, 30), 2, baseline=baseline, steps=64)
    logits = forward(model, IDS)[-1]
    assert found.value == pytest.approx(logits[7] - logits[30], abs=2e-4)

    def put_in(layer: int, site: str, x: Array) -> Array:
        return baseline.astype(np.float64) if (layer, site) == (2, "resid_pre") else x

    start = forward(model, IDS, put_in)[-1]
    assert found.baseline_value == pytest.approx(start[7] - start[30], abs=2e-4)
    assert abs(found.error) < 5e-3
    assert float(found.by_token.sum()) == pytest.approx(found.value - found.baseline_value, abs=5e-3)
    # A trapezoid over many points of the path, entry by entry, from gradients at each of them.
    here = np.array(lens.residuals(list(IDS), 2, site="resid_pre"))
    total, n = np.zeros_like(here), 100
    for at in range(n):
        alpha = (at + 0.5) / n
        point = mx.array(baseline + alpha * (here - baseline))

        def value(x: mx.array) -> mx.array:
            with lens.hook(2, lambda ctx, h: x[None], site="resid_pre"):
                logits: mx.array = lens.model(mx.array([list(IDS)]))
            return logits[0, -1, 7] - logits[0, -1, 30]

        total += np.array(mx.grad(value)(point)) / n
    np.testing.assert_allclose(found.contributions, total * (here - baseline), atol=2e-2)


def test_what_has_no_gradient_is_said() -> None:
    from lens_tui.lens.causes.metrics import rank

    lens = LensModel.from_model(tiny.llama())
    key = [(1, "resid_post")]
    for sentence, call in (
        ("gradient of zero|no gradient", lambda: gradients(lens, list(IDS), rank(7), key)),
        ("needs its tokens", lambda: gradients(lens, list(IDS), "kl", key)),
        ("no site to differentiate", lambda: gradients(lens, list(IDS), log_probability(7), [])),
        (
            "The baseline has shape",
            lambda: integrated_gradients(lens, list(IDS), log_probability(7), 1, baseline=[1.0]),
        ),
        ("0 points", lambda: integrated_gradients(lens, list(IDS), log_probability(7), 1, steps=0)),
        ("reads token 9", lambda: gradients(lens, list(IDS), Metric("x", lambda x: x[:, 0], 9), key)),
    ):
        with pytest.raises(LensError, match=sentence):
            call()
    assert not lens.registry.installed


def test_integrated_gradients_that_leave_much_of_the_difference_say_so() -> None:
    lens = LensModel.from_model(tiny.llama())
    baseline = np.array(lens.residuals([1, 9, 8, 7, 6, 5, 4, 3], 2, site="resid_pre"))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fine = integrated_gradients(lens, list(IDS), logit_difference(7, 30), 2, baseline=baseline, steps=64)
    assert abs(fine.error) < 0.1 * abs(fine.value - fine.baseline_value)
    assert heard == []
    # From zeros the norm's denominator turns within the first hundredth of the way, which one point does not see.
    with pytest.warns(LensWarning, match="1 step leaves more than a tenth of it"):
        rough = integrated_gradients(lens, list(IDS), logit_difference(7, 30), 2, steps=1)
    assert abs(rough.error) > 0.1 * abs(rough.value - rough.baseline_value)


def test_what_is_no_model_is_refused() -> None:
    for wrong in (object(), "a path", None):
        with pytest.raises(LensError, match="is not a model of MLX"):
            LensModel.from_model(wrong)  # type: ignore[arg-type]
