"""Activation patching: every cell against a float64 forward in NumPy that is patched by hand, one run a cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.causes import cells, patching
from lens_tui.lens.causes.direct_paths import patch_edges
from lens_tui.lens.causes.metrics import Metric
from lens_tui.lens.causes.patching import patch
from lens_tui.records import LensError
from lens_tui.records.patch_grid import PromptPair, agreement
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array, log_softmax

CLEAN = (1, 17, 5, 80, 33, 2, 64, 9)
CORRUPTED = (1, 17, 44, 80, 12, 2, 64, 9)
PAIR = PromptPair(CLEAN, CORRUPTED, answer=7, wrong=30)
Forward = Callable[..., Array]
FAMILIES = [
    pytest.param(tiny.llama, numpy_models.llama, id="llama"),
    pytest.param(tiny.gemma3, numpy_models.gemma3, id="gemma3"),
]


def seen_in(forward: Forward, model: Any, ids: tuple[int, ...]) -> tuple[dict[tuple[int, str], Array], Array]:
    found: dict[tuple[int, str], Array] = {}

    def note(layer: int, site: str, x: Array) -> Array:
        found[layer, site] = x.copy()
        return x

    return found, forward(model, ids, note)


def by_hand(
    forward: Forward,
    model: Any,
    into: tuple[int, ...],
    source: dict[tuple[int, str], Array],
    keys: list[tuple[int, str]],
    tokens: list[int],
    columns: slice = slice(None),
) -> Array:
    """Logits after the last token with parts of tensors replaced by another run's."""

    def edit(layer: int, site: str, x: Array) -> Array:
        if (layer, site) in keys:
            x = x.copy()
            x[tokens, columns] = source[layer, site][tokens, columns]
        return x

    last: Array = forward(model, into, edit)[-1]
    return last


def difference(logits: Array) -> float:
    return float(logits[7] - logits[30])


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_cell_is_that_of_a_patched_forward(make: Any, forward: Forward, site: str, direction: Any) -> None:
    model = make()
    found = patch(LensModel.from_model(model), PAIR, site=site, direction=direction, controls=False)
    runs = {name: seen_in(forward, model, ids) for name, ids in (("clean", CLEAN), ("corrupted", CORRUPTED))}
    into, source = (CORRUPTED, "clean") if direction == "denoise" else (CLEAN, "corrupted")
    expected = np.array(
        [
            [difference(by_hand(forward, model, into, runs[source][0], [(layer, site)], [at])) for at in range(8)]
            for layer in range(4)
        ]
    )
    clean, corrupted = (difference(runs[name][1][-1]) for name in ("clean", "corrupted"))
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    np.testing.assert_allclose([found.clean, found.corrupted], [clean, corrupted], atol=2e-4)
    np.testing.assert_allclose(found.effect, (expected - corrupted) / (clean - corrupted), atol=2e-3)
    assert np.ptp(expected) > 0.05  # the patches do something


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
def test_heads_are_patched_alone(make: Any, forward: Forward) -> None:
    model = make()
    lens = LensModel.from_model(model)
    source, _ = seen_in(forward, model, CLEAN)

    def cell(layer: int, head: int, tokens: list[int]) -> float:
        columns = slice(16 * head, 16 * head + 16)
        return difference(by_hand(forward, model, CORRUPTED, source, [(layer, "attn_z")], tokens, columns))

    whole = patch(lens, PAIR, by="head", controls=False)
    assert whole.site == "attn_z"
    assert whole.layers == (0, 1, 2, 3)
    assert whole.heads == (0, 1, 2, 3)
    expected = [[cell(layer, head, list(range(8))) for head in range(4)] for layer in range(4)]
    np.testing.assert_allclose(whole.values, expected, atol=2e-4)
    single = patch(lens, PAIR, by="head-position", layers=[1, -1], controls=False)
    assert single.rows[:2] == ("L1.0", "L1.1")
    expected = [[cell(layer, head, [at]) for at in range(8)] for layer in (1, 3) for head in range(4)]
    np.testing.assert_allclose(single.values, expected, atol=2e-4)


def test_layers_and_positions_are_patched_whole() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    source, _ = seen_in(numpy_models.llama, model, CLEAN)
    by_layer = patch(lens, PAIR, site="mlp_out", by="layer", controls=False)
    expected = [
        difference(by_hand(numpy_models.llama, model, CORRUPTED, source, [(layer, "mlp_out")], list(range(8))))
        for layer in range(4)
    ]
    np.testing.assert_allclose(by_layer.values[:, 0], expected, atol=2e-4)
    by_place = patch(lens, PAIR, site="mlp_out", by="position", controls=False)
    keys = [(layer, "mlp_out") for layer in range(4)]
    expected = [difference(by_hand(numpy_models.llama, model, CORRUPTED, source, keys, [at])) for at in range(8)]
    np.testing.assert_allclose(by_place.values[0], expected, atol=2e-4)
    # All of the stream at once is the other run, whole.
    stream = patch(lens, PAIR, by="layer", controls=False)
    np.testing.assert_allclose(stream.effect, 1.0, atol=1e-3)


@pytest.mark.parametrize("name", ["log-probability", "probability", "kl", "rank"])
def test_metrics_are_those_of_their_definitions(name: str) -> None:
    model = tiny.llama(seed=5)
    found = patch(LensModel.from_model(model), PAIR, name, controls=False)
    source, clean = seen_in(numpy_models.llama, model, CLEAN)

    def value(logits: Array) -> float:
        logprobs, reference = log_softmax(logits), log_softmax(clean[-1])
        kl = (np.exp(reference) * (reference - logprobs)).sum()
        return float(
            {
                "log-probability": logprobs[7],
                "probability": np.exp(logprobs[7]),
                "kl": kl,
                "rank": (logits > logits[7]).sum(),
            }[name]
        )

    expected = [
        [value(by_hand(numpy_models.llama, model, CORRUPTED, source, [(layer, "resid_pre")], [at])) for at in range(8)]
        for layer in range(4)
    ]
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    assert found.metric == name


def test_any_function_is_a_metric() -> None:
    lens = LensModel.from_model(tiny.llama())
    named = patch(lens, PAIR, controls=False)
    own = patch(lens, PromptPair(CLEAN, CORRUPTED), lambda logits: logits[:, 7] - logits[:, 30], controls=False)
    np.testing.assert_array_equal(own.values, named.values)
    reads = Metric("stream", lambda x: x[:, 0] * 1.0, position=3, reads=(2, "resid_post"))
    there = patch(lens, PromptPair(CLEAN, (1, 17, 44, 80, 33, 2, 64, 9)), reads, layers=[0], controls=False)
    # A token that reads only what is before it does not see what is patched behind it.
    np.testing.assert_allclose(there.effect[0, 4:], 0.0, atol=1e-5)


@pytest.mark.parametrize("bits", [0, 4])
def test_a_resumed_batch_in_lower_precision_is_near_float32(bits: int) -> None:
    """Bf16 and quantised: each cell near the same weights' float32 forward."""
    model = tiny.llama(dtype=mx.bfloat16, bits=bits)
    found = patch(LensModel.from_model(model), PAIR, controls=False)
    exact = tiny.llama(dtype=mx.bfloat16, bits=bits)
    exact.set_dtype(mx.float32)
    reference = patch(LensModel.from_model(exact), PAIR, controls=False)
    np.testing.assert_allclose(found.values, reference.values, atol=0.15)
    assert np.corrcoef(found.values.ravel(), reference.values.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("make", [tiny.gemma4, tiny.qwen3_moe, tiny.rwkv7, tiny.lfm2])
def test_other_architectures_agree_with_a_hook_on_one_run(make: Any) -> None:
    """Batched and resumed as well as alone and whole: the same numbers."""
    lens = LensModel.from_model(make())
    found = patch(lens, PAIR, site="resid_post", controls=False)
    for layer in range(lens.n_layers):
        clean = lens.residuals(list(CLEAN), layer)
        for at in (2, 4, 7):

            def edit(ctx: Any, h: mx.array, at: int = at, clean: mx.array = clean) -> mx.array:
                here = mx.arange(h.shape[1])[None, :, None] == at
                return mx.where(here, clean[None], h)

            with lens.hook(layer, edit):
                logits = np.array(lens.forward(list(CORRUPTED))[0, -1].astype(mx.float32))
            np.testing.assert_allclose(found.values[layer, at], logits[7] - logits[30], atol=2e-3)


def test_random_patches_have_the_length_of_the_real_ones() -> None:
    """With the whole stream turned at its end, the change of the metric is bounded by what that length can do."""
    model = tiny.llama()
    lens = LensModel.from_model(model)
    found = patch(lens, PAIR, site="resid_post", layers=[3])
    assert found.random is not None
    clean, corrupted = (np.array(lens.residuals(list(ids), 3)) for ids in (CLEAN, CORRUPTED))
    rng = np.random.default_rng([0, 3, *b"resid_post"])
    noise = rng.standard_normal((8, 1, 64)).astype(np.float32)[:, 0]
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    turned = corrupted + noise * np.linalg.norm(clean - corrupted, axis=-1, keepdims=True)
    logits = np.array(lens.readout(mx.array(turned)[None])[0, -1])
    value = found.random[0, -1] * (found.clean - found.corrupted) + found.corrupted
    np.testing.assert_allclose(value, logits[7] - logits[30], atol=2e-3)
    assert found.shuffled is None
    assert found.low is None


def test_several_pairs_have_intervals_and_a_shuffled_control() -> None:
    lens = LensModel.from_model(tiny.llama())
    pairs = [PAIR, PromptPair((3, *CLEAN[1:]), (3, *CORRUPTED[1:]), 7, 30), PromptPair(CLEAN, CORRUPTED, 8, 31)]
    alone = [patch(lens, each, controls=False) for each in pairs]
    seen: list[tuple[int, int]] = []
    found = patch(lens, pairs, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(found.per_pair, [each.values for each in alone], atol=1e-5)
    gaps = [each.clean - each.corrupted for each in alone]
    moved = sum(each.values - each.corrupted for each in alone)
    np.testing.assert_allclose(found.effect, moved / sum(gaps), atol=1e-4)
    assert found.low is not None
    assert found.high is not None
    assert (found.low <= found.effect + 1e-9).all()
    assert (found.effect <= found.high + 1e-9).all()
    assert found.shuffled is not None
    assert seen[-1] == (288, 288)
    # A shuffled patch is the next pair's activation in this pair's run.
    one = patch(lens, [pairs[0], pairs[1]], site="resid_pre", layers=[2])
    other = np.array(lens.residuals([3, *CLEAN[1:]], 2, site="resid_pre"))
    first = np.array(lens.residuals(list(CLEAN), 2, site="resid_pre"))
    values = []
    for ids, source in ((CORRUPTED, other), ((3, *CORRUPTED[1:]), first)):

        def edit(ctx: Any, h: mx.array, source: Any = source) -> mx.array:
            return mx.where(mx.arange(8)[None, :, None] == 4, mx.array(source)[None], h)

        with lens.hook(2, edit, site="resid_pre"):
            logits = np.array(lens.forward(list(ids))[0, -1])
        values.append(logits[7] - logits[30])
    assert one.shuffled is not None
    expected = (sum(values) - 2 * one.corrupted) / (2 * (one.clean - one.corrupted))
    np.testing.assert_allclose(one.shuffled[0, 4], expected, atol=1e-3)


class _Dictionary:
    """A tied ReLU dictionary of random directions."""

    def __init__(self, layer: int) -> None:
        rng = np.random.default_rng(3)
        rows = rng.standard_normal((24, 64)).astype(np.float32)
        self.rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self.d_model = 64
        self.info = type("Info", (), {"layer": layer, "site": "resid_post"})()

    def encode(self, residual: mx.array) -> mx.array:
        return mx.maximum(residual.astype(mx.float32) @ mx.array(self.rows.T), 0.0)

    def decode(self, activations: mx.array) -> mx.array:
        return activations @ mx.array(self.rows)


def test_features_are_patched_along_their_decoder_rows() -> None:
    model = tiny.llama()
    sae = _Dictionary(1)
    lens = LensModel.from_model(model)
    found = patch(lens, PAIR, by="feature-position", sae=sae, features=[2, 9, 20], controls=False)
    assert found.rows == ("f2", "f9", "f20")
    (clean, _), (corrupted, _) = (seen_in(numpy_models.llama, model, ids) for ids in (CLEAN, CORRUPTED))
    acts = [np.maximum(run[1, "resid_post"] @ sae.rows.T, 0.0) for run in (clean, corrupted)]
    for row, feature in enumerate((2, 9, 20)):
        source = corrupted[1, "resid_post"] + (acts[0] - acts[1])[:, [feature]] * sae.rows[feature]
        for at in range(8):
            logits = by_hand(
                numpy_models.llama, model, CORRUPTED, {(1, "resid_post"): source}, [(1, "resid_post")], [at]
            )
            np.testing.assert_allclose(found.values[row, at], difference(logits), atol=3e-4)
    most = patch(lens, PAIR, by="feature", sae=sae)
    sizes = np.abs(acts[0].sum(axis=0) - acts[1].sum(axis=0))
    assert list(most.features) == list(np.argsort(-sizes)[:20])[: len(most.features)]


def test_names_align_prompts_of_different_lengths(speaking: LensModel) -> None:
    clean, corrupted = "The old king was tired", "The young and pretty queen was tired"
    spans = {"who": ("king", "queen"), "what": ("was tired", "was tired")}
    pair = PromptPair(clean, corrupted, answer=20, wrong=40, spans=spans)
    found = patch(speaking, pair, by="layer-position", controls=False)
    assert found.columns == ("who", "what")
    left, right = (speaking.tokens.encode(text) for text in (clean, corrupted))
    places = []
    for ids, word in ((left, "king"), (right, "queen")):
        texts = [speaking.tokens.decode([token]) for token in ids]
        places.append([at for at, text in enumerate(texts) if word.startswith(text.strip()) and text.strip()][-1:])
    source = np.array(speaking.residuals(list(left), 1, site="resid_pre"))

    def edit(ctx: Any, h: mx.array) -> mx.array:
        changed = np.array(h)
        changed[0, places[1][-1]] = source[places[0][-1]]
        return mx.array(changed)

    with speaking.hook(1, edit, site="resid_pre"):
        logits = np.array(speaking.forward(list(right))[0, -1])
    np.testing.assert_allclose(found.values[1, 0], logits[20] - logits[40], atol=1e-3)


def test_what_cannot_be_patched_is_said(speaking: LensModel) -> None:
    lens = LensModel.from_model(tiny.llama())
    refused: list[tuple[str, Callable[[], object]]] = [
        ("have 8 and 7 tokens", lambda: patch(lens, PromptPair(CLEAN, CLEAN[:-1], 7, 30))),
        ("are the same tokens", lambda: patch(lens, PromptPair(CLEAN, CLEAN, 7, 30))),
        ("needs the pair's wrong token", lambda: patch(lens, PromptPair(CLEAN, CORRUPTED, 7))),
        ("There is no metric 'speed'", lambda: patch(lens, PAIR, "speed")),
        ("no effect to be measured", lambda: patch(lens, PAIR, lambda logits: logits[:, 0] * 0)),
        ("not one number for each", lambda: patch(lens, PAIR, lambda logits: logits)),
        ("There is no site 'nowhere'", lambda: patch(lens, PAIR, site="nowhere")),
        ("There is no way to patch by 'moon'", lambda: patch(lens, PAIR, by="moon")),  # type: ignore[arg-type]
        ("which layer and site it reads", lambda: patch(lens, PAIR, by="feature")),
        ("no pair", lambda: patch(lens, [])),
        ("do not have the same positions", lambda: patch(lens, [PAIR, PromptPair(CLEAN[:5], CORRUPTED[:5], 7, 30)])),
        ("are not there", lambda: patch(speaking, PromptPair("a b", "a c", 1, 2, {"x": ("z", "c")}))),
        ("no gradient|gradient of zero", lambda: patch(lens, PAIR, "rank", method="attribution")),
    ]
    for sentence, call in refused:
        with pytest.raises(LensError, match=sentence):
            call()
    assert not lens.registry.installed  # nothing is left on the model


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_attribution_is_the_first_order_effect(make: Any, bits: int) -> None:
    """Halved again and again, an exact patch tends to the estimate: a numerical derivative along the same change."""
    model = make(bits=bits)
    model.set_dtype(mx.float32)
    lens = LensModel.from_model(model)
    found = patch(lens, PAIR, site="mlp_out", method="attribution")
    assert found.random is None
    assert found.method == "attribution"
    step = 1e-2
    for layer, at in ((0, 2), (1, 4), (2, 2), (3, 7)):
        clean, corrupted = (lens.residuals(list(ids), layer, site="mlp_out") for ids in (CLEAN, CORRUPTED))
        values = []
        for sign in (1.0, -1.0):

            def edit(ctx: Any, h: mx.array, s: float = sign, at: int = at, d: Any = clean - corrupted) -> mx.array:
                return mx.where(mx.arange(8)[None, :, None] == at, h + s * step * d[None], h)

            with lens.hook(layer, edit, site="mlp_out"):
                logits = np.array(lens.forward(list(CORRUPTED))[0, -1])
            values.append(float(logits[7] - logits[30]))
        slope = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(found.values[layer, at] - found.corrupted, slope, atol=4e-3, rtol=2e-2)


def test_attribution_of_the_last_layers_parts_agrees_with_exact_patches() -> None:
    lens = LensModel.from_model(tiny.llama())
    exact = patch(lens, PAIR, by="head", controls=False)
    estimate = patch(lens, PAIR, by="head", method="attribution")
    found = agreement(estimate.values - estimate.corrupted, exact.values - exact.corrupted)
    assert found.n == 16
    assert found.pearson is not None
    assert found.pearson > 0.7


def test_agreement_is_that_of_numpy() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(40)
    y = np.round(2 * x + rng.standard_normal(40), 1)
    found = agreement(x, y)
    ranks = [np.array([(v > values).sum() + ((values == v).sum() - 1) / 2 for v in values]) for values in (x, y)]
    assert found.pearson == pytest.approx(float(np.corrcoef(x, y)[0, 1]))
    assert found.spearman == pytest.approx(float(np.corrcoef(ranks[0], ranks[1])[0, 1]))
    assert found.slope == pytest.approx(float((x * y).sum() / (x * x).sum()))
    assert agreement(x, x * 0).pearson is None
    with pytest.raises(LensError, match="cannot be compared"):
        agreement(x, y[:3])


def test_estimates_by_head_and_position_are_sums_of_one_table_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    lens, made = LensModel.from_model(tiny.llama()), []
    real = cells.replacement

    def counted(base: Any, change: Any, key: Any) -> mx.array:
        made.append(key)
        return real(base, change, key)

    monkeypatch.setattr(patching, "replacement", counted)
    placed = patch(lens, PAIR, by="head-position", method="attribution", controls=False)
    assert len(made) == len(set(made)) == lens.n_layers
    heads = patch(lens, PAIR, by="head", method="attribution", controls=False)
    assert placed.values.size == heads.values.size * len(CLEAN)
    np.testing.assert_allclose(
        (placed.values - placed.corrupted).sum(axis=1), (heads.values - heads.corrupted).ravel(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["logit-difference", "kl"])
def test_metrics_from_the_last_residual_are_those_of_whole_forwards(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    lens = LensModel.from_model(tiny.gemma3())
    found = patch(lens, PAIR, name, controls=False)
    monkeypatch.setattr(patching, "can_resume", lambda registry: False)
    whole = patch(lens, PAIR, name, controls=False)
    assert (found.clean, found.corrupted) == pytest.approx((whole.clean, whole.corrupted), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("pairs", ["a text", [CLEAN, CORRUPTED], [PAIR, None]])
def test_what_is_no_pair_is_refused_in_a_sentence(pairs: Any) -> None:
    lens = LensModel.from_model(tiny.llama())
    for by in (patch, patch_edges):
        with pytest.raises(LensError, match="pair of prompts cannot be"):
            by(lens, pairs)
