"""Known faults of mlx-lens 0.1.2 in finding layers, B15 to B17: each test says what goes wrong there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import LensError

from . import architectures, tiny

IDS = list(tiny.IDS)
V = np.random.default_rng(0).normal(size=32).astype(np.float32)


@pytest.fixture(autouse=True)
def _without_compiling() -> Iterator[None]:
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("name", ["plamo", "plamo2", "afm7"])
def test_b15_every_layer_is_found_and_steered(name: str) -> None:
    """There PLaMo has one layer, steering it a ``KeyError``, and of AFM's two halves the second is not seen."""
    lens = LensModel.from_model(architectures.make(name))
    assert lens.n_layers == 4
    with lens.capture(range(4)) as plain:
        base = np.array(lens.forward(IDS))
    for layer in range(4):
        with lens.steer(layer, V, 1.0), lens.capture(range(4)) as captured:
            steered = np.array(lens.forward(IDS))
        moved = [bool(np.any(np.array(captured[at] != plain[at]))) for at in range(4)]
        assert moved == [at >= layer for at in range(4)]
        np.testing.assert_allclose(np.array(captured[layer] - plain[layer])[0], np.tile(V, (8, 1)), atol=1e-4)
        assert np.abs(steered - base).max() > 1e-3
    np.testing.assert_array_equal(np.array(lens.forward(IDS)), base)


def test_b16_a_model_that_never_calls_its_blocks_is_refused() -> None:
    """There steering it by any amount leaves the logits as they are, and nothing says so."""
    model = tiny.looped()
    with pytest.raises(LensError, match=r"iquestloopcoder.*never calls the 2 blocks themselves"):
        LensModel.from_model(model)


def test_b17_of_gemma_3ns_four_streams_the_active_one_is_read_and_steered() -> None:
    """There all four are, as an array (4, batch, tokens, d_model), and ``d_model`` is ``None``."""
    model: Any = architectures.make("gemma3n")
    lens = LensModel.from_model(model)
    assert (lens.n_layers, lens.d_model) == (4, 32)
    block = lens.model.model.language_model.layers[1]
    seen: list[np.ndarray[Any, Any]] = []
    kind: Any = type(block)
    call = kind.__call__

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = call(self, *args, **kwargs)
        if self is model.model.language_model.layers[2]:
            seen.append(np.array(args[0]))
        return out

    kind.__call__ = watched
    try:
        with lens.capture(1) as plain:
            lens.forward(IDS)
        with lens.steer(1, V, 2.0), lens.capture(1) as captured:
            lens.forward(IDS)
    finally:
        kind.__call__ = call
    assert captured[1].shape == (1, 8, 32)
    np.testing.assert_allclose(np.array(captured[1] - plain[1])[0], np.tile(2 * V, (8, 1)), atol=1e-4)
    moved = seen[1] - seen[0]
    assert moved.shape == (4, 1, 8, 32)
    np.testing.assert_allclose(moved[0, 0], np.tile(2 * V, (8, 1)), atol=1e-4)
    np.testing.assert_array_equal(moved[1:], 0)
