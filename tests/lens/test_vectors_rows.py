"""Rows of many texts in one forward give what each gives alone, on every kind of architecture; files into models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.forward import as_float, forward_rows
from lens_tui.lens.measure import effects
from lens_tui.lens.texts import groups_of, read_rows
from lens_tui.records import Add, LensError, NormMatch, Positions, SteeringVector
from lens_tui.records.vector_formats import load_vectors, save_vectors
from tests.lens.test_tokens import PLAIN, tokens

from . import tiny

ROWS = [[1, 17, 5, 80, 33, 2, 64, 9], [1, 44], [7, 8, 9, 10, 11]]
VECTOR = SteeringVector.of("v", np.random.default_rng(2).normal(size=64), 1)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3, tiny.gemma4, tiny.rwkv7, tiny.lfm2, tiny.qwen3_moe])
def test_rows_side_by_side_equal_rows_alone(make: Any) -> None:
    model = LensModel.from_model(make())
    read = dict(read_rows(model, ROWS, [(0, "resid_post"), (2, "resid_post")]))
    for at, row in enumerate(ROWS):
        for layer in (0, 2):
            alone = as_float(model.residuals(row, layer))
            np.testing.assert_allclose(as_float(read[at][layer, "resid_post"]), alone, atol=2e-4)
    plans = [
        (),
        (Add(id="a", layer=1, vector=VECTOR, scale=3.0),),
        (NormMatch(id="n", layer=1, vector=VECTOR, scale=1.0),),
    ]
    logits = forward_rows(model, ROWS, plans)
    for at, (row, plan) in enumerate(zip(ROWS, plans, strict=True)):
        with model.intervene(*plan):
            alone = as_float(model.forward(row))[0]
        np.testing.assert_allclose(as_float(logits[at, : len(row)]), alone, atol=2e-4)
    assert model.registry.installed == ()


def test_batches_hold_every_row_once_and_no_more_logits_than_asked() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 100).tolist()
    batches = groups_of(LensModel.from_model(tiny.llama()).registry, lengths, 1000, most=1_000_000)
    assert sorted(at for batch in batches for at in batch) == list(range(100))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[at] for at in batch) * 1000 <= 1_000_000


def test_steering_that_moves_nothing_is_an_error() -> None:
    model = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    lost = Add(id="a", layer=1, vector=VECTOR, scale=1e-6)
    with pytest.raises(LensError, match="lost in the rounding"):
        effects.delta_loss(model, lost, texts=ROWS)


def test_roles_of_a_chat_hold_on_given_tokens() -> None:
    model = LensModel.from_model(tiny.llama(vocab=8192), tokens(PLAIN).tokenizer)
    prompt, vector = "Tell me of the sea.", VECTOR
    ids = model.tokens.prompt(prompt)
    assert ids.spans is not None
    after = [token.token_id for token in model.stream(prompt, max_tokens=6)]
    by_role = Add(id="a", layer=1, vector=vector, scale=30.0, positions=Positions("role", role="assistant"))
    start = min(begin for role, begin, _ in ids.spans if role == "assistant")
    by_place = Add(id="a", layer=1, vector=vector, scale=30.0, positions=Positions("slice", start=start))
    found = effects.divergence(model, prompt, after, by_role)
    np.testing.assert_allclose(found.forward, effects.divergence(model, prompt, after, by_place).forward, atol=1e-5)
    thinking = Add(id="a", layer=1, vector=vector, scale=30.0, positions=Positions("role", role="thinking"))
    with pytest.raises(LensError, match="thinking"):
        effects.divergence(model, prompt, after, thinking)


def test_files_are_checked_against_the_model(tmp_path: Path) -> None:
    model = LensModel.from_model(tiny.llama(), name="tiny")
    path = save_vectors(VECTOR, tmp_path / "v.gguf")
    (found,) = load_vectors(path, model=model.info)
    np.testing.assert_allclose(found.direction, VECTOR.direction, atol=1e-6)
    wide = SteeringVector.of("w", np.ones(32), 1)
    deep = SteeringVector.of("d", np.ones(64), 9)
    other = SteeringVector.of("o", np.ones(64), 1, model="another")
    for vector, name, message in (
        (wide, "w.npz", "has width 32"),
        (deep, "d.gguf", "layer 9; the model's layers are 0 to 3"),
        (other, "o.safetensors", "was made for another, not tiny"),
    ):
        with pytest.raises(LensError, match=message):
            load_vectors(save_vectors(vector, tmp_path / name), model=model.info)
