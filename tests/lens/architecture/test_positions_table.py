"""Models with learnt positions have a table of them: nothing reads beyond its end, where MLX would find anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from lens_tui import LensModel, attention_patterns, delta_loss
from lens_tui.records import LensError
from tests.lens import tiny
from tests.lens.read.test_attribution import gpt2

LONG = [1 + at % 60 for at in range(65)]


def with_a_cache(lens: LensModel) -> Any:
    cache = make_prompt_cache(lens.model)
    lens.forward(LONG[:60], cache=cache)
    return lens.forward(LONG[:5], cache=cache)


@pytest.mark.parametrize(
    "work",
    [
        lambda lens: lens.forward(LONG),
        lambda lens: lens.loss(mx.array([LONG])),
        lambda lens: lens.residuals(LONG, 0),
        lambda lens: lens.generate(LONG[:50], max_tokens=16),
        lambda lens: lens.generate_batch([LONG[:3], LONG[:50]], max_tokens=16),
        lambda lens: delta_loss(lens, texts=[LONG]),
        lambda lens: attention_patterns(lens, LONG, 0),
        with_a_cache,
    ],
)
def test_what_needs_more_positions_than_there_are_is_refused(work: Callable[[LensModel], Any]) -> None:
    lens = LensModel.from_model(gpt2())
    with pytest.raises(LensError, match="65 positions, and the model has 64"):
        work(lens)


def test_the_last_position_is_there() -> None:
    lens = LensModel.from_model(gpt2())
    assert lens.forward(LONG[:64]).shape[1] == 64
    assert len(lens.stream(LONG[:50], max_tokens=15).prompt_ids) == 50
    assert bool(mx.isfinite(lens.forward(LONG[:64])).all())


def test_rotary_positions_have_no_end() -> None:
    assert LensModel.from_model(tiny.llama()).registry.decoder.n_positions is None
