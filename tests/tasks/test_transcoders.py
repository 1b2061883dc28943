"""Transcoders of a model's own MLPs: what is read, given and put in their place, against NumPy and the test's hooks."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numpy.typing import NDArray

from lens_tui import LensModel, load_sae
from lens_tui.lens.read.activations import Windowing, text_activations
from lens_tui.records import LensError
from lens_tui.records.training import TrainConfig
from lens_tui.tasks.transcoders import replaced_loss, train_transcoders
from tests.lens import tiny

WORDS = ["the", "cat", "saw", "a", "dog", "and", "ran", "to", "sea", "where", "ship", "lay"]
CONFIG = TrainConfig(
    width=128,
    k=8,
    skip=True,
    kind="transcoder",
    tokens=64 * 60,
    batch=64,
    learning_rate=5e-3,
    pool_tokens=640,
    calibration_tokens=512,
    evaluation_tokens=200,
)
READING: dict[str, Any] = {"context": 16, "rows": 4}


def text_file(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    path = folder / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(rng.choice(WORDS, 40))}) for _ in range(60)))
    return path


def model_of(kind: str) -> LensModel:
    model = tiny.llama(vocab=8192, layers=2, dtype=mx.bfloat16 if kind == "llama-bf16" else mx.float32)
    if kind == "llama-8bit":  # its blocks, of float32: MLX's products in 8 bits take ten times as long of bfloat16
        quantize: Any = getattr(nn, "quantize")  # noqa: B009 (MLX does not export it to type checkers)
        inside = lambda path, module: ".layers." in path and hasattr(module, "to_quantized")  # noqa: E731
        quantize(model, group_size=32, bits=8, class_predicate=inside)
        assert type(model.model.layers[1].mlp.down_proj).__name__ == "QuantizedLinear"
    return LensModel.from_model(model, tiny.tokenizer(), name="llama")


def by_numpy(folder: Path, x: NDArray[np.float32]) -> NDArray[np.float64]:
    loaded: Any = mx.load(str(folder / "params.safetensors"))
    w = {name: np.asarray(value).astype(np.float64) for name, value in loaded.items()}
    pre = x @ w["w_enc"] + w["b_enc"]
    z = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    return np.asarray(z @ w["w_dec"] + w["b_dec"] + x @ w["affine_skip_connection"])


def loss_by_hand(
    model: LensModel, folder: Path, ids: list[int], layers: list[int], means: list[NDArray[np.float32]] | None = None
) -> float:
    """Cross-entropy of one window, each layer's MLP replaced at all positions but the first, layer by layer.

    With ``means``, one a layer, they are put there.
    """
    put: dict[int, mx.array] = {}

    def use(layer: int) -> Any:
        return model.hook(layer, lambda _, h: put[layer].astype(h.dtype), site="mlp_out")

    for layer in layers:  # what it reads depends on the layers before: a forward for each
        with ExitStack() as stack:
            for earlier in put:
                stack.enter_context(use(earlier))
            with model.capture(layer, site=["mlp_in", "mlp_out"]) as held:
                model.forward(mx.array([ids]))
                x = np.array(held[layer, "mlp_in"][0].astype(mx.float32))
                y = np.array(held[layer, "mlp_out"][0].astype(mx.float32))
        y[1:] = by_numpy(folder / f"layer_{layer}", x)[1:] if means is None else means[layer]
        put[layer] = mx.array(y)[None]
    with ExitStack() as stack:
        for layer in put:
            stack.enter_context(use(layer))
        logits = np.array(model.forward(mx.array([ids]))[0].astype(mx.float32)).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(-log_p[np.arange(len(ids) - 1), ids[1:]].mean())


@pytest.mark.parametrize("kind", ["llama", "llama-8bit", "llama-bf16"])
def test_losses_with_each_and_with_all_mlps_replaced(tmp_path: Path, kind: str) -> None:
    model, text = model_of(kind), text_file(tmp_path)
    made = train_transcoders(model, text, tmp_path / "set", CONFIG, [0, -1], held_out=0, **READING)
    assert made.loss is not None
    assert made.loss.layers == (0, 1)
    for report, each in zip(made.reports, made.loss.each, strict=True):
        assert report.final is not None
        assert report.final.loss_spliced is not None
        assert report.final.fvu < 0.6
        assert each == pytest.approx(report.final.loss_spliced, abs=0.02)  # the same text, to the last window
    one = tmp_path / "one.jsonl"
    ids = model.tokens.encode("the dog ran to the sea where a cat lay")
    one.write_text(json.dumps({"text": "the dog ran to the sea where a cat lay"}))
    saes = [load_sae(tmp_path / "set" / f"layer_{layer}") for layer in (0, 1)]
    eos = getattr(model.tokens.tokenizer, "eos_token_id")  # noqa: B009 (not exported to type checkers); a document ends with it; nothing is predicted from there
    window = [*ids, eos]
    found = replaced_loss(model, saes, one, context=64)
    loose = 0.05 if kind == "llama-bf16" else 2e-3
    assert found.clean == pytest.approx(loss_by_hand(model, tmp_path / "set", window, []), abs=loose)
    assert found.each[0] == pytest.approx(loss_by_hand(model, tmp_path / "set", window, [0]), abs=loose)
    assert found.each[1] == pytest.approx(loss_by_hand(model, tmp_path / "set", window, [1]), abs=loose)
    assert found.every == pytest.approx(loss_by_hand(model, tmp_path / "set", window, [0, 1]), abs=loose)
    assert found.n_tokens == len(window) - 2
    with model.capture([0, 1], site=["mlp_out"]) as held:
        model.forward(mx.array([window]))
        # The first position and the separator at the end are left out.
        means = [np.array(held[layer, "mlp_out"][0, 1:-1].astype(mx.float32)).mean(0) for layer in (0, 1)]
    assert found.mean == pytest.approx(loss_by_hand(model, tmp_path / "set", window, [0, 1], means), abs=loose)


def test_a_set_is_taken_up_again_and_lies_as_circuit_tracer_reads_it(tmp_path: Path) -> None:
    model, text = model_of("llama"), text_file(tmp_path)
    calls = iter(range(100_000))
    stopped = train_transcoders(
        model, text, tmp_path / "set", CONFIG, [0, 1], should_stop=lambda: next(calls) > 150, **READING
    )
    assert stopped.stopped
    seen: list[tuple[int, str]] = []
    made = train_transcoders(
        model,
        text,
        tmp_path / "set",
        CONFIG,
        [0, 1],
        progress=lambda layer, p: seen.append((layer, p.stage)),
        **READING,
    )
    assert not made.stopped
    whole = train_transcoders(model, text, tmp_path / "whole", CONFIG, [0, 1], **READING)
    assert made.loss == whole.loss
    files = sorted(file.name for file in (tmp_path / "set" / "circuit_tracer").iterdir())
    assert files == ["config.yaml", "layer_0.safetensors", "layer_1.safetensors"]
    for layer in (0, 1):
        sae = load_sae(tmp_path / "set" / "circuit_tracer" / f"layer_{layer}.safetensors")
        assert (sae.info.layer, sae.info.site, sae.info.site_out) == (layer, "mlp_in", "mlp_out")
    said = json.loads((tmp_path / "set" / "replaced_loss.json").read_text())
    assert said["every"] == made.loss.every if made.loss else False


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
def test_the_figures_are_those_of_the_mlps_own_input_and_output(tmp_path: Path, make: Any) -> None:
    """FVU and L0 over the text that was measured on, by NumPy; beside the mean output it is far better."""
    model = LensModel.from_model(make(vocab=8192), tiny.tokenizer())
    text = text_file(tmp_path)
    made = train_transcoders(model, text, tmp_path / "set", CONFIG, [1], held_out=0, **READING)
    final = made.reports[0].final
    assert final is not None
    source, _ = text_activations(model, text, [(1, "mlp_in"), (1, "mlp_out")], windowing=Windowing(**READING))
    parts: list[NDArray[np.float32]] = []
    for block in source.blocks():
        both = (np.array(block.values[1, site].astype(mx.float32)) for site in ("mlp_in", "mlp_out"))
        parts.append(np.concatenate(list(both), axis=1)[~block.special])
        if sum(len(part) for part in parts) >= CONFIG.evaluation_tokens:
            break
    rows = np.concatenate(parts)
    x, y = rows[:, :64], rows[:, 64:]
    assert final.n_tokens == len(rows)
    error = np.square(by_numpy(tmp_path / "set" / "layer_1", x) - y).sum()
    assert final.fvu == pytest.approx(error / np.square(y - y.mean(0)).sum(), rel=1e-3)
    assert final.fvu < 0.7


def test_what_is_no_transcoder_of_an_mlp_is_refused(tmp_path: Path) -> None:
    from tests.folders import sae_folder

    model = model_of("llama")
    with pytest.raises(LensError, match="does not read an MLP's input"):
        replaced_loss(model, [load_sae(sae_folder(tmp_path / "layer_1_width_64", d_model=64))], text_file(tmp_path))
    with pytest.raises(LensError, match="one transcoder a layer"):
        replaced_loss(model, [], text_file(tmp_path))


def test_a_text_that_is_read_is_read_at_some_of_its_places(tmp_path: Path) -> None:
    model, text = LensModel.from_model(tiny.llama(vocab=8192, layers=2), tiny.tokenizer()), text_file(tmp_path)
    places = [(layer, site) for layer in (0, 1) for site in ("mlp_in", "mlp_out")]
    source, _ = text_activations(model, text, places, windowing=Windowing(**READING))
    some = source.at([(-1, "mlp_out")])
    (whole,), (part,) = source.blocks(0, 1), some.blocks(0, 1)
    assert some.places == tuple(part.values) == ((1, "mlp_out"),)
    assert np.array_equal(np.array(part.values[1, "mlp_out"]), np.array(whole.values[1, "mlp_out"]))
    assert np.array_equal(part.token_ids, whole.token_ids)
    assert source.places == tuple(places)
    with pytest.raises(LensError, match="not read at layer 0, resid_post"):
        source.at([(0, "resid_post")])
