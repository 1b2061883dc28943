"""The examples of mlx-lens' README, with only the import changed, on the bundled model.

Layers are those of an 8-layer model; everything else is what a user of mlx-lens would have typed.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from lens_tui import JumpReLUSAE, LensModel, demo


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return LensModel("demo")


def test_steer_and_measure_loss(lens: LensModel) -> None:
    vec = mx.random.normal((lens.d_model,))
    vec = vec / mx.linalg.norm(vec)
    loss_0 = lens.loss("The capital of France is Paris")
    with lens.steer(layer=4, vector=vec, scale=50.0):
        loss_s = lens.loss("The capital of France is Paris")
    assert loss_s != loss_0
    assert lens.loss("The capital of France is Paris") == loss_0


def test_generate_inside_the_block_and_nothing_left_after_it(lens: LensModel) -> None:
    direction = JumpReLUSAE.from_pretrained(demo.sae_paths()[demo.default_sae()]).directions([2666])[0]
    plain = lens.generate("What is money?", max_tokens=8)
    with lens.steer(layer=4, vector=direction, scale=40.0):
        steered = lens.generate("What is money?", max_tokens=8)
    assert steered != plain
    assert lens.generate("What is money?", max_tokens=8) == plain


def test_capture_the_residual_stream(lens: LensModel) -> None:
    tokens = lens.tokenizer.encode("Hello world")
    with lens.capture(layers=[0, 6]) as cap:
        lens.forward(tokens)
    assert cap[0].shape == (1, len(tokens), lens.d_model)
    assert cap[6].shape == (1, len(tokens), lens.d_model)


def test_steer_and_capture_together(lens: LensModel) -> None:
    tokens = lens.tokenizer.encode("Hello world")
    vec = mx.ones((lens.d_model,)) / lens.d_model**0.5
    with lens.capture(layers=[4]) as plain:
        lens.forward(tokens)
    with lens.steer(layer=4, vector=vec, scale=1000.0), lens.capture(layers=[4]) as cap:
        lens.forward(tokens)
    moved = cap[4].astype(mx.float32) - plain[4].astype(mx.float32)
    assert mx.allclose(moved, 1000.0 * vec, atol=0.05).item()


def test_sae_support() -> None:
    path = Path(demo.sae_paths()[demo.default_sae()]) / "params.safetensors"
    sae = JumpReLUSAE.from_pretrained(str(path))
    residual = mx.random.normal((3, sae.d_model)) * 2
    acts = sae.encode(residual)
    assert acts.shape == (3, sae.d_sae)
    assert sae.decode(acts).shape == (3, sae.d_model)
    directions = sae.directions([42, 710, 1024])
    assert directions.shape == (3, sae.d_model)
    assert mx.allclose(mx.linalg.norm(directions, axis=-1), mx.ones(3), atol=1e-5).item()
