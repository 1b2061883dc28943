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


def _held_out(side: list[TextFeatures], seed: int, other: int, first: bool) -> list[TextFeatures]:
    """The half that is judged, by the documented shuffle."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(side) if first else other), rng.permutation(other if first else len(side))]
    order = orders[0] if first else orders[1]
    return [side[i] for i in order[len(order) // 2 :]]


@pytest.mark.parametrize("measure", ["auc", "difference"])
@pytest.mark.parametrize("both_sides", [False, True])
def test_the_null_is_that_of_relabelled_texts(measure: str, both_sides: bool) -> None:
    a, b = _texts(24, 0, {7: 1.0}), _texts(16, 1, {9: 1.5})
    found = contrast_features(a, b, measure=measure, both_sides=both_sides, k=4, seed=3)  # type: ignore[arg-type]
    names = [row.feature for row in found]

    def matrix(texts: list[TextFeatures]) -> np.ndarray:
        rows = [dict(zip(text.ids.tolist(), text.values.tolist(), strict=True)) for text in texts]
        return np.array([[row.get(name, 0.0) for name in names] for row in rows], np.float32)

    right, left = matrix(_held_out(a, 3, 16, True)), matrix(_held_out(b, 3, 24, False))
    assert [row.auc for row in found] == pytest.approx(auc(right, left))
    assert [row.effect for row in found] == pytest.approx(standardised_difference(right, left))
    centre = 0.5 if measure == "auc" else 0.0
    score = auc if measure == "auc" else standardised_difference
    side = np.array([1.0 if row.chosen >= centre else -1.0 for row in found])
    both, rng, best = np.concatenate([right, left]), np.random.default_rng(99), []
    for _ in range(4000):  # dealt one by one, by the definition
        order = rng.permutation(len(both))
        best.append(((score(both[order[:12]], both[order[12:]]) - centre) * side).max())
    own = (np.array([row.held_out for row in found]) - centre) * side
    expected = [(np.array(best) >= value - 1e-9).mean() for value in own]
    assert [row.p for row in found] == pytest.approx(expected, abs=0.06)
    assert abs(found[0].null - centre) == pytest.approx(np.quantile(best, 0.95), rel=0.12)


def test_p_is_small_for_what_is_there_and_large_for_what_is_not() -> None:
    assert contrast_features(_texts(20, 0, {7: 5.0}), _texts(20, 1), k=5)[0].p == pytest.approx(0.001)
    nothing = contrast_features(_texts(16, 2), _texts(16, 3), k=8)
    assert all(row.p > 0.02 for row in nothing)
    same = [TextFeatures(np.array([4]), np.array([1.0], np.float32))] * 8
    (row,) = contrast_features(same, same, k=1)
    assert (row.auc, row.effect, row.p) == (0.5, 0.0, 1.0)
