"""What steering and capturing in blocks sees and leaves; numbers are those of mlx-lens's faults in ``docs/peers.md``.

Each test says what goes wrong there; ``tests/peers`` shows it on mlx-lens itself. Other numbers are in
``test_generating_steered``, ``test_layers`` and ``tests/sae/reading``.
"""

from __future__ import annotations

import contextlib
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from lens_tui import LensModel
from lens_tui.lens.hooks import capture_result
from lens_tui.records import LensError
from tests.lens import tiny

IDS = list(tiny.IDS)
V = np.ones(64, dtype=np.float32)


def logits(lens: LensModel) -> Any:
    return np.array(lens.forward(IDS).astype(mx.float32))


def test_b1_loss_takes_text(speaking: LensModel) -> None:
    """There a text is a ``ValueError``, in the README's own example too."""
    text = "The capital of France is Paris"
    assert speaking.loss(text) == pytest.approx(speaking.loss(list(speaking.tokens.encode(text))))


@pytest.mark.parametrize(("dtype", "bits"), [(mx.bfloat16, 0), (mx.bfloat16, 4), (mx.bfloat16, 8), (mx.float16, 0)])
def test_b2_a_float32_vector_keeps_the_models_dtype_and_its_caches(dtype: mx.Dtype, bits: int) -> None:
    """There every later layer, its KV cache and the logits become float32: twice the memory, and other numbers."""
    model = tiny.llama(dtype=dtype, bits=bits)
    lens = LensModel.from_model(model)
    plain = logits(lens)
    cache = make_prompt_cache(model)
    with lens.steer(1, mx.array(V), 3.0), lens.capture(range(4)) as captured:
        out = lens.forward(IDS, cache=cache)
        assert out.dtype == dtype
        assert {captured[layer].dtype for layer in captured} == {dtype}
    assert {item.keys.dtype for item in cache} == {dtype}
    assert not np.array_equal(np.array(out.astype(mx.float32)), plain)
    with lens.steer(1, mx.array(V), 0.0):
        np.testing.assert_array_equal(logits(lens), plain)


def test_b3_scale_zero_leaves_the_loss_of_a_bf16_model_as_it_is() -> None:
    """There the loss is taken in the dtype of the logits, so that scale 0 changes it."""
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    base = lens.loss(IDS)
    with lens.steer(1, mx.array(V), 0.0):
        assert lens.loss(IDS) == base
    # And the log-softmax is float32: the loss is that of the model's logits in exact arithmetic.
    rows = np.array(lens.forward(IDS).astype(mx.float32), dtype=np.float64)[0, :-1]
    nll = np.log(np.exp(rows).sum(axis=-1)) - rows[np.arange(len(IDS) - 1), IDS[1:]]
    assert base == pytest.approx(nll.mean(), rel=1e-6)


def test_b4_nested_steers_on_one_layer_are_all_known(lens: LensModel) -> None:
    """There the end of the inner one takes the record of the outer one with it."""
    with lens.steer(1, V, 1.0, id="outer"):
        with lens.steer(1, V, 2.0, id="inner"):
            assert [item.id for item in lens.hooked] == ["outer", "inner"]
        assert [item.id for item in lens.hooked] == ["outer"]
    assert lens.hooked == ()


def test_b5_captures_inside_each_other_do_not_steer_twice(lens: LensModel) -> None:
    """There the inner capture steers once more."""
    with lens.capture(1) as plain:
        lens.forward(IDS)
    with lens.steer(1, V, 1.0), lens.capture([1]) as outer, lens.capture([1]) as inner:
        lens.forward(IDS)
    for captured in (outer, inner):
        np.testing.assert_allclose(np.array(captured[1] - plain[1]), 1.0, atol=1e-4)


def test_b6_steers_may_end_in_any_order(lens: LensModel) -> None:
    """There the first stays installed for ever when it ends before the second."""
    plain = logits(lens)
    with lens.steer(1, V, 2.0):
        only_second = logits(lens)
    first, second = lens.steer(1, V, 1.0), lens.steer(1, V, 2.0)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    np.testing.assert_array_equal(logits(lens), only_second)
    second.__exit__(None, None, None)
    np.testing.assert_array_equal(logits(lens), plain)
    assert lens.registry.installed == ()


def test_b7_capture_holds_the_whole_generation_and_nothing_run_ahead(lens: LensModel) -> None:
    """There only the last step is kept, of a token that is never returned."""
    with lens.capture([1]) as captured:
        generation = lens.stream(IDS, max_tokens=4)
        ids = [token.token_id for token in generation]
    assert len(ids) == 4
    assert captured[1].shape == (1, len(IDS) + 3, 64)
    with lens.capture([1]) as whole:
        lens.forward(IDS + ids[:3])
    np.testing.assert_allclose(np.array(captured[1]), np.array(whole[1]), atol=1e-4)


@pytest.mark.parametrize("layers", [[0, 0], [-1, 3]])
def test_b8_repeated_and_aliased_layers_leave_nothing_installed(lens: LensModel, layers: list[int]) -> None:
    """There a proxy stays installed."""
    with lens.capture(layers) as captured:
        lens.forward(IDS)
    assert len(captured) == 1
    assert lens.registry.installed == ()
    assert all(
        type(layer).__name__ == "TransformerBlock" and not hasattr(layer, "_lens_taps")
        for layer in lens.model.model.layers
    )


def test_b9_a_bad_index_leaves_nothing_installed(lens: LensModel) -> None:
    """There the layers before the bad one stay wrapped."""
    with pytest.raises(LensError, match="no layer 99"), lens.capture([0, 99]):
        pass
    with pytest.raises(LensError, match="no layer 99"):
        lens.steer(99, V, 1.0)
    with (
        pytest.raises(LensError, match="no attn_out_normed"),
        lens.capture([0], site=["resid_post", "attn_out_normed"]),
    ):
        pass
    assert lens.registry.installed == ()


def test_b10_capture_outside_steer_sees_the_steered_stream(lens: LensModel) -> None:
    """There it records the stream unsteered."""
    with lens.capture(1) as plain:
        lens.forward(IDS)
    with lens.capture([1]) as captured, lens.steer(1, V, 1.0):
        lens.forward(IDS)
    np.testing.assert_allclose(np.array(captured[1] - plain[1]), 1.0, atol=1e-4)


def test_b11_negative_layers_are_kept_by_their_number(lens: LensModel) -> None:
    """There -1 is the key, and 3 is not found."""
    with lens.capture([-1]) as captured:
        lens.forward(IDS)
    assert list(captured.keys()) == [3]
    assert 3 in captured
    with lens.steer(-1, V, 1.0) as handle:
        assert handle.interventions[0].layer == 3


def test_b12_values_are_readable_inside_the_block(lens: LensModel) -> None:
    """There a ``KeyError`` until the block has ended."""
    with lens.capture([1]) as captured:
        with pytest.raises(LensError, match="no forward pass yet"):
            captured[1]
        lens.forward(IDS)
        assert captured[1].shape == (1, 8, 64)
        lens.forward(IDS[:3])
        assert captured[1].shape == (1, 3, 64)


@pytest.mark.parametrize("make", [tiny.gemma4, tiny.rwkv7])
def test_b13_blocks_that_return_tuples_are_steered_and_captured(make: Any) -> None:
    """There steering them is a ``ValueError`` and a capture a tuple."""
    lens = LensModel.from_model(make())
    with lens.capture(range(lens.n_layers)) as plain:
        base = logits(lens)
    v = np.random.default_rng(0).normal(size=64).astype(np.float32)
    with lens.steer(1, v, 2.0), lens.capture(range(lens.n_layers)) as captured:
        steered = logits(lens)
    np.testing.assert_allclose(np.array(captured[1] - plain[1])[0], np.tile(2 * v, (8, 1)), atol=1e-3)
    np.testing.assert_array_equal(np.array(captured[0]), np.array(plain[0]))
    assert not np.allclose(steered, base, atol=1e-3)
    np.testing.assert_array_equal(logits(lens), base)


def test_a_forward_does_not_cut_what_its_caches_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache's ``state`` is slices of its keys and values: asking for it costs a token's forward two a layer."""
    from mlx_lm.models.cache import KVCache

    asked = []
    monkeypatch.setattr(KVCache, "state", property(lambda cache: asked.append(cache)))
    model = tiny.llama()
    lens, cache = LensModel.from_model(model), make_prompt_cache(model)
    with lens.steer(1, V, 1.0), lens.capture([0, 2]) as held:
        model(mx.array([IDS]), cache=cache)
        mx.eval(model(mx.array([[1]]), cache=cache))
    assert not asked
    assert held[2].shape[1] == len(IDS) + 1, "the caches are seen all the same: the second forward goes on"


@pytest.mark.parametrize("held", [True, False])
def test_captures_are_sent_in_one_go_with_the_logits_that_somebody_holds(
    monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    lens, sent = LensModel.from_model(tiny.llama()), []
    monkeypatch.setattr(capture_result, "async_eval", lambda *arrays: sent.append(arrays))
    with lens.capture(range(4)) as captured:
        out = lens.forward(IDS)
        if not held:
            del out
        read = [captured[layer] for layer in captured]
    (arrays,) = sent
    assert [any(array is one for one in arrays) for array in read] == [True] * 4
    assert len(arrays) == 4 + held
    assert not held or arrays[4].shape == out.shape


@pytest.mark.parametrize("steered", [True, False])
def test_a_capture_keeps_what_a_model_then_changes_in_place(steered: bool) -> None:
    lens = LensModel.from_model(tiny.llama())
    with lens.capture(1) as whole:
        lens.forward(IDS)
    expected = np.array(whole[1]) + (3 * V if steered else 0)
    block = lens.model.layers[2]
    inner = type(block).__call__

    class Changing(type(block)):  # type: ignore[misc]
        def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
            given = x * 1
            x += 100.0
            return inner(self, given, *args, **kwargs)

    block.__class__ = Changing
    with lens.steer(1, mx.array(V), 3.0) if steered else contextlib.nullcontext():
        with lens.capture(1) as captured:
            lens.forward(IDS)
        np.testing.assert_allclose(np.array(captured[1]), expected, rtol=1e-5, atol=1e-5)
