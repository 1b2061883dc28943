from __future__ import annotations

import numpy as np
import pytest

from lens_tui import text_features
from lens_tui.records import LensError
from lens_tui.sae.index.questions import TextFeatures, auc, contrast_features, standardised_difference

WIDTH = 50


def _texts(n: int, seed: int, planted: dict[int, float] | None = None) -> list[TextFeatures]:
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(n):
        ids = np.sort(rng.choice(WIDTH, 20, replace=False))
        values = rng.exponential(size=20).astype(np.float32)
        for feature, value in (planted or {}).items():
            ids, values = ids[ids != feature], values[ids != feature]
            ids, values = np.append(ids, feature), np.append(values, np.float32(value + rng.exponential()))
            order = np.argsort(ids)
            ids, values = ids[order], values[order]
        texts.append(TextFeatures(ids, values))
    return texts


def test_a_planted_feature_is_found_and_noise_is_unmasked_by_the_held_out_half() -> None:
    found = contrast_features(_texts(20, 0, {7: 5.0}), _texts(20, 1), k=5)
    assert found[0].feature == 7
    assert found[0].held_out > 0.95
    assert found[0].mean_a > found[0].mean_b
    assert found[0].active_a == 1.0
    nothing = contrast_features(_texts(16, 2), _texts(16, 3), k=8)
    # Chosen for being the best of 50 on one half, they are chance on the other.
    assert np.mean([item.chosen for item in nothing]) > 0.65
    assert abs(np.mean([item.held_out for item in nothing]) - 0.5) < 3 * nothing[0].chance
    assert nothing[0].chance == pytest.approx(((8 + 8 + 1) / (12 * 8 * 8)) ** 0.5)


def test_both_sides_and_the_difference() -> None:
    a, b = _texts(20, 0, {7: 5.0}), _texts(20, 1, {9: 5.0})
    one = contrast_features(a, b, k=2)
    assert one[0].feature == 7
    assert 9 not in [item.feature for item in one]
    both = contrast_features(a, b, k=2, both_sides=True, measure="difference")
    assert {item.feature: item.held_out > 0 for item in both} == {7: True, 9: False}
    assert contrast_features(a, b, k=3) == contrast_features(a, b, k=3)


def test_scores_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 4, (n, 6)).astype(np.float32) for n in (9, 7))
    b[:, 5] = a[0, 5] = 0
    wins = np.array([[np.mean([(x > y) + 0.5 * (x == y) for x in a[:, j] for y in b[:, j]])] for j in range(6)])
    assert auc(a, b) == pytest.approx(wins[:, 0])
    for j in range(6):
        x, y = a[:, j].astype(float), b[:, j].astype(float)
        pooled = np.sqrt(((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / (len(x) + len(y) - 2))
        assert standardised_difference(a, b)[j] == pytest.approx((x.mean() - y.mean()) / pooled)
    ones, zeros = np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)
    assert standardised_difference(ones, zeros).tolist() == [np.inf]
    assert standardised_difference(ones, ones).tolist() == [0]


def test_text_features_leave_special_tokens_out() -> None:
    ids = np.array([[5, 1], [5, 2], [2, 0]])
    values = np.array([[9.0, 1.0], [3.0, 1.0], [4.0, 0.0]])
    special = np.array([True, False, False])
    found = text_features(ids, values, special)
    assert (found.ids.tolist(), found.values.tolist()) == ([2, 5], [4, 3])
    found = text_features(ids, values, special, over="mean")
    assert (found.ids.tolist(), found.values.tolist()) == ([2, 5], [2.5, 1.5])
    empty = text_features(ids, values * 0, special)
    assert len(empty.ids) == 0
    assert contrast_features([empty] * 4, [empty] * 4) == ()
    with pytest.raises(LensError, match="differ in shape"):
        text_features(ids, values[:2], special)


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(LensError, match="four on each side"):
        contrast_features(_texts(3, 0), _texts(10, 1))
    with pytest.raises(LensError, match="no measure"):
        contrast_features(_texts(4, 0), _texts(4, 1), measure="f1")  # type: ignore[arg-type]
