"""A gate lets a record act on the tokens that its monitor reads enough at, and on no others.

Held against NumPy forward passes without a cache: in one forward, decoding over a cache, in lock step and in batches of
prompts of different lengths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import JumpReLUSAE, LensModel, StandardSAE, TopKSAE
from lens_tui.records import Add, Arm, Intervention, LensError, NormMatch, Positions, Request, SteeringVector
from lens_tui.records.codec import from_json, to_json
from lens_tui.records.gates import Gate, Monitor
from lens_tui.sae.files import Definition
from tests.lens import numpy_models, tiny

MODELS: dict[str, tuple[Callable[..., Any], Any]] = {
    "llama": (tiny.llama, numpy_models.llama),
    "gemma3": (tiny.gemma3, numpy_models.gemma3),
}
PUSH = SteeringVector.of("push", np.random.default_rng(5).normal(size=64), 2)
READ = SteeringVector.of("read", np.random.default_rng(6).normal(size=64), 1)
PROMPTS = (tiny.IDS, (3, 4), (9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3, 4), (11, 12, 13))


def monitor(layer: int = 1, site: str = "resid_post") -> Monitor:
    return Monitor("m", layer, site, READ, scale=2.0, bias=0.25)


def gated(threshold: float = 0.25, *, at: tuple[int, str] = (1, "resid_post"), **extra: Any) -> Add:
    extra.setdefault("gate", Gate(monitor(*at), threshold))
    return Add(id="g", layer=2, vector=PUSH, scale=25.0, **extra)


class Reference:
    """A NumPy model whose pushes are gated: which tokens were let through is kept in ``open``."""

    def __init__(self, forward: Any, model: Any, record: Add | None) -> None:
        self.forward, self.model, self.record = forward, model, record
        self.open: Any = None

    def edit(self, layer: int, site: str, x: Any) -> Any:
        record = self.record
        if record is None:
            return x
        assert record.gate is not None
        read = record.gate.monitor
        if (layer, site) == (read.layer, read.site):
            assert read.vector is not None
            value = read.scale * (x @ read.vector.direction.astype(np.float64)) + read.bias
            self.open = value > record.gate.threshold if record.gate.side == "above" else value < record.gate.threshold
        if (layer, site) == (record.layer, record.site):
            x = x + np.where(self.open[:, None], record.scale * record.vector.direction.astype(np.float64), 0.0)
        return x

    def logits(self, ids: Sequence[int]) -> Any:
        return self.forward(self.model, tuple(ids), self.edit)

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        text = list(ids)
        for _ in range(count):
            text.append(int(self.logits(text)[-1].argmax()))
        return text[len(ids) :]


def both(name: str) -> tuple[LensModel, Any, Any]:
    make, forward = MODELS[name]
    model = make()
    return LensModel.from_model(model), model, forward


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "at", [(0, "resid_pre"), (1, "resid_post"), (2, "attn_out"), (2, "mlp_out"), (2, "resid_post")], ids=str
)
@pytest.mark.parametrize("side", ["above", "below"])
def test_a_forward_is_that_of_numpy(name: str, at: tuple[int, str], side: Any) -> None:
    lens, model, forward = both(name)
    with lens.capture(at[0], at[1]) as plain:
        lens.forward([list(tiny.IDS)])
    values = np.sort(np.array(2.0 * plain[at[0]][0] @ mx.array(READ.direction) + 0.25))
    threshold = float(values[3] + values[4]) / 2
    record = gated(at=at, gate=Gate(monitor(*at), threshold, side))
    reference = Reference(forward, model, record)
    expected = reference.logits(tiny.IDS)
    assert 0 < reference.open.sum() < len(tiny.IDS)  # else the gate is not tried
    with lens.intervene(record):
        found = np.array(lens.forward([list(tiny.IDS)]))[0]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.abs(np.array(lens.forward([list(tiny.IDS)]))[0] - expected).max() > 0.05


@pytest.mark.parametrize("name", MODELS)
def test_decoding_over_a_cache_and_in_lock_step_is_numpys_without_one(name: str) -> None:
    lens, model, forward = both(name)
    records = {level: gated(level) for level in (-2.0, 0.25, 1.5)}
    arms = [Arm("plain"), *(Arm(str(level), (record,)) for level, record in records.items())]
    run = lens.compare(list(tiny.IDS), arms, max_tokens=8, raw=True)
    for _ in run:
        pass
    plain = Reference(forward, model, None).write(tiny.IDS, 8)
    assert list(run.token_ids[0]) == plain
    for row, record in enumerate(records.values(), 1):
        reference = Reference(forward, model, record)
        written = reference.write(tiny.IDS, 8)
        assert list(run.token_ids[row]) == written
        reference.logits([*tiny.IDS, *written[:-1]])
        (touched,) = run.steered(row)
        assert list(touched.positions) == np.flatnonzero(reference.open).tolist()
        alone = lens.stream(list(tiny.IDS), interventions=[record], max_tokens=8, prefill_step_size=3)
        assert [token.token_id for token in alone] == written
        if reference.open.any():
            (dose,) = alone.dose
            assert dose.delivered == pytest.approx(25.0, rel=1e-3)
            assert dose.tokens == reference.open.sum()
    assert len({run.token_ids[row] for row in range(4)}) > 1


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_batch_of_ragged_prompts_have_gates_of_their_own(name: str) -> None:
    lens, model, forward = both(name)
    records = [gated(level) for level in (0.25, -1.0, 0.8, 0.25)]
    requests = [Request(ids, (record,)) for ids, record in zip(PROMPTS, records, strict=True)]
    batch = lens.stream_batch(requests, max_tokens=5, completion_batch_size=3, prefill_batch_size=2)
    for _ in batch:
        pass
    for row, (ids, record) in enumerate(zip(PROMPTS, records, strict=True)):
        reference = Reference(forward, model, record)
        written = reference.write(ids, 5)
        assert list(batch.token_ids[row]) == written
        reference.logits([*ids, *written[:-1]])
        (touched,) = batch.steered(row)
        assert list(touched.positions) == np.flatnonzero(reference.open).tolist()


def test_a_gate_narrows_positions_and_holds_while_it_is_dialled() -> None:
    lens, _, _ = both("llama")
    record = gated(-1e9, positions=Positions("generated"))
    run = lens.stream(list(tiny.IDS), interventions=[record], max_tokens=6)
    for count, _ in enumerate(run, 1):
        if count == 2:
            run.dial(replace(record, gate=Gate(monitor(), 1e9)))
    (touched,) = run.steered
    assert touched.positions[0] == len(tiny.IDS) - 1
    assert 2 <= len(touched.positions) < 6


def test_kept_prefixes_know_the_gate_they_were_filled_under() -> None:
    lens, model, forward = both("llama")
    long = [(7 * at + 3) % 97 for at in range(50)]
    for level in (-1e9, 0.25, 1e9, 0.25):
        record = gated(level)
        found = [token.token_id for token in lens.stream(long, interventions=[record], max_tokens=3)]
        assert found == Reference(forward, model, record).write(long, 3)
    assert lens.prefixes.hits  # the last is the second again


@pytest.mark.parametrize("bits", [0, 4])
def test_in_bfloat16_and_quantised_the_gate_opens_where_the_capture_says(bits: int) -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16, bits=bits))
    ids = list(tiny.IDS)
    with lens.capture(1) as held:
        lens.forward([ids])
    read = np.array(2.0 * held[1][0].astype(mx.float32) @ mx.array(READ.direction) + 0.25)
    threshold = float(np.sort(read)[3:5].mean())
    record = NormMatch(id="n", layer=2, vector=PUSH, scale=0.7, gate=Gate(monitor(), threshold))
    with lens.capture(2) as plain:
        lens.forward([ids])
    with lens.intervene(record), lens.capture(2) as moved:
        lens.forward([ids])
    change = np.abs(np.array((moved[2] - plain[2]).astype(mx.float32)))[0].max(axis=-1)
    np.testing.assert_array_equal(change > 0, read > threshold)


def saes() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    arrays: dict[str, Any] = {
        "w_enc": rng.normal(size=(64, 24)) / 8,
        "w_dec": rng.normal(size=(24, 64)),
        "b_dec": np.zeros(64),
    }
    bias: dict[str, Any] = {"b_enc": rng.normal(size=24) / 10}
    return {
        "relu": StandardSAE.from_arrays(**arrays, **bias),
        "jumprelu": JumpReLUSAE.from_arrays(**arrays, **bias, threshold=np.full(24, 0.3)),
        "topk": TopKSAE.from_arrays(**arrays, **bias, definition=Definition(activation="topk", k=3)),
    }


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_a_features_gate_opens_where_its_sae_is_active(kind: str) -> None:
    lens, sae = LensModel.from_model(tiny.llama()), saes()[kind]
    lens.attach_sae("s", sae)
    ids = list(tiny.IDS)
    with lens.capture(1) as held, lens.capture(2) as plain:
        lens.forward([ids])
    active = np.array(sae.encode(held[1][0]))
    feature = int(np.argmin(np.abs((active > 0).sum(axis=0) - 4)))
    assert 0 < (active[:, feature] > 0).sum() < len(ids)
    record = gated(gate=Gate(Monitor("f", 1, sae="s", feature=feature), 0.0))
    with lens.intervene(record), lens.capture(2) as moved:
        lens.forward([ids])
    change = np.abs(np.array(moved[2] - plain[2]))[0].max(axis=-1)
    np.testing.assert_array_equal(change > 0, active[:, feature] > 0)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (gated(at=(3, "resid_post")), "computed after layer 2"),
        (gated(gate=Gate(monitor(), float("nan"))), "gate of 'g'"),
        (gated(gate=Gate(Monitor("f", 1, sae="none", feature=2))), "not been given the SAE 'none'"),
        (gated(gate=Gate(Monitor("w", 1, vector=SteeringVector.of("w", np.ones(8), 1)))), r"needs \(64,\)"),
    ],
    ids=["later", "not a number", "no sae", "width"],
)
def test_what_cannot_be_is_said(lens: LensModel, record: Intervention, words: str) -> None:
    with pytest.raises(LensError, match=words):
        lens.intervene(record)


def test_a_gate_goes_through_json_to_the_last_bit() -> None:
    record = gated(0.1)
    again = from_json(Intervention, json.loads(json.dumps(to_json(record))))
    assert again.gate is not None
    assert again.gate.monitor.vector is not None
    assert (again.gate.threshold, again.gate.side, again.gate.monitor.scale) == (0.1, "above", 2.0)
    np.testing.assert_array_equal(again.gate.monitor.vector.direction, READ.direction)
    assert from_json(Intervention, to_json(replace(record, gate=None))).gate is None
