"""What is written as JSON comes back equal, and nothing else gets in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_tui.records import (
    Ablate,
    AblateHeads,
    Add,
    Arm,
    CapProjection,
    ClampFeature,
    EditPattern,
    Intervention,
    LensError,
    NormMatch,
    Origin,
    Positions,
    ProjectOut,
    Sampling,
    SetProjection,
    SteeringVector,
    Swap,
)
from lens_tui.records.codec import from_json, to_json

VECTOR = SteeringVector.of(
    "dogs \u202e", np.sin(np.arange(33)), 3, model="demo", origin=Origin("feature", {"f": 7}), max_activation=9.5
)
COMMON: dict[str, Any] = {"id": "a1", "layer": 2, "positions": Positions("indices", (0, 4, -1), 2, 9, "user")}
EVERY: list[Intervention] = [
    Add(**COMMON, vector=VECTOR, scale=-3.5, enabled=False),
    NormMatch(**COMMON, vector=VECTOR, scale=0.1, site="mlp_out"),
    ProjectOut(**COMMON, vector=VECTOR, precision="float32"),
    SetProjection(**COMMON, vector=VECTOR, value=1e-30),
    CapProjection(**COMMON, vector=VECTOR, low=None, high=4.0),
    ClampFeature(**COMMON, sae="s", feature=12, value=0.0),
    Ablate(**COMMON, mean=np.linspace(-1, 1, 17, dtype=np.float32)),
    Ablate(id="b", layer=0),
    AblateHeads(id="h", layer=1, heads=(2, 0), mean=np.linspace(-1, 1, 8, dtype=np.float32)),
    EditPattern(**COMMON, heads=(2,), sources=Positions("slice", start=1, stop=4), renormalise=False),
    EditPattern(**COMMON, heads=(0, 2), weights=np.tril(np.full((2, 3, 3), 0.3, dtype=np.float32))),
    Swap(**COMMON, vector=VECTOR, other=SteeringVector.of("cats", np.cos(np.arange(33)), 3)),
]


def through(record: Any) -> Any:
    return json.loads(json.dumps(to_json(record), allow_nan=False))


def same(one: Any, other: Any) -> bool:
    """Equal in every field, arrays bit for bit."""
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__
        )
    return bool(one == other) and type(one) is type(other)


@pytest.mark.parametrize("record", EVERY, ids=lambda record: record.mode)
def test_every_intervention_comes_back(record: Intervention) -> None:
    assert same(from_json(Intervention, through(record)), record)


def test_every_kind_is_covered() -> None:
    assert {type(record).__name__ for record in EVERY} == {kind.__name__ for kind in Intervention.__subclasses__()}


@pytest.mark.parametrize(("old", "record"), [("set_projection", EVERY[3]), ("cap_projection", EVERY[4])])
def test_a_mode_is_read_by_the_name_it_had_before(old: str, record: Intervention) -> None:
    assert same(from_json(Intervention, {**through(record), "mode": old}), record)


def test_a_projection_with_bounds_is_called_by_them() -> None:
    bounds = {"at_most": (None, 4.0), "at_least": (-1.0, None), "between": (-1.0, 4.0)}
    for mode, (low, high) in bounds.items():
        record = CapProjection(**COMMON, vector=VECTOR, low=low, high=high)
        assert record.mode == mode
        assert same(from_json(Intervention, through(record)), record)


def test_arms_and_sampling_come_back() -> None:
    arm = Arm("all", tuple(EVERY))
    assert same(from_json(Arm, through(arm)), arm)
    sampling = Sampling(max_tokens=7, temp=0.7, seed=3, stop=("\n\n", "End"), stop_ids=(2, 9))
    assert from_json(Sampling, through(sampling)) == sampling
    assert from_json(Sampling, {}) == Sampling()


def test_settings_written_before_there_were_stops_are_read() -> None:
    old = {"max_tokens": 7, "temp": 0.5, "top_p": 0.0, "min_p": 0.0, "top_k": 0}
    old |= {"repetition_penalty": 0.0, "repetition_context_size": 20, "seed": 3}
    assert from_json(Sampling, old) == Sampling(max_tokens=7, temp=0.5, seed=3)
    for wrong in ("End", ["End", 3], [None]):
        with pytest.raises(LensError, match=r"Sampling\.stop"):
            from_json(Sampling, {"stop": wrong})


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40).filter(lambda v: any(abs(x) > 1e-3 for x in v))
)
def test_directions_are_exact(values: list[float]) -> None:
    vector = SteeringVector.of("v", values, 0)
    assert same(from_json(SteeringVector, through(vector)), vector)


def changed(**changes: Any) -> dict[str, Any]:
    made = {**through(EVERY[0]), **changes}
    return {key: value for key, value in made.items() if value != "absent"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(scale="3"), "Add.scale is '3', which is not float"),
        (changed(scale=float("nan")), "Add.scale is nan"),
        (changed(layer=True), "Add.layer is True, which is not int"),
        (changed(layer=1.5), "Add.layer is 1.5"),
        (changed(id="absent"), "lacks the key 'id'"),
        (changed(extra=1), "unknown key 'extra'"),
        (changed(mode="explode"), "unknown mode 'explode'"),
        (changed(precision="float8"), "Add.precision is 'float8'"),
        (changed(positions={"kind": "everywhere"}), "Positions.kind is 'everywhere'"),
        (changed(positions={"indices": [1, "2"]}), "Positions.indices is '2'"),
        (changed(vector={**through(VECTOR), "direction": "!!"}), "SteeringVector.direction is not an array"),
        (changed(vector={**through(VECTOR), "direction": ""}), "0 values"),
        (changed(vector={**through(VECTOR), "direction": to_json(np.ones(4, np.float32))}), "not a unit direction"),
        (changed(vector={**through(VECTOR), "direction": to_json(np.full(4, np.nan, np.float32))}), "not a unit"),
        ([], "is list, not an object"),
        ("x", "is str, not an object"),
    ],
)
def test_what_is_wrong_is_named(data: Any, message: str) -> None:
    with pytest.raises(LensError, match=message.replace("(", r"\(")):
        from_json(Intervention, data)
