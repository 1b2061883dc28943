"""Texts of any lengths, read together, give what each gives alone: on every kind of model, in bf16 and quantised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from lens_tui import LensModel
from lens_tui.lens import room, texts
from lens_tui.lens.forward import as_float
from lens_tui.lens.hooks.registry import Registry
from lens_tui.records import Add, LensError, NotFinite, Positions
from tests.lens import architectures, numpy_models, tiny

RNG = np.random.default_rng(3)
LENGTHS = (9, 3, 17, 9, 2, 30, 5)
ROWS = tuple(tuple(int(token) for token in RNG.integers(1, 90, length)) for length in LENGTHS)

MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny.llama,
    "llama-bf16": lambda: tiny.llama(dtype=mx.bfloat16),
    "llama-4bit": lambda: tiny.llama(bits=4),
    "qwen3": lambda: architectures.make("qwen3"),
    "gemma3": tiny.gemma3,
    "gemma3-bf16": lambda: tiny.gemma3(dtype=mx.bfloat16),
    "gemma3-4bit": lambda: tiny.gemma3(bits=4),
    "qwen3_moe": tiny.qwen3_moe,
    "mamba2": lambda: architectures.make("mamba2"),
    "rwkv7": tiny.rwkv7,
    "lfm2": tiny.lfm2,
    "llama4_text": lambda: architectures.make("llama4_text"),
}


def near(name: str, ours: Any, alone: Any) -> None:
    """Equal in float32 up to its last digits, in bf16 up to some roundings of numbers of this size."""
    share = 0.03 if name.endswith(("bf16", "4bit")) else 1e-4
    np.testing.assert_allclose(ours, alone, rtol=0, atol=share * max(1.0, float(np.abs(alone).max())))


@pytest.fixture(params=MODELS)
def named(request: pytest.FixtureRequest) -> tuple[str, LensModel]:
    return request.param, LensModel.from_model(MODELS[request.param]())


def test_logits_losses_and_captures_are_those_of_each_text_alone(named: tuple[str, LensModel]) -> None:
    name, lens = named
    with lens.capture([0, 2]) as together:
        logits = as_float(lens.forward(ROWS))
    losses, residuals = lens.losses(ROWS), as_float(lens.residuals(ROWS, 1))
    assert logits.shape[:2] == residuals.shape[:2] == (len(ROWS), max(LENGTHS))
    for at, row in enumerate(ROWS):
        with lens.capture([0, 2]) as alone:
            near(name, logits[at, : len(row)], as_float(lens.forward(row))[0])
        for layer in (0, 2):
            near(name, as_float(together[layer])[at, : len(row)], as_float(alone[layer])[0])
            assert not as_float(together[layer])[at, len(row) :].any()
        near(name, residuals[at, : len(row)], as_float(lens.residuals(row, 1)))
        near(name, losses[at], lens.loss(row))
        assert not logits[at, len(row) :].any()
        assert not residuals[at, len(row) :].any()
    counts = [len(row) - 1 for row in ROWS]
    assert lens.loss(ROWS) == pytest.approx(float(np.average(losses, weights=counts)), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_is_read_is_the_forward_written_out_in_numpy(name: str) -> None:
    model = MODELS[name]()
    lens, reference = LensModel.from_model(model), getattr(numpy_models, name)
    residuals, losses, logits = lens.residuals(ROWS, 2), lens.losses(ROWS), as_float(lens.forward(ROWS))
    for at, row in enumerate(ROWS):
        seen: dict[Any, Any] = {}

        def keep(layer: int, site: str, x: Any, seen: dict[Any, Any] = seen) -> Any:
            seen[layer, site] = x
            return x

        exact = reference(model, row, keep)
        np.testing.assert_allclose(as_float(residuals[at, : len(row)]), seen[2, "resid_post"], atol=2e-4)
        np.testing.assert_allclose(logits[at, : len(row)], exact, atol=5e-4)
        logprobs = numpy_models.log_softmax(exact)[:-1]
        assert losses[at] == pytest.approx(-logprobs[np.arange(len(row) - 1), row[1:]].mean(), abs=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith(("bf16", "4bit"))])
def test_a_long_text_read_in_pieces_is_the_text_read_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = LensModel.from_model(MODELS[name]())
    row = [int(token) for token in RNG.integers(1, 90, 71)]
    whole = [as_float(lens.residuals(row, layer)) for layer in range(lens.n_layers)]
    both = as_float(lens.residuals([row, row[:50]], 1))
    stops: list[int] = []
    lens.registry.between = lambda: stops.append(1)
    monkeypatch.setattr(room, "SPEED", dict.fromkeys(room.SPEED, 1.0))
    assert room.piece_of(lens.registry, 1) == 16
    for layer, expected in enumerate(whole):
        near(name, as_float(lens.residuals(row, layer)), expected)
    assert len(stops) == lens.n_layers * 5  # 71 tokens, 16 at a time
    near(name, as_float(lens.residuals([row, row[:50]], 1)), both)


def test_steered_texts_in_pieces_are_steered_at_their_own_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = LensModel.from_model(tiny.llama())
    rows = [[int(token) for token in RNG.integers(1, 90, length)] for length in (40, 23)]
    record = tiny.add(6.0, positions=Positions("indices", (-2,)))
    with lens.steer(2, tiny.unit(), 3.0), lens.intervene(record):
        whole = as_float(lens.residuals(rows, 3, steered=True))
        alone = [as_float(lens.residuals(row, 3, steered=True)) for row in rows]
        monkeypatch.setattr(room, "SPEED", dict.fromkeys(room.SPEED, 1.0))
        cut = as_float(lens.residuals(rows, 3, steered=True))
    for at, row in enumerate(rows):
        np.testing.assert_allclose(whole[at, : len(row)], alone[at], atol=1e-4)
        np.testing.assert_allclose(cut[at, : len(row)], alone[at], atol=1e-4)
    plain = as_float(lens.residuals(rows[1], 1))
    with lens.intervene(record):
        moved = as_float(lens.residuals(rows, 1, steered=True))[1, :23] - plain
    assert (np.linalg.norm(moved, axis=1) > 1.0).tolist() == [at == 21 for at in range(23)]


@pytest.mark.parametrize("positions", ["all", "last", "generated", "not_bos"])
def test_steering_counts_each_texts_own_places(positions: str) -> None:
    lens = LensModel.from_model(tiny.llama())
    record = tiny.add(5.0, positions=Positions(positions))  # type: ignore[arg-type]
    with lens.intervene(record):
        logits = as_float(lens.forward(ROWS))
        for at, row in enumerate(ROWS):
            np.testing.assert_allclose(logits[at, : len(row)], as_float(lens.forward(row))[0], atol=2e-4)
    if positions in ("all", "generated"):
        with lens.intervene(record):
            losses = lens.losses(ROWS)
            for at, row in enumerate(ROWS):
                assert losses[at] == pytest.approx(lens.loss(row), abs=1e-4)


def test_a_model_that_padding_would_change_reads_texts_of_one_length_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = LensModel.from_model(tiny.llama())
    lengths = list(LENGTHS)
    assert lens.registry.once(texts._pads)
    lens.registry._found[texts._pads] = False
    groups = texts.groups_of(lens.registry, lengths, 1)
    assert sorted(at for group in groups for at in group) == list(range(len(lengths)))
    assert all(len({lengths[at] for at in group}) == 1 for group in groups)
    assert [0, 3] in groups
    padded: list[Any] = []
    monkeypatch.setattr(texts, "real_of", lambda rows: padded.append({len(row) for row in rows}))
    list(texts._groups(lens.registry, ROWS))
    assert all(len(found) == 1 for found in padded)


def test_the_probe_finds_a_model_that_padding_changes() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    last = lens.n_layers - 1
    with lens.hook(last, lambda _, h: h + h.mean(axis=(0, 1), keepdims=True)):
        honest = texts._pads(lens.registry)  # what holds in the calling context is left out
    assert honest
    forward = Registry.forward

    def mixing(self: Registry, *arguments: Any, **options: Any) -> mx.array:
        logits = forward(self, *arguments, **options)
        return logits + logits.sum(axis=1, keepdims=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "forward", mixing)
        assert not texts._pads(lens.registry)


def test_groups_bound_what_a_forward_holds_and_a_stop_comes_between_them() -> None:
    lens = LensModel.from_model(tiny.llama())
    lengths = RNG.integers(2, 200, 80).tolist()
    groups = texts.groups_of(lens.registry, lengths, 100, most=100_000)
    assert sorted(at for group in groups for at in group) == list(range(80))
    assert all(len(group) == 1 or len(group) * max(lengths[at] for at in group) <= 1000 for group in groups)

    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    lens.registry.between = stop
    for read in (
        lens.forward,
        lens.losses,
        lambda rows: lens.residuals(rows, 1),
        lambda rows: lens.residuals(rows[0], 1),
    ):
        with pytest.raises(Stopped):
            read(ROWS)


def test_texts_are_words_or_ids_and_what_cannot_be_is_a_sentence() -> None:
    lens = LensModel("demo")
    words = ["The old man", "A short one, and then a little more of it."]
    rows = lens.rows(words)
    assert rows == tuple(lens.tokens.encode(text) for text in words)
    logits = lens.forward([words[0], list(rows[1])])
    assert logits.shape[:2] == (2, len(rows[1]))
    assert lens.losses(words)[1] == pytest.approx(lens.loss(words[1]), abs=1e-4)
    assert lens.rows("The old man") == rows[:1]
    assert lens.rows([[1, 2], [3, 4]]) == ((1, 2), (3, 4))
    assert lens.forward([words[0]]).shape == (1, len(rows[0]), lens.info.vocab_size)
    for given, says in (
        (["fine", ""], "Text 2 has no tokens"),
        ([[1, 2], []], "Text 2 has no tokens"),
        ([[1, 2], [10**6]], "no token 1000000"),
        ([[1, 2], [1.5]], "whole numbers"),
        (["a", [[1, 2]]], "Text 2 is an array"),
    ):
        with pytest.raises(LensError, match=says):
            lens.forward(given)
    with pytest.raises(LensError, match="text 2 has one"):
        lens.losses([[1, 2], [3]])
    with pytest.raises(LensError, match="cannot continue several texts"):
        lens.forward(words, make_prompt_cache(lens.model))


def test_steering_that_cannot_act_on_any_text_is_refused_and_on_one_of_them_is_not() -> None:
    lens = LensModel.from_model(tiny.llama())
    late = tiny.add(4.0, positions=Positions("indices", (25,)))
    with lens.intervene(late):
        lens.forward(ROWS)  # one of them is long enough
    with (
        lens.intervene(tiny.add(4.0, positions=Positions("indices", (35,)))),
        pytest.raises(LensError, match="no token"),
    ):
        lens.forward(ROWS)
    lost = Add(id="a", layer=1, vector=tiny.add(1.0).vector, scale=1e-12)
    low = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    with low.intervene(lost), pytest.raises(LensError, match="lost in the rounding"):
        low.forward([[1, 2, 3], [1, 2]])


def test_numbers_that_are_not_finite_are_reported_with_their_layer() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    weight = model.model.layers[1].mlp.down_proj.weight
    model.model.layers[1].mlp.down_proj.weight = mx.full(weight.shape, float("nan"))
    for read in (lens.losses, lambda rows: lens.residuals(rows, 3)):
        with pytest.raises(NotFinite, match="layer 1"):
            read(ROWS)
