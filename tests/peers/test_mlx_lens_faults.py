"""What mlx-lens 0.1.2 does where this library's tests of the same number (``test_b1_...``) say what is right.

Each test shows the fault itself, so that the claim can be checked: ``pip install mlx-lens==0.1.2``, then
``pytest tests/peers``. B14 needs the engine that mlx-lens calls as well, ``vllm-mlx==0.4.1``.
"""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import stream_generate
from mlx_lm.models.cache import make_prompt_cache

from lens_tui import demo
from tests.lens import architectures, tiny

from .held_against import mlx_lens, peer

IDS = list(tiny.IDS)
V = mx.ones(64)


@pytest.fixture
def lens() -> Any:
    return peer(tiny.llama())


@pytest.fixture(scope="module")
def speaking() -> Any:
    return peer(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())


def logits(lens: Any) -> Any:
    return np.array(lens.forward(IDS).astype(mx.float32))


def kinds(lens: Any) -> list[str]:
    return [type(layer).__name__ for layer in lens.model.model.layers]


def captured(lens: Any, layer: int) -> Any:
    with lens.capture([layer]) as found:
        lens.forward(IDS)
    return found[layer]


def on_thread(work: Callable[[], object]) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    return errors


def test_b1_loss_of_a_text_fails(speaking: Any) -> None:
    with pytest.raises(ValueError, match="Invalid type str"):
        speaking.loss("The capital of France is Paris")


@pytest.mark.parametrize("bits", [0, 4])
def test_b2_a_float32_vector_makes_the_later_layers_float32(bits: int) -> None:
    model = tiny.llama(dtype=mx.bfloat16, bits=bits)
    lens, cache = peer(model), make_prompt_cache(model)
    with lens.steer(1, V, 0.0):
        assert lens.forward(IDS).dtype == mx.float32
        model(mx.array([IDS]), cache=cache)
    assert [item.keys.dtype for item in cache] == [mx.bfloat16, mx.bfloat16, mx.float32, mx.float32]


def test_b3_scale_zero_changes_the_loss_of_a_bf16_model() -> None:
    lens = peer(tiny.llama(dtype=mx.bfloat16))
    base = lens.loss(IDS)
    with lens.steer(1, V, 0.0):
        assert lens.loss(IDS) != base


def test_b4_the_record_of_a_steer_is_lost_with_the_one_inside_it(lens: Any) -> None:
    plain = logits(lens)
    with lens.steer(1, V, 1.0):
        with lens.steer(1, V, 2.0):
            pass
        assert lens._active_steers == {}
        assert not np.array_equal(logits(lens), plain)


def test_b5_a_capture_inside_a_capture_steers_twice(lens: Any) -> None:
    plain = captured(lens, 1)
    with lens.steer(1, V, 1.0), lens.capture([1]), lens.capture([1]) as inner:
        lens.forward(IDS)
    np.testing.assert_allclose(np.array(inner[1] - plain), 2.0, atol=1e-4)


def test_b6_a_steer_stays_for_ever_when_the_first_ends_first(lens: Any) -> None:
    plain = logits(lens)
    first, second = lens.steer(1, V, 1.0), lens.steer(1, V, 2.0)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert kinds(lens)[1] == "_SteeredLayer"
    assert not np.array_equal(logits(lens), plain)


def test_b7_capture_keeps_the_last_step_of_a_generation_only(speaking: Any) -> None:
    with speaking.capture([1]) as found:
        speaking.generate("Once upon a time there was", max_tokens=4)
    assert found[1].shape == (1, 1, 64)


@pytest.mark.parametrize("layers", [[0, 0], [-1, 3]])
def test_b8_repeated_and_aliased_layers_leave_a_proxy(lens: Any, layers: list[int]) -> None:
    with lens.capture(layers):
        lens.forward(IDS)
    assert "_CaptureLayer" in kinds(lens)


def test_b9_a_bad_index_leaves_a_proxy(lens: Any) -> None:
    with pytest.raises(IndexError), lens.capture([0, 99]):
        pass
    assert kinds(lens)[0] == "_CaptureLayer"


def test_b10_a_capture_around_a_steer_sees_the_stream_unsteered(lens: Any) -> None:
    plain = captured(lens, 1)
    with lens.capture([1]) as found, lens.steer(1, V, 1.0):
        lens.forward(IDS)
    np.testing.assert_array_equal(np.array(found[1]), np.array(plain))


def test_b11_a_negative_layer_is_kept_as_it_is(lens: Any) -> None:
    with lens.capture([-1]) as found:
        lens.forward(IDS)
    assert list(found.keys()) == [-1]
    assert 3 not in found


def test_b12_nothing_can_be_read_inside_the_block(lens: Any) -> None:
    with lens.capture([1]) as found:
        lens.forward(IDS)
        with pytest.raises(KeyError):
            found[1]


@pytest.mark.parametrize("make", [tiny.gemma4, tiny.rwkv7])
def test_b13_blocks_that_return_tuples_fail(make: Any) -> None:
    lens = peer(make())
    with pytest.raises(ValueError, match="tuple"), lens.steer(1, V, 2.0):
        lens.forward(IDS)
    assert isinstance(captured(lens, 1), tuple)


@pytest.mark.filterwarnings("ignore")  # of what the engine imports
def test_b14_a_plain_prefix_is_used_under_steering() -> None:
    pytest.importorskip("vllm_mlx")
    text = "Once upon a time there was a little girl who lived in a small house near the forest . " * 8
    more = text + "One day she went out and"
    used, fresh = (mlx_lens.LensModel(str(demo.model_path())) for _ in range(2))
    drawn = mx.random.normal((used.d_model,), key=mx.random.key(0)).astype(mx.float16)
    used.generate_batch([text], max_tokens=24)
    with used.steer(4, drawn / mx.linalg.norm(drawn), 60.0):
        mixed = used.generate_batch([more], max_tokens=24)
    with fresh.steer(4, drawn / mx.linalg.norm(drawn), 60.0):
        steered = fresh.generate_batch([more], max_tokens=24)
    used.close()
    fresh.close()
    assert mixed != steered


@pytest.mark.parametrize(("name", "seen"), [("plamo", 1), ("plamo2", 1), ("afm7", 2)])
def test_b15_layers_are_miscounted(name: str, seen: int) -> None:
    lens = peer(architectures.make(name))
    assert lens.n_layers == seen
    if seen == 1:
        with pytest.raises(KeyError), lens.steer(0, mx.ones(32), 1.0):
            pass


def test_b16_steering_a_layer_that_is_never_called_does_nothing() -> None:
    lens = peer(tiny.looped())
    plain = logits(lens)
    with lens.steer(1, V, 100.0):
        np.testing.assert_array_equal(logits(lens), plain)


def test_b17_all_four_streams_of_gemma_3n_are_steered() -> None:
    lens = peer(architectures.make("gemma3n"))
    assert lens.d_model is None
    plain = captured(lens, 1)
    assert plain.shape == (4, 1, 8, 32)
    with lens.steer(1, mx.ones(32), 1.0):
        steered = captured(lens, 1)
    np.testing.assert_allclose(np.array(steered - plain), 1.0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1,), (), (8, 64), (3, 1, 64)])
def test_b18_vectors_of_other_shapes_are_broadcast(lens: Any, shape: tuple[int, ...]) -> None:
    with lens.steer(1, mx.ones(shape), 1.0):
        assert lens.forward(IDS).shape == (3 if len(shape) == 3 else 1, 8, tiny.VOCAB)


def test_b18_what_is_not_finite_passes(lens: Any) -> None:
    with lens.steer(1, mx.full((64,), math.nan), 1.0):
        assert math.isnan(lens.loss(IDS))
    half = peer(tiny.llama(dtype=mx.float16))
    with half.steer(1, V.astype(mx.float16), 7e4):
        assert np.isnan(logits(half)).any()


def test_b19_generate_does_not_know_temperature(speaking: Any) -> None:
    with pytest.raises(TypeError, match="temperature"):
        speaking.generate("a", max_tokens=3, temperature=0.0)


def test_b20_a_vector_left_lazy_fails_on_another_thread() -> None:
    vector = mx.random.normal((64,), key=mx.random.key(0)) * 3
    lens = peer(tiny.llama())
    with lens.steer(1, vector, 1.0):
        errors = on_thread(lambda: logits(peer(lens.model)))
    assert "no Stream" in str(errors[0])


def test_b21_a_steer_in_one_thread_changes_another_threads_forward(lens: Any) -> None:
    plain = logits(lens)
    entered, done = threading.Event(), threading.Event()

    def steer() -> None:
        with lens.steer(1, V, 50.0):
            entered.set()
            done.wait(300)

    thread = threading.Thread(target=steer)
    thread.start()
    entered.wait(300)
    changed = logits(lens)
    done.set()
    thread.join()
    assert not np.array_equal(changed, plain)


def test_b22_a_generation_loses_its_steering_when_the_block_ends(speaking: Any) -> None:
    def stream() -> Any:
        return stream_generate(speaking.model, speaking.tokenizer, "Once upon a time", max_tokens=6)

    plain = [step.token for step in stream()]
    with speaking.steer(0, V, 4.0):
        steered = [step.token for step in stream()]
        later = stream()
    assert [step.token for step in later] == plain != steered


def test_b23_a_cache_filled_under_a_steer_is_used_without_it(lens: Any) -> None:
    steered, plain = make_prompt_cache(lens.model), make_prompt_cache(lens.model)
    with lens.steer(1, V, 2.0):
        lens.model(mx.array([IDS]), cache=steered)
    lens.model(mx.array([IDS]), cache=plain)
    after = [np.array(lens.model(mx.array([[3]]), cache=cache)) for cache in (steered, plain)]
    assert np.abs(after[0] - after[1]).max() > 0.1


def test_b24_saes_are_misread_and_ids_not_checked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w_enc": (8, 128), "w_dec": (128, 8), "b_enc": (128,), "b_dec": (8,), "threshold": (128,)}
    w = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    capital = {name.replace("w_", "W_"): value for name, value in w.items()}
    np.savez(tmp_path / "params.npz", **capital)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="w_enc"):
        mlx_lens.JumpReLUSAE.from_pretrained(tmp_path / "params.npz")
    tensors = {name: mx.array(value) for name, value in w.items()}
    for skip in (0.0, 1.0):
        path = tmp_path / f"skip-{skip}.safetensors"
        mx.save_safetensors(str(path), {**tensors, "affine_skip_connection": mx.eye(8) * skip})
    ones = mx.ones((1, 8))
    saes = [mlx_lens.JumpReLUSAE.from_pretrained(tmp_path / f"skip-{skip}.safetensors") for skip in (0.0, 1.0)]
    outputs = [np.array(sae.decode(sae.encode(ones))) for sae in saes]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    with pytest.raises(ValueError, match="indices with invalid dtype"):
        saes[0].directions([])


def test_b24_an_id_outside_the_sae_takes_the_process_down_or_gives_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    mx.save_safetensors(
        str(path),
        {"w_enc": mx.ones((8, 128)), "w_dec": mx.ones((128, 8)), "b_enc": mx.ones(128), "b_dec": mx.ones(8)}
        | {"threshold": mx.ones(128)},
    )
    code = f"import mlx_lens; print(mlx_lens.JumpReLUSAE.from_pretrained({str(path)!r}).directions([10**6]))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode <= 0, "a Python error would be 1"


def test_b25_a_steered_layer_is_no_module_any_more(lens: Any) -> None:
    count = len(tiny.parameter_ids(lens.model))
    with lens.steer(1, V, 1.0):
        layer = lens.model.model.layers[1]
        with pytest.raises(RecursionError):
            copy.copy(layer)
        with pytest.raises(AttributeError):
            layer.note = "set"
        with pytest.raises(TypeError):
            layer["mlp"]
        assert len(tiny.parameter_ids(lens.model)) < count


def test_b26_what_is_wrong_with_the_tokens_is_not_said(lens: Any) -> None:
    with pytest.raises(ValueError, match=r"\[logsumexp\] Received empty array"):
        lens.loss([5])
    with pytest.raises(ValueError, match=r"\[gather\] Got indices with invalid dtype"):
        lens.loss([])
    assert lens.forward([tiny.VOCAB]).shape == (1, 1, tiny.VOCAB)
    assert mlx_lens.__version__ == "0.1.0"
