"""Unembedding, vectors, residual norms, the echo, captures by hand: every number against numpy."""

from __future__ import annotations

import threading
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens import vectors
from lens_tui.records import Add, LensError, SteeringVector

from . import numpy_models, tiny
from .numpy_models import Array, rms, weights_of
from .tiny import unit

IDS = list(tiny.IDS)


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize(("name", "make"), [("llama", tiny.llama), ("gemma3", tiny.gemma3)])
def test_promoted_tokens_are_the_direction_times_the_norms_gain_times_the_unembedding(
    name: str, make: Any, bits: int
) -> None:
    model = make(bits=bits, dtype=mx.bfloat16 if bits else mx.float32)
    lens = LensModel.from_model(model)
    if name == "llama":
        gain, head = np.array(model.model.norm.weight.astype(mx.float32)), model.lm_head
    else:
        gain, head = np.array((1 + model.model.norm.weight).astype(mx.float32)), model.model.embed_tokens
    matrix = _dense(head)
    for convention, folded in (("norm", unit() * gain), ("raw", unit())):
        expected = matrix @ folded
        promoted, suppressed = lens.promoted(unit(), 5, convention=convention)  # type: ignore[arg-type]
        order = np.argsort(-expected)
        np.testing.assert_allclose([w.value for w in promoted], expected[order[:5]], atol=1e-4)
        np.testing.assert_allclose([w.value for w in suppressed], expected[order[::-1][:5]], atol=1e-4)
        if not bits:
            assert [w.token_id for w in promoted] == order[:5].tolist()
    assert lens.registry.installed == ()


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3, tiny.gemma4, tiny.rwkv7])
def test_readout_of_the_last_residual_gives_the_models_own_logits(make: Any) -> None:
    lens = LensModel.from_model(make())
    with lens.capture(-1) as captured:
        logits = lens.forward(IDS)
    np.testing.assert_allclose(np.array(lens.readout(captured[-1])), np.array(logits), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 5), (64,), (1, 3, 65)])
def test_a_readout_of_another_shape_is_refused_in_a_sentence(shape: tuple[int, ...]) -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match=r"not \(batch, tokens, 64\)"):
        lens.readout(mx.zeros(shape))


def test_a_readout_takes_numpy() -> None:
    lens = LensModel.from_model(tiny.llama())
    h = np.random.default_rng(0).normal(size=(1, 3, 64)).astype(np.float32)
    np.testing.assert_array_equal(np.array(lens.readout(h)), np.array(lens.readout(mx.array(h))))


def test_readout_of_any_residual_is_norm_then_unembedding() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    h = np.random.default_rng(0).normal(size=(1, 3, 64)) * 4
    w = weights_of(model)
    expected = rms(h, w["model.norm.weight"], 1e-5) @ w["lm_head.weight"].T
    np.testing.assert_allclose(np.array(lens.readout(mx.array(h.astype(np.float32)))), expected, atol=1e-4)


def test_soft_capping_and_tuple_blocks_do_not_change_what_a_direction_promotes() -> None:
    model = tiny.gemma4()  # soft-caps its logits at 30
    lens = LensModel.from_model(model)
    gain = np.array(model.model.norm.weight)
    expected = _dense(model.model.embed_tokens) @ (unit() * gain)
    promoted, _ = lens.promoted(unit(), 3)
    np.testing.assert_allclose([w.value for w in promoted], np.sort(expected)[::-1][:3], atol=1e-4)


@pytest.mark.parametrize("over", ["last", "all"])
def test_a_mean_difference_is_the_difference_of_means(over: Any) -> None:
    lens = LensModel.from_model(tiny.llama())
    positive, negative = [[1, 2, 3], [4, 5, 6, 7]], [[8, 9], [10, 11, 12], [13, 14]]

    def mean(texts: list[list[int]]) -> Any:
        rows = []
        for ids in texts:
            seen: dict[Any, Array] = {}

            def note(layer: int, site: str, x: Array, seen: dict[Any, Array] = seen) -> Array:
                seen[layer, site] = x
                return x

            numpy_models.llama(lens.model, tuple(ids), note)
            h = seen[2, "resid_post"]
            rows.append(h[-1] if over == "last" else h[1:].mean(axis=0))
        return np.mean(rows, axis=0)

    expected = mean(positive) - mean(negative)
    vector = vectors.mean_difference(lens, "d", positive, negative, -2, over=over)
    np.testing.assert_allclose(vector.direction * vector.norm, expected, atol=1e-4)
    assert (vector.layer, vector.site, vector.origin.kind) == (2, "resid_post", "prompts")
    assert vector.origin.facts["positive"] == positive
    with pytest.raises(LensError, match="both sides"):
        vectors.mean_difference(lens, "d", positive, [], 1)
    with pytest.raises(LensError, match="zero"):
        vectors.mean_difference(lens, "d", positive, positive, 1)


def test_a_mean_difference_is_taken_without_the_steering_around_it() -> None:
    lens = LensModel.from_model(tiny.llama())
    plain = vectors.mean_difference(lens, "d", [[1, 2, 3]], [[4, 5]], 2)
    with lens.steer(0, unit(), 30.0):
        np.testing.assert_array_equal(
            vectors.mean_difference(lens, "d", [[1, 2, 3]], [[4, 5]], 2).direction, plain.direction
        )
        assert not np.allclose(np.array(lens.residuals(IDS, 2)), np.array(lens.residuals(IDS, 2, steered=True)))


def test_special_tokens_are_left_out_of_means_and_norms() -> None:
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())
    ids = lens.tokens.encode("The old man")
    h = np.array(lens.residuals(ids, 1))
    assert ids[0] == lens.tokens.bos
    expected = np.median(np.linalg.norm(h[1:], axis=-1))
    assert vectors.residual_norm(lens, 1, texts=["The old man"]) == pytest.approx(float(expected), rel=1e-5)
    assert vectors.residual_norm(lens, 1) > 0


def test_random_directions_are_unit_seeded_and_different() -> None:
    lens = LensModel.from_model(tiny.llama())
    a, b, c = (vectors.random_unit(lens, "r", 1, seed=seed) for seed in (0, 0, 1))
    assert np.linalg.norm(a.direction) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(a.direction, b.direction)
    assert abs(float(a.direction @ c.direction)) < 0.5
    made = vectors.from_array(lens, "x", mx.ones((64,)) * 2, -1)
    assert made.layer == 3
    assert made.norm == pytest.approx(16.0)
    with pytest.raises(LensError, match="shape"):
        vectors.from_array(lens, "x", np.ones(63), 1)


def test_the_echo_is_the_change_at_every_later_layer() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    add = Add(id="a", layer=1, vector=SteeringVector.of("v", unit(), 1), scale=3.0)
    stacks = []
    for scale in (0.0, 3.0):
        seen: dict[int, Array] = {}

        def edit(layer: int, site: str, x: Array, scale: float = scale, seen: dict[int, Array] = seen) -> Array:
            if site != "resid_post":
                return x
            seen[layer] = x + scale * unit() if layer == 1 else x
            return seen[layer]

        numpy_models.llama(model, tiny.IDS, edit)
        stacks.append(seen)
    found = lens.echo(IDS, add)
    assert [item.layer for item in found] == [0, 1, 2, 3]
    assert found[0].moved == 0.0
    for item in found[1:]:
        change = stacks[1][item.layer] - stacks[0][item.layer]
        length = np.linalg.norm(stacks[0][item.layer], axis=-1)
        assert item.moved == pytest.approx(np.linalg.norm(change, axis=-1).mean(), rel=1e-3)
        assert item.relative == pytest.approx((np.linalg.norm(change, axis=-1) / length).mean(), rel=1e-3)
        assert item.along == pytest.approx((change @ unit()).mean(), rel=1e-3)
    assert lens.registry.installed == ()


def test_the_loss_of_a_batch_is_the_mean_over_its_tokens() -> None:
    lens = LensModel.from_model(tiny.llama())
    rows = [IDS, IDS[::-1]]
    assert lens.loss(rows) == pytest.approx(np.mean([lens.loss(row) for row in rows]), rel=1e-5)
    logits = numpy_models.llama(lens.model, tiny.IDS)
    nll = np.log(np.exp(logits[:-1]).sum(axis=-1)) - logits[np.arange(7), IDS[1:]]
    assert lens.loss(IDS) == pytest.approx(nll.mean(), rel=1e-5)


def test_rows_of_a_batch_are_captured_and_steered_alike() -> None:
    lens = LensModel.from_model(tiny.gemma3())
    rows = [IDS, IDS[::-1], [3] * 8]
    with lens.steer(1, unit(), 2.0), lens.capture([1, 2], site=["resid_post", "mlp_out"]) as captured:
        lens.forward(rows)
    for index, row in enumerate(rows):
        with lens.steer(1, unit(), 2.0), lens.capture([1, 2], site=["resid_post", "mlp_out"]) as alone:
            lens.forward(row)
        for key in captured:
            np.testing.assert_allclose(np.array(captured[key])[index], np.array(alone[key])[0], atol=2e-4)


def test_the_readmes_examples_of_the_peer_run_with_only_the_import_changed() -> None:
    from lens_tui import LensModel as Public

    lens = Public.from_model(tiny.llama(vocab=8192), tiny.tokenizer())
    vec = mx.random.normal((lens.d_model,))
    vec = vec / mx.linalg.norm(vec)
    loss_0 = lens.loss("The capital of France is Paris")
    with lens.steer(layer=1, vector=vec, scale=500.0):
        loss_s = lens.loss("The capital of France is Paris")
        text = lens.generate("What is money?", max_tokens=4)
    assert loss_s != loss_0
    assert isinstance(text, str)
    tokens = lens.tokenizer.encode("Hello world")
    with lens.capture(layers=[0, 3]) as cap:
        lens.forward(tokens)
    assert cap[0].shape == (1, len(tokens), lens.d_model)
    with lens.steer(layer=3, vector=vec, scale=1000.0), lens.capture(layers=[3]) as steered:
        lens.forward(tokens)
    np.testing.assert_allclose(np.array(steered[3] - cap[3])[0, -1], 1000 * np.array(vec), atol=1e-2)
    lens.close()


def _dense(head: Any) -> Any:
    weight = head.weight
    if "scales" in head:
        weight = mx.dequantize(weight, head.scales, head.biases, group_size=head.group_size, bits=head.bits)
    return np.array(weight.astype(mx.float32), dtype=np.float64)


def test_reading_out_is_not_recorded_by_a_capture_around_it_nor_steered() -> None:
    lens = LensModel("demo")
    ids = lens.tokens.encode("The old man")
    with lens.capture([lens.n_layers - 1]) as plain:
        logits = lens.forward(list(ids))
    residual = plain[lens.n_layers - 1]
    direction = np.ones(lens.d_model, dtype=np.float32)
    with lens.steer(2, mx.ones((lens.d_model,)), 30.0), lens.capture([0]) as around:
        again = lens.readout(residual)
        lens.promoted(direction, 3)
        assert "nothing yet" in repr(around)
        lens.forward(list(ids))
    assert around[0].shape[1] == len(ids)
    assert mx.allclose(again, logits, atol=1e-4).item()


def test_what_a_capture_holds_can_be_read_on_another_thread_also_after_a_cut() -> None:
    lens = LensModel.from_model(tiny.llama())
    with lens.capture([0, 1]) as captured:
        lens.forward([*tiny.IDS])
    whole = np.array(captured[0])
    captured.cut(5)
    read, found = captured[0], []
    other = threading.Thread(target=lambda: found.append(np.array(read)))
    other.start()
    other.join()
    assert np.array_equal(found[0], whole[:, :5])


@pytest.mark.parametrize("dtype", [mx.uint8, mx.int16, mx.int32, mx.uint32, mx.int64])
def test_ids_of_every_integer_type_are_the_same_tokens_and_foreign_ones_are_refused(dtype: mx.Dtype) -> None:
    lens = LensModel.from_model(tiny.llama())
    expected = np.array(lens.forward(IDS))
    assert np.array_equal(np.array(lens.forward(mx.array([IDS], dtype=dtype))), expected)
    wrong = mx.array([[*IDS, lens.info.vocab_size]], dtype=dtype)
    below = mx.array([[*IDS, -1]]).astype(dtype)  # of a type without signs it is its largest number
    for foreign in (wrong, below) if dtype != mx.uint8 else (wrong,):
        with pytest.raises(LensError, match="There is no token"), lens.capture([0]):
            lens.forward(foreign)
