"""Side by side with mlx-lens 0.1.2 on the bundled model: where it is right, the numbers are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import dequantize_model, load
from safetensors.numpy import load_file, save_file

from lens_tui import JumpReLUSAE, LensModel, demo

from .held_against import mlx_lens, peer

TEXT = "The old man opened the door and looked out at the rain ."
Pair = tuple[LensModel, Any]


def pair(kind: str) -> Pair:
    """The bundled model as it is (8-bit weights, float32 stream) or in bfloat16, in both libraries."""
    if kind == "as shipped":
        # As its weights lie in the files: by itself this library may hold them in float32.
        return LensModel("demo", dequantize="never"), mlx_lens.LensModel(str(demo.model_path()))
    models = []
    for _ in range(2):
        model, tokenizer = load(str(demo.model_path()))[:2]
        model = dequantize_model(model)
        model.set_dtype(mx.bfloat16)
        models.append((model, tokenizer))
    return LensModel.from_model(*models[0]), peer(*models[1])


@pytest.fixture(scope="module", params=["as shipped", "bfloat16"])
def both(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


@pytest.fixture
def ids(both: Pair) -> list[int]:
    return list(both[0].tokens.encode(TEXT))


def numbers(array: mx.array) -> np.ndarray[Any, Any]:
    return np.array(array.astype(mx.float32))


def vector(lens: LensModel) -> mx.array:
    """A unit vector in the dtype of the stream, as mlx-lens needs it."""
    drawn = mx.random.normal((lens.d_model,), key=mx.random.key(0))
    return (drawn / mx.linalg.norm(drawn)).astype(lens.forward([1, 2]).dtype)


def test_plain_logits_losses_and_captures_are_the_same(both: Pair, ids: list[int]) -> None:
    ours, theirs = both
    layers = list(range(ours.n_layers))
    assert (ours.n_layers, ours.d_model) == (theirs.n_layers, theirs.d_model)
    with ours.capture(layers) as mine:
        logits = numbers(ours.forward(ids))
    with theirs.capture(layers) as other:
        np.testing.assert_array_equal(logits, numbers(theirs.forward(ids)))
    for layer in layers:
        np.testing.assert_array_equal(numbers(mine[layer]), numbers(other[layer]))


def test_a_vector_of_the_streams_dtype_steers_the_same(both: Pair, ids: list[int]) -> None:
    """In bfloat16 they differ where a sum lies in the middle of two numbers.

    A vector is kept here as direction and length, whose product may differ from it in the last bit of float32, and
    the sum is rounded once; so a tie may fall to the other side.
    """
    ours, theirs = both
    v = vector(ours)
    plain = numbers(ours.forward(ids))

    def same(mine: np.ndarray[Any, Any], other: np.ndarray[Any, Any], *, steered_here: bool) -> None:
        if v.dtype == mx.float32:
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4)
        elif steered_here:
            np.testing.assert_allclose(mine, other, rtol=2.0**-7, atol=1e-6)  # one step of bfloat16
        else:
            assert np.linalg.norm(mine - other) < 0.02 * np.linalg.norm(other)

    for layer in (0, 4, 7):
        with ours.steer(layer, v, 64.0), ours.capture([layer, 7]) as mine:
            logits = numbers(ours.forward(ids))
        with theirs.steer(layer, v, 64.0), theirs.capture([layer, 7] if layer != 7 else [7]) as other:
            same(logits, numbers(theirs.forward(ids)), steered_here=False)
        same(numbers(mine[layer]), numbers(other[layer]), steered_here=True)
        same(numbers(mine[7]), numbers(other[7]), steered_here=False)
        assert not np.array_equal(logits, plain)


def test_losses_are_the_same_but_for_the_dtype_they_are_computed_in(both: Pair, ids: list[int]) -> None:
    """Theirs is in the logits' dtype: in bfloat16 it is the right one to three digits."""
    ours, theirs = both
    exact = ours.forward(ids).dtype == mx.float32
    for scale in (0.0, 64.0):
        with ours.steer(4, vector(ours), scale), theirs.steer(4, vector(ours), scale):
            assert ours.loss(ids) == pytest.approx(theirs.loss(ids), rel=1e-5 if exact else 1e-2)


@pytest.mark.parametrize("scale", [0.0, 32.0])
def test_greedy_texts_are_the_same(both: Pair, scale: float) -> None:
    ours, theirs = both
    with ours.steer(4, vector(ours), scale), theirs.steer(4, vector(ours), scale):
        mine = ours.generate(TEXT, max_tokens=12, temperature=0.0)
        other = theirs.generate(TEXT, max_tokens=12)
    assert mine.removeprefix(" ") == other.removeprefix(" ")
    assert len(other) > 10


def test_the_sae_is_the_same(tmp_path: Path) -> None:
    """Theirs reads no 8-bit matrices: it gets the same numbers as float32, as Gemma Scope 2 has them."""
    path = Path(demo.sae_paths()[demo.default_sae()]) / "params.safetensors"
    stored = load_file(path)
    whole = {name: stored[name] for name in ("b_enc", "b_dec", "threshold")}
    whole["w_enc"] = stored["w_enc"] * stored["w_enc_scale"]
    whole["w_dec"] = stored["w_dec"] * stored["w_dec_scale"][:, None]
    save_file(whole, tmp_path / "params.safetensors")
    ours = JumpReLUSAE.from_pretrained(path)
    theirs = mlx_lens.JumpReLUSAE.from_pretrained(tmp_path / "params.safetensors")
    x = mx.random.normal((5, ours.d_model), key=mx.random.key(1)) * 3
    z = ours.encode(x)
    np.testing.assert_allclose(numbers(z), numbers(theirs.encode(x)), atol=1e-3)
    np.testing.assert_allclose(numbers(ours.decode(z)), numbers(theirs.decode(z)), atol=1e-3)
    np.testing.assert_allclose(numbers(ours.directions([42, 710])), numbers(theirs.directions([42, 710])), atol=1e-4)
    assert (numbers(z) > 0).any()
