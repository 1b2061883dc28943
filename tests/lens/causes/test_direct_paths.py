"""Paths and edges against the two forwards of path patching, written out in NumPy float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.causes import direct_paths
from lens_tui.lens.causes.direct_paths import patch_edges, path_patch
from lens_tui.lens.measure.effects import RESAMPLES
from lens_tui.records import LensError
from lens_tui.records.patch_grid import PromptPair, Receiver, Sender, agreement
from tests.lens import numpy_models, tiny
from tests.lens.causes.test_patching import CLEAN, CORRUPTED, FAMILIES, PAIR, difference, seen_in
from tests.lens.numpy_models import Array
from tests.lens.read.test_logit_lens import cohere, granite

Seen = dict[tuple[int, str], Array]
READS = {"attn": ("read_q", "read_k", "read_v"), "mlp": ("read_mlp",), "q": ("read_q",), "k": ("read_k",)}


def by_two_forwards(forward: Any, model: Any, base: Seen, source: Seen, sender: Sender, ends: list[Receiver]) -> float:
    """The metric: the sender patched with all other parts frozen, then the receivers' reads of that run put in."""
    normed = forward is numpy_models.gemma3
    names = ("attn_out_normed", "mlp_out_normed") if normed else ("attn_out", "mlp_out")
    own = {"embed": "resid_pre", "attn": names[0], "mlp": names[1], "head": "attn_z"}[sender.kind]
    seen: Seen = {}

    def first(layer: int, site: str, x: Array) -> Array:
        seen[layer, site] = x.copy()
        if layer == max(sender.layer, 0) and site == own and (sender.kind != "embed" or layer == 0):
            if sender.kind != "head":
                return source[layer, site]
            x = base[layer, site].copy()
            x[:, 16 * sender.head : 16 * sender.head + 16] = source[layer, site][:, 16 * sender.head :][:, :16]
            return x
        frozen = site in names and not (sender.kind == "head" and layer == sender.layer and site == names[0])
        return base[layer, site] if frozen else x

    logits = forward(model, CORRUPTED, first)
    wanted = {(end.layer, site) for end in ends if end.kind != "logits" for site in READS[end.kind]}
    if not wanted:
        return difference(logits[-1])

    def second(layer: int, site: str, x: Array) -> Array:
        return seen[layer, site] if (layer, site) in wanted else x

    return difference(forward(model, CORRUPTED, second)[-1])


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
@pytest.mark.parametrize(
    "ends",
    [
        [Receiver("logits")],
        [Receiver("attn", 2)],
        [Receiver("mlp", 1)],
        [Receiver("mlp", 1), Receiver("attn", 3)],
        [Receiver("q", 2), Receiver("k", 2)],
    ],
    ids=lambda ends: "+".join(end.label for end in ends),
)
def test_a_path_is_that_of_two_forwards(make: Any, forward: Any, ends: list[Receiver]) -> None:
    model = make()
    llama = forward is numpy_models.llama
    senders = [Sender("embed"), Sender("mlp", 0), Sender("attn", 1), *([Sender("head", 0, 3)] if llama else [])]
    senders += [Sender("head", 1, 1)] if llama else [Sender("attn", 0)]
    found = path_patch(LensModel.from_model(model), PAIR, receivers=ends, senders=senders)
    (source, clean), (base, corrupted) = (seen_in(forward, model, ids) for ids in (CLEAN, CORRUPTED))
    start, gap = difference(corrupted[-1]), difference(clean[-1]) - difference(corrupted[-1])
    expected = [by_two_forwards(forward, model, base, source, sender, ends) - start for sender in senders]
    np.testing.assert_allclose(found.raw, expected, atol=4e-4)
    np.testing.assert_allclose(found.effect, np.array(expected) / gap, atol=4e-3)
    assert np.abs(expected).max() > 0.01


def test_a_single_head_of_queries_receives_alone() -> None:
    """The heads' parts, one by one, are what the queries of one head read; another head's stay."""
    lens = LensModel.from_model(tiny.llama())
    whole = path_patch(lens, PAIR, receivers=Receiver("q", 2), senders=[Sender("embed")]).raw[0]
    ends = [Receiver("q", 2, head) for head in range(4)]
    together = path_patch(lens, PAIR, receivers=ends, senders=[Sender("embed")]).raw[0]
    alone = [path_patch(lens, PAIR, receivers=end, senders=[Sender("embed")]).raw[0] for end in ends]
    assert together == pytest.approx(whole, abs=1e-4)
    assert len({round(value, 6) for value in alone}) == 4
    with pytest.raises(LensError, match="no head 3 of k: it has 2"):
        path_patch(lens, PAIR, receivers=Receiver("k", 2, 3), senders=[Sender("embed")])


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
def test_exact_edges_are_paths_to_one_receiver(make: Any, forward: Any) -> None:
    model = make()
    found = patch_edges(LensModel.from_model(model), PAIR, method="exact", heads=False)
    (source, _), (base, corrupted) = (seen_in(forward, model, ids) for ids in (CLEAN, CORRUPTED))
    start = difference(corrupted[-1])
    for row, sender in enumerate(found.senders):
        for column, end in enumerate(found.receivers):
            fed = (
                end.kind == "logits"
                or sender.layer < end.layer
                or (sender.kind == "attn" and end.kind == "mlp" and sender.layer == end.layer)
            )
            assert np.isfinite(found.raw[row, column]) == fed
            if fed:
                value = by_two_forwards(forward, model, base, source, sender, [end])
                assert found.raw[row, column] == pytest.approx(value - start, abs=5e-4)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_estimated_edges_pass_through_quantised_weights(make: Any) -> None:
    """The same weights packed and written out: the same estimates, with edges where exact patches have some."""
    from mlx_lm.utils import dequantize_model

    packed, whole = make(bits=4), make(bits=4)
    packed.set_dtype(mx.float32)
    whole.set_dtype(mx.float32)
    heads = make is tiny.llama
    ours, theirs = (
        patch_edges(LensModel.from_model(model), PAIR, heads=heads) for model in (packed, dequantize_model(whole))
    )
    np.testing.assert_allclose(ours.raw, theirs.raw, atol=2e-3)
    exact = patch_edges(LensModel.from_model(packed), PAIR, heads=heads, method="exact")
    assert (np.isnan(exact.raw) == np.isnan(ours.raw)).all()


def test_estimated_edges_agree_with_exact_ones() -> None:
    lens = LensModel.from_model(tiny.llama())
    exact, estimate = (patch_edges(lens, PAIR, method=method) for method in ("exact", "attribution"))
    found = agreement(estimate.raw, exact.raw)
    assert found.pearson is not None
    assert found.pearson > 0.8


@pytest.mark.parametrize(("make", "forward"), FAMILIES)
def test_estimated_edges_are_first_order_in_numpy(make: Any, forward: Any) -> None:
    """Against central differences of a float64 forward along a sender's difference, at one receiver."""
    model = make()
    found = patch_edges(LensModel.from_model(model), PAIR, heads=False)
    (source, _), (base, _) = (seen_in(forward, model, ids) for ids in (CLEAN, CORRUPTED))
    site = "mlp_out" if forward is numpy_models.llama else "mlp_out_normed"
    delta = source[0, site] - base[0, site]
    for end in (Receiver("attn", 1), Receiver("mlp", 2), Receiver("logits")):
        values = []
        for sign in (1.0, -1.0):

            def edit(layer: int, site: str, x: Array, sign: float = sign, end: Receiver = end) -> Array:
                at = (layer, site) == (3, "resid_post") if end.kind == "logits" else (
                    layer == end.layer and site in READS[end.kind]
                )  # fmt: skip
                return x + sign * 1e-4 * delta if at else x

            values.append(difference(forward(model, CORRUPTED, edit)[-1]))
        slope = (values[0] - values[1]) / 2e-4
        row, column = found.senders.index(Sender("mlp", 0)), found.receivers.index(end)
        assert found.raw[row, column] == pytest.approx(slope, rel=1e-2, abs=1e-3)
    strongest = found.strongest(3)
    assert [abs(item[2]) for item in strongest] == sorted((abs(item[2]) for item in strongest), reverse=True)


def test_senders_to_the_final_residual_in_a_parallel_block_sum_up() -> None:
    """What paths cannot be told apart in is refused: a scaled stream, a norm that both parts read."""
    for make, sentence in ((granite, "do not add up"), (cohere, "is read by"), (tiny.rwkv7, "no |cannot be")):
        with pytest.raises(LensError, match=sentence):
            patch_edges(LensModel.from_model(make()), PAIR)
    lens = LensModel.from_model(tiny.gemma3())
    with pytest.raises(LensError, match="norms the sum of its heads"):
        patch_edges(lens, PAIR)
    lens = LensModel.from_model(tiny.llama())
    for sentence, call in (
        ("no receiver", lambda: path_patch(lens, PAIR, receivers=())),
        ("no head 9", lambda: path_patch(lens, PAIR, receivers=Receiver("logits"), senders=[Sender("head", 0, 9)])),
        ("spans say nothing", lambda: patch_edges(lens, PromptPair(CLEAN, CORRUPTED, 7, 30, {"x": ((1, 2), (1, 2))}))),
        ("no method", lambda: patch_edges(lens, PAIR, method="guess")),  # type: ignore[arg-type]
    ):
        with pytest.raises(LensError, match=sentence):
            call()
    assert not lens.registry.installed


def test_paths_of_several_pairs_are_the_ratio_of_sums_with_its_interval() -> None:
    lens = LensModel.from_model(tiny.llama())
    other = PromptPair(PAIR.corrupted, PAIR.clean, 11, 23)
    pairs = [PromptPair(PAIR.clean, PAIR.corrupted, 5, 9), other]
    senders = [Sender("embed"), Sender("head", 1, 0), Sender("mlp", 2)]
    alone = [path_patch(lens, pair, receivers=Receiver("logits"), senders=senders) for pair in pairs]
    both = path_patch(lens, pairs, receivers=Receiver("logits"), senders=senders)
    gap = sum(one.clean - one.corrupted for one in alone)
    np.testing.assert_allclose(both.effect, sum(one.raw for one in alone) / gap, atol=1e-5)
    np.testing.assert_allclose(both.raw, np.mean([one.raw for one in alone], axis=0), atol=1e-6)
    assert both.low is not None
    assert both.high is not None
    assert both.n_pairs == 2
    raw, gaps = np.stack([one.raw for one in alone]), np.array([one.clean - one.corrupted for one in alone])
    drawn = np.random.default_rng(0).integers(0, 2, (RESAMPLES, 2))
    ratios = raw[drawn].sum(axis=1) / gaps[drawn].sum(axis=1)[:, None]
    np.testing.assert_allclose(both.low, np.quantile(ratios, 0.025, axis=0), atol=1e-6)
    np.testing.assert_allclose(both.high, np.quantile(ratios, 0.975, axis=0), atol=1e-6)


def test_random_paths_are_as_long_at_every_token_and_cost_nothing_else() -> None:
    import mlx.core as mx

    deltas = mx.array(np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32))
    turned = direct_paths._turned(deltas, 4)
    lengths = [np.linalg.norm(np.array(each), axis=-1) for each in (deltas, turned)]
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-5)
    assert abs(float((deltas * turned).sum() / (deltas * deltas).sum())) < 0.6
    lens = LensModel.from_model(tiny.llama())
    with_, without = (path_patch(lens, PAIR, receivers=Receiver("logits"), controls=on) for on in (True, False))
    np.testing.assert_allclose(with_.raw, without.raw, atol=1e-6)
    assert with_.random is not None
    assert without.random is None


@pytest.mark.parametrize("method", ["exact", "attribution"])
def test_edges_of_several_pairs_have_intervals_and_a_random_control(method: Any) -> None:
    """Each pair alone, put together by hand; the random change by a path of its own, drawn again here."""
    lens = LensModel.from_model(tiny.llama())
    pairs = [PromptPair(PAIR.clean, PAIR.corrupted, 5, 9), PromptPair(PAIR.corrupted, PAIR.clean, 11, 23)]
    senders = [Sender("embed"), Sender("head", 1, 0), Sender("mlp", 2)]
    alone = [patch_edges(lens, pair, method=method, senders=senders) for pair in pairs]
    both = patch_edges(lens, pairs, method=method, senders=senders)
    assert both.senders == tuple(senders)
    assert both.n_pairs == 2
    gaps = np.array([one.clean - one.corrupted for one in alone])
    raw = np.stack([one.raw for one in alone])
    np.testing.assert_allclose(both.raw, raw.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(both.effect, raw.sum(axis=0) / gaps.sum(), atol=1e-5)
    drawn = np.random.default_rng(0).integers(0, 2, (RESAMPLES, 2))
    ratios = raw[drawn].sum(axis=1) / gaps[drawn].sum(axis=1)[:, None, None]
    there = np.isfinite(both.raw)
    assert both.low is not None
    assert both.random is not None
    np.testing.assert_allclose(both.low[there], np.quantile(ratios, 0.025, axis=0)[there], atol=1e-6)
    assert (np.isfinite(both.random) == there).all()
    ratio = [one.random * gap for one, gap in zip(alone, gaps, strict=True) if one.random is not None]
    np.testing.assert_allclose(both.random, sum(ratio) / gaps.sum(), atol=1e-5)
    if method == "exact":
        column = both.receivers.index(Receiver("mlp", 3))
        paths = path_patch(lens, pairs, receivers=Receiver("mlp", 3), senders=senders)
        assert paths.random is not None
        np.testing.assert_allclose(both.random[:, column], paths.random, atol=1e-5)
    assert patch_edges(lens, pairs[0], senders=senders, controls=False).random is None
    assert np.nanmax(np.abs(both.random - both.effect)) > 1e-3


def test_random_estimates_are_the_slope_along_the_change_that_is_drawn() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    found = patch_edges(lens, PAIR, senders=[Sender("mlp", 0)], seed=3)
    (source, _), (base, _) = (seen_in(numpy_models.llama, model, ids) for ids in (CLEAN, CORRUPTED))
    delta = source[0, "mlp_out"] - base[0, "mlp_out"]
    noise = np.random.default_rng(3).standard_normal((1, *delta.shape)).astype(np.float32)[0]
    turned = noise / np.linalg.norm(noise, axis=-1, keepdims=True) * np.linalg.norm(delta, axis=-1, keepdims=True)
    values = []
    for sign in (1.0, -1.0):

        def edit(layer: int, site: str, x: Array, sign: float = sign) -> Array:
            return x + sign * 1e-4 * turned if layer == 2 and site in READS["mlp"] else x

        values.append(difference(numpy_models.llama(model, CORRUPTED, edit)[-1]))
    slope = (values[0] - values[1]) / 2e-4 / (found.clean - found.corrupted)
    assert found.random is not None
    assert found.random[0, found.receivers.index(Receiver("mlp", 2))] == pytest.approx(slope, rel=1e-2, abs=1e-4)
