"""Attention patterns edited: against a float64 forward, with a cache and without, and the refusals."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import Arm, EditPattern, LensModel, attention_patterns
from lens_tui.records import LensError, Positions, Request, Token
from tests.lens import architectures, numpy_models, tiny
from tests.lens.numpy_models import Array
from tests.lens.read.test_attention import gemma2

LONG = tuple(int(token) for token in np.random.default_rng(5).integers(0, tiny.VOCAB, size=14))
MODELS = [("llama", tiny.llama), ("gemma3", tiny.gemma3)]
SOURCES, QUERIES = [2, 9], range(4, 14)


def pattern(**values: Any) -> EditPattern:
    """The record, its positions as people write them."""
    return EditPattern(**values)


def pieces(lens: LensModel, ids: tuple[int, ...]) -> Array:
    """Logits with a cache: a prompt, a piece after it, and steps."""
    cache: list[Any] = lens.registry.decoder.root.make_cache() if hasattr(lens.model, "make_cache") else _made(lens)
    ends = [5, 11, *range(12, len(ids) + 1)]
    parts = [lens.forward(list(ids[i:j]), cache)[0] for i, j in zip([0, *ends], ends, strict=False)]
    return np.concatenate([np.array(part.astype(mx.float32)) for part in parts])


def _made(lens: LensModel) -> list[Any]:
    from mlx_lm.models.cache import make_prompt_cache

    root: Any = lens.model
    made: list[Any] = make_prompt_cache(root)
    return made


def cut(layer: int, heads: list[int], mask: bool) -> numpy_models.Edit:
    """Sources 2 and 9 out of the sight of tokens from 4 on: masked before the softmax, or without weight after it."""

    def edit(at: int, site: str, x: Array) -> Array:
        if at != layer or site != ("attn_scores" if mask else "attn_pattern"):
            return x
        x = x.copy()
        x[np.ix_(heads, list(QUERIES), SOURCES)] = -np.inf if mask else 0.0
        return x

    return edit


@pytest.mark.parametrize(("name", "make"), MODELS)
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("layer", [1, 2])
def test_sources_are_cut_as_a_mask_does_or_their_weights_are_zero(
    name: str, make: Any, renormalise: bool, layer: int
) -> None:
    model = make()
    expected = getattr(numpy_models, name)(model, LONG, cut(layer, [1, 3], renormalise))
    lens = LensModel.from_model(model)
    record = pattern(id="e", layer=layer, heads=(3, 1), sources=SOURCES, positions=QUERIES, renormalise=renormalise)
    plain = np.array(lens.forward(list(LONG))[0])
    with lens.intervene(record):
        found, cached = np.array(lens.forward(list(LONG))[0]), pieces(lens, LONG)
    np.testing.assert_allclose(found, expected, atol=3e-4)
    np.testing.assert_allclose(cached, expected, atol=3e-4)
    assert np.abs(found - plain).max() > 1e-2
    np.testing.assert_array_equal(np.array(lens.forward(list(LONG))[0]), plain)


@pytest.mark.parametrize(("name", "make"), MODELS)
def test_a_pattern_of_another_run_and_one_row_for_all_take_the_place_of_a_head_s_own(name: str, make: Any) -> None:
    model, rng = make(), np.random.default_rng(8)
    lens = LensModel.from_model(model)
    other = [int(token) for token in rng.integers(0, tiny.VOCAB, size=10)]
    (kept,) = attention_patterns(lens, other, 1)
    row = np.array([0.25, 0.0, 0.5, 0.1], np.float32)

    def edit(layer: int, site: str, x: Array) -> Array:
        if (layer, site) == (1, "attn_pattern"):
            x = x.copy()
            x[2, :10], x[2, :10, :10] = 0.0, kept.weights[2]
            for at in range(6, 14):
                x[0, at], x[0, at, :4] = 0.0, row
        return x

    expected = getattr(numpy_models, name)(model, LONG, edit)
    records = (
        pattern(id="run", layer=1, heads=(2,), weights=kept.weights[2:3]),
        pattern(id="row", layer=1, heads=(0,), weights=row[None, None], positions=slice(6, None)),
    )
    plain = np.array(lens.forward(list(LONG))[0])
    with lens.intervene(*records):
        found, cached = np.array(lens.forward(list(LONG))[0]), pieces(lens, LONG)
    np.testing.assert_allclose(found, expected, atol=3e-4)
    np.testing.assert_allclose(cached, expected, atol=3e-4)
    assert np.abs(found - plain).max() > 1e-2


def test_weights_on_what_a_window_has_let_go_of_are_refused() -> None:
    lens = LensModel.from_model(tiny.gemma3())
    record = pattern(id="far", layer=2, heads=(0,), weights=np.ones((1, 1, 2)), positions=[-1])
    with lens.intervene(record), pytest.raises(LensError, match="let go of"):
        pieces(lens, LONG)


def test_a_pattern_put_in_its_own_place_changes_no_bit() -> None:
    lens = LensModel.from_model(tiny.llama())
    (own,) = attention_patterns(lens, list(LONG), 1)
    plain = np.array(lens.forward(list(LONG))[0])
    with lens.intervene(pattern(id="own", layer=1, weights=own.weights)):
        np.testing.assert_array_equal(np.array(lens.forward(list(LONG))[0]), plain)


def test_a_pattern_read_under_an_edit_is_the_edited_one() -> None:
    lens = LensModel.from_model(tiny.gemma3())
    record = pattern(id="e", layer=1, heads=(1,), sources=SOURCES, positions=QUERIES)
    (plain,), (read,) = (attention_patterns(lens, list(LONG), 1, interventions=records) for records in ([], [record]))
    expected = plain.weights.astype(np.float64).copy()
    expected[1, 4:, SOURCES] = 0.0
    expected[1] /= expected[1].sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(read.weights, expected, atol=1e-5)


def test_edits_of_one_head_act_one_after_the_other() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    both = pattern(id="both", layer=1, heads=(1, 3), sources=SOURCES, positions=QUERIES)
    each = [pattern(id=str(at), layer=1, heads=(1, 3), sources=[at], positions=QUERIES) for at in SOURCES]
    with lens.intervene(both):
        expected = np.array(lens.forward(list(LONG))[0])
    with lens.intervene(*each):
        found = np.array(lens.forward(list(LONG))[0])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found, numpy_models.llama(model, LONG, cut(1, [1, 3], True)), atol=3e-4)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (gemma2, 14),
        (tiny.qwen2, 14),
        (tiny.qwen3, 14),
        (lambda: architectures.make("gpt_oss"), 14),
        (lambda: tiny.llama(dtype=mx.bfloat16), 14),
        (lambda: tiny.gemma3(dtype=mx.bfloat16, bits=4), 14),
        (lambda: tiny.llama(dtype=mx.bfloat16, bits=4), 40),
    ],
    ids=["softcap", "qwen2", "qwen3", "sinks", "bf16", "4-bit windows", "4-bit long"],
)
def test_what_is_handed_on_is_the_values_by_the_pattern_of_masked_scores(make: Any, count: int) -> None:
    """By the pattern that is read without an edit, and the values seen: softmax without two scores, sinks included."""
    lens = LensModel.from_model(make())
    ids = [int(token) for token in np.random.default_rng(6).integers(0, tiny.VOCAB, size=count)]
    (read,) = attention_patterns(lens, ids, 1)
    with lens.capture(1, site=["attn_v", "attn_z"]) as plain:
        lens.forward(ids)
    record = pattern(id="e", layer=1, heads=(2,), sources=SOURCES, positions=slice(4, None))
    with lens.intervene(record), lens.capture(1, site="attn_z") as edited:
        lens.forward(ids)
    weights = read.weights.astype(np.float64)
    values = np.array(plain[1, "attn_v"][0].astype(mx.float32), dtype=np.float64)
    size = plain[1, "attn_z"].shape[-1] // len(weights)
    groups = values.shape[-1] // size
    mine = values.reshape(count, groups, size)[:, 2 * groups // len(weights)]
    expected = np.array(plain[1, "attn_z"][0].astype(mx.float32), dtype=np.float64)
    kept = weights[2].copy()
    kept[:, SOURCES] = 0.0
    sums = weights[2].sum(axis=-1, keepdims=True)
    # exp(score) of each over the sum of those left and of the sink: 1 less what was taken.
    new = kept / (kept.sum(axis=-1, keepdims=True) + np.maximum(1.0 - sums, 0.0)) if sums.min() < 0.99 else None
    new = kept / kept.sum(axis=-1, keepdims=True).clip(1e-9) if new is None else new
    expected[4:, 2 * size : 3 * size] = (new @ mine)[4:]
    found = np.array(edited[1, "attn_z"][0].astype(mx.float32))
    half = "bfloat16" in lens.info.dtype
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max() if half else 2e-5)
    assert np.abs(found - np.array(plain[1, "attn_z"][0].astype(mx.float32))).max() > 5e-3


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_arms_of_one_prompt_and_prompts_of_a_batch_write_what_each_does_alone(make: Any) -> None:
    lens = LensModel.from_model(make(), tiny.tokenizer())
    arms = [
        Arm("cut", (pattern(id="e", layer=1, heads=(0, 1, 2), sources=[1, 3, -1], positions="generated"),)),
        Arm("both", (pattern(id="e", layer=2, sources=Positions("slice", start=2, stop=6)), tiny.add(2.0, layer=1))),
    ]

    together = lens.compare(list(LONG), [Arm("plain"), *arms], max_tokens=10)
    tokens = [item for item in together if isinstance(item, Token)]
    for row, arm in enumerate(arms, start=1):
        with lens.intervene(*arm.interventions):
            alone = list(lens.stream(list(LONG), max_tokens=10))
        mine = [token for token in tokens if token.arm == row]
        assert [token.token_id for token in mine] == [token.token_id for token in alone]
        np.testing.assert_allclose([token.logprob for token in mine], [token.logprob for token in alone], atol=2e-4)
        assert max(token.kl or 0.0 for token in mine) > 1e-3


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_prompts_of_a_batch_are_edited_each_at_its_own_tokens(make: Any) -> None:
    lens = LensModel.from_model(make(), tiny.tokenizer())
    record = pattern(id="e", layer=2, heads=(1, 2), sources=[-2, -1])
    prompts = [list(LONG[:9]), [3, 4, 5], list(LONG[2:8])]
    batch = lens.stream_batch([Request(prompt, (record,)) for prompt in prompts], max_tokens=7)
    found: dict[int, list[int]] = {}
    for token in batch:
        if isinstance(token, Token):
            found.setdefault(token.arm, []).append(token.token_id)
    for row, prompt in enumerate(prompts):
        with lens.intervene(record):
            assert found[row] == [token.token_id for token in lens.stream(prompt, max_tokens=7)]


def test_a_step_of_generation_is_that_of_the_whole_text() -> None:
    model = tiny.gemma3()
    lens = LensModel.from_model(model, tiny.tokenizer())
    record = pattern(id="e", layer=1, heads=(1, 3), sources=SOURCES, positions=QUERIES)
    with lens.intervene(record):
        tokens = list(lens.stream(list(LONG[:8]), max_tokens=6))
    ids = LONG[:8] + tuple(token.token_id for token in tokens)
    logits = numpy_models.gemma3(model, ids, cut(1, [1, 3], True))
    assert [int(row.argmax()) for row in logits[7:-1]] == [token.token_id for token in tokens]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": (4,), "sources": [1]}, "has 0 to 3"),
        ({"heads": (1, 1), "sources": [1]}, "has 0 to 3"),
        ({"heads": (1,)}, "sources of 'e' are 'all'"),
        ({"heads": (1,), "sources": []}, "empty list"),
        ({"heads": (1,), "sources": Positions("role", role="thinking")}, "known of the prompt alone"),
        ({"heads": (1,), "sources": [1], "site": "attn_out"}, "acts at attn_z"),
        ({"heads": (1,), "weights": np.ones((2, 3, 3))}, "for 2 heads, and it names 1"),
        ({"heads": (1,), "weights": np.ones((1, 3, 3))}, "one behind it"),
        ({"heads": (1,), "weights": np.full((1, 1, 3), np.nan)}, "NaN"),
        ({"heads": (1,), "weights": np.ones((1, 1, 3)), "sources": [1]}, "Leave sources out"),
    ],
)
def test_what_no_pattern_can_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(LensError) as caught:
        LensModel.from_model(tiny.llama()).intervene(pattern(id="e", layer=1, **change))
    assert words in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("afmoe", 1, "not what it hands on"),
        ("deepseek_v3", 1, "not what it hands on"),
        ("gemma3n", 3, "not its own"),
        ("mamba2", 1, "no attn_out that can be proved|keeps something else"),
        ("afm7", 1, "which tokens are where"),
    ],
)
def test_an_attention_that_cannot_be_rebuilt_is_refused_with_the_reason(name: str, layer: int, words: str) -> None:
    lens = LensModel.from_model(architectures.make(name))
    with pytest.raises(LensError, match=words):
        lens.intervene(pattern(id="e", layer=layer, heads=(1,), sources=[1]))


def test_a_layer_that_hands_on_something_else_is_refused_in_the_forward() -> None:
    lens = LensModel.from_model(tiny.llama())
    held = lens.intervene(pattern(id="e", layer=1, heads=(1,), sources=[1]))
    attention: Any = lens.registry.sites.point(1, "attn_out").module
    plain = attention.rope
    attention.rope = lambda x, offset=0: plain(x, offset) + mx.random.normal(x.shape)
    with pytest.raises(LensError, match="not what it hands on"), held:
        lens.forward(list(LONG))


@pytest.mark.parametrize(
    ("named", "words"), [((99,), "tokens 99"), ((-99,), "tokens -99"), ((40, 50), "tokens 40, 50")]
)
def test_a_source_beyond_the_text_is_named(named: tuple[int, ...], words: str) -> None:
    lens = LensModel.from_model(tiny.llama())
    cut = EditPattern(id="cut", layer=1, heads=(0,), sources=Positions("indices", named))
    with pytest.raises(LensError, match=rf"edge of layer 1 is from {words}; this run has 0 to 8") as refused:
        list(lens.compare([5, 6, 7, 8, 9], [Arm("cut", (cut,))], max_tokens=5))
    assert "0 is the first one, BOS" in refused.value.hint
    both = EditPattern(id="cut", layer=1, heads=(0,), sources=Positions("indices", (1, *named)))
    assert list(lens.compare([5, 6, 7, 8, 9], [Arm("cut", (both,))], max_tokens=5))
