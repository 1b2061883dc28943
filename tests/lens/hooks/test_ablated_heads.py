"""Single heads ablated and replaced: against a float64 forward, and against a projection without their columns."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.linear import Linear

from lens_tui import AblateHeads, LensModel
from lens_tui.records import LensError
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array
from tests.lens.read.test_attention import gemma2
from tests.lens.read.test_attribution import gpt2

IDS = list(tiny.IDS)
MEAN = np.linspace(-0.5, 0.7, 32, dtype=np.float32)


@pytest.mark.parametrize("mean", [None, MEAN], ids=["zero", "mean"])
@pytest.mark.parametrize(("name", "make"), [("llama", tiny.llama), ("gemma3", tiny.gemma3)])
@pytest.mark.parametrize("places", [None, [2, 5]], ids=["all", "some"])
def test_chosen_heads_are_replaced_and_no_others(name: str, make: Any, mean: Any, places: list[int] | None) -> None:
    model = make()

    def edit(layer: int, site: str, x: Array) -> Array:
        if (layer, site) != (1, "attn_z"):
            return x
        x, rows = x.copy(), slice(None) if places is None else places
        x[rows, 48:64] = 0.0 if mean is None else mean[:16]
        x[rows, 0:16] = 0.0 if mean is None else mean[16:]
        return x

    expected = getattr(numpy_models, name)(model, tiny.IDS, edit)
    lens = LensModel.from_model(model)
    chosen: dict[str, Any] = {} if places is None else {"positions": places}
    record = AblateHeads(id="h", layer=1, heads=(3, 0), mean=mean, **chosen)
    plain = np.array(lens.forward(IDS)[0])
    with lens.intervene(record):
        found = np.array(lens.forward(IDS)[0])
    np.testing.assert_allclose(found, expected, atol=3e-4)
    assert np.abs(found - plain).max() > 1e-2


def without_columns(projection: Any, head: int, size: int) -> Any:
    """A projection that takes nothing of one head, of the same weights otherwise."""
    weight = projection.weight
    if "scales" in projection:
        weight = mx.dequantize(
            weight, projection.scales, projection.biases, group_size=projection.group_size, bits=projection.bits
        )
    keep = mx.array(np.arange(weight.shape[1]) // size != head)
    new = Linear(weight.shape[1], weight.shape[0], bias="bias" in projection)
    new.weight = mx.where(keep, weight, 0.0).astype(weight.dtype)
    if "bias" in projection:
        new.bias = projection.bias
    return new


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny.llama(dtype=mx.bfloat16),
        lambda: tiny.gemma3(dtype=mx.bfloat16),
        lambda: tiny.llama(dtype=mx.bfloat16, bits=4),
        gemma2,
        tiny.qwen3_moe,
        gpt2,
    ],
    ids=["bf16", "bf16 post-norms", "4-bit", "gemma2", "qwen3_moe", "gpt2"],
)
def test_an_ablated_head_is_one_whose_columns_are_not_there(make: Any) -> None:
    model = make()
    lens = LensModel.from_model(model)
    with lens.intervene(AblateHeads(id="h", layer=-1, heads=(2,))):
        found = np.array(lens.forward(IDS)[0].astype(mx.float32))
    plain = np.array(lens.forward(IDS)[0].astype(mx.float32))
    attention = model.transformer.h[-1].attn if hasattr(model, "transformer") else None
    if attention is None:
        inner = model.model
        attention = inner.h[-1].attn if hasattr(inner, "h") else inner.layers[-1].self_attn
    name = "c_proj" if hasattr(attention, "c_proj") else "o_proj"
    projection = getattr(attention, name)
    width = lens.registry.sites.point(lens.n_layers - 1, "attn_z").width
    setattr(attention, name, without_columns(projection, 2, width // 4))
    expected = np.array(model(mx.array([IDS]))[0].astype(mx.float32))
    half = "bfloat16" in lens.info.dtype
    np.testing.assert_allclose(found, expected, atol=0.06 * np.abs(expected).max() if half else 1e-4)
    moved = np.abs(expected - plain).max()
    assert np.abs(found - expected).max() < 0.5 * moved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": (4,)}, "has 0 to 3"),
        ({"heads": ()}, "has 0 to 3"),
        ({"heads": (1, 1)}, "has 0 to 3"),
        ({"heads": (1,), "mean": MEAN}, r"1 heads need \(16,\)"),
        ({"heads": (1,), "site": "attn_out"}, "heads, which are at attn_z"),
        ({"heads": (1,), "mean": np.full(16, np.nan)}, "NaN"),
    ],
)
def test_what_no_head_can_have_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(LensError, match=words):
        LensModel.from_model(tiny.llama()).intervene(AblateHeads(id="h", layer=1, **change))
