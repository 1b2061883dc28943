"""The proxy stands in front of a module without a trace."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.architecture.taps import Call, install, original_class, taps_of, uninstall
from tests.lens import tiny


def doubling(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return call(*args, **kwargs) * 2


def plus_one(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return call(*args, **kwargs) + 1


def test_taps_nest_and_leave_in_any_order() -> None:
    layer = tiny.llama().model.layers[0].mlp
    x = mx.ones((1, 2, 64))
    plain = np.array(layer(x))
    before = type(layer)
    install(layer, doubling)
    install(layer, plus_one)
    np.testing.assert_allclose(np.array(layer(x)), plain * 2 + 1, rtol=1e-6)
    uninstall(layer, doubling)
    np.testing.assert_allclose(np.array(layer(x)), plain + 1, rtol=1e-6)
    uninstall(layer, plus_one)
    assert type(layer) is before
    assert taps_of(layer) == ()


def test_a_hooked_model_keeps_its_objects_parameters_and_attributes() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    objects = [id(layer) for layer in model.model.layers]
    container, arrays, kind = model.model.layers, tiny.parameter_ids(model), type(model.model.layers[1])
    with lens.steer(1, np.ones(64), 1.0):
        layer = model.model.layers[1]
        assert type(layer) is not kind
        assert isinstance(layer, kind)
        assert model.model.layers is container
        assert [id(item) for item in model.model.layers] == objects
        assert tiny.parameter_ids(model) == arrays
        assert layer["mlp"] is layer.mlp
        layer.marker = "kept"
        assert repr(layer).startswith("TransformerBlock")
    assert type(model.model.layers[1]) is kind
    assert model.model.layers[1].marker == "kept"
    assert type(model) is original_class(model)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_of_the_original_class(duplicate: Any) -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    layer = model.model.layers[1]
    with lens.steer(1, np.ones(64), 5.0):
        made = duplicate(layer)
        assert type(made) is original_class(layer)
        x = mx.ones((1, 2, 64))
        np.testing.assert_allclose(np.array(made(x)), np.array(layer(x)), rtol=1e-6)
    assert tiny.parameter_ids(made).keys() == tiny.parameter_ids(layer).keys()


def test_a_whole_steered_model_can_be_copied() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    ids = mx.array([tiny.IDS])
    plain = np.array(model(ids))
    with lens.steer(1, np.ones(64), 5.0):
        twin = copy.deepcopy(model)
    np.testing.assert_array_equal(np.array(twin(ids)), plain)


def test_with_nothing_registered_every_class_is_the_original() -> None:
    model = tiny.gemma3()
    lens = LensModel.from_model(model)
    classes = [type(module) for _, module in model.named_modules()]
    with lens.capture(range(4), site=["resid_post", "attn_z", "mlp_out_normed"]), lens.steer(0, np.ones(64), 1.0):
        lens.forward(list(tiny.IDS))
    for _ in lens.stream(list(tiny.IDS), max_tokens=3):
        pass
    lens.sites(0)
    assert [type(module) for _, module in model.named_modules()] == classes
    assert lens.registry.installed == ()
