"""Strings, lists and arrays where people type them: taken for what they say, or refused in a sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import lens_tui
from lens_tui import LensModel
from lens_tui.records import (
    Ablate,
    Add,
    Arm,
    ClampFeature,
    LensError,
    LensWarning,
    NormMatch,
    Positions,
    ProjectOut,
    Request,
    SAEInfo,
    SteeringVector,
)
from lens_tui.records.errors import warnings_to
from tests.lens import tiny
from tests.lens.test_same_everywhere import _SAE

IDS = list(tiny.IDS)
VALUES = np.random.default_rng(3).normal(size=64)
UNIT = SteeringVector.of("v", VALUES, 1)
DOUBLE = SteeringVector("v", 2 * UNIT.direction, 1)


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return LensModel.from_model(tiny.llama())


lib: Any = lens_tui  # what is given here is not of its types
AnyAdd: Any = Add
AnyAblate: Any = Ablate
AnyPositions: Any = Positions
AnyArm: Any = Arm
AnyRequest: Any = Request


def read(lens: Any, *records: Any) -> Any:
    with lens.intervene(*records):
        return np.array(lens.residuals(IDS, 1, steered=True))


FORMS: dict[str, Callable[[], Any]] = {
    "numpy": lambda: VALUES,
    "float32": lambda: VALUES.astype(np.float32),
    "list": lambda: VALUES.tolist(),
    "mx": lambda: mx.array(VALUES.astype(np.float32)),
    "tuple": lambda: tuple(VALUES),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_array_in_a_record_is_added_as_it_is(lens: Any, form: str) -> None:
    plain = np.array(lens.residuals(IDS, 1))
    found = read(lens, Add(id="a", layer=1, vector=FORMS[form](), scale=0.5))
    np.testing.assert_allclose(found, plain + 0.5 * VALUES, atol=1e-4)
    projected = read(lens, ProjectOut(id="p", layer=1, vector=FORMS[form]()))
    np.testing.assert_allclose(projected @ UNIT.direction, 0.0, atol=1e-4)
    matched = read(lens, NormMatch(id="n", layer=1, vector=FORMS[form](), scale=0.1))
    with lens.steer(1, FORMS[form](), 0.1, mode="norm_match"):
        np.testing.assert_allclose(matched, np.array(lens.residuals(IDS, 1, steered=True)), atol=1e-4)


def test_half_precision_arrays_and_means(lens: Any) -> None:
    half = mx.array(VALUES.astype(np.float32)).astype(mx.bfloat16)
    found = read(lens, AnyAdd(id="a", layer=1, vector=half, scale=1.0))
    plain = np.array(lens.residuals(IDS, 1))
    np.testing.assert_allclose(found - plain, np.tile(np.array(half.astype(mx.float32)), (8, 1)), atol=1e-4)
    for mean in (VALUES, VALUES.tolist(), mx.array(VALUES.astype(np.float32))):
        np.testing.assert_allclose(
            read(lens, AnyAblate(id="m", layer=1, mean=mean)), np.tile(VALUES, (8, 1)), atol=1e-5
        )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("all", Positions()),
        ("generated", Positions("generated")),
        ("last", Positions("last")),
        ([1, 2], Positions("indices", (1, 2))),
        (np.array([1, 2]), Positions("indices", (1, 2))),
        (mx.array([1, 2]), Positions("indices", (1, 2))),
        (range(2, 4), Positions("indices", (2, 3))),
        (3, Positions("indices", (3,))),
        (np.int64(3), Positions("indices", (3,))),
        (slice(2, 5), Positions("slice", start=2, stop=5)),
        (AnyPositions("indices", [np.int32(4)]), Positions("indices", (4,))),
    ],
    ids=str,
)
def test_positions_as_people_write_them(lens: Any, written: Any, meant: Positions) -> None:
    record = Add(id="a", layer=1, vector=UNIT, scale=3.0, positions=written)
    assert record.positions == meant
    with lens.steer(1, UNIT, 3.0, positions=written) as steering:
        assert steering.interventions[0].positions == meant
        steering.update(positions=written)
        assert steering.interventions[0].positions == meant
        here = np.array(lens.residuals(IDS, 1, steered=True))
    np.testing.assert_array_equal(here, read(lens, record))


def _add(**more: Any) -> Add:
    return Add(**{"id": "a", "layer": 1, "vector": UNIT, "scale": 1.0, **more})


REFUSED: dict[str, Callable[[Any], Any]] = {
    "unknown positions": lambda lens: lens.intervene(_add(positions="everywhere")),
    "a mask": lambda lens: lens.intervene(_add(positions=[True, False])),
    "half a position": lambda lens: lens.intervene(_add(positions=[1.5])),
    "no positions": lambda lens: lens.intervene(_add(positions=[])),
    "positions None": lambda lens: lens.intervene(_add(positions=None)),
    "an empty slice": lambda lens: lens.intervene(_add(positions=Positions("slice", start=5, stop=3))),
    "an empty slice from the end": lambda lens: lens.intervene(_add(positions=slice(-2, -4))),
    "indices without their kind": lambda lens: lens.intervene(_add(positions=Positions(indices=(1,)))),
    "a vector of words": lambda lens: lens.intervene(_add(vector="king")),
    "no vector": lambda lens: lens.intervene(_add(vector=None)),
    "a vector of another width": lambda lens: lens.intervene(_add(vector=[1.0, 2.0])),
    "a direction that is no unit": lambda lens: lens.intervene(_add(vector=DOUBLE)),
    "a matrix": lambda lens: lens.intervene(_add(vector=np.ones((2, 64)))),
    "a scale of words": lambda lens: lens.intervene(_add(scale="1")),
    "a scale of nothing": lambda lens: lens.steer(1, UNIT, None),
    "a list as scale": lambda lens: lens.intervene(_add(scale=[1.0])),
    "an id twice": lambda lens: lens.intervene(_add(), _add()),
    "no record": lambda lens: lens.intervene("add"),
    "a dict": lambda lens: lens.stream(IDS, interventions={"a": 1}),
    "an arm of words": lambda lens: AnyArm("a", "add"),
    "a request of words": lambda lens: AnyRequest(IDS, interventions="add"),
    "a list of texts": lambda lens: lens.loss(["a", "b"]),
    "uneven rows": lambda lens: lens.ids([[1, 2], [3]]),
    "ids and rows": lambda lens: lens.forward([1, [2, 3]]),
    "half a token": lambda lens: lens.forward([1.5, 2.0]),
    "tokens that are true": lambda lens: lens.forward([True, False]),
    "no tokens": lambda lens: lens.forward([]),
    "nothing": lambda lens: lens.forward(None),
    "half a token in a prompt": lambda lens: lens.generate([1.5, 2.0]),
    "a prompt of rows": lambda lens: lens.generate([[1, 2], [3, 4]]),
    "a prompt of nothing": lambda lens: lens.generate(None),
    "a prompt of texts": lambda lens: lens.generate(["a", "b"]),
    "a number as prompt": lambda lens: lens.generate(3),
    "tokens beyond the vocabulary": lambda lens: lens.forward(np.array([2**40])),
    "one prompt as a batch": lambda lens: lens.generate_batch(np.array([1, 2])),
    "no batch": lambda lens: lens.generate_batch(5),
    "one text as texts": lambda lens: lib.delta_loss(lens, _add(), texts="abc"),
    "no text": lambda lens: lib.find_scale(lens, _add(), texts=[]),
    "a layer of words": lambda lens: lens.residuals(IDS, "1"),
    "half a layer": lambda lens: lens.steer(1.5, UNIT, 1.0),
    "a continuation of words": lambda lens: lib.divergence(lens, IDS, "abc", _add()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_refused_in_a_sentence(lens: Any, what: str) -> None:
    with pytest.raises(LensError) as caught:
        REFUSED[what](lens)
    assert caught.value.message.endswith(".")
    assert lens.registry.installed == ()


def test_numpy_and_mlx_numbers_are_numbers(lens: Any) -> None:
    ids = np.array(IDS)
    expected = np.array(lens.forward(IDS))
    rows: list[Any] = [ids, mx.array(IDS), tuple(ids), [np.int64(token) for token in IDS], ids[None].astype(np.uint8)]
    for given in rows:
        np.testing.assert_array_equal(np.array(lens.forward(given)), expected)
    for given in rows[:4]:
        assert lens.tokens.prompt(given).ids == tuple(IDS)
    with lens.capture(np.int64(1)) as one, lens.capture(np.arange(2)) as two:
        lens.forward(ids)
    np.testing.assert_array_equal(np.array(one[1]), np.array(two[1]))
    record = AnyAdd(id="a", layer=np.int64(1), vector=UNIT, scale=np.float32(2.0))
    np.testing.assert_array_equal(read(lens, record), read(lens, _add(scale=2.0)))
    assert lib.divergence(lens, ids, ids[:2], record).forward
    assert lib.logit_lens(lens, ids, layers=np.array([1]), target=np.int64(3)).layers == (1,)
    assert lib.attribute_logits(lens, ids, positions=-1).positions == (7,)
    assert lib.contrast(lens, "c", [ids, ids[:3]], [ids[:5], ids[:4]], layers=np.int64(1)).vectors


def test_one_record_or_a_list_of_them_will_do(lens: Any) -> None:
    expected = read(lens, _add())
    np.testing.assert_array_equal(read(lens, [_add()]), expected)
    assert AnyArm("a", _add()).interventions == (_add(),)
    assert AnyRequest(IDS, interventions=[_add()]).interventions == (_add(),)
    one, several = (lens.stream(IDS, interventions=given, max_tokens=2) for given in (_add(), [_add()]))
    assert [token.logprob for token in one] == [token.logprob for token in several]


def test_a_vector_at_another_place_than_its_own_is_said(lens: Any) -> None:
    with pytest.warns(LensWarning, match=r"'v' was made for layer 1 resid_post and is used at layer 2 resid_post"):
        lens.steer(2, UNIT, 1.0)
    heard: list[str] = []
    with warnings_to(heard.append):
        lens.intervene(_add(layer=1, site="attn_out"))
        lens.intervene(_add(layer=1, site="attn_out"))
        lens.stream(IDS, interventions=[_add(layer=3)])
    assert [text.split(" used at ")[1].split(":")[0] for text in heard] == ["layer 1 attn_out", "layer 3 resid_post"]


@pytest.mark.parametrize("place", [{"layer": 1}, {"layer": -3}, {"layer": 2, "site": "resid_pre"}], ids=str)
def test_a_vector_at_its_own_place_is_not(lens: Any, place: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lens.intervene(_add(**place))


def test_an_sae_of_another_place_cannot_be_clamped() -> None:
    lens = LensModel.from_model(tiny.llama())
    sae: Any = _SAE(1.0)
    sae.info = SAEInfo("s", "s", "", "topk", "resid_post", 1, 64, 64, "")
    lens.attach_sae("s", sae)
    lens.intervene(ClampFeature(id="c", layer=1, sae="s", feature=0, value=1.0))
    lens.intervene(ClampFeature(id="c", layer=2, site="resid_pre", sae="s", feature=0, value=1.0))
    for layer, site in ((2, "resid_post"), (1, "mlp_out")):
        with pytest.raises(LensError, match="reads layer 1 resid_post, not layer"):
            lens.intervene(ClampFeature(id="c", layer=layer, site=site, sae="s", feature=0, value=1.0))
    sae.info = SAEInfo("s", "s", "", "transcoder", "mlp_in", 1, 64, 64, "", site_out="mlp_out", layer_out=1)
    with pytest.raises(LensError, match="transcoder"):
        lens.intervene(ClampFeature(id="c", layer=1, site="mlp_in", sae="s", feature=0, value=1.0))


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="a GPU has the product")
def test_experts_that_the_cpu_cannot_multiply_are_refused_with_what_to_do() -> None:
    for dtype in (mx.bfloat16, mx.float16):
        with pytest.raises(LensError, match=f"experts is in {str(dtype)[9:]}.*float32"):
            LensModel.from_model(tiny.finished(tiny.qwen3_moe(), dtype, 0))
    lens = LensModel.from_model(tiny.finished(tiny.qwen3_moe(), mx.bfloat16, 4))
    assert np.isfinite(lens.loss(IDS))
    assert np.isfinite(LensModel.from_model(tiny.qwen3_moe()).loss(IDS))


NO_SAMPLING: list[dict[str, Any]] = [
    {"max_tokens": 1.5},
    {"max_tokens": "3"},
    {"temp": "a"},
    {"temp": 1e-300},
    {"temp": 1e38},
    {"seed": 1.5},
    {"stop": 5},
    {"stop_ids": ["a"]},
    {"logit_bias": {"a": 1}},
    {"logit_bias": {10**9: 1.0}},
    {"logit_bias": {-1: 1.0}},
    {"logit_bias": {3: float("nan")}},
    {"logit_bias": 5},
    {"presence_penalty": "much"},
    {"frequency_context_size": 0},
    {"prefill_step_size": -5},
    {"kv_bits": 1.5},
]


@pytest.mark.parametrize("options", NO_SAMPLING, ids=str)
def test_settings_that_cannot_be_are_a_sentence(lens: Any, options: dict[str, Any]) -> None:
    with pytest.raises(LensError):
        list(lens.stream(IDS, **{"max_tokens": 2, **options}))
    with pytest.raises(LensError):
        list(lens.stream_batch([IDS], **{"max_tokens": 2, **options}))


def test_a_token_may_be_forbidden_and_whole_numbers_of_numpy_are_taken(lens: Any) -> None:
    first = next(iter(lens.stream(IDS, max_tokens=np.int64(1)))).token_id
    other = next(iter(lens.stream(IDS, max_tokens=1, logit_bias={first: float("-inf")}))).token_id
    assert other != first


def test_arms_that_are_none_and_scales_that_are_none_are_a_sentence(lens: Any) -> None:
    push = Add(id="push", layer=1, vector=UNIT, scale=1.0)
    for arms in ([push], ["a"]):
        with pytest.raises(LensError, match="An arm cannot be"):
            lens.compare(IDS, arms)
    for scales in (["x"], [10**400], None, "12"):
        with pytest.raises(LensError, match="scale"):
            lib.dose_response(lens, IDS, push, scales)
    with pytest.raises(LensError) as refused:
        read(lens, AnyAdd(id="a", layer=1, vector=UNIT, scale=10**400))
    assert len(str(refused.value)) < 200
    with pytest.raises(LensError, match="cannot be made of"):
        read(lens, AnyAdd(id="a", layer=1, vector=VALUES.astype(complex), scale=1.0))


def test_a_forward_that_memory_cannot_hold_is_refused_before_it(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_tui.lens.architecture import find

    monkeypatch.setattr(find, "SMALL", 0)
    monkeypatch.setattr(find, "free_memory", lambda: 30_000)
    long = [1, 2, 3] * 30  # three times 90 * 90 scores of 4 bytes for each head
    for call in (lens.forward, lens.loss, lambda ids: lens.residuals(ids, 1), lambda ids: lib.logit_lens(lens, ids)):
        with pytest.raises(LensError, match=r"One forward over 90 tokens takes .* attention scores"):
            call(long)
    with pytest.raises(LensError, match="attention scores"):
        lens.stream(long, prefill_step_size=90)
    assert len(list(lens.stream(long, prefill_step_size=4, max_tokens=1))) == 1  # in pieces it fits
