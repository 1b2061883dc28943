"""One test for each known fault of mlx-lens 0.1.2 in this library's reach: B1-B13, B18-B23, B25, B26.

The numbers are those of the project's survey of peers. Each test does what goes
wrong there.
"""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from lens_tui.lens import LensModel
from lens_tui.records import LensError
from mlx_lm import generate as mlx_lm_generate
from mlx_lm import stream_generate
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from . import tiny

IDS = list(tiny.IDS)
V = np.ones(64, dtype=np.float32)


@pytest.fixture
def lens() -> LensModel:
    return LensModel.from_model(tiny.llama())


@pytest.fixture(scope="module")
def speaking() -> LensModel:
    return LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())


def logits(lens: LensModel) -> Any:
    return np.array(lens.forward(IDS).astype(mx.float32))


def test_b1_loss_takes_text(speaking: LensModel) -> None:
    text = "The capital of France is Paris"
    assert speaking.loss(text) == pytest.approx(speaking.loss(list(speaking.tokens.encode(text))))


@pytest.mark.parametrize(("dtype", "bits"), [(mx.bfloat16, 0), (mx.bfloat16, 4), (mx.bfloat16, 8), (mx.float16, 0)])
def test_b2_a_float32_vector_keeps_the_models_dtype_and_its_caches(dtype: mx.Dtype, bits: int) -> None:
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
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    base = lens.loss(IDS)
    with lens.steer(1, mx.array(V), 0.0):
        assert lens.loss(IDS) == base
    # And the log-softmax is float32: the loss is that of the model's logits in exact arithmetic.
    rows = np.array(lens.forward(IDS).astype(mx.float32), dtype=np.float64)[0, :-1]
    nll = np.log(np.exp(rows).sum(axis=-1)) - rows[np.arange(len(IDS) - 1), IDS[1:]]
    assert base == pytest.approx(nll.mean(), rel=1e-6)


def test_b4_nested_steers_on_one_layer_are_all_known(lens: LensModel) -> None:
    with lens.steer(1, V, 1.0, id="outer"):
        with lens.steer(1, V, 2.0, id="inner"):
            assert [item.id for item in lens.hooked] == ["outer", "inner"]
        assert [item.id for item in lens.hooked] == ["outer"]
    assert lens.hooked == ()


def test_b5_captures_inside_each_other_do_not_steer_twice(lens: LensModel) -> None:
    with lens.capture(1) as plain:
        lens.forward(IDS)
    with lens.steer(1, V, 1.0), lens.capture([1]) as outer, lens.capture([1]) as inner:
        lens.forward(IDS)
    for captured in (outer, inner):
        np.testing.assert_allclose(np.array(captured[1] - plain[1]), 1.0, atol=1e-4)


def test_b6_steers_may_end_in_any_order(lens: LensModel) -> None:
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
    with lens.capture(layers) as captured:
        lens.forward(IDS)
    assert len(captured) == 1
    assert lens.registry.installed == ()
    assert all(
        type(layer).__name__ == "TransformerBlock" and not hasattr(layer, "_lens_taps")
        for layer in lens.model.model.layers
    )


def test_b9_a_bad_index_leaves_nothing_installed(lens: LensModel) -> None:
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
    with lens.capture(1) as plain:
        lens.forward(IDS)
    with lens.capture([1]) as captured, lens.steer(1, V, 1.0):
        lens.forward(IDS)
    np.testing.assert_allclose(np.array(captured[1] - plain[1]), 1.0, atol=1e-4)


def test_b11_negative_layers_are_kept_by_their_number(lens: LensModel) -> None:
    with lens.capture([-1]) as captured:
        lens.forward(IDS)
    assert list(captured.keys()) == [3]
    assert 3 in captured
    with lens.steer(-1, V, 1.0) as handle:
        assert handle.interventions[0].layer == 3


def test_b12_values_are_readable_inside_the_block(lens: LensModel) -> None:
    with lens.capture([1]) as captured:
        with pytest.raises(LensError, match="no forward pass yet"):
            captured[1]
        lens.forward(IDS)
        assert captured[1].shape == (1, 8, 64)
        lens.forward(IDS[:3])
        assert captured[1].shape == (1, 3, 64)


@pytest.mark.parametrize("make", [tiny.gemma4, tiny.rwkv7])
def test_b13_blocks_that_return_tuples_are_steered_and_captured(make: Any) -> None:
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


@pytest.mark.parametrize("shape", [(1,), (), (8, 64), (3, 1, 64), (65,)])
def test_b18_a_vector_of_another_shape_is_refused(lens: LensModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(LensError, match="shape"):
        lens.steer(1, np.ones(shape), 1.0)


def test_b18_what_is_not_finite_or_overflows_is_refused(lens: LensModel) -> None:
    with pytest.raises(LensError, match="NaN"):
        lens.steer(1, np.full(64, np.nan), 1.0)
    for scale in (math.nan, math.inf):
        with pytest.raises(LensError, match="finite"):
            lens.steer(1, V, scale)
    half = LensModel.from_model(tiny.llama(dtype=mx.float16))
    with pytest.raises(LensError, match="overflows"):
        half.steer(1, V, 7e4)
    with half.steer(1, V, 100.0) as handle, pytest.raises(LensError, match="overflows"):
        handle.update(scale=7e4)


def test_b19_generate_takes_temperature_by_either_name(speaking: LensModel) -> None:
    assert speaking.generate("a", max_tokens=3, temperature=0.0) == speaking.generate("a", max_tokens=3, temp=0.0)
    assert speaking.generate("a", max_tokens=3, sampler=make_sampler(0.0)) == speaking.generate("a", max_tokens=3)
    with pytest.raises(LensError, match="no option 'tempo'"):
        speaking.generate("a", tempo=1)


def test_b20_a_vector_made_lazily_works_on_another_thread(lens: LensModel) -> None:
    out: list[Any] = []
    vector = mx.random.normal((64,), key=mx.random.key(0)) * 3
    handle = lens.steer(1, vector, 1.0)

    def work() -> None:
        worker = LensModel.from_model(tiny.llama())
        with worker.intervene(*handle.interventions):
            out.append(np.array(worker.forward(IDS)))
        mx.clear_streams()

    _on_thread(work)
    with handle:
        np.testing.assert_allclose(out[0], logits(lens), atol=1e-5)


def test_b20_a_vector_left_lazy_by_another_thread_is_refused_in_a_sentence(lens: LensModel) -> None:
    made: list[mx.array] = []
    _on_thread(lambda: made.append(mx.random.normal((64,)) * 2))
    with pytest.raises(LensError, match="another thread"):
        lens.steer(1, made[0], 1.0)


def test_b21_a_steer_in_one_thread_leaves_another_threads_forwards_alone(lens: LensModel) -> None:
    plain = logits(lens)
    entered, done = threading.Event(), threading.Event()

    def steer() -> None:
        with lens.steer(1, V, 50.0), lens.capture([1]) as captured:
            entered.set()
            done.wait(10)
            assert not captured._steps

    thread = threading.Thread(target=steer)
    thread.start()
    entered.wait(10)
    try:
        np.testing.assert_array_equal(logits(lens), plain)
        assert [token.token_id for token in lens.stream(IDS, max_tokens=3)] == _greedy(lens, 3)
        assert len(lens.hooked) == 1
    finally:
        done.set()
        thread.join()
    assert lens.registry.installed == ()


def test_b22_a_generation_keeps_the_steering_it_was_started_under(lens: LensModel) -> None:
    with lens.steer(1, V, 4.0):
        expected = [token.token_id for token in lens.stream(IDS, max_tokens=6)]
        generation = lens.stream(IDS, max_tokens=6)
    assert [token.token_id for token in generation] == expected
    assert expected != _greedy(lens, 6)
    # And one started plain does not gain any.
    plain, alone = lens.stream(IDS, max_tokens=6), _greedy(lens, 6)
    with lens.steer(1, V, 4.0):
        assert [token.token_id for token in plain] == alone


def test_b23_a_cache_filled_under_a_steer_is_not_used_without_it(lens: LensModel) -> None:
    cache = make_prompt_cache(lens.model)
    with lens.steer(1, V, 2.0, id="one"):
        lens.forward(IDS, cache=cache)
    with pytest.raises(LensError, match="other interventions"):
        lens.forward([3], cache=cache)
    with pytest.raises(LensError, match="other interventions"):
        lens.stream([3], prompt_cache=cache)
    with lens.steer(1, V, 2.0, id="the same under another name"):
        continued = lens.forward([3], cache=cache)
        whole = lens.forward([*IDS, 3])
    np.testing.assert_allclose(np.array(continued[:, -1]), np.array(whole[:, -1]), atol=1e-4)


def test_b23_also_when_mlx_lm_fills_the_cache(lens: LensModel) -> None:
    cache = make_prompt_cache(lens.model)
    with lens.steer(1, V, 2.0):
        list(generate_step(mx.array(IDS), lens.model, max_tokens=2, prompt_cache=cache))
    with pytest.raises(LensError, match="other interventions"):
        lens.stream([3], prompt_cache=cache)
    plain = make_prompt_cache(lens.model)
    list(generate_step(mx.array(IDS), lens.model, max_tokens=2, prompt_cache=plain))
    with lens.steer(1, V, 2.0), pytest.raises(LensError, match="other interventions"):
        lens.stream([3], prompt_cache=plain)


def test_b25_a_steered_layer_can_be_copied_set_and_counted(lens: LensModel) -> None:
    count = len(tiny.parameter_ids(lens.model))
    with lens.steer(1, V, 1.0):
        layer = lens.model.model.layers[1]
        assert type(copy.copy(layer)).__name__ == "TransformerBlock"
        copy.deepcopy(layer)
        layer.note = "set"
        assert layer["mlp"] is layer.mlp
        assert len(tiny.parameter_ids(lens.model)) == count


@pytest.mark.parametrize("tokens", [[5], [], [[5], [6]]])
def test_b26_a_loss_of_fewer_than_two_tokens_says_so(lens: LensModel, tokens: Any) -> None:
    with pytest.raises(LensError):
        lens.loss(tokens)


def test_b26_ids_outside_the_vocabulary_are_refused(lens: LensModel) -> None:
    for bad in ([1, 97], [-1, 3]):
        with pytest.raises(LensError, match="no token"):
            lens.forward(bad)
    with pytest.raises(LensError, match="no token"):
        lens.stream([10**6])


def test_mlx_lms_own_generation_is_steered_like_ours(speaking: LensModel) -> None:
    """Whoever calls the model: the proxies act on mlx-lm's generate too."""
    prompt = list(speaking.tokens.encode("Once upon a time"))
    with speaking.steer(0, V, 3.0):
        ours = [token.token_id for token in speaking.stream(prompt, max_tokens=6)]
        theirs = [r.token for r in stream_generate(speaking.model, speaking.tokenizer, prompt, max_tokens=6)]
    assert ours == theirs
    plain = mlx_lm_generate(speaking.model, speaking.tokenizer, prompt, max_tokens=6)
    # mlx-lm takes the space off the first word; here the text continues the prompt.
    assert plain == speaking.generate(prompt, max_tokens=6).removeprefix(" ")


def _greedy(lens: LensModel, count: int) -> list[int]:
    """Greedy decoding without a cache."""
    ids = list(IDS)
    for _ in range(count):
        ids.append(int(np.argmax(np.array(lens.model(mx.array([ids]))[0, -1]))))
    return ids[len(IDS) :]


def _on_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
