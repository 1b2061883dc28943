"""The shuffled pool: every position once, none that is special, and the same batches from any point on."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from lens_tui.records import LensError
from lens_tui.records.training import ActivationBlock
from lens_tui.sae.training.checkpoint import Pool, take_rows

from .synthetic import PLACE, Synthetic


def pool(**settings: object) -> Pool:
    return Pool(Synthetic(rows=100), [PLACE], 32, 128, 0, **settings)  # type: ignore[arg-type]


def test_every_position_is_served_once_in_another_order() -> None:
    served = pool()
    rows = np.concatenate([np.asarray(served.next()) for _ in range(12)])
    source = Synthetic(rows=100)
    whole = np.concatenate([source.values(i)[~source.special()] for i in range(5)])[: len(rows)]
    assert rows.shape == whole.shape == (384, 24)
    assert not np.array_equal(rows, whole)
    for number in range(3):  # each pool holds its own stretch of the stream
        a, b = (np.sort(part[number * 128 : (number + 1) * 128], axis=0) for part in (rows, whole))
        assert np.array_equal(a, b)


@pytest.mark.parametrize("after", range(10))
def test_from_any_position_the_same_batches_follow(after: int) -> None:
    first = pool()
    for _ in range(after):
        first.next()
    again = pool(position=first.position)
    for _ in range(6):
        assert np.array_equal(np.asarray(first.next()), np.asarray(again.next()))
        assert first.position == again.position


def test_rows_come_with_where_the_next_ones_are() -> None:
    source = Synthetic(rows=100)  # 96 positions a block
    whole = np.concatenate([source.values(i)[~source.special()] for i in range(3)])
    for count, after in ((50, (0, 50)), (96, (1, 0)), (150, (1, 54))):
        rows, follows = take_rows(source, [PLACE], count)
        assert follows == after
        assert np.array_equal(np.asarray(rows), whole[:count])
    rows, follows = take_rows(source, [PLACE], 100, 1, 20)
    assert follows == (2, 24)
    assert np.array_equal(np.asarray(rows), whole[116:216])


def test_a_text_of_special_positions_only_is_refused() -> None:
    class Barren(Synthetic):
        def special(self) -> np.ndarray:
            return np.ones(100, np.bool_)

    with pytest.raises(LensError, match="no position to train on"):
        take_rows(Barren(rows=100), [PLACE], 5)


def test_the_model_s_dtype_is_kept() -> None:
    class Half(Synthetic):
        def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
            for block in super().blocks(start, stop):
                block.values[PLACE] = block.values[PLACE].astype(mx.bfloat16)
                yield block

    assert Pool(Half(rows=100), [PLACE], 8, 32, 0).next().dtype == mx.bfloat16
