"""Weights in float32 at load: what a quantised model computes, with less rounding, and only where it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lens_tui import LensError, LensModel, blas
from lens_tui.lens import room
from lens_tui.lens.architecture import weights
from lens_tui.lens.architecture.weights import dequantize, evaluate, float32_bytes, quantization
from lens_tui.records import machine
from tests.lens import architectures, tiny
from tests.lens.architecture.test_architectures import quantize as in_groups_of_32

IDS = mx.array([list(tiny.IDS)])


def numbers(array: mx.array) -> Any:
    return np.array(array.astype(mx.float32), dtype=np.float64)


def arrays(model: Any) -> dict[str, mx.array]:
    leaves: Any = tree_flatten(model.parameters())
    return dict(leaves)


def unpacked(module: Any) -> Any:
    """An affine weight by hand: each word of 32 bits holds its values from the lowest bits up."""
    words = np.array(module.weight).astype(np.uint64)
    per_word = 32 // module.bits
    values = np.stack([(words >> (module.bits * at)) & (2**module.bits - 1) for at in range(per_word)], axis=-1)
    values = values.reshape(*words.shape[:-1], -1).astype(np.float64)
    scales, biases = (np.repeat(numbers(part), module.group_size, axis=-1) for part in (module.scales, module.biases))
    return values * scales + biases


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_weights_are_what_the_quantised_ones_stand_for(make: Any, bits: int) -> None:
    model = make(bits=bits)
    wanted = {path: unpacked(module) for path, module in model.named_modules() if "scales" in module}
    expected = float32_bytes(model)
    held = dequantize(model, "always")
    total = sum(array.nbytes for array in arrays(model).values())
    *_, last = evaluate(model)
    assert last == (total, total)
    assert held.quantization == f"{bits}-bit, group 32"
    assert held.says == "float32, dequantised on loading"
    assert quantization(model) == ""
    found = arrays(model)
    assert {array.dtype for array in found.values()} == {mx.float32}
    assert sum(array.nbytes for array in found.values()) == expected
    for path, weight in wanted.items():
        np.testing.assert_allclose(numbers(found[f"{path}.weight"]), weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_logits_agree_with_the_quantised_model(mode: str) -> None:
    import mlx.nn as nn

    whole: Any = getattr(nn, "quantize")  # noqa: B009 (MLX does not export it to type checkers)
    model = tiny.llama()
    whole(model, mode=mode)
    before = numbers(model(IDS))
    assert dequantize(model, "always").says
    np.testing.assert_allclose(numbers(model(IDS)), before, atol=2e-4)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v3", "qwen2", "llama4"])
def test_experts_latent_attention_and_biases(name: str) -> None:
    model = architectures.make(name)
    in_groups_of_32(model)
    assert quantization(model)
    before = numbers(model(IDS))
    dequantize(model, "always")
    assert quantization(model) == ""
    np.testing.assert_allclose(numbers(model(IDS)), before, atol=2e-3)


def test_sixteen_bits_become_float32() -> None:
    model, plain = tiny.llama(dtype=mx.bfloat16), tiny.llama()
    held = dequantize(model, "always")
    assert (held.quantization, held.says) == ("", "float32, from 16 bits on loading")
    assert {array.dtype for array in arrays(model).values()} == {mx.float32}
    # The rounding of the weights to 16 bits stays, that of the activations is gone.
    assert 0 < np.abs(numbers(model(IDS)) - numbers(plain(IDS))).max() < 0.5


def test_a_float32_model_and_never_change_nothing() -> None:
    for model, how in (
        (tiny.llama(), "always"),
        (tiny.llama(bits=4), "never"),
        (tiny.llama(dtype=mx.float16), "never"),
    ):
        before = arrays(model)
        assert dequantize(model, how).says == ""  # type: ignore[arg-type]
        after = arrays(model)
        assert all(after[name] is array for name, array in before.items())


@pytest.mark.parametrize(("fast", "free", "says"), [(True, 1 << 40, "float32, dequ"), (False, 1 << 40, "")])
def test_auto_is_for_a_fast_cpu(fast: bool, free: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "state", lambda: blas.Blas(fast, ""))
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("auto leaves weights alone on a GPU")
    assert bool(says) == bool(dequantize(tiny.llama(bits=4), "auto").says)


def test_auto_leaves_half_of_the_memory_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "state", lambda: blas.Blas(True, ""))
    model = tiny.llama(bits=4)
    size = float32_bytes(model)
    monkeypatch.setattr(machine, "free_memory", lambda: 2 * size - 1)
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("auto leaves weights alone on a GPU")
    said = dequantize(model, "auto").says
    assert said == "as in the files; in float32, which is faster, they would take 0.0 GB of 0.0 GB free"
    assert quantization(model)
    monkeypatch.setattr(machine, "free_memory", lambda: 2 * size)
    assert dequantize(model, "auto").says.startswith("float32")


def test_the_memory_of_this_machine_is_some() -> None:
    assert 1 << 20 < machine.free_memory() < 1 << 50


def test_a_model_by_name_says_what_was_done() -> None:
    kept, turned = LensModel("demo", dequantize="never"), LensModel("demo", dequantize="always")
    assert (kept.info.weights, turned.info.weights) == ("", "float32, dequantised on loading")
    assert kept.info.quantization == turned.info.quantization == "8-bit, group 128"
    assert kept.info.n_parameters == turned.info.n_parameters
    assert turned.info.nbytes == 4 * turned.info.n_parameters
    prompt = "The old man opened the door and"
    ours, theirs = (numbers(lens.forward(prompt)) for lens in (turned, kept))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert turned.generate(prompt, max_tokens=12) == kept.generate(prompt, max_tokens=12)
    with pytest.raises(LensError, match="dequantize cannot be 'sometimes'"):
        LensModel("demo", dequantize="sometimes")


def test_lazy_weights_stay_lazy_and_are_right(tmp_path: Path) -> None:
    lens = LensModel("demo", dequantize="always", lazy=True)
    np.testing.assert_allclose(
        numbers(lens.forward([5, 6, 7])), numbers(LensModel("demo", dequantize="never").forward([5, 6, 7])), atol=1e-3
    )


@pytest.mark.parametrize(("bits", "fast", "kind"), [(0, True, "openblas"), (4, True, "cpu"), (0, False, "cpu")])
def test_pieces_of_a_prompt_are_larger_where_products_are_fast(
    bits: int, fast: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("a GPU has a size of its own")
    monkeypatch.setattr(blas, "state", lambda: blas.Blas(fast, ""))
    registry = LensModel.from_model(tiny.llama(bits=bits)).registry
    monkeypatch.setattr(room, "SPEED", {"cpu": 2 * room.work_of(registry) * 64, "openblas": 1e30})
    assert room.piece_of(registry, 1) == {"cpu": 64, "openblas": room.MOST}[kind]


def test_free_memory_ends_where_the_process_may_take_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 20, 1 << 20))
    assert machine.free_memory() <= 1 << 20


def test_a_device_finds_out_whether_it_can_multiply_what_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's CUDA back end has no product of many rows with, say, 8-bit weights in groups of 128 in float32."""
    import mlx.nn as nn

    whole: Any = getattr(nn, "quantize")  # noqa: B009 (MLX does not export it to type checkers)
    model = tiny.llama()
    whole(model, bits=8)
    layers = list(weights._one_of_each_kind(model))
    assert [weights._without_product(layer) for layer in layers] == [""]
    real = mx.quantized_matmul

    def few_rows_only(x: mx.array, *args: Any, **options: Any) -> mx.array:
        if x.shape[-2] > 32:
            raise RuntimeError("invalid argument")
        return real(x, *args, **options)

    monkeypatch.setattr(mx, "quantized_matmul", few_rows_only)
    assert weights._without_product(layers[0]).startswith("8-bit weights in groups of ")
    with pytest.raises(LensError, match=r"cannot multiply 8-bit weights .* dequantize='auto'"):
        weights._as_the_device_can(model, "never", "8-bit")
    expected = numbers(model(IDS))
    held = weights._as_the_device_can(model, "auto", "8-bit")
    assert "dequantised on loading: MLX cannot multiply 8-bit" in held.says
    assert not quantization(model)
    np.testing.assert_allclose(numbers(model(IDS)), expected, atol=2e-4)


def test_a_device_that_can_multiply_what_is_packed_leaves_it_so() -> None:
    model = tiny.gemma3(bits=4, dtype=mx.bfloat16)
    before = {name: array.dtype for name, array in arrays(model).items()}
    assert weights._as_the_device_can(model, "auto", "4-bit").says == ""
    assert weights._as_the_device_can(model, "never", "4-bit").says == ""
    assert {name: array.dtype for name, array in arrays(model).items()} == before
