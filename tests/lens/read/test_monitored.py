"""A run's monitors read every token as one forward over the whole text does, over a cache and in lock step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import Arm, LensError, Monitor
from tests.lens import tiny
from tests.lens.hooks.test_gates import READ, gated, monitor, saes

MAKERS: dict[str, Callable[[], Any]] = {
    "llama": tiny.llama,
    "gemma3": tiny.gemma3,
    "rwkv7": tiny.rwkv7,
    "bf16": lambda: tiny.llama(dtype=mx.bfloat16),
    "4 bit": lambda: tiny.llama(bits=4),
}
IDS = list(tiny.IDS)


def by_hand(lens: LensModel, ids: list[int], records: Any = ()) -> Any:
    """Readings (2, tokens) of one forward without a cache: along READ at layer 1, and before layer 0."""
    with lens.intervene(*records), lens.capture([0, 1], ["resid_pre", "resid_post"]) as held:
        lens.forward([ids])
    direction = READ.direction.astype(np.float64)
    one, other = (
        np.array(held[key][0].astype(mx.float32), dtype=np.float64) @ direction
        for key in ((1, "resid_post"), (0, "resid_pre"))
    )
    return np.stack([2.0 * one + 0.25, other])


@pytest.mark.parametrize("name", MAKERS)
def test_every_arm_is_read_as_one_forward_reads_it(name: str) -> None:
    lens = LensModel.from_model(MAKERS[name]())
    watched = [monitor(), Monitor("early", 0, "resid_pre", READ)]
    records = [tiny.add(9.0, layer=0), gated(0.25)]
    arms = [Arm("plain"), Arm("pushed", (records[0],)), Arm("gated", (records[1],))]
    run = lens.compare(IDS, arms, max_tokens=6, raw=True, monitors=watched, prefill_step_size=3)
    tokens: list[Any] = [[] for _ in arms]
    for event in run:
        if hasattr(event, "readings"):
            tokens[event.arm].append(event.readings)
    assert [one.name for one in run.monitors] == ["m", "early"]
    for arm, acting in enumerate([(), records[:1], records[1:]]):
        ids = [*IDS, *run.token_ids[arm]]
        expected = by_hand(lens, ids, acting)
        found = run.readings(arm)
        assert found.shape == (2, len(ids))
        atol = 2e-4 if name in ("llama", "gemma3", "rwkv7") else 0.15
        np.testing.assert_allclose(found, expected, atol=atol)
        np.testing.assert_allclose(np.array(tokens[arm]).T, found[:, len(IDS) - 1 : -1], atol=1e-6)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_a_features_monitor_is_its_activation(kind: str) -> None:
    lens, sae = LensModel.from_model(tiny.llama()), saes()[kind]
    lens.attach_sae("s", sae)
    run = lens.stream(IDS, max_tokens=4, monitors=[Monitor(f"f{at}", 1, sae="s", feature=at) for at in range(24)])
    list(run)
    with lens.capture(1) as held:
        lens.forward([[*IDS, *run.token_ids]])
    expected = np.array(sae.encode(held[1][0])).T
    np.testing.assert_allclose(run.readings, expected, atol=2e-4)
    assert (expected > 0).any()


def test_monitors_cost_no_token_and_end_with_the_run() -> None:
    lens = LensModel.from_model(tiny.llama())
    plain = [token.token_id for token in lens.stream(IDS, max_tokens=5)]
    read = lens.stream(IDS, max_tokens=5, monitors=monitor())
    assert [token.token_id for token in read] == plain
    assert not lens.registry.installed
    assert lens.stream(IDS, max_tokens=2).readings.shape[0] == 0
    with pytest.raises(LensError, match="Two monitors"):
        lens.stream(IDS, monitors=[monitor(), monitor()])
    with pytest.raises(LensError, match="cannot be str"):
        lens.stream(IDS, monitors=["x"])
