"""Generating under steering; the numbers are those of mlx-lens's faults in ``docs/peers.md``, said by each test."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import generate as mlx_lm_generate
from mlx_lm import stream_generate
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from lens_tui import LensModel
from lens_tui.records import LensError, Token
from tests.lens import tiny

IDS = list(tiny.IDS)
V = np.ones(64, dtype=np.float32)
SHORT = [int(token) for token in np.random.default_rng(5).integers(2, tiny.VOCAB, 48)]
LONG = SHORT + IDS


def logits(lens: LensModel) -> Any:
    return np.array(lens.forward(IDS).astype(mx.float32))


def test_b14_what_was_computed_plain_is_not_continued_steered(lens: LensModel) -> None:
    """There a prompt's cache is found by its tokens alone, so that a steered batch goes on from a plain prefix."""
    fresh = LensModel.from_model(tiny.llama())
    fresh.prefixes.enabled = False
    for prompt, scale in ((SHORT, 0.0), (LONG, 4.0), (LONG, 0.0), (LONG, -4.0), (LONG, 4.0)):
        told = []
        for model in (lens, fresh):
            with model.steer(1, V, scale):
                events = [*model.stream_batch([prompt], max_tokens=4), *model.stream(prompt, max_tokens=4)]
            told.append([event.logprob for event in events if isinstance(event, Token)])
        assert len(told[0]) == 8
        np.testing.assert_allclose(told[0], told[1], atol=1e-4)
    assert lens.prefixes.hits > 0
    assert fresh.prefixes.hits == 0


def test_b14_generate_batch_of_texts_is_what_each_is_alone() -> None:
    """There 11 of 20 steered batches gave other texts than a fresh engine, after a plain one of the same beginning."""
    lens = LensModel("demo")
    text = "Once upon a time there was a little girl who lived in a small house near the forest . " * 2
    more = text + "One day she went out and"
    vector = np.random.default_rng(6).normal(size=lens.d_model)
    vector *= 60 / np.linalg.norm(vector)
    lens.prefixes.enabled = False
    with lens.steer(4, vector, 1.0):
        wanted = lens.generate_batch([more], max_tokens=8, raw=True)
    lens.prefixes.enabled = True
    lens.generate(text, max_tokens=1, raw=True)
    plain = lens.generate_batch([more], max_tokens=8, raw=True)
    assert lens.prefixes.hits > 0
    with lens.steer(4, vector, 1.0):
        assert lens.generate_batch([more], max_tokens=8, raw=True) == wanted != plain


@pytest.mark.parametrize("shape", [(1,), (), (8, 64), (3, 1, 64), (65,)])
def test_b18_a_vector_of_another_shape_is_refused(lens: LensModel, shape: tuple[int, ...]) -> None:
    """There it is broadcast: one number to all, a batch of three from three rows."""
    with pytest.raises(LensError, match="shape"):
        lens.steer(1, np.ones(shape), 1.0)


def test_b18_what_is_not_finite_or_overflows_is_refused(lens: LensModel) -> None:
    """There NaN passes into the loss, and 7e4 in float16 gives NaN."""
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
    """There ``temperature`` is a ``TypeError`` of mlx-lm's."""
    assert speaking.generate("a", max_tokens=3, temperature=0.0) == speaking.generate("a", max_tokens=3, temp=0.0)
    assert speaking.generate("a", max_tokens=3, sampler=make_sampler(0.0)) == speaking.generate("a", max_tokens=3)
    with pytest.raises(LensError, match="no option 'tempo'"):
        speaking.generate("a", tempo=1)


def test_b20_a_vector_made_lazily_works_on_another_thread(lens: LensModel) -> None:
    """There it fails in the middle of a forward pass: "no Stream(cpu, 0)"."""
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
    """There this is the same error from inside a forward pass."""
    made: list[mx.array] = []
    _on_thread(lambda: made.append(mx.random.normal((64,)) * 2))
    with pytest.raises(LensError, match="another thread"):
        lens.steer(1, made[0], 1.0)


def test_b21_a_steer_in_one_thread_leaves_another_threads_forwards_alone(lens: LensModel) -> None:
    """There it changes them."""
    plain = logits(lens)
    entered, done = threading.Event(), threading.Event()

    def steer() -> None:
        with lens.steer(1, V, 50.0), lens.capture([1]) as captured:
            entered.set()
            done.wait(300)
            assert not captured._steps

    thread = threading.Thread(target=steer)
    thread.start()
    entered.wait(300)
    try:
        np.testing.assert_array_equal(logits(lens), plain)
        assert [token.token_id for token in lens.stream(IDS, max_tokens=3)] == _greedy(lens, 3)
        assert len(lens.hooked) == 1
    finally:
        done.set()
        thread.join()
    assert lens.registry.installed == ()


def test_b22_a_generation_keeps_the_steering_it_was_started_under(lens: LensModel) -> None:
    """There it loses it with the end of the block."""
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
    """There it is, and the logits are those of neither."""
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
    """There it is, and the logits are those of neither."""
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
    """There copying it never ends, setting and reading parts fails, its parameters are not counted."""
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
    """There the error is of an empty array inside MLX."""
    with pytest.raises(LensError):
        lens.loss(tokens)


def test_b26_ids_outside_the_vocabulary_are_refused(lens: LensModel) -> None:
    """There nothing is checked, and MLX does not check it either."""
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
