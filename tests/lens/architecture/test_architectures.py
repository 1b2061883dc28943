"""Every architecture of the installed mlx-lm steers, captures and restores exactly, or is refused with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from lens_tui import LensModel
from lens_tui.lens import room
from lens_tui.lens.architecture.find import prove
from lens_tui.lens.forward import forward_rows
from lens_tui.lens.measure.scores import first_site, spread_over
from lens_tui.records import Add, Arm, LensError, SteeringVector, Token
from tests.lens import architectures, examine, metal_kernels, tiny
from tests.lens.examine import IDS, SCALE, numbers, patched, whole

pytestmark = pytest.mark.usefixtures("without_compiling")

DOCS = Path(__file__).parents[3] / "docs" / "architectures.md"
REFUSED = {
    "deepseek_v41": "block 0 gives .*: several residual streams with no active one",
    "iquestloopcoder": "never calls the 4 blocks themselves, at most their parts",
    "olmo": "",
    "phi3small": "its block-sparse attention lets a token read those behind it",
}
WORKING = [name for name in architectures.names() if name not in REFUSED]
HALF_PRECISION = [
    "llama",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4_text",
    "qwen3_5",
    "qwen3_moe",
    "gpt_oss",
    "mamba2",
    "rwkv7",
    "falcon_h1",
    "plamo2",
]
UNUSUAL = [
    "afm7",
    "gemma3n",
    "gemma4",
    "gptj",
    "hunyuan",
    "kimi_k3",
    "mamba",
    "muse_spark",
    "nanbeige",
    "nemotron_h",
    "plamo",
    "plamo2",
    "rwkv7",
    "talkie",
]
MIXTURES = ("qwen3_moe", "gpt_oss")


@pytest.fixture
def kernels() -> Iterator[None]:
    with metal_kernels.stand_ins():
        yield


@pytest.fixture(scope="module", params=WORKING)
def working(request: pytest.FixtureRequest) -> tuple[str, Any, LensModel]:
    """An architecture's name, its model and the library on it, made once for all tests that take it."""
    mx.disable_compile()
    with metal_kernels.stand_ins():
        model = architectures.make(request.param)
        lens = LensModel.from_model(model)
    mx.enable_compile()
    return request.param, model, lens


def rows_of_the_table() -> dict[str, str]:
    return {match[1]: line for line in DOCS.read_text().splitlines() if (match := re.match(r"\| (\S+) \|", line))}


def vector(width: int) -> np.ndarray[Any, Any]:
    drawn = np.random.default_rng(3).normal(size=width).astype(np.float32)
    unit: np.ndarray[Any, Any] = drawn / np.linalg.norm(drawn)
    return unit


def test_every_architecture_has_its_line_in_the_table() -> None:
    table = rows_of_the_table()
    assert [name for name in table if name != "architecture"] == list(architectures.names())


def test_what_is_said_of_how_many_there_are_is_counted_in_the_table() -> None:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in list(rows_of_the_table().values())[1:]]
    edited = [row[5] for row in cells]
    whole, some = edited.count("yes"), sum(bool(re.fullmatch(r"[1-9]\d* of \d+ layers", each)) for each in edited)
    assert whole + some + edited.count("no") + edited.count("") == len(cells) > 100
    told = f"Of {len(cells)} architectures {sum(row[1] == 'yes' for row in cells)} steer; {whole} have patterns to edit"
    assert f"{told} at every layer, {some} more at some." in DOCS.read_text()
    assert f"at every layer of {whole} of mlx-lm's {len(cells)} architectures and at some layers of {some} more" in (
        DOCS.with_name("causes.md").read_text()
    )


@pytest.mark.usefixtures("kernels")
def test_it_steers_captures_and_restores_exactly(working: tuple[str, Any, LensModel]) -> None:
    name, model, lens = working
    with patched(name, model) as seen:
        plain = whole(model)
    assert lens.n_layers == len(seen.after) >= len(model.layers)
    assert lens.d_model == seen.after[0].shape[-1]
    classes = [type(module) for _, module in model.named_modules()]
    with lens.capture(range(lens.n_layers), site=["resid_pre", "resid_post"]) as captured:
        np.testing.assert_array_equal(numbers(lens.forward(list(IDS))), plain)
    for layer in range(lens.n_layers):
        np.testing.assert_array_equal(numbers(captured[layer, "resid_pre"]), seen.before[layer])
        np.testing.assert_array_equal(numbers(captured[layer, "resid_post"]), seen.after[layer])
    steered = [check_steering(name, model, lens, layer, seen.after, plain) for layer in range(lens.n_layers)]
    check_resuming(lens, plain, steered)
    if lens.registry.decoder.closed:
        last = captured[lens.n_layers - 1, "resid_post"]
        np.testing.assert_allclose(numbers(lens.readout(last)), plain, rtol=1e-5, atol=1e-5)
    assert [type(module) for _, module in model.named_modules()] == classes
    np.testing.assert_array_equal(whole(model), plain)
    assert examine.row(name, lens) == rows_of_the_table()[name]


def check_resuming(lens: LensModel, plain: np.ndarray[Any, Any], steered: list[np.ndarray[Any, Any]]) -> None:
    """A forward of two rows that goes on from any layer's residual is a whole one, the steered row too.

    ``steered`` are the logits of the whole ones with the same push at each layer.
    """
    unit = vector(lens.d_model)
    with lens.capture(range(lens.n_layers)) as held:
        lens.forward(list(IDS))
    for layer in range(lens.n_layers):
        push = Add(id="a", layer=layer, vector=SteeringVector.of("v", unit, layer), scale=SCALE)
        key = first_site(lens.registry, [(push,)])
        if lens.registry.decoder.view is not None or lens.registry.decoder.shares_keys:
            assert key is None
            continue
        assert key == (layer, "resid_post")
        resume = spread_over(key, held[layer], [IDS], [IDS, IDS])
        rows = forward_rows(lens, [IDS, IDS], [(), (push,)], resume=resume)
        for row, alone in ((0, plain[0]), (1, steered[layer][0])):
            atol = 1e-5 * max(1.0, float(np.abs(alone).max()))
            np.testing.assert_allclose(numbers(rows[row]), alone, rtol=1e-4, atol=atol)


def only(layer: int, delta: mx.array) -> examine.Change:
    """The change added in float32 and rounded once to the model's dtype."""
    return lambda call, h: (h.astype(mx.float32) + delta).astype(h.dtype) if call == layer else h


def check_steering(
    name: str, model: Any, lens: LensModel, layer: int, outputs: list[np.ndarray[Any, Any]], plain: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """The residual moves by the dose, the logits are those of code that adds it by itself, and not the plain ones.

    Gives the logits.
    """
    unit = vector(lens.d_model)
    delta = mx.array(unit * SCALE)
    with lens.steer(layer, unit, SCALE), lens.capture(layer) as after:
        logits = numbers(lens.forward(list(IDS)))
    moved = numbers(after[layer]) - outputs[layer]
    size = max(1.0, float(np.abs(outputs[layer]).max()))
    np.testing.assert_allclose(moved, np.broadcast_to(unit * SCALE, moved.shape), atol=2e-6 * size)
    with patched(name, model, only(layer, delta)):
        expected = whole(model)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6 * max(1.0, float(np.abs(expected).max())))
    assert np.abs(logits - plain).max() > 1e-4 * np.abs(plain).max()
    return logits


@pytest.mark.usefixtures("kernels")
def test_it_generates_steered_with_its_own_cache(working: tuple[str, Any, LensModel]) -> None:
    name, model, lens = working
    layer, unit = lens.n_layers // 2, vector(lens.d_model)
    with lens.steer(layer, unit, SCALE):
        tokens = list(lens.stream(list(IDS), max_tokens=3))
    delta = mx.array(unit * SCALE)
    cache = make_prompt_cache(model)
    step = mx.array([IDS[-1:]])
    with patched(name, model, lambda call, h: h + delta if call % lens.n_layers == layer else h):
        model(mx.array([IDS[:-1]]), cache=cache)
        for token in tokens:
            logits = numbers(model(step, cache=cache))[0, -1].astype(np.float64)
            logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            assert token.logprob == pytest.approx(logprobs[token.token_id], abs=1e-4)
            assert logprobs[token.token_id] > logprobs.max() - 1e-4
            step = mx.array([[token.token_id]])
    assert len(tokens) == 3


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", UNUSUAL)
def test_what_goes_into_a_block_is_steered_too(name: str) -> None:
    model = architectures.make(name)
    lens = LensModel.from_model(model)
    unit = vector(lens.d_model)
    delta = mx.array(unit * SCALE)
    for layer in (0, lens.n_layers - 1):
        with lens.steer(layer, unit, SCALE, site="resid_pre"):
            logits = numbers(lens.forward(list(IDS)))
        with patched(name, model, before=only(layer, delta)):
            expected = whole(model)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(logits, whole(model), atol=1e-3)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", UNUSUAL)
def test_its_arms_side_by_side_are_its_arms_alone(name: str) -> None:
    lens = LensModel.from_model(architectures.make(name))
    steering = SteeringVector.of("push", vector(lens.d_model), lens.n_layers // 2)
    arms = [Arm("baseline"), Arm("pushed", (Add(id="a", layer=steering.layer, vector=steering, scale=SCALE),))]
    together = lens.compare(list(IDS), arms, max_tokens=4)
    rows: dict[int, list[Any]] = {0: [], 1: []}
    for event in together:
        if isinstance(event, Token):
            rows[event.arm].append(event)
    for index, arm in enumerate(arms):
        alone = list(lens.stream(list(IDS), interventions=arm.interventions, max_tokens=4))
        assert [token.token_id for token in rows[index]] == [token.token_id for token in alone]
        np.testing.assert_allclose([t.logprob for t in rows[index]], [t.logprob for t in alone], atol=1e-3)
    assert [token.logprob for token in rows[0]] != [token.logprob for token in rows[1]]
    # KL against the plain model on the arm's own tokens, whatever the caches are that its row was copied in.
    both = []
    for items in ((), arms[1].interventions):
        with lens.intervene(*items):
            seen = numbers(lens.forward([*IDS, *together.token_ids[1][:-1]], make_prompt_cache(lens.model)))[0, -4:]
        both.append(seen - np.log(np.exp(seen).sum(axis=-1, keepdims=True)))
    for one, other, name_of in ((both[1], both[0], "kl"), (both[0], both[1], "reverse_kl")):
        expected = (np.exp(one) * (one - other)).sum(axis=-1)
        np.testing.assert_allclose([getattr(token, name_of) for token in rows[1]], expected, atol=1e-3)
        assert expected.max() > 1e-3


@pytest.mark.parametrize("kind", ["bfloat16", "4-bit"])
@pytest.mark.parametrize("name", HALF_PRECISION)
def test_it_is_exact_in_the_models_own_precision(name: str, kind: str) -> None:
    model = architectures.make(name)
    if kind == "bfloat16" and name in MIXTURES and not mx.metal.is_available():
        pytest.skip("MLX's CPU back end gathers matrices in float32 only")
    model.set_dtype(mx.bfloat16)
    if kind == "4-bit":
        quantize(model)
    lens = LensModel.from_model(model)
    layer, unit = 1, vector(lens.d_model)
    delta = mx.array(unit * SCALE)
    with patched(name, model) as seen:
        plain = whole(model)
    with lens.steer(layer, unit, SCALE), lens.capture(layer) as captured:
        logits = numbers(lens.forward(list(IDS)))
    with patched(name, model, only(layer, delta)):
        expected = whole(model)
    np.testing.assert_array_equal(logits, expected)
    assert not np.array_equal(logits, plain)
    moved = numbers(captured[layer]) - seen.after[layer]
    step = np.abs(numbers(captured[layer])).max() * 2.0**-8
    np.testing.assert_allclose(moved, np.broadcast_to(unit * SCALE, moved.shape), atol=float(step) + 0.02)


def quantize(model: Any) -> None:
    import mlx.nn as nn

    whole: Any = getattr(nn, "quantize")  # noqa: B009 (MLX does not export it to type checkers)
    fits = lambda _, module: hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0  # noqa: E731
    whole(model, group_size=32, bits=4, class_predicate=fits)
    mx.eval(model.parameters())


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in architectures.UNIMPORTABLE])
def test_it_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(LensError, match=rf"{name} models? (cannot be proved|wrong) .*{REFUSED[name]}"):
        LensModel.from_model(architectures.make(name))
    assert examine.row(name) == rows_of_the_table()[name]


def drawn(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(1, tiny.VOCAB, size=length)]


@pytest.mark.usefixtures("kernels")
def test_what_is_read_at_once_is_what_generation_reads_piece_by_piece(
    working: tuple[str, Any, LensModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, lens = working
    ids = drawn(min(24, lens.registry.decoder.window or 24))
    at_once = numbers(lens.forward(ids))
    cache, parts, start = make_prompt_cache(model), [], 0
    while start < len(ids):
        size = 5 if start < 15 else 1  # chunks of a prefill, then token by token
        parts.append(numbers(model(mx.array([ids[start : start + size]]), cache=cache)))
        start += size
    atol = 2e-4 * max(1.0, float(np.abs(at_once).max()))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), at_once, rtol=1e-3, atol=atol)
    layers = (0, lens.n_layers // 2, lens.n_layers - 1)
    whole = {layer: numbers(lens.residuals(ids, layer)) for layer in layers}
    short = numbers(lens.residuals(ids[:9], layers[-1]))
    monkeypatch.setattr(room, "SPEED", dict.fromkeys(room.SPEED, 1.0))
    monkeypatch.setattr(room, "FEWEST", 5)
    for layer in layers:
        atol = 2e-4 * max(1.0, float(np.abs(whole[layer]).max()))
        np.testing.assert_allclose(numbers(lens.residuals(ids, layer)), whole[layer], rtol=1e-3, atol=atol)
    together = numbers(lens.residuals([ids, ids[:9]], layers[-1]))
    np.testing.assert_allclose(together[0], whole[layers[-1]], rtol=1e-3, atol=atol)
    np.testing.assert_allclose(together[1, :9], short, rtol=1e-3, atol=atol)


@pytest.mark.usefixtures("kernels")
def test_a_kept_prefix_goes_on_exactly(working: tuple[str, Any, LensModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a longer prompt has filled a window or dropped its front: cut there, the rest is not enough."""
    _, _, lens = working
    lens.prefixes.clear()
    monkeypatch.setattr(lens.prefixes, "min_tokens", 2)
    monkeypatch.setattr(lens.prefixes, "enabled", True)
    most = min(22, (lens.registry.decoder.window or 99) - 2)  # windows here are of 4 to 16
    long = drawn(most)
    shorter = [[*long[:at], 5, 6] for at in ((most - 3, most - 5, most // 2) if most > 8 else (most - 1,))]
    asked = [long, *shorter, [*long, 7, 8]]
    kept = [last(lens, ids) for ids in asked]
    lens.prefixes.enabled = False
    for ids, (token, logprob) in zip(asked, kept, strict=True):
        again = last(lens, ids)
        assert again[0] == token
        assert again[1] == pytest.approx(logprob, abs=1e-3)


def last(lens: LensModel, ids: list[int]) -> tuple[int, float]:
    token = next(iter(lens.stream(ids, max_tokens=1, prefill_step_size=4)))
    return token.token_id, token.logprob


def test_what_mlx_lm_gets_wrong_is_still_wrong() -> None:
    """Phi-3-small's logits of the first token change with the second one; so it is refused."""
    model = architectures.make("phi3small")
    one, other = (numbers(model(mx.array([ids])))[0, 0] for ids in ((1, 17), (1, 80)))
    finite = np.isfinite(one)
    assert np.abs(one[finite] - other[finite]).max() > 1e-3


def test_beyond_the_window_that_mlx_lm_computes_is_refused() -> None:
    lens = LensModel.from_model(architectures.make("plamo3"))
    lens.forward([1] * 16)
    with pytest.raises(LensError, match="17 positions; mlx-lm gets this model right for 16 only"):
        lens.forward([1] * 17)


@pytest.mark.skipif(mx.metal.is_available(), reason="they run here")
@pytest.mark.parametrize("name", metal_kernels.MODELS)
def test_a_model_that_needs_metal_is_refused_without(name: str) -> None:
    with pytest.raises(LensError, match=r"a forward pass fails: .*No Metal back-end"):
        LensModel.from_model(architectures.make(name))


@pytest.mark.skipif(find_spec("hf_olmo") is not None, reason="the package is here")
def test_a_model_whose_code_leaves_the_process_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "olmo"}))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.zeros(1)})
    with pytest.raises(LensError, match="needs a package that is not installed"):
        LensModel(str(tmp_path))
    assert examine.row("olmo") == rows_of_the_table()["olmo"]


def test_a_broken_file_of_weights_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"not")
    with pytest.raises(LensError, match="cannot be loaded"):
        LensModel(str(tmp_path))


def test_the_residual_of_a_block_that_is_not_its_first_argument_is_found() -> None:
    decoder = LensModel.from_model(architectures.make("talkie")).registry.decoder
    assert decoder.argument == 1


def test_a_looped_models_layers_are_its_blocks_in_each_pass() -> None:
    model = architectures.make("nanbeige")
    lens = LensModel.from_model(model)
    assert (len(model.layers), lens.n_layers) == (4, 8)
    sites = ["attn_out", "mlp_in", "mlp_out"]
    assert set(sites) <= set(lens.sites(6))
    with lens.capture([2, 6], site=sites) as captured:
        lens.forward(list(IDS))
    for site in sites:
        assert captured[6, site].shape == captured[2, site].shape == (1, len(IDS), 32) or site == "mlp_in"
        assert not np.allclose(numbers(captured[6, site]), numbers(captured[2, site]))
    np.testing.assert_array_equal(numbers(model.layers[2].mlp(captured[6, "mlp_in"])), numbers(captured[6, "mlp_out"]))


def test_logits_of_a_residual_are_refused_where_they_depend_on_more() -> None:
    for name in ("gemma3n", "kimi_k3"):
        lens = LensModel.from_model(architectures.make(name))
        with pytest.raises(LensError, match="depend on more than the last layer's residual"):
            lens.readout(mx.zeros((1, 2, 32)))


def test_a_list_of_modules_that_is_no_chain_is_not_the_decoder() -> None:
    """Gemma 3n's stream projections are called once each, in order, with the right shape, but all on the embedding."""
    model = architectures.make("gemma3n")
    reason = prove(model, tuple(model.model.language_model.altup_projections))
    assert reason == "block 1 does not read what the block before it gives"


def test_names_of_tiny_models_are_not_empty() -> None:
    assert len(WORKING) > 100
    assert max(IDS) < tiny.VOCAB
