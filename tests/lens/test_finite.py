"""What is not a finite number is said at once, by every way to run or read a model, with the layer it begins at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, attribute_logits, contrast, delta_loss, divergence, find_scale, logit_lens, perplexity
from lens_tui.records import Add, Arm, LensError, NotFinite, SteeringVector

from . import tiny

IDS = list(tiny.IDS)
PUSH = SteeringVector.of("v", np.ones(64), 1)
WAYS: dict[str, Callable[[LensModel], Any]] = {
    "generate": lambda lens: lens.generate(IDS, max_tokens=3),
    "compare": lambda lens: list(lens.compare(IDS, [Arm("a", (_add(1.0),))], max_tokens=3)),
    "batch": lambda lens: lens.generate_batch([IDS, IDS[:4]], max_tokens=3),
    "loss": lambda lens: lens.loss(IDS),
    "delta_loss": lambda lens: delta_loss(lens, _add(1.0), texts=[IDS]),
    "divergence": lambda lens: divergence(lens, IDS, [3, 4], _add(1.0)),
    "perplexity": lambda lens: perplexity(lens, IDS, [3, 4], _add(1.0)),
    "find_scale": lambda lens: find_scale(lens, _add(1.0), texts=[IDS], start=1.0),
    "logit_lens": lambda lens: logit_lens(lens, IDS),
    "promoted": lambda lens: lens.promoted(np.ones(64)),
    "attribution": lambda lens: attribute_logits(lens, IDS),
}
READING: dict[str, Callable[[LensModel], Any]] = {
    "residuals": lambda lens: lens.residuals(IDS, 3),
    "echo": lambda lens: lens.echo(IDS, _add(1.0)),
    "contrast": lambda lens: contrast(lens, "c", [IDS], [IDS[:4]], layers=3),
}


def _add(scale: float) -> Add:
    return Add(id="push", layer=1, vector=PUSH, scale=scale)


def _broken(where: str) -> LensModel:
    """NaN in the final norm, or a weight that overflows float16 in the MLP of layer 2."""
    model = tiny.llama(dtype=mx.float16)
    if where == "norm":
        model.model.norm.weight = model.model.norm.weight * float("nan")
    else:
        projection = model.model.layers[2].mlp.down_proj
        projection.weight = mx.full(projection.weight.shape, 6e4, dtype=mx.float16)
    return LensModel.from_model(model)


@pytest.mark.parametrize("way", WAYS)
def test_logits_that_are_no_numbers_are_refused_where_they_come_out(way: str) -> None:
    with pytest.raises(NotFinite, match="final norm or the unembedding is not"):
        WAYS[way](_broken("norm"))


@pytest.mark.parametrize("way", [way for way in {**WAYS, **READING} if way != "promoted"])
def test_a_residual_that_overflows_is_refused_with_its_layer(way: str) -> None:
    with pytest.raises(NotFinite, match="not finite from layer 2 on"):
        {**WAYS, **READING}[way](_broken("layer"))


def test_the_steering_that_overflows_is_named_and_the_plain_model_goes_on() -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.float16))
    strong = Add(id="too much", layer=1, vector=PUSH, scale=5e5)
    with pytest.raises(NotFinite, match="from layer 1 on under 'too much'"):
        list(lens.compare(IDS, [Arm("a", (strong, strong_again(strong)))], max_tokens=3))
    assert lens.registry.installed == ()
    assert np.isfinite(lens.loss(IDS))


def strong_again(record: Add) -> Add:
    """Each alone is in float16's range, both together are not."""
    return Add(id="again", layer=record.layer, vector=record.vector, scale=record.scale)


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-320, 1.7e308])
def test_a_vector_of_any_size_has_the_direction_of_its_numbers(size: float) -> None:
    values = np.array([3.0, -4.0, 0.0]) * (size / 4.0)
    if size == 1.7e308:
        with pytest.raises(LensError, match="too long"):
            SteeringVector.of("v", [size] * 3, 0)
        return
    made = SteeringVector.of("v", values, 0)
    np.testing.assert_allclose(made.direction, [0.6, -0.8, 0.0], atol=1e-3 if size < 1e-300 else 1e-7)
    assert made.norm == pytest.approx(size * 1.25, rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_no_numbers_are_refused(bad: float) -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="NaN or infinity"):
        SteeringVector.of("v", [1.0, bad], 0)
    with pytest.raises(LensError, match="NaN or infinity"):
        lens.steer(1, [bad] * 64, 1.0)


def test_a_list_beyond_float32_is_refused_and_not_called_infinite() -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="float32"):
        lens.steer(1, [1e200] * 64, 1.0)
