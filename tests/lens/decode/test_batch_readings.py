"""What a capture block and monitors have of a batch: for each prompt what it gives alone, whatever it is beside."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import Ablate, LensError, Monitor, NormMatch, Request, Token
from tests.lens import tiny
from tests.lens.decode.test_batch import MAKERS, MIXED, PROMPTS
from tests.lens.hooks.test_gates import READ, monitor

ACTING: list[Any] = [
    (tiny.add(9.0, 3),),
    (),
    (tiny.add(3.0, 4, 0), Ablate(id="z", layer=2, site="mlp_out")),
    (NormMatch(id="n", layer=2, vector=tiny.add(1.0, 5, 2).vector, scale=0.4),),
    (),
]


def whole(lens: LensModel, ids: Any, records: Any, key: Any) -> Any:
    """One site of one forward over a whole text, without a cache."""
    with lens.intervene(*records), lens.capture([key[0]], [key[1]]) as held:
        lens.forward([list(ids)])
    return np.array(held[key][0].astype(mx.float32), dtype=np.float64)


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "qwen3_moe", "bf16", "4 bit"])
def test_rows_of_any_lengths_are_captured_and_read_as_alone(name: str) -> None:
    of_dtype = {"bf16": lambda: tiny.llama(dtype=mx.bfloat16), "4 bit": lambda: tiny.llama(bits=4)}
    lens = LensModel.from_model((of_dtype | MAKERS)[name]())
    sites = ["resid_pre", "resid_post"]
    exact = name in MAKERS
    records = ACTING if exact else [()] * len(PROMPTS)
    requests = [Request(ids, own) for ids, own in zip(PROMPTS, records, strict=True)]
    watched = [monitor(), Monitor("early", 0, "resid_pre", READ)]
    with lens.capture([1, 2], sites) as held:
        batch = lens.stream_batch(requests, max_tokens=5, monitors=watched, **MIXED)
        said: list[list[Any]] = [[] for _ in PROMPTS]
        for event in batch:
            if isinstance(event, Token):
                said[event.arm].append(event.readings)
    atol = 5e-4 if exact else 0.15
    assert [one.name for one in batch.monitors] == ["m", "early"]
    for row, (ids, own) in enumerate(zip(PROMPTS, records, strict=True)):
        text = [*ids, *batch.token_ids[row]]
        tensors = held.row(row)
        for key in ((1, "resid_post"), (2, "resid_pre"), (2, "resid_post")):
            expected = whole(lens, text[:-1], own, key)
            assert tensors[key].shape == expected.shape
            np.testing.assert_allclose(np.array(tensors[key].astype(mx.float32)), expected, atol=atol)
        found = batch.readings(row)
        assert found.shape[0] == 2
        assert found.shape[1] in (len(text) - 1, len(text))
        direction = READ.direction.astype(np.float64)
        count = found.shape[1]
        one = 2.0 * whole(lens, text[:count], own, (1, "resid_post")) @ direction + 0.25
        other = whole(lens, text[:count], own, (0, "resid_pre")) @ direction
        np.testing.assert_allclose(found, np.stack([one, other]), atol=atol)
        np.testing.assert_allclose(np.array(said[row]).T, found[:, len(ids) - 1 : len(text) - 1], atol=1e-6)
    assert lens.registry.installed == ()


def test_what_is_kept_of_a_prompt_is_not_taken_where_it_must_be_read() -> None:
    """The same beginning was kept by a run before; a row that ended early has its own length."""
    lens = LensModel.from_model(tiny.llama())
    lens.prefixes.min_tokens = 2
    start = (5, 6, 7, 8, 9, 10, 11, 12)
    lens.generate_batch([(*start, 1), (*start, 2)], max_tokens=2)
    with lens.capture([3]) as held:
        batch = lens.stream_batch([(*start, 1), (*start, 2, 3)], max_tokens=4)
        for event in batch:
            if isinstance(event, Token) and event.index == 1:
                batch.remove(0)
    assert [record.reused for record in batch.records] == [0, 0]
    short = [*start, 1, *batch.token_ids[0]]
    assert held.row(0)[3].shape[0] == len(short) - 1
    np.testing.assert_allclose(np.array(held.row(0)[3]), whole(lens, short[:-1], (), (3, "resid_post")), atol=1e-3)
    with pytest.raises(LensError, match=r"row\(index\)"):
        held[3]
    with pytest.raises(LensError, match="captured of row 7"):
        held.row(7)


def test_a_forward_afterwards_is_captured_as_ever() -> None:
    lens = LensModel.from_model(tiny.llama())
    with lens.capture([1]) as held:
        lens.generate_batch([(1, 2, 3), (4,)], max_tokens=2)
        lens.forward([[1, 2, 3]])
    assert held[1].shape == (1, 3, 64)
    np.testing.assert_array_equal(np.array(held.row(0)[1]), np.array(held[1][0]))
    batch = lens.stream_batch([(1, 2)], max_tokens=2)
    list(batch)
    assert batch.monitors == ()
    assert batch.readings(0).shape == (0, 4)
