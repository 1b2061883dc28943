"""Every mode of intervention on every kind of model: mixtures, hybrids, recurrent ones, quantised and in bfloat16.

Held against other code that changes what the block gives: the same arithmetic in float64, in a patched class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import Positions
from tests.lens import architectures, tiny
from tests.lens.examine import IDS, numbers, patched
from tests.lens.hooks.test_against_numpy import TinySAE, cases

pytestmark = pytest.mark.usefixtures("without_compiling")

KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "mixture of experts": ("qwen3_moe", tiny.qwen3_moe),
    "convolutions and attention": ("lfm2", tiny.lfm2),
    "state space beside attention": ("falcon_h1", lambda: architectures.make("falcon_h1")),
    "linear attention and attention": ("qwen3_5", lambda: architectures.make("qwen3_5")),
    "recurrent, tuples": ("rwkv7", tiny.rwkv7),
    "tuples, windows": ("gemma4", tiny.gemma4),
    "bfloat16": ("llama", lambda: tiny.llama(dtype=mx.bfloat16)),
    "bfloat16, post-norms": ("gemma3", lambda: tiny.gemma3(dtype=mx.bfloat16)),
    "4-bit": ("llama", lambda: tiny.llama(dtype=mx.bfloat16, bits=4)),
    "8-bit in float32": ("llama", lambda: quantised(tiny.llama())),
}

LATE = Positions("slice", start=3, stop=-1)


def quantised(model: Any) -> Any:
    import mlx.nn as nn

    whole: Any = getattr(nn, "quantize")  # noqa: B009 (MLX does not export it to type checkers)
    whole(model, group_size=32, bits=8)
    return model


@pytest.mark.parametrize("positions", [Positions(), LATE], ids=["all", "slice"])
@pytest.mark.parametrize("mode", cases())
@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_on_every_kind_of_model(kind: str, mode: str, positions: Positions) -> None:
    from dataclasses import replace

    name, make = KINDS[kind]
    model = make()
    lens = LensModel.from_model(model)
    lens.attach_sae("s", TinySAE(lens.d_model))
    record, change = cases(lens.d_model)[mode]
    touched = np.zeros((len(IDS), 1), dtype=bool)
    touched[slice(None) if positions.kind == "all" else slice(3, len(IDS) - 1)] = True
    wanted: list[np.ndarray[Any, Any]] = []

    def other(call: int, h: mx.array) -> mx.array:
        if call != 1:
            return h
        before = numbers(h)[0].astype(np.float64)
        after = np.where(touched, change(before), before)
        wanted.append(after)
        return mx.array(after.astype(np.float32))[None].astype(h.dtype)

    plain = numbers(lens.forward(list(IDS)))
    with patched(name, model, other):
        expected = numbers(model(mx.array([IDS])))
    with lens.intervene(replace(record, positions=positions)), lens.capture(1) as captured:
        logits = numbers(lens.forward(list(IDS)))
    half = captured[1].dtype == mx.bfloat16
    # Once rounded, a number may fall on the other side of a tie.
    step = 2.0**-7 if half else 1e-5
    np.testing.assert_allclose(numbers(captured[1])[0], wanted[0], rtol=step, atol=step)
    effect, error = np.abs(expected - plain), np.abs(logits - expected)
    assert effect.max() > 1e-2
    assert error.mean() < 0.2 * effect.mean() if half else error.max() < 1e-3
    np.testing.assert_array_equal(numbers(lens.forward(list(IDS))), plain)
